//! A reseller moves in: its customers with the ids of their tenants and their first purchases, and what they accepted, come
//! from files, through the commands.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agreement_svc::commands::import;
use agreement_svc::config::{Import, ImportAttestations, ImportClient, ImportCustomers};
use proto::agreement::{
    AttestationState, GetCustomerRequest, ListCustomerPartnersRequest, ListCustomersRequest, Replacement,
    WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::SubscriptionState;
use rstest_reuse::apply;
use tests::fixtures::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT};
use tests::{As, Backend, Cluster, actions, reason_of};
use uuid::Uuid;

use crate::each_backend;

const CUSTOMERS: u128 = 300;

/// Of so many the vendor has answers, two records each: more than an import decides together, so that it can be cut between.
const ANSWERED: u128 = 100;

/// The id of a tenant of the world of the tests.
fn tenant(n: u128) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0d00_0000 + n)
}

/// The partner's side: a folder with its files, and where they go.
struct Reseller {
    folder: tempfile::TempDir,
    client: ImportClient,
}

impl Reseller {
    fn of(cluster: &Cluster) -> Self {
        let client = ImportClient {
            address: cluster.addresses()[0].parse().unwrap(),
            tls: cluster.client_tls(),
            token: None,
            partner_id: Some(DIRECT),
            user_id: Some(fixtures::sales(DIRECT).user_id),
            results: None,
        };
        Self { folder: tempfile::tempdir().unwrap(), client }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn customers(&self, file: &Path) -> Import {
        Import::Customers(ImportCustomers { file: file.into(), client: self.client.clone() })
    }

    fn attestations(&self, file: &Path) -> Import {
        Import::Attestations(ImportAttestations {
            file: file.into(),
            customer_id: None,
            template_id: CUSTOMER_AGREEMENT.parse().unwrap(),
            agreed_at: None,
            client: self.client.clone(),
        })
    }
}

/// Imports, until something is stored: then the client is gone.
async fn cut_off(cluster: &Cluster, settings: Import) {
    let head = cluster.head().await.unwrap();
    let is_stored = async { while cluster.events_after(head).await.unwrap().is_empty() {} };
    tokio::select! {
        _ = import::run(settings) => {}
        () = is_stored => {}
    }
}

/// Imports, and gives how many rows had which outcome, those refused with the reason.
async fn carry_through(settings: Import, file: &Path) -> Vec<(String, usize)> {
    let code = import::run(settings).await;
    let mut outcomes: Vec<(String, usize)> = vec![];
    for record in csv::Reader::from_path(file.with_extension("results.csv")).unwrap().records() {
        let record = record.unwrap();
        let outcome = match &record[2] {
            // The message follows the reason.
            "REFUSED" => format!("REFUSED {}", &record[record.len() - 2]),
            outcome => outcome.to_owned(),
        };
        match outcomes.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, rows)) => *rows += 1,
            None => outcomes.push((outcome, 1)),
        }
    }
    outcomes.sort();
    let are_refused = outcomes.iter().any(|(outcome, _)| outcome.starts_with("REFUSED"));
    let expected = if are_refused { ExitCode::from(1) } else { ExitCode::SUCCESS };
    assert_eq!(format!("{code:?}"), format!("{expected:?}"), "{outcomes:?}");
    outcomes
}

/// After a run that was cut off, every row is settled once.
fn assert_whole(outcomes: &[(String, usize)], expected: u128) {
    let rows: usize = outcomes.iter().map(|(_, rows)| rows).sum();
    let known = outcomes.iter().all(|(outcome, _)| ["REPLAYED", "STORED"].contains(&outcome.as_str()));
    assert!(known && rows as u128 == expected, "{outcomes:?}");
}

/// The vendor's answer about the agreements of a customer.
fn vendors_answer(n: u128, has_cloud_agreement: bool) -> String {
    let record = |template: &str, kind: &str, date: &str| {
        format!(
            r#"{{"primaryContact":{{"firstName":"Tania","lastName":"Carr","email":"t@adatum-{n}.example"}},
                "templateId":"{template}","dateAgreed":"{date}","type":"{kind}"}}"#
        )
    };
    let mut records = vec![
        record(CUSTOMER_AGREEMENT, "MicrosoftCustomerAgreement", "2024-08-27T00:00:00"),
        record(CUSTOMER_AGREEMENT, "MicrosoftCustomerAgreement", "2023-08-26T00:00:00"),
    ];
    if has_cloud_agreement {
        records.push(record(CLOUD_AGREEMENT, "MicrosoftCloudAgreement", "2018-07-28T00:00:00"));
    }
    format!(r#"{{"totalCount":{},"items":[{}]}}"#, records.len(), records.join(","))
}

