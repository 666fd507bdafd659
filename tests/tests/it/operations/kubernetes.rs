//! The manifests of deploy/kubernetes, and the compose files, against the programs: their settings, files, ports and probes.
//! The services are also started with exactly what the manifests give them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use chassis::clock::Clock;
use chassis::database::Url;
use chassis::server::DRAIN_MAX;
use clap::CommandFactory;
use proto::identity::{Role, TenantKind};
use serde_json::{Value, json};
use tests::assert::eventually;
use tests::clients::{Identity, caller};
use tests::fixtures::DIRECT;
use tests::identity_provider::{IdentityProvider, ProviderKey};
use tests::pki::{AUDIENCE, Pki, bearer};
use tests::processes::{Process, Processes, build_binaries};
use tests::service::channel_to;
use tests::{Backend, reason_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::acceptance_page::browser::Browser;
use crate::contract::access::{FOR_EVERYONE, call};

/// The identity provider of the overlay.
const ISSUER: &str = "https://identity.example";

/// Variables that libpq reads.
const OF_LIBPQ: &str = "PGSERVICEFILE";

const SERVICES: [(&str, &str); 2] = [("agreement-svc", "AGREEMENT"), ("order-svc", "ORDER")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The manifests of the overlay as kubectl renders them. Without it nothing is checked; in CI that is a failure, not a reason to skip.
#[expect(clippy::print_stderr, reason = "what is skipped must be seen")]
fn manifests() -> Option<Vec<Value>> {
    let rendered =
        Command::new("kubectl").arg("kustomize").arg(root().join("deploy/kubernetes/overlay")).output();
    let Ok(rendered) = rendered else {
        assert!(std::env::var_os("CI").is_none(), "kubectl must be installed in CI");
        eprintln!("SKIPPED without kubectl");
        return None;
    };
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    Some(serde_saphyr::from_multiple(&String::from_utf8(rendered.stdout).unwrap()).unwrap())
}

fn of_kind<'m>(all: &'m [Value], kind: &str) -> Vec<&'m Value> {
    let found: Vec<_> = all.iter().filter(|manifest| manifest["kind"] == kind).collect();
    assert!(!found.is_empty(), "there is no {kind}");
    found
}

fn name(manifest: &Value) -> &str {
    manifest["metadata"]["name"].as_str().unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn words(value: &Value) -> Vec<String> {
    list(value).map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The pods of a Deployment or Job, and their one container.
fn pod(manifest: &Value) -> (&Value, &Value) {
    let pod = &manifest["spec"]["template"]["spec"];
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "{}", name(manifest));
    (pod, &pod["containers"][0])
}

/// The environment of a container, which has nothing but its ConfigMap.
fn environment(all: &[Value], container: &Value) -> BTreeMap<String, String> {
    assert!(container["env"].is_null());
    let [from] = &container["envFrom"].as_array().unwrap()[..] else { panic!("{container}") };
    let settings = of_kind(all, "ConfigMap")
        .into_iter()
        .find(|settings| settings["metadata"]["name"] == from["configMapRef"]["name"]);
    let settings = settings.unwrap()["data"].as_object().unwrap();
    settings.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// A volume of a pod.
fn volume<'m>(pod: &'m Value, name: &str) -> Option<&'m Value> {
    list(&pod["volumes"]).find(|volume| volume["name"] == name)
}

/// The files that the volume of Secrets shows, with the Secret and key that each comes from.
fn secret_files(pod: &Value) -> BTreeMap<String, (String, String)> {
    let volume = volume(pod, "secrets").unwrap();
    let projected = list(&volume["projected"]["sources"]).map(|source| (&source["secret"], "name"));
    let plain = volume["secret"].as_object().map(|_| (&volume["secret"], "secretName"));
    let files = projected.chain(plain).flat_map(|(secret, name)| {
        let name = secret[name].as_str().unwrap();
        list(&secret["items"]).map(move |item| {
            let [key, path] = ["key", "path"].map(|field| item[field].as_str().unwrap().to_owned());
            (path, (name.to_owned(), key))
        })
    });
    files.collect()
}

