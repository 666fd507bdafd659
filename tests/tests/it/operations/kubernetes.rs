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
use serde_json::Value;
use tests::Backend;
use tests::assert::eventually;
use tests::pki::Pki;
use tests::processes::{Process, Processes, build_binaries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Variables that libpq reads.
const OF_LIBPQ: &str = "PGSERVICEFILE";

const SERVICES: [(&str, &str); 2] = [("agreement-svc", "AGREEMENT"), ("order-svc", "ORDER")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The manifests as kubectl renders them. Without it nothing is checked; in CI that is a failure, not a reason to skip.
#[expect(clippy::print_stderr, reason = "what is skipped must be seen")]
fn manifests() -> Option<Vec<Value>> {
    let rendered = Command::new("kubectl").arg("kustomize").arg(root().join("deploy/kubernetes")).output();
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

/// The file that a volume shows, and the Secret and key that it comes from.
fn secret_files(pod: &Value) -> BTreeMap<String, (String, String)> {
    let volume = &pod["volumes"][0];
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
        let mount = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
        let files = secret_files(pod);
        let settings = environment(&all, container);
        let named = settings.values().filter_map(|value| value.strip_prefix(&format!("{mount}/")));
        if manifest["kind"] == "Deployment" {
            let named: BTreeSet<&str> = named.collect();
            // The database's authority is named in the file beside it.
            let mounted: BTreeSet<&str> =
                files.keys().map(String::as_str).filter(|file| *file != "database-ca.crt").collect();
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
        for (port_name, variable) in [("grpc", "LISTEN"), ("metrics", "METRICS_LISTEN")] {
            let listens = settings[&format!("{prefix}_{variable}")].rsplit_once(':').unwrap().1.to_owned();
            assert_eq!(port(container, &port_name.into()).unwrap().to_string(), listens, "{service}");
        }
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
    for policy in of_kind(&all, "NetworkPolicy") {
        let rules = list(&policy["spec"]["ingress"]).chain(list(&policy["spec"]["egress"]));
        for rule in rules {
            let peers: Vec<_> = list(&rule["from"]).chain(list(&rule["to"])).collect();
            for peer in
                peers.iter().filter(|peer| peer["namespaceSelector"].is_null() && peer["ipBlock"].is_null())
            {
                assert_eq!(selected(&peer["podSelector"]["matchLabels"]).len(), 1, "{}", name(policy));
            }
            for known in list(&rule["ports"]).filter(|known| known["port"].is_string()) {
                assert!(pods.iter().all(|(_, container)| port(container, &known["port"]).is_some()));
            }
        }
        if let Some(selector) = policy["spec"]["podSelector"]["matchLabels"].as_object() {
            assert!(!selected(&selector.clone().into()).is_empty(), "{}", name(policy));
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
fn write_files(pki: &Pki, deployment: &Value, section: &str, folder: &Path) {
    fs::create_dir(folder).unwrap();
    for file in secret_files(pod(deployment).0).keys() {
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

/// Both services, with the environment of the manifests in which only folders, ports and issuer are replaced: the Jobs migrate,
/// the probes pass, order-svc follows agreement-svc by its name, and an invalid certificate takes no pod out.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_services_start_as_the_manifests_say() {
    tests::needs_own!("services that it starts");
    tests::needs!(Backend::Postgres);
    let Some(all) = manifests() else { return };
    build_binaries().unwrap();
    let pki = Pki::new(Clock::system()).unwrap();
    let mut processes = Processes::replicated().unwrap();
    processes.replicas = None;
    let folder = processes.folder().to_owned();
    let agreements_port = processes.agreements.socket_address().port();
    let identity = pki.identity();
    let container = |service: &str| {
        let deployment = of_kind(&all, "Deployment").into_iter().find(|one| name(one) == service);
        (deployment.unwrap(), pod(deployment.unwrap()).1)
    };
    let [agreements, orders] = [&mut processes.agreements, &mut processes.orders];
    for ((service, prefix), process) in SERVICES.into_iter().zip([agreements, orders]) {
        let (deployment, container) = container(service);
        let settings = environment(&all, container);
        let secrets = folder.join(service);
        let section = settings[&format!("{prefix}_DATABASE")].rsplit_once('=').unwrap().1;
        write_files(&pki, deployment, &service_section(section, process.database()), &secrets);
        let port = process.socket_address().port();
        let configured = settings.into_iter().map(|(name, value)| {
            let value = match name.strip_prefix(prefix).unwrap_or(&name) {
                "_LISTEN" => process.socket_address().to_string(),
                "_METRICS_LISTEN" => process.metrics_address().to_string(),
                "_ADDRESS" => format!("{}:{port}", value.rsplit_once(':').unwrap().0),
                "_AGREEMENTS" => format!("https://localhost:{agreements_port}"),
                "_JWT_ISSUER" => identity.jwt_issuer.clone().unwrap(),
                "_JWT_AUDIENCE" => identity.jwt_audience.clone().unwrap(),
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
    processes.orders.stop().unwrap();
    processes.agreements.stop().unwrap();
}