/// CUS-4, ATT-8, ATT-10, DIR-4, WD-5.
#[apply(each_backend)]
async fn a_reseller_moves_in_with_its_files(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("callers that a command names");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = Reseller::of(&cluster);

    // Some customers bought before they came. Those of whom the vendor has answers, and the last two, are not in the file of
    // attestations.
    const LISTED: u128 = CUSTOMERS - ANSWERED - 2;
    let mut book = String::from(
        "CustomerTenantId,CompanyName,Domain,Country,FirstName,LastName,Email,FirstPurchaseDate,Language,\
         ExternalReference\n",
    );
    let mut accepted = String::from("CustomerTenantId,FirstName,LastName,Email,DateAgreed\n");
    for n in 0..CUSTOMERS {
        let (id, bought) = (tenant(n), if n % 3 == 2 { "2021-05-04" } else { "" });
        writeln!(
            book,
            "{id},Adatum {n},adatum-{n}.example,FR,Tania,Carr,tania@adatum-{n}.example,{bought},pt-br,C {n}"
        )
        .unwrap();
        if n < LISTED {
            writeln!(accepted, "{id},Tania,Carr,tania@adatum-{n}.example,2024-05-01").unwrap();
        }
    }
    let book = reseller.write("customers.csv", &book);
    cut_off(&cluster, reseller.customers(&book)).await;
    assert_whole(&carry_through(reseller.customers(&book), &book).await, CUSTOMERS);
    let again = carry_through(reseller.customers(&book), &book).await;
    assert_eq!(again, [("REPLAYED".to_owned(), CUSTOMERS as usize)]);

    let accepted = reseller.write("attestations.csv", &accepted);
    cut_off(&cluster, reseller.attestations(&accepted)).await;
    assert_whole(&carry_through(reseller.attestations(&accepted), &accepted).await, LISTED);

    // Of others the vendor has records, the newest first; of one of them also of the agreement that was retired.
    for n in LISTED..LISTED + ANSWERED {
        let text = vendors_answer(n, n == LISTED);
        reseller.write(&format!("agreements/{}.json", tenant(n)), &text);
    }
    let answers = reseller.folder.path().join("agreements");
    cut_off(&cluster, reseller.attestations(&answers)).await;
    let mut outcomes = carry_through(reseller.attestations(&answers), &answers).await;
    assert_eq!(outcomes.remove(0), ("REFUSED TEMPLATE_RETIRED".to_owned(), 1));
    assert_whole(&outcomes, 2 * ANSWERED);
    // The other records of that customer are stored.
    let of_one = tenant(LISTED).to_string();
    let mut states: Vec<_> = actions::attestations_of(&direct, &of_one).await.unwrap();
    states.sort_by_key(|attestation| attestation.agreed_at.unwrap().seconds);
    let states: Vec<_> = states.iter().map(proto::agreement::Attestation::state).collect();
    assert_eq!(states, [AttestationState::Superseded, AttestationState::Current]);

    // The customer's own token, which carries the id of its tenant, finds the customer and its partner.
    let admin = cluster.as_caller(fixtures::admin(tenant(1)));
    let read = GetCustomerRequest { customer_id: tenant(1).to_string() };
    let read = admin.customers().get_customer(read).await.unwrap().into_inner().customer.unwrap();
    assert_eq!((read.company_name.as_str(), read.first_purchase_at), ("Adatum 1", None));
    assert_eq!(read.language, "pt-BR");
    let numbered = ListCustomersRequest { external_reference: "C 1".into(), ..Default::default() };
    let numbered = direct.customers().list_customers(numbered).await.unwrap().into_inner().customers;
    assert_eq!((numbered.len(), &numbered[0].customer_id), (1, &tenant(1).to_string()));
    let list = ListCustomerPartnersRequest::default();
    let partners = admin.customers().list_customer_partners(list).await.unwrap().into_inner().relationships;
    assert_eq!(partners.len(), 1);

    // Neither of the last two has an acceptance. The very last bought before it came, so it cannot sign (DIR-4). The other signs,
    // and then its partner buys for it.
    let [new, old] = [CUSTOMERS - 2, CUSTOMERS - 1].map(tenant);
    for customer in [new, old] {
        let refused = actions::subscribe(&direct, &customer.to_string(), None).await.unwrap_err();
        assert_eq!(reason_of(&refused), "AGREEMENT_REQUIRED");
    }
    let refused = actions::sign(&cluster.as_caller(fixtures::admin(old)), 2).await.unwrap_err();
    assert_eq!(reason_of(&refused), "CONTACT_PARTNER");
    actions::sign(&cluster.as_caller(fixtures::admin(new)), 2).await.unwrap();
    actions::subscribe(&direct, &new.to_string(), None).await.unwrap();
    corrected_without_cancelling(&direct, &of_one).await;
}

/// A date that was entered wrong is corrected, and what was bought stays.
async fn corrected_without_cancelling(partner: &As, customer_id: &str) {
    let subscription = actions::subscribe(partner, customer_id, None).await.unwrap();
    let current = actions::attestations_of(partner, customer_id).await.unwrap();
    let current = current.into_iter().find(|it| it.state() == AttestationState::Current).unwrap();
    let right = Some("2024-07-28T00:00:00Z".parse().unwrap());
    let request = WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(Replacement { agreed_at: right, ..Replacement::default() }),
        ..fixtures::new_withdrawal(&current.attestation_id)
    };
    let answer = partner.attestations().withdraw_attestation(request).await.unwrap().into_inner();
    assert_eq!((answer.uncovered, answer.replacement.unwrap().agreed_at), (false, right));
    let after = actions::get_subscription(partner, &subscription.subscription_id).await.unwrap();
    assert_eq!((after.state(), after.quantity), (SubscriptionState::Active, subscription.quantity));
    actions::subscribe(partner, customer_id, None).await.unwrap();
}