/// The file of identity providers that a Deployment mounts.
fn identity_providers(all: &[Value], pod: &Value) -> Value {
    let mounted = &volume(pod, "identity").unwrap()["configMap"]["name"];
    let map = of_kind(all, "ConfigMap").into_iter().find(|map| map["metadata"]["name"] == *mounted);
    let files = map.unwrap()["data"].as_object().unwrap();
    let [(name, contents)] = files.iter().collect::<Vec<_>>()[..] else { panic!("{files:?}") };
    assert_eq!(name, "providers.json");
    serde_json::from_str(contents.as_str().unwrap()).unwrap()
}

/// The variables that a program reads, in whichever command.
fn variables(program: &str) -> BTreeSet<String> {
    let mut command = match program {
        "agreement-svc" => agreement_svc::config::Cli::command(),
        _ => order_svc::config::Cli::command(),
    };
    command.build();
    let of = |name| command.find_subcommand(name).unwrap().get_arguments();
    let all = ["serve", "migrate", "check-health"].into_iter().flat_map(of);
    all.filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())).collect()
}

/// Whether a command of a manifest, which names the program first, is one of the program's.
fn check_command(command: &[String]) {
    let mut program = match command[0].as_str() {
        "agreement-svc" => agreement_svc::config::Cli::command(),
        "order-svc" => order_svc::config::Cli::command(),
        other => panic!("{other} is none of the programs"),
    };
    // Settings come from the environment, which is not that of the container here.
    let chosen = program.find_subcommand_mut(&command[1]);
    assert!(chosen.is_some() && command.len() == 2, "{command:?}");
}

#[test]
fn every_variable_is_a_setting_of_the_program() {
    let mut given = vec![];
    if let Some(all) = manifests() {
        for manifest in of_kind(&all, "Deployment").into_iter().chain(of_kind(&all, "Job")) {
            let service = manifest["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap();
            let names: Vec<_> = environment(&all, pod(manifest).1).into_keys().collect();
            given.push((service.to_owned(), name(manifest).to_owned(), names));
        }
        assert_eq!(given.len(), 4);
    }
    for file in ["docker-compose.yml", "deploy/compose.dev.yml"] {
        let compose: Value = serde_saphyr::from_str(&fs::read_to_string(root().join(file)).unwrap()).unwrap();
        for (service, _) in SERVICES {
            let names = compose["services"][service]["environment"].as_object().unwrap();
            given.push((service.to_owned(), file.to_owned(), names.keys().cloned().collect()));
        }
    }
    for (service, place, names) in given {
        let known = variables(&service);
        let unknown: Vec<_> =
            names.iter().filter(|name| !known.contains(*name) && *name != OF_LIBPQ).collect();
        assert!(unknown.is_empty(), "{place}: {service} does not read {unknown:?}");
    }
}

/// Every file that a setting names is mounted, every mounted key is documented, and a file of a Secret is of use.
#[test]
fn every_file_is_mounted_and_every_secret_is_documented() {
    let Some(all) = manifests() else { return };
    let page = fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let mut secrets = String::new();
    let mut documented = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        if !cells[1].is_empty() {
            cells[1].clone_into(&mut secrets);
        }
        let names = |cell: &str| cell.split(", ").map(|name| name.replace('`', "")).collect::<Vec<_>>();
        for secret in names(&secrets) {
            documented.extend(names(cells[2]).into_iter().map(|key| (secret.clone(), key)));
        }
    }
    for manifest in of_kind(&all, "Deployment").into_iter().chain(of_kind(&all, "Job")) {
        let (pod, container) = pod(manifest);
        let files = secret_files(pod);
        for mount in list(&container["volumeMounts"]) {
            assert_eq!(mount["mountPath"], format!("/{}", mount["name"].as_str().unwrap()));
            assert!(volume(pod, mount["name"].as_str().unwrap()).is_some(), "{mount}");
        }
        if manifest["kind"] == "Deployment" {
            let providers = identity_providers(&all, pod);
            let keys = list(&providers["providers"]).filter_map(|entry| entry["keys"]["jwks_file"].as_str());
            let keys: BTreeSet<String> = keys.map(str::to_owned).collect();
            let settings = environment(&all, container);
            let named = settings.into_values().filter(|value| value.starts_with('/')).chain(keys);
            let named: BTreeSet<String> = named.collect();
            // pg_service.conf names this one.
            let secrets = files.keys().filter(|file| *file != "database-ca.crt");
            let mounted = secrets.map(|file| format!("/secrets/{file}"));
            let mounted: BTreeSet<String> = mounted.chain(["/identity/providers.json".to_owned()]).collect();
            assert_eq!(mounted, named, "{}", name(manifest));
        }
        for (file, secret) in &files {
            assert!(documented.contains(secret), "docs/kubernetes.md does not describe {file}: {secret:?}");
        }
    }
}

