//! The binary as a person starts it: commands, settings, refusals, signals.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cli/import.rs"]
mod import;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use chassis::auth::{Caller, Channel};
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::agreement::partner_service_client::PartnerServiceClient;
use proto::agreement::{CreateCustomerRequest, PartnerKind, RegisterPartnerRequest};
use proto::identity::{Role, TenantKind};
use proto::types::{Cloud, Contact};
use tempfile::TempDir;
use tonic::Request;
use uuid::Uuid;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agreement-svc")).args(args).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// How the variables begin that decide what a command says, beside its arguments.
const VARIABLES: [&str; 4] = ["AGREEMENT_", "OTEL_", "RUST_LOG", "CLICOLOR_FORCE"];

/// The transcripts in `tests/cmd`, each about one subject. `TRYCMD=overwrite` writes what the commands say into them.
#[test]
fn commands_answer_as_their_transcripts_show() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let set: Vec<_> = names.filter(|name| VARIABLES.iter().any(|start| name.starts_with(start))).collect();
    if !set.is_empty() {
        // A process cannot take variables from itself safely, so it starts this test again without them.
        let mut clean = Command::new(std::env::current_exe().unwrap());
        set.iter().for_each(|name| _ = clean.env_remove(name));
        let ended =
            clean.args(["--exact", "commands_answer_as_their_transcripts_show", "--nocapture"]).status();
        assert!(ended.unwrap().success(), "a transcript does not hold");
        return;
    }
    let mut commands = 0;
    for file in std::fs::read_dir("tests/cmd").unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|ending| ending == "trycmd") {
            let text = std::fs::read_to_string(&file).unwrap();
            for command in text.lines().filter_map(|line| line.strip_prefix("$ ")) {
                // `trycmd` skips a program that it does not find.
                assert!(
                    command.split(' ').any(|word| word == "agreement-svc"),
                    "{}: {command}",
                    file.display()
                );
                commands += 1;
            }
        }
    }
    assert!(commands > 0, "no transcript was found");
    trycmd::TestCases::new()
        .register_bin("agreement-svc", Path::new(env!("CARGO_BIN_EXE_agreement-svc")))
        .timeout(Duration::from_secs(60))
        .case("tests/cmd/*.trycmd");
}

#[test]
fn a_migrated_database_is_served_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agreements.sqlite");
    std::fs::write(&path, "").unwrap();
    let database = format!("sqlite:{}", path.display());
    assert!(run(&["migrate", "--database", &database]).status.success());
    let serve = ["serve", "--database", &database, "--auth", "insecure", "--listen", "127.0.0.1:0"];
    let mut serving = spawn(&serve);
    let address = format!("http://{}", address_of(&mut serving));
    assert!(run(&["check-health", "--address", &address]).status.success());
    Command::new("kill").args(["-TERM", &serving.id().to_string()]).status().unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(!run(&["check-health", "--address", &address]).status.success());
}

