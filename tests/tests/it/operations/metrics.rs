//! Metrics, alerts and the dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chassis::auth::jwt::signing::SigningKey;
use chassis::clock::Clock;
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use rstest_reuse::apply;
use serde_json::json;
use tests::fixtures::{self, DIRECT, OFFICE};
use tests::identity_provider::IdentityProvider;
use tests::pki::Ca;
use tests::processes::{Processes, build_binaries};
use tests::{As, Backend, Cluster, Setup, actions};

use crate::each_backend;
use tokio::time::timeout;
use tonic::codegen::http::uri::PathAndQuery;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Prometheus' own judge of metrics and rules. Without it nothing is judged; in CI that is a failure, not a
/// reason to skip.
#[expect(clippy::print_stderr, reason = "what is skipped must be seen")]
fn promtool() -> Option<Command> {
    if Command::new("promtool").arg("--version").output().is_ok() {
        return Some(Command::new("promtool"));
    }
    assert!(std::env::var_os("CI").is_none(), "promtool must be installed in CI");
    eprintln!("SKIPPED without promtool");
    None
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Has a scrape judged.
fn judge(scrape: &str) {
    assert!(scrape.contains("\r\ncontent-type: text/plain; version=0.0.4\r\n"), "{scrape}");
    let Some(mut promtool) = promtool() else { return };
    let judge = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut judge = judge.stderr(Stdio::piped()).spawn().unwrap();
    let body = scrape.split_once("\r\n\r\n").unwrap().1;
    judge.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let judged = judge.wait_with_output().unwrap();
    let complaints = [judged.stdout, judged.stderr].concat();
    assert!(judged.status.success(), "{}\n{body}", String::from_utf8_lossy(&complaints));
}

fn names(all: BTreeMap<String, f64>) -> impl Iterator<Item = String> {
    all.into_keys().map(|name| name.split('{').next().unwrap().to_owned())
}

/// The samples of a scrape, by name and labels.
fn samples(scrape: &str) -> BTreeMap<String, f64> {
    let body = scrape.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// One order that is placed, one that is blocked, two that are refused, and a call that there is none of.
async fn traffic(as_operator: &As, direct: &As) {
    actions::register_partners_as(as_operator).await.unwrap();
    let customer = actions::create_customer(direct, "Contoso", "FR", None).await.unwrap();
    actions::order(direct, &customer, None, 1).await.unwrap_err();
    actions::attest(direct, &customer, Clock::system().now()).await.unwrap();
    actions::order(direct, &customer, None, 1).await.unwrap();
    direct.orders().create_order(fixtures::new_order("no id", None, OFFICE, 1)).await.unwrap_err();
    let stranger = fixtures::request_id();
    direct.orders().create_order(fixtures::new_order(&stranger, None, OFFICE, 1)).await.unwrap_err();
    for path in ["/csp.order.v1.OrderService/Invent", "/jane.doe@contoso.example"] {
        let mut nothing = tonic::client::Grpc::new(direct.orders.clone());
        nothing.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = PathAndQuery::from_static(path);
        nothing.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    }
}

/// Prometheus accepts the metrics of both services, alerts and dashboard use no other metrics, and the page describes
/// each.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn alerts_and_dashboard_use_only_exposed_metrics() {
    tests::needs_own!("metrics of services of its own");
    build_binaries().unwrap();
    let mut said = BTreeSet::new();
    for backend in Backend::all() {
        let mut processes = Processes::new(backend).unwrap();
        processes.start().await.unwrap();
        let direct = processes.as_caller(fixtures::sales(DIRECT));
        traffic(&processes.as_caller(fixtures::operator()), &direct).await;
        let (mut agreements, mut orders) = (String::new(), String::new());
        let reported = async {
            let has = |of: &str, name: &str, value: f64| samples(of).get(name) == Some(&value);
            while !has(&orders, "order_svc_purchase_reports_waiting", 0.0)
                || !has(
                    &orders,
                    "order_svc_history_revision",
                    samples(&agreements)["agreement_svc_history_revision"],
                )
            {
                agreements = processes.agreements.metrics().await.unwrap();
                orders = processes.orders.metrics().await.unwrap();
            }
        };
        timeout(LONG, reported).await.unwrap();
        judge(&agreements);
        judge(&orders);

        let all: BTreeMap<_, _> = samples(&agreements).into_iter().chain(samples(&orders)).collect();
        let expect = |name: &str, value: f64| {
            assert_eq!(all.get(name), Some(&value), "{name} in {all:#?}");
        };
        let decided = |service: &str, labels: &str, value| {
            expect(&format!("{service}_gate_decisions_total{{{labels}}}"), value);
        };
        decided("order_svc", r#"decision="ALLOWED",reasons="",rule="ATTESTATION""#, 1.0);
        decided("order_svc", r#"decision="BLOCKED",reasons="NO_ACCEPTANCE",rule="""#, 1.0);
        decided("order_svc", r#"decision="REFUSED",reasons="NOT_TOGETHER",rule="""#, 1.0);
        decided("order_svc", r#"decision="UNKNOWN",reasons="",rule="""#, 0.0);
        decided("agreement_svc", r#"decision="ALLOWED",reasons="",rule="ATTESTATION""#, 1.0);
        decided(
            "agreement_svc",
            r#"decision="BLOCKED",reasons="NO_ACCEPTANCE",rule="NO_SATISFYING_ACCEPTANCE""#,
            1.0,
        );
        let create = "/csp.order.v1.OrderService/CreateOrder";
        for (path, code, value) in [
            (create, "Ok", 1.0),
            (create, "FailedPrecondition", 1.0),
            (create, "InvalidArgument", 1.0),
            (create, "NotFound", 1.0),
            (create, "Internal", 0.0),
            // There is no end to what callers can make up.
            ("unknown", "Unimplemented", 2.0),
        ] {
            expect(&format!(r#"order_svc_calls_total{{code="{code}",path="{path}"}}"#), value);
        }
        expect(&format!(r#"order_svc_call_duration_seconds_count{{path="{create}"}}"#), 4.0);
        expect("order_svc_calls_in_progress", 0.0);
        expect("agreement_svc_database_answers", 1.0);
        expect("agreement_svc_history_revision", all["order_svc_history_revision"]);
        expect(r#"order_svc_build_info{commit="unknown",version="0.1.0"}"#, 1.0);
        assert!(all.keys().all(|name| !name.contains(&DIRECT.to_string()) && !name.contains("jane")));
        said.extend(names(all));
    }
    let provider = IdentityProvider::start("https://other-issuer.example", &[]).await.unwrap();
    let identity_providers = vec![provider.setting("csp", &json!({}), &json!([]))];
    let with_provider = Setup { secured: true, identity_providers, ..Setup::default() };
    said.extend(names(numbers(&Cluster::start(with_provider).await.unwrap()).await));

    // Every name that alerts and dashboard use.
    for file in ["prometheus/alerts.yml", "grafana/dashboards/agreement-gate.json"] {
        let text = std::fs::read_to_string(deploy(file)).unwrap();
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        let asked: Vec<_> = words
            .into_iter()
            .filter(|word| {
                ["agreement_svc_", "order_svc_", "process_"].iter().any(|own| word.starts_with(own))
            })
            .collect();
        assert!(asked.len() > 5, "{file}: {asked:?}");
        for name in asked {
            assert!(said.contains(name), "{file} asks for {name}, which is not exposed: {said:#?}");
        }
    }

    // The page describes every metric, and no other.
    let own = |name: &str| -> Option<String> {
        let name = name.strip_prefix("agreement_svc_").or(name.strip_prefix("order_svc_"))?;
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        Some(of_histogram.unwrap_or(name).to_owned())
    };
    let exposed: BTreeSet<_> = said.iter().filter_map(|name| own(name)).collect();
    assert_eq!(described("metric"), exposed);
}

/// The first column of the table of docs/operations.md with this title.
fn described(title: &str) -> BTreeSet<String> {
    let page = deploy("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with(&format!("| {title} |"))).skip(2);
    rows.map_while(|row| row.strip_prefix("| `")?.split_once('`').map(|(name, _)| name.to_owned())).collect()
}

#[test]
fn the_docs_say_what_to_do_about_each_alert() {
    let alerts = std::fs::read_to_string(deploy("prometheus/alerts.yml")).unwrap();
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned));
    assert_eq!(described("alert"), alerts.collect());
}

#[test]
fn the_rules_of_prometheus_are_right() {
    for arguments in [
        ["check", "rules", "prometheus/alerts.yml"],
        ["test", "rules", "prometheus/alerts.test.yml"],
        ["check", "config", "prometheus/prometheus.yml"],
    ] {
        let Some(mut promtool) = promtool() else { return };
        let [what, of, file] = arguments;
        let judged = promtool.args([what, of]).arg(deploy(file)).output().unwrap();
        let words = [judged.stdout, judged.stderr].concat();
        assert!(judged.status.success(), "{file}: {}", String::from_utf8_lossy(&words));
    }
}

/// The numbers of both services.
async fn numbers(cluster: &Cluster) -> BTreeMap<String, f64> {
    let agreements = cluster.agreements_metrics().await.unwrap();
    let orders = cluster.orders_metrics().await.unwrap();
    samples(&agreements).into_iter().chain(samples(&orders)).collect()
}

async fn secured() -> Cluster {
    Cluster::start(Setup { secured: true, ..Setup::default() }).await.unwrap()
}

/// The numbers of both services, once some are as they are to be.
async fn numbers_once(cluster: &Cluster, expected: &[(String, f64)]) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let waiting = async {
        while expected.iter().any(|(name, value)| all.get(name) != Some(value)) {
            all = numbers(cluster).await;
        }
    };
    let waited = timeout(LONG, waiting).await;
    assert!(waited.is_ok(), "{expected:#?} are not in {all:#?}");
    all
}

/// The metrics say when certificates and tokens end, and which files are unusable.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn metrics_name_the_ends_of_credentials_and_unusable_files() {
    tests::needs_own!("keys and certificates that it makes");
    let cluster = secured().await;
    let pki = cluster.pki();
    let year = |year| chrono::NaiveDate::from_ymd_opt(year, 1, 1).unwrap();
    let year = |number| year(number).and_time(chrono::NaiveTime::MIN).and_utc().timestamp() as f64;
    let metric = |service: &str, what: &str, label: &str, of: &str, value: f64| {
        (format!(r#"{service}_{what}{{{label}="{of}"}}"#), value)
    };
    let ends = |service, credential, value| {
        metric(service, "credential_ends_timestamp_seconds", "credential", credential, value)
    };
    let unusable = |service, files, value| metric(service, "files_unusable", "files", files, value);
    let both = ["agreement_svc", "order_svc"];
    let all_files = || {
        let of_both = both.into_iter().flat_map(|of| [(of, "server-tls"), (of, "token-keys")]);
        of_both.chain([("order_svc", "client-tls"), ("order_svc", "service-token")])
    };

    // Of several certificates the one that ends first, whichever place it has.
    let (ca, other) = (Ca::until(2042).unwrap(), Ca::until(2041).unwrap());
    pki.issue_until(&ca, "server", 2040).unwrap();
    let chain = std::fs::read_to_string(pki.file("server.pem")).unwrap();
    pki.put("server.pem", &format!("{chain}{}", Ca::until(2039).unwrap().pem())).unwrap();
    pki.issue_until(&ca, "client", 2038).unwrap();
    pki.put("ca.pem", &format!("{}{}", ca.pem(), other.pem())).unwrap();
    let issuer = pki.issuer();
    let now = Clock::system().now().timestamp();
    let mut claims = issuer.claims(&fixtures::service());
    (claims["iat"], claims["exp"]) = (now.into(), (now + 3600).into());
    pki.put("service.token", &issuer.signs().sign(&claims).unwrap()).unwrap();
    let token_begins =
        metric("order_svc", "credential_begins_timestamp_seconds", "credential", "service-token", now as f64);
    let mut expected = vec![
        ends("order_svc", "client-certificate", year(2038)),
        ends("order_svc", "server-ca", year(2041)),
        ends("order_svc", "service-token", (now + 3600) as f64),
        token_begins,
    ];
    for service in both {
        expected.push(ends(service, "server-certificate", year(2039)));
        expected.push(ends(service, "client-ca", year(2041)));
    }
    expected.extend(all_files().map(|(service, files)| unusable(service, files, 0.0)));
    let all = numbers_once(&cluster, &expected).await;
    let is_of_files = |name: &&String| name.contains("_credential_ends_") || name.contains("_files_");
    assert_eq!(all.keys().filter(is_of_files).count(), expected.len() - 1, "{all:#?}");

    // The metrics describe what is in use, and say that the files differ from it.
    let key = std::fs::read_to_string(pki.file("server.key")).unwrap();
    let right = [
        ("server.key", key),
        ("ca.pem", ca.pem()),
        ("jwks.json", SigningKey::public_set(&[issuer.signs()])),
        ("service.token", issuer.token(&fixtures::service())),
    ];
    for (file, _) in &right {
        pki.put(file, "nothing of use").unwrap();
    }
    let wrong: Vec<_> = all_files().map(|(service, files)| unusable(service, files, 1.0)).collect();
    let all = numbers_once(&cluster, &wrong).await;
    let (server, end) = ends("order_svc", "server-certificate", year(2039));
    assert_eq!(all[&server], end);
    for (file, contents) in &right {
        pki.put(file, contents).unwrap();
    }
    let mut expected: Vec<_> = all_files().map(|(service, files)| unusable(service, files, 0.0)).collect();
    expected.push(ends("order_svc", "server-ca", year(2042)));
    numbers_once(&cluster, &expected).await;
    judge(&cluster.agreements_metrics().await.unwrap());
    judge(&cluster.orders_metrics().await.unwrap());
}

#[apply(each_backend)]
async fn what_is_not_done_yet_is_counted_with_the_age_of_the_oldest(#[case] backend: Backend) {
    tests::needs_own!("metrics of services of its own");
    tests::needs!(backend);
    let clock = Clock::manual(Clock::system().now());
    // No server takes mails.
    let smtp = Some("smtp://127.0.0.1:1?tls=none".to_owned());
    let setup = Setup { backend, clock: clock.clone(), smtp, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    traffic(&cluster.as_caller(fixtures::operator()), &cluster.as_caller(fixtures::sales(DIRECT))).await;
    let reported = async { while numbers(&cluster).await["order_svc_purchase_reports_waiting"] > 0.0 {} };
    timeout(LONG, reported).await.unwrap();
    let undone = [
        ("agreement_svc_mails_waiting", 1.0),
        ("agreement_svc_mails_oldest_age_seconds", 0.0),
        ("agreement_svc_mails_dead_letters", 0.0),
        ("order_svc_purchase_reports_oldest_age_seconds", 0.0),
        ("order_svc_terms_overdue", 0.0),
        ("order_svc_terms_overdue_oldest_age_seconds", 0.0),
    ];
    let now = numbers(&cluster).await;
    assert_eq!(undone.map(|(name, _)| (name, now[name])), undone);

    // A year and a day later nothing has been done, since nothing that it takes is there.
    let later = "due_at = '2999-01-01 00:00:00'";
    cluster.agreements_sql(&format!("UPDATE notification SET {later}")).unwrap();
    cluster.orders_sql("UPDATE subscription SET due_at = '2001-01-01 00:00:00'").unwrap();
    clock.set(clock.now() + TimeDelta::hours(1));
    // A report that is due in more than five minutes was written while a clock was ahead.
    let soon = (clock.now() + TimeDelta::minutes(4)).format("%Y-%m-%d %H:%M:%S");
    let waiting = format!("UPDATE purchase_report SET reported_at = NULL, due_at = '{soon}'");
    cluster.orders_sql(&waiting).unwrap();
    let now = numbers(&cluster).await;
    assert_eq!(now["agreement_svc_mails_oldest_age_seconds"], 3600.0);
    assert_eq!(now["order_svc_purchase_reports_waiting"], 1.0);
    assert_eq!(now["order_svc_purchase_reports_oldest_age_seconds"], 3600.0);
    assert_eq!(now["order_svc_terms_overdue"], 1.0);
    assert!(now["order_svc_terms_overdue_oldest_age_seconds"] > 3600.0);
    cluster.agreements_sql("UPDATE notification SET state = 'DEAD_LETTER'").unwrap();
    let now = numbers(&cluster).await;
    assert_eq!(now["agreement_svc_mails_dead_letters"], 1.0);
    assert_eq!(now["agreement_svc_mails_waiting"], 0.0);
    assert_eq!(now["agreement_svc_mails_oldest_age_seconds"], 0.0);
    cluster.stop_orders();
}

/// The metrics say that a database does not answer, and no value is made up.
#[apply(each_backend)]
async fn metrics_report_a_database_that_does_not_answer(#[case] backend: Backend) {
    tests::needs_own!("metrics of services of its own");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let read = ["mails_waiting", "mails_dead_letters", "history_revision"];
    let read = read.map(|name| format!("agreement_svc_{name}"));
    let now = numbers(&cluster).await;
    assert!(read.iter().all(|name| now.contains_key(name)), "{now:#?}");
    // It fails on one, and keeps every caller waiting on the other.
    let mut held = None;
    match backend {
        Backend::Sqlite => cluster.agreements_sql("ALTER TABLE notification RENAME TO gone").unwrap(),
        Backend::Postgres => {
            let mut other = tests::databases::connect(cluster.agreements_database()).unwrap();
            chassis::query!(&mut other, c => {
                c.batch_execute("BEGIN; LOCK TABLE notification IN ACCESS EXCLUSIVE MODE")
            })
            .unwrap();
            held = Some(other);
        }
    }
    let now = timeout(LONG, numbers(&cluster)).await.unwrap();
    assert_eq!(now["agreement_svc_database_answers"], 0.0);
    assert!(read.iter().all(|name| !now.contains_key(name)), "{now:#?}");
    assert_eq!(now["agreement_svc_calls_in_progress"], 0.0, "the other metrics stay");
    assert_eq!(now["order_svc_database_answers"], 1.0);
    drop(held);
}