/// Whether labels are among others.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector.as_object().unwrap().iter().all(|(label, value)| labels[label] == *value)
}

/// The number of a container's port.
fn port<'m>(container: &'m Value, name: &Value) -> Option<&'m Value> {
    list(&container["ports"]).find(|port| port["name"] == *name).map(|port| &port["containerPort"])
}

/// What the pods and the migrations need is applied before them, by its label.
#[test]
fn settings_and_policies_are_applied_first() {
    let Some(all) = manifests() else { return };
    for kind in ["Namespace", "ConfigMap", "NetworkPolicy"] {
        for manifest in of_kind(&all, kind) {
            let component = &manifest["metadata"]["labels"]["app.kubernetes.io/component"];
            assert_eq!(component, "settings", "{kind} {}", name(manifest));
        }
    }
}

/// Selectors select the pods of their service, ports have the programs' numbers, and shutdown has the time that it takes.
#[test]
fn selectors_ports_and_times_fit_together() {
    let Some(all) = manifests() else { return };
    let pods: Vec<(&Value, &Value)> = of_kind(&all, "Deployment")
        .into_iter()
        .map(|deployment| (&deployment["spec"]["template"]["metadata"]["labels"], pod(deployment).1))
        .collect();
    let jobs = of_kind(&all, "Job").into_iter().map(|job| &job["spec"]["template"]["metadata"]["labels"]);
    let jobs: Vec<&Value> = jobs.collect();
    let selected = |selector: &Value| {
        let found: Vec<_> = pods.iter().filter(|(labels, _)| selects(selector, labels)).collect();
        assert!(jobs.iter().all(|labels| !selects(selector, labels)), "{selector} selects a migration");
        found
    };
    for (service, prefix) in SERVICES {
        let find = |kind| of_kind(&all, kind).into_iter().find(|manifest| name(manifest) == service).unwrap();
        let deployment = find("Deployment");
        let (pod, container) = pod(deployment);
        let settings = environment(&all, container);
        let listens = settings.iter().filter(|(name, _)| name.ends_with("LISTEN")).map(|(name, address)| {
            let port_name = match name.strip_prefix(prefix).unwrap() {
                "_LISTEN" => "grpc",
                "_METRICS_LISTEN" => "metrics",
                "_ACCEPTANCE_LISTEN" => "page",
                other => panic!("{other} is a new listener: give it a port"),
            };
            (port_name.to_owned(), address.rsplit_once(':').unwrap().1.to_owned())
        });
        let ports = list(&container["ports"])
            .map(|port| (port["name"].as_str().unwrap().to_owned(), port["containerPort"].to_string()));
        assert_eq!(ports.collect::<BTreeMap<_, _>>(), listens.collect::<BTreeMap<_, _>>(), "{service}");
        let spec = &deployment["spec"];
        let dispersed = list(&pod["topologySpreadConstraints"]).map(|spread| &spread["labelSelector"]);
        let selectors = [&spec["selector"], &find("PodDisruptionBudget")["spec"]["selector"]];
        for selector in selectors.into_iter().chain(dispersed) {
            assert_eq!(
                selected(&selector["matchLabels"]),
                [&(&spec["template"]["metadata"]["labels"], container)]
            );
        }
        let (address, monitor) = (find("Service"), find("ServiceMonitor"));
        assert_eq!(selected(&address["spec"]["selector"]).len(), 1);
        assert_eq!(address["spec"]["clusterIP"], "None", "order-svc connects to each pod");
        for known in list(&address["spec"]["ports"]) {
            assert_eq!(port(container, &known["targetPort"]), Some(&known["port"]), "{service}");
        }
        assert!(selects(&monitor["spec"]["selector"]["matchLabels"], &address["metadata"]["labels"]));
        let scraped = &monitor["spec"]["endpoints"][0]["port"];
        assert!(list(&address["spec"]["ports"]).any(|known| known["name"] == *scraped));

        assert_eq!(words(&container["args"]), ["serve"]);
        check_command(&words(&container["startupProbe"]["exec"]["command"]));
        for probe in ["livenessProbe", "readinessProbe"] {
            assert!(port(container, &container[probe]["httpGet"]["port"]).is_some(), "{service}: {probe}");
        }
        let pause = words(&container["lifecycle"]["preStop"]["exec"]["command"]);
        let ["sleep", seconds] = [&*pause[0], &*pause[1]] else { panic!("{pause:?}") };
        let end = seconds.parse::<u64>().unwrap() + DRAIN_MAX.as_secs();
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > end, "{service}");
    }
    for job in of_kind(&all, "Job") {
        let service = job["metadata"]["labels"]["app.kubernetes.io/name"].as_str().unwrap().to_owned();
        check_command(&[vec![service], words(&pod(job).1["args"])].concat());
    }
    let check_ports = |policy: &Value, selector: &Value, rule: &Value| {
        let chosen = selected(selector);
        assert!(!chosen.is_empty(), "{}", name(policy));
        for allowed in list(&rule["ports"]).map(|allowed| &allowed["port"]) {
            let has =
                |container: &Value| list(&container["ports"]).any(|port| port["containerPort"] == *allowed);
            assert!(chosen.iter().all(|(_, container)| has(container)), "{}: {allowed}", name(policy));
        }
    };
    for policy in of_kind(&all, "NetworkPolicy") {
        let of_pods = &policy["spec"]["podSelector"]["matchLabels"];
        if of_pods.is_object() {
            assert!(!selected(of_pods).is_empty(), "{}", name(policy));
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for rule in list(&policy["spec"][direction]) {
                let peers = list(&rule[peers]);
                let own =
                    peers.filter(|peer| peer["namespaceSelector"].is_null() && peer["ipBlock"].is_null());
                for peer in own.map(|peer| &peer["podSelector"]["matchLabels"]) {
                    assert_eq!(selected(peer).len(), 1, "{}", name(policy));
                    if direction == "egress" {
                        check_ports(policy, peer, rule);
                    }
                }
                if direction == "ingress" {
                    check_ports(policy, of_pods, rule);
                }
            }
        }
    }
    let orders = of_kind(&all, "Deployment").into_iter().find(|of| name(of) == "order-svc").unwrap();
    let agreements = &environment(&all, pod(orders).1)["ORDER_AGREEMENTS"];
    assert_eq!(agreements, "https://agreement-svc:50051");
}