fn spawn(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_agreement-svc"))
        .args(args)
        .args(["--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

const PARTNER: Uuid = Uuid::from_u128(0xd1);

/// A running server, and a folder for its database and for files. Dropping it ends the server.
struct Server {
    process: Child,
    address: String,
    folder: TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("agreements.sqlite").display());
        let mut process = spawn(&[
            "serve",
            "--create",
            "--database",
            &database,
            "--auth",
            "insecure",
            "--listen",
            "127.0.0.1:0",
            "--mail-folder",
            &folder.path().join("mails").display().to_string(),
        ]);
        let address = format!("http://{}", address_of(&mut process));
        Self { process, address, folder }
    }

    /// Registers the partner and makes customers of its own.
    fn customers<const N: usize>(&self) -> [String; N] {
        let id = |n: u128| Uuid::from_u128(0x7000 + n).to_string();
        let called = chassis::lifecycle::runtime().unwrap().block_on(async {
            let operator = caller(TenantKind::Operator, Uuid::from_u128(0xa0), vec![]);
            let mut partners = PartnerServiceClient::connect(self.address.clone()).await.unwrap();
            let partner = RegisterPartnerRequest {
                request_id: id(0),
                partner_id: PARTNER.to_string(),
                name: "Northwind Direct".into(),
                kind: PartnerKind::DirectBill.into(),
                cloud: Cloud::Public.into(),
                validate_only: false,
                support: None,
            };
            partners.register_partner(as_caller(partner, &operator)).await.unwrap();
            let agent = caller(TenantKind::Partner, PARTNER, vec![Role::SalesAgent.into_str()]);
            let mut customers = CustomerServiceClient::connect(self.address.clone()).await.unwrap();
            let mut ids = vec![];
            for n in 1..=N {
                let contact = Contact {
                    first_name: "Tania".into(),
                    last_name: "Carr".into(),
                    email: "tania.carr@contoso.example".into(),
                    phone: String::new(),
                };
                let customer = CreateCustomerRequest {
                    request_id: id(n as u128),
                    company_name: format!("Customer {n}"),
                    domain: format!("customer-{n}.example"),
                    country: "FR".into(),
                    primary_contact: Some(contact),
                    ..CreateCustomerRequest::default()
                };
                let created = customers.create_customer(as_caller(customer, &agent)).await.unwrap();
                ids.push(created.into_inner().customer.unwrap().customer_id);
            }
            ids
        });
        called.try_into().unwrap()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn import(&self, file: &str, more: &[&str]) -> (Option<i32>, String) {
        import_as(&self.address, PARTNER, "attestations", file, more)
    }
}

fn import_as(address: &str, partner: Uuid, rows: &str, file: &str, more: &[&str]) -> (Option<i32>, String) {
    let (partner, user) = (partner.to_string(), Uuid::from_u128(0x11).to_string());
    let all = ["import", rows, file, "--partner-id", &partner, "--user-id", &user, "--address", address];
    let output = run(&[&all[..], more].concat());
    (output.status.code(), words(&output))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn caller(tenant_kind: TenantKind, tenant_id: Uuid, roles: Vec<&'static str>) -> Caller {
    Caller {
        tenant_kind: tenant_kind.into_str(),
        tenant_id,
        user_id: Uuid::from_u128(0x11),
        roles,
        channel: Channel::Api,
        client: None,
    }
}

fn as_caller<T>(message: T, caller: &Caller) -> Request<T> {
    let mut request = Request::new(message);
    caller.present(request.metadata_mut());
    request
}

/// Row, outcome and reason of each line of a results file, after it was looked through for contacts.
fn results(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    for personal in ["Tania", "Carr", "contoso.example", "12345"] {
        assert!(!text.contains(personal), "{text}");
    }
    let mut results = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(
        results.headers().unwrap(),
        &["row", "customer_id", "outcome", "attestation_id", "reason", "message"][..]
    );
    let line = |record: csv::StringRecord| {
        assert_eq!(record[3].is_empty(), matches!(&record[2], "REFUSED" | "SKIPPED"), "{record:?}");
        format!("{} {} {}", &record[0], &record[2], &record[4]).trim_end().to_owned()
    };
    results.records().map(|record| line(record.unwrap())).collect()
}

/// The vendor's columns, in an order, case and company of their own, with a byte order mark.
const VENDORS_COLUMNS: &str = "\u{feff}CustomerAccountLink,customertenantid,FIRSTNAME,LastName,Email,PhoneNumber,\
                               LastAgreementDate,DateAgreed,PartnerAttestationCompleted\n";

#[test]
fn a_vendor_file_is_imported_once_however_often_it_is_sent() {
    let server = Server::start();
    let [first, second, third] = server.customers();
    let (upper, stranger) = (second.to_uppercase(), Uuid::from_u128(0xdead));
    let row = |customer: &str, email: &str, agreed_at: &str, completed: &str| {
        format!(
            "https://x.example,{customer},Tania,\"Carr, Dr.\",{email},12345,2020-01-01,{agreed_at},{completed}\n"
        )
    };
    let mail = "tania@contoso.example";
    let text = [
        VENDORS_COLUMNS.to_owned(),
        row(&first, mail, "2024-05-01", "true"),
        row(&upper, mail, "2024-05-01 10:20:30", "True"),
        row(&first, mail, "2024-05-01T02:00:00+02:00", "TRUE"),
        row(&third, mail, "2024-05-01", "false"),
        row(&third, mail, "2024-05-01", ""),
        row(&third, mail, "01.05.2024", "true"),
        row(&third, mail, "", "true"),
        row(&third, "no-address", "2024-05-01", "true"),
        row(&stranger.to_string(), mail, "2024-05-01", "true"),
        row("Tania Carr", mail, "2024-05-01", "true"),
        row(&third, mail, "2024-05-01T01:02:03.456789Z", "true"),
    ];
    let file = server.write("customers.csv", text.concat());
    let (code, said) = server.import(&file, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("3 stored, 0 replayed, 1 duplicate, 6 refused, 1 skipped"), "{said}");
    let refused = [
        "4 SKIPPED",
        "5 REFUSED INVALID_FIELDS",
        "6 REFUSED INVALID_FIELDS",
        "7 REFUSED INVALID_FIELDS",
        "8 REFUSED INVALID_FIELDS",
        "9 REFUSED RESOURCE_NOT_FOUND",
        "10 REFUSED INVALID_FIELDS",
    ];
    let written = server.folder.path().join("customers.results.csv");
    let expected = [&["1 STORED", "2 STORED", "3 DUPLICATE"], &refused[..], &["11 STORED"]].concat();
    assert_eq!(results(&written), expected);

    let elsewhere = server.folder.path().join("again.csv");
    let (code, said) = server.import(&file, &["--results", &elsewhere.display().to_string()]);
    assert_eq!(code, Some(1), "{said}");
    let expected = [&["1 REPLAYED", "2 REPLAYED", "3 DUPLICATE"], &refused[..], &["11 REPLAYED"]].concat();
    assert_eq!(results(&elsewhere), expected);

    // Its rows are known again in another file.
    let part = server.write("part.csv", text[..3].concat());
    assert_eq!(server.import(&part, &[]).0, Some(0));
    assert_eq!(results(&server.folder.path().join("part.results.csv")), ["1 REPLAYED", "2 REPLAYED"]);
}

#[test]
fn what_a_file_does_not_say_is_said_for_all_rows_or_refused() {
    let server = Server::start();
    let [first, second] = server.customers();
    let cloud_agreement = "998b88de-aa99-4388-a42c-1b3517d49490";
    let text = format!(
        "CustomerId,FirstName,LastName,Email,TemplateId\n\
         {first},Tania,Carr,tania@contoso.example,\n\
         {second},Tania,Carr,tania@contoso.example,{cloud_agreement}\n"
    );
    let file = server.write("customers.csv", text);
    assert_eq!(server.import(&file, &[]).0, Some(2));
    assert!(!server.folder.path().join("customers.results.csv").exists());

    assert_eq!(server.import(&file, &["--agreed-at", "2024-05-01"]).0, Some(1));
    let written = server.folder.path().join("customers.results.csv");
    assert_eq!(results(&written), ["1 STORED", "2 REFUSED TEMPLATE_RETIRED"]);

    let nothing = server.write("nothing.csv", "CustomerId,FirstName,LastName,Email,DateAgreed\n");
    assert_eq!(server.import(&nothing, &[]).0, Some(0));
}

#[test]
fn an_unreadable_file_is_refused_before_anything_is_sent() {
    let server = Server::start();
    let [customer] = server.customers();
    let good = format!(
        "CustomerTenantId,FirstName,LastName,Email,DateAgreed\n\
         {customer},Tania,Carr,tania@contoso.example,2024-05-01\n"
    );
    let broken = [good.as_bytes(), b"x,Tania,\xff,tania@contoso.example,2024-05-01\n"].concat();
    let short = format!("{good}x,Tania,Carr\n");
    for (file, reason) in [
        (server.write("broken.csv", broken), "line 3, column LastName: not UTF-8"),
        (server.write("short.csv", short), "line 3, column Email: missing"),
    ] {
        let (code, said) = server.import(&file, &[]);
        assert_eq!(code, Some(2), "{file}: {said}");
        assert!(said.contains(reason) && !said.contains("Tania"), "{file}: {said}");
    }
    let good = server.write("good.csv", good);
    let (code, said) = import_as(&server.address, Uuid::from_u128(0xdead), "attestations", &good, &[]);
    assert!(code == Some(1), "a partner that is not registered sees no customer: {said}");
    // None of all this stored the row.
    assert_eq!(server.import(&good, &[]).0, Some(0));
    assert_eq!(results(&server.folder.path().join("good.results.csv")), ["1 STORED"]);
}

#[test]
fn the_history_is_verified_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("agreements.sqlite").display());
    assert!(run(&["migrate", "--create", "--database", &database]).status.success());
    let clean = run(&["verify", "--database", &database]);
    assert!(clean.status.success(), "{}", words(&clean));
    let printed = String::from_utf8(clean.stdout).unwrap();
    let head = printed.trim_end().strip_prefix("head ").unwrap();
    assert!(run(&["verify", "--database", &database, "--head", head]).status.success());

    let another = head.replace(':', ":0").split_at(head.len()).0.to_owned();
    let found = run(&["verify", "--database", &database, "--head", head, "--head", &another]);
    assert_eq!(found.status.code(), Some(1));
    let lines = String::from_utf8(found.stdout).unwrap();
    let revision = head.split(':').next().unwrap();
    let expected = format!(
        "the history does not have the head {another}: event {revision} or one before it was replaced\nhead {head}\n"
    );
    assert_eq!(lines, expected);
}

/// Reads the log until it says where the server listens.
fn address_of(serving: &mut Child) -> String {
    let mut log = BufReader::new(serving.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended without serving");
        let Some((_, rest)) = line.split_once(r#""address":""#) else { continue };
        let address = rest.split('"').next().unwrap().to_owned();
        // The log must be read on, or the server would block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        return address;
    }
}

#[test]
fn a_key_is_made_once_for_its_owner_only_and_signs_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    assert!(run(&["key", &keys.display().to_string()]).status.success());
    let (secret, public) = (keys.join("signing-key.pem"), keys.join("jwks.json"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let made = (std::fs::read(&secret).unwrap(), std::fs::read(&public).unwrap());
    for left_over in [&public, &secret] {
        let again = run(&["key", &keys.display().to_string()]);
        assert!(!again.status.success() && words(&again).contains("exists"), "{}", words(&again));
        std::fs::remove_file(left_over).unwrap();
        if left_over == &public {
            // A key without its public set is not overwritten either, and no set is left for another.
            let again = run(&["key", &keys.display().to_string()]);
            assert!(!again.status.success() && !public.exists(), "{}", words(&again));
            assert_eq!(std::fs::read(&secret).unwrap(), made.0);
            std::fs::write(&public, &made.1).unwrap();
        }
    }
    std::fs::write(&secret, &made.0).unwrap();

    let (secret, id) = (secret.display().to_string(), Uuid::from_u128(0xd1).to_string());
    let whose = ["--tenant-kind", "PARTNER", "--tenant-id", &id, "--user-id", &id];
    let signed = ["token", "--signing-key", &secret, "--issuer", "me", "--audience", "us"];
    let minted = run(&[&signed[..], &whose].concat());
    assert!(minted.status.success(), "{}", words(&minted));
    assert_eq!(String::from_utf8_lossy(&minted.stdout).trim().split('.').count(), 3);
}

/// Neither the help nor a refusal shows the password in a database URL.
#[test]
fn a_database_url_is_not_shown() {
    const BAD: &str = "postgre://clerk:hunter2@127.0.0.1/things";
    let run = |args: &[&str], url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agreement-svc"));
        let ended = command.args(args).env("AGREEMENT_DATABASE", url).output().unwrap();
        String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned()
    };
    for command in ["serve", "migrate", "verify", "erase-contact"] {
        let help = run(&[command, "--help"], &BAD.replace("postgre:", "postgres:"));
        assert!(help.contains("--database") && !help.contains("hunter2"), "{help}");
        for refused in [run(&[command], BAD), run(&[command, "--database", BAD], "")] {
            let says = refused.contains("--database") && refused.contains("must be sqlite:PATH");
            assert!(says && !refused.contains("hunter2"), "{refused}");
        }
    }
}

/// The first process of a container hears only signals that it has a handler for.
#[cfg(target_os = "linux")]
#[test]
fn a_command_hears_a_signal() {
    const TERMINATION: u64 = 1 << (15 - 1);
    let folder = tempfile::tempdir().unwrap();
    // Opening a pipe waits for a writer.
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_agreement-svc"));
    let mut running =
        command.args(["migrate", "--database", "sqlite:unused", "--templates"]).arg(&pipe).spawn().unwrap();
    let status = format!("/proc/{}/status", running.id());
    loop {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        if u64::from_str_radix(caught.trim(), 16).unwrap() & TERMINATION != 0 {
            break;
        }
        assert!(running.try_wait().unwrap().is_none(), "it has ended");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap().success());
    assert_eq!(running.wait().unwrap().code(), Some(130));
}
