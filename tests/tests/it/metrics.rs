//! What both services say of themselves in numbers, and what is made of it: alarms and a dashboard.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chassis::clock::Clock;
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use tests::processes::{Processes, build_binaries};
use tests::world::{self, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup};
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
    world::register_partners_as(as_operator).await.unwrap();
    let customer = world::create_customer(direct, "Contoso", "FR", None).await.unwrap();
    world::order(direct, &customer, None, 1).await.unwrap_err();
    world::attest(direct, &customer, Clock::system().now()).await.unwrap();
    world::order(direct, &customer, None, 1).await.unwrap();
    direct.orders().create_order(world::new_order("nobody", None, OFFICE, 1)).await.unwrap_err();
    let stranger = world::request_id();
    direct.orders().create_order(world::new_order(&stranger, None, OFFICE, 1)).await.unwrap_err();
    for path in ["/csp.order.v1.OrderService/Invent", "/jane.doe@contoso.example"] {
        let mut nothing = tonic::client::Grpc::new(direct.orders.clone());
        nothing.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let path = PathAndQuery::from_static(path);
        nothing.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn prometheus_takes_what_both_services_say_and_alarms_and_dashboard_ask_for_nothing_else() {
    tests::needs_own!("metrics of services of its own");
    build_binaries().unwrap();
    let mut said = BTreeSet::new();
    for backend in Backend::all() {
        let mut processes = Processes::new(backend).unwrap();
        processes.start().await.unwrap();
        let direct = processes.as_caller(world::sales(DIRECT));
        traffic(&processes.as_caller(world::operator()), &direct).await;
        let (mut agreements, mut orders) = (String::new(), String::new());
        let told = async {
            let is_told = |of: &str, name: &str, value: f64| samples(of).get(name) == Some(&value);
            while !is_told(&orders, "order_svc_purchase_reports_waiting", 0.0)
                || !is_told(
                    &orders,
                    "order_svc_history_revision",
                    samples(&agreements)["agreement_svc_history_revision"],
                )
            {
                agreements = processes.agreements.metrics().await.unwrap();
                orders = processes.orders.metrics().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, told).await.unwrap();
        for scrape in [&agreements, &orders] {
            assert!(scrape.contains("\r\ncontent-type: text/plain; version=0.0.4\r\n"), "{scrape}");
            let Some(mut promtool) = promtool() else { continue };
            let judge = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut judge = judge.stderr(Stdio::piped()).spawn().unwrap();
            let body = scrape.split_once("\r\n\r\n").unwrap().1;
            judge.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
            let judged = judge.wait_with_output().unwrap();
            let complaints = [judged.stdout, judged.stderr].concat();
            assert!(judged.status.success(), "{}\n{body}", String::from_utf8_lossy(&complaints));
        }

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
            ("unknown", "Unauthenticated", 2.0),
        ] {
            expect(&format!(r#"order_svc_calls_total{{code="{code}",path="{path}"}}"#), value);
        }
        expect(&format!(r#"order_svc_call_duration_seconds_count{{path="{create}"}}"#), 4.0);
        expect("order_svc_calls_in_progress", 0.0);
        expect("agreement_svc_database_answers", 1.0);
        expect("agreement_svc_history_revision", all["order_svc_history_revision"]);
        expect(r#"order_svc_build_info{version="0.1.0"}"#, 1.0);
        assert!(all.keys().all(|name| !name.contains(&DIRECT.to_string()) && !name.contains("jane")));
        said.extend(all.into_keys().map(|name| name.split('{').next().unwrap().to_owned()));
    }

    // Every name that alarms and dashboard ask for.
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
            assert!(said.contains(name), "{file} asks for {name}, which nobody says: {said:#?}");
        }
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_not_done_yet_is_counted_with_the_age_of_the_oldest() {
    tests::needs_own!("metrics of services of its own");
    for backend in Backend::all() {
        let clock = Clock::manual(Clock::system().now());
        // Nobody takes mails.
        let smtp = Some("smtp://127.0.0.1:1?tls=none".to_owned());
        let setup = Setup { backend, clock: clock.clone(), smtp, ..Setup::default() };
        let mut cluster = Cluster::start(setup).await.unwrap();
        traffic(&cluster.as_caller(world::operator()), &cluster.as_caller(world::sales(DIRECT))).await;
        let reported = async { while numbers(&cluster).await["order_svc_purchase_reports_waiting"] > 0.0 {} };
        tokio::time::timeout(LONG, reported).await.unwrap();
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
        cluster.orders_sql(&format!("UPDATE purchase_report SET reported_at = NULL, {later}")).unwrap();
        cluster.agreements_sql(&format!("UPDATE notification SET {later}")).unwrap();
        cluster.orders_sql("UPDATE subscription SET due_at = '2001-01-01 00:00:00'").unwrap();
        clock.set(clock.now() + TimeDelta::hours(1));
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_database_that_does_not_answer_is_said_not_to_and_nothing_is_made_up() {
    tests::needs_own!("metrics of services of its own");
    for backend in Backend::all() {
        let cluster = Cluster::on(backend).await;
        let read = ["mails_waiting", "mails_dead_letters", "history_revision"];
        let read = read.map(|name| format!("agreement_svc_{name}"));
        let now = numbers(&cluster).await;
        assert!(read.iter().all(|name| now.contains_key(name)), "{now:#?}");
        // It fails on one, and keeps everybody waiting on the other.
        let mut held = None;
        match backend {
            Backend::Sqlite => cluster.agreements_sql("ALTER TABLE notification RENAME TO gone").unwrap(),
            Backend::Postgres => {
                let mut other = tests::cluster::connect(cluster.agreements_database()).unwrap();
                chassis::query!(&mut other, c => {
                    c.batch_execute("BEGIN; LOCK TABLE notification IN ACCESS EXCLUSIVE MODE")
                })
                .unwrap();
                held = Some(other);
            }
        }
        let now = tokio::time::timeout(LONG, numbers(&cluster)).await.unwrap();
        assert_eq!(now["agreement_svc_database_answers"], 0.0);
        assert!(read.iter().all(|name| !now.contains_key(name)), "{now:#?}");
        assert_eq!(now["agreement_svc_calls_in_progress"], 0.0, "what is known is told");
        assert_eq!(now["order_svc_database_answers"], 1.0);
        drop(held);
    }
}