/// The section of a service file that says what a URL says, but for `options`, which the services set themselves.
fn service_section(name: &str, database: &Url) -> String {
    let Url::Postgres(url) = database else { panic!("{database} is not PostgreSQL") };
    let (place, parameters) = url.split_once("://").unwrap().1.split_once('?').unwrap_or_default();
    let (user, place) = place.split_once('@').unwrap();
    let (host, dbname) = place.split_once('/').unwrap();
    let (host, port) = host.split_once(':').unwrap_or((host, "5432"));
    let user = user.split_once(':').unwrap_or((user, ""));
    let mut all = BTreeMap::from([("user", user.0), ("password", user.1), ("host", host), ("port", port)]);
    all.insert("dbname", dbname);
    all.extend(parameters.split('&').filter_map(|parameter| parameter.split_once('=')));
    let lines = all.into_iter().filter(|(key, value)| !value.is_empty() && *key != "options");
    let lines: String = lines.map(|(key, value)| format!("{key}={value}\n")).collect();
    format!("[{name}]\n{lines}")
}

fn options(database: &Url) -> &str {
    let Url::Postgres(url) = database else { panic!("{database} is not PostgreSQL") };
    url.split_once("options=").and_then(|(_, options)| options.split('&').next()).unwrap()
}

/// The files of a service's Secrets, which its group can read, as those of a pod.
fn write_secrets(pki: &Pki, pod: &Value, section: &str, folder: &Path) {
    fs::create_dir(folder).unwrap();
    for file in secret_files(pod).keys() {
        let of_pki = |name: &str| fs::read(pki.file(name)).unwrap();
        let contents = match file.as_str() {
            "tls.crt" => of_pki("server.pem"),
            "tls.key" => of_pki("server.key"),
            "ca.crt" | "database-ca.crt" => of_pki("ca.pem"),
            "jwks.json" | "service.token" => of_pki(file),
            "pg_service.conf" => section.into(),
            "invitation.key" | "request.key" => vec![7; 32],
            "smtp.password" => b"secret".to_vec(),
            other => panic!("{other} is a new file: give it contents"),
        };
        let path = folder.join(file);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    }
}

/// The status of a probe by HTTP, as the manifest of the container describes it.
async fn http_probe(process: &Process, container: &Value, probe: &str) -> String {
    let path = container[probe]["httpGet"]["path"].as_str().unwrap();
    let mut connection = TcpStream::connect(process.metrics_address()).await.unwrap();
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

/// The file of identity providers in which only what exists in the test alone is replaced: the folder of the Secret, the issuer of
/// order-svc's token, the URL of the identity provider, and the audience.
fn write_providers(mut providers: Value, own: &str, others: &IdentityProvider, secrets: &Path, file: &Path) {
    for entry in providers["providers"].as_array_mut().unwrap() {
        entry["audiences"] = json!([AUDIENCE]);
        match entry["keys"]["jwks_file"].as_str() {
            None => {
                let published = others.setting(AUDIENCE, &json!({}), &json!([]));
                for (field, url) in entry["keys"].as_object_mut().unwrap() {
                    *url = published["keys"][field].clone();
                }
            }
            Some(keys) => {
                let keys = keys.replace("/secrets", secrets.to_str().unwrap());
                entry["keys"]["jwks_file"] = keys.into();
                entry["issuer"] = own.into();
            }
        }
    }
    fs::write(file, providers.to_string()).unwrap();
}

/// Both services, with the environment of the manifests in which only folders, ports and issuers are replaced: the Jobs migrate,
/// the probes pass, order-svc follows agreement-svc by its name, an invalid certificate takes no pod out, and tokens of the
/// identity provider are accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_services_start_as_the_manifests_say() {
    tests::needs_own!("services that it starts");
    tests::needs!(Backend::Postgres);
    let Some(all) = manifests() else { return };
    build_binaries().unwrap();
    let pki = Pki::new(Clock::system()).unwrap();
    let mut processes = Processes::replicated().unwrap();
    processes.replicas = None;
    let page = processes.agreements.reserve_address().unwrap();
    let folder = processes.folder().to_owned();
    let agreements_port = processes.agreements.socket_address().port();
    let own_issuer = pki.identity().jwt_issuer.unwrap();
    let key = ProviderKey::generate("key").unwrap();
    let identity_provider = IdentityProvider::start(ISSUER, &[&key]).await.unwrap();
    let mut claims = pki.issuer().claims(&caller(TenantKind::Partner, DIRECT, &[Role::SalesAgent]));
    claims["iss"] = ISSUER.into();
    let token = key.sign(&claims);
    let container = |service: &str| {
        let deployment = of_kind(&all, "Deployment").into_iter().find(|one| name(one) == service);
        pod(deployment.unwrap())
    };
    let [agreements, orders] = [&mut processes.agreements, &mut processes.orders];
    for ((service, prefix), process) in SERVICES.into_iter().zip([agreements, orders]) {
        let (pod_spec, container) = container(service);
        let settings = environment(&all, container);
        let (secrets, providers) = (folder.join(service), folder.join(format!("{service}.json")));
        let section = settings[&format!("{prefix}_DATABASE")].rsplit_once('=').unwrap().1;
        write_secrets(&pki, pod_spec, &service_section(section, process.database()), &secrets);
        let configured = identity_providers(&all, pod_spec);
        write_providers(configured, &own_issuer, &identity_provider, &secrets, &providers);
        let port = process.socket_address().port();
        let configured = settings.into_iter().map(|(name, value)| {
            let value = match name.strip_prefix(prefix).unwrap_or(&name) {
                "_LISTEN" => process.socket_address().to_string(),
                "_METRICS_LISTEN" => process.metrics_address().to_string(),
                "_ACCEPTANCE_LISTEN" => page.to_string(),
                "_ADDRESS" => format!("{}:{port}", value.rsplit_once(':').unwrap().0),
                "_AGREEMENTS" => format!("https://localhost:{agreements_port}"),
                "_IDENTITY_PROVIDERS" => providers.display().to_string(),
                // The schema of the test.
                "_DATABASE" => format!("{value}&options={}", options(process.database())),
                _ => value.replace("/secrets", secrets.to_str().unwrap()),
            };
            (name, value)
        });
        let configured: Vec<_> = configured.collect();
        process.configure(configured, pki.client_tls(Some("client")));

        let job = of_kind(&all, "Job").into_iter().find(|job| name(job) == format!("{service}-migrate"));
        let migrated = process.command(&words(&pod(job.unwrap()).1["args"])).unwrap();
        assert!(migrated.status.success(), "{service}: {}", String::from_utf8_lossy(&migrated.stderr));
        process.start().await.unwrap();
        let check = &words(&container["startupProbe"]["exec"]["command"])[1..];
        let passes = || process.command(check).unwrap().status.success();
        assert!(passes(), "{service}: the startup probe");
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(http_probe(process, container, probe).await, "200", "{service}: {probe}");
        }
        let path = FOR_EVERYONE.into_iter().find(|path| path.contains(&service.replace("-svc", ""))).unwrap();
        let channel = channel_to(&process.address(), &pki.client_tls(Some("client")), |endpoint| endpoint);
        let accepted = async || {
            let refused = call(&channel, Identity::by(bearer(&token)), path, &[]).await.unwrap_err();
            (reason_of(&refused) == "INVALID_FIELDS").then_some(())
        };
        eventually("a token of the identity provider is accepted", accepted).await;
        fs::write(secrets.join("tls.crt"), "no certificate").unwrap();
        let metric = format!("{}_files_unusable{{files=\"server-tls\"}} 1", service.replace('-', "_"));
        let is_seen = async || process.metrics().await.unwrap().contains(&metric).then_some(());
        eventually("the invalid certificate is seen", is_seen).await;
        assert!(!passes(), "{service}: the startup probe reads the certificate");
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(http_probe(process, container, probe).await, "200", "{service}: {probe}");
        }
    }
    let is_followed = async || {
        let metrics = processes.orders.metrics().await.unwrap();
        let behind = metrics.lines().find_map(|line| line.strip_prefix("order_svc_history_behind_seconds "));
        behind.unwrap().parse::<f64>().is_ok_and(f64::is_finite).then_some(())
    };
    eventually("order-svc follows agreement-svc", is_followed).await;
    let browser = Browser::at(page, Some(&pki.file("ca.pem")));
    let browser = browser.with("authorization", format!("Bearer {token}"));
    browser.get("/partners").await.assert_says(403, &["<h1>Not allowed</h1>"]);
    processes.orders.stop().unwrap();
    processes.agreements.stop().unwrap();
}
