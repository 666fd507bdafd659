//! What the commands export: a customer's dossier, and attestations that can be imported again.

use std::process::ExitCode;

use agreement_svc::commands::{export, import};
use agreement_svc::config::{
    Export, ExportAttestations, ExportClient, ExportDossier, Import, ImportAttestations, ImportClient,
};
use proto::agreement::CreateAttestationRequest;
use proto::types::{AttestationDetails, ShownText};
use rstest_reuse::apply;
use serde_json::Value;
use tests::actions::{self, sign};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OPERATOR};
use tests::{Backend, Cluster};

use crate::each_backend;

fn client(cluster: &Cluster) -> ExportClient {
    ExportClient {
        address: cluster.addresses()[0].parse().unwrap(),
        tls: cluster.client_tls(),
        token: None,
        operator_id: Some(OPERATOR),
        user_id: Some(fixtures::operator().user_id),
    }
}

/// How many records of a kind a dossier has.
fn count(dossier: &Value, service: &str, records: &str) -> usize {
    dossier[service][records].as_array().unwrap().len()
}

#[apply(each_backend)]
async fn a_dossier_has_all_records_of_its_customer(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("callers that a command names");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let other = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    actions::invite(&direct, Some(&customer), None).await.unwrap();
    sign(&admin, 2).await.unwrap();
    let shown = ShownText { country: "DE".into(), language: "de-DE".into(), sha256: String::new() };
    for of in [&customer, &other] {
        let details = AttestationDetails { shown_text: Some(shown.clone()), ..AttestationDetails::default() };
        let request = CreateAttestationRequest { details: Some(details), ..fixtures::new_attestation(of) };
        direct.attestations().create_attestation(request).await.unwrap();
        actions::order(&direct, of, None, 5).await.unwrap();
    }

    let settings = Export::Dossier(ExportDossier {
        customer_id: customer.parse().unwrap(),
        orders_address: cluster.addresses()[1].parse().unwrap(),
        client: client(&cluster),
    });
    let text = export::export(&settings).await.unwrap();
    let dossier: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(dossier["agreements"]["customer"]["company_name"], "Contoso");
    for (records, expected) in [
        ("relationships", 1),
        ("attestations", 1),
        ("invitations", 1),
        ("signatures", 1),
        ("proposals", 0),
        ("templates", 1),
    ] {
        assert_eq!(count(&dossier, "agreements", records), expected, "{records}");
    }
    for (records, expected) in
        [("orders", 1), ("subscriptions", 1), ("subscription_changes", 1), ("withdrawal_reports", 0)]
    {
        assert_eq!(count(&dossier, "orders", records), expected, "{records}");
    }
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains(&other));
    let attested = &dossier["agreements"]["attestations"][0]["details"]["shown_text"];
    assert_eq!((&attested["country"], &attested["language"]), (&"DE".into(), &"de-DE".into()));
    assert_eq!(dossier["agreements"]["signatures"][0]["shown_text"]["language"], "fr-FR");
    // The texts of the countries that were shown.
    for (n, country) in ["DE", "FR"].into_iter().enumerate() {
        let shown = &dossier["agreements"]["documents"][n];
        assert_eq!(shown["template_id"], CUSTOMER_AGREEMENT);
        assert!(shown["documents"].as_array().unwrap().iter().all(|document| document["country"] == country));
    }
    let head = &dossier["agreements"]["head"];
    let events = cluster.events_after(0).await.unwrap();
    let last = events.iter().rfind(|event| event.customer_id == customer).unwrap();
    assert_eq!((&head["revision"], &head["hash"]), (&last.revision.into(), &last.hash.clone().into()));
}

/// ATT-10, ATT-11.
#[apply(each_backend)]
async fn exported_attestations_can_be_imported_again(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("callers that a command names");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let withdrawing = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    let shown = ShownText { country: "FR".into(), language: "fr-FR".into(), sha256: "5".repeat(64) };
    let details = AttestationDetails {
        external_reference: "PO, 1".into(),
        shown_text: Some(shown),
        ..AttestationDetails::default()
    };
    let mut made = vec![];
    for of in [&customer, &withdrawing] {
        let request =
            CreateAttestationRequest { details: Some(details.clone()), ..fixtures::new_attestation(of) };
        let answer = direct.attestations().create_attestation(request).await.unwrap().into_inner();
        made.push(answer.attestation.unwrap().attestation_id);
    }

    let settings = ExportAttestations { partner_id: Some(DIRECT), client: client(&cluster) };
    let table = export::export(&Export::Attestations(settings)).await.unwrap();
    actions::withdraw(&direct, &made[1]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("attestations.csv");
    std::fs::write(&file, table).unwrap();
    let settings = Import::Attestations(ImportAttestations {
        file: file.clone(),
        customer_id: None,
        template_id: CUSTOMER_AGREEMENT.parse().unwrap(),
        agreed_at: None,
        client: ImportClient {
            address: cluster.addresses()[0].parse().unwrap(),
            tls: cluster.client_tls(),
            token: None,
            partner_id: Some(DIRECT),
            user_id: Some(fixtures::sales(DIRECT).user_id),
            results: None,
        },
    });
    assert_eq!(format!("{:?}", import::run(settings).await), format!("{:?}", ExitCode::SUCCESS));
    let results = std::fs::read_to_string(file.with_extension("results.csv")).unwrap();
    let outcomes: Vec<_> = results.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect();
    assert_eq!(outcomes, ["DUPLICATE", "STORED"], "{results}");
    let imported = actions::attestations_of(&direct, &withdrawing).await.unwrap();
    assert_eq!(imported.last().unwrap().details, Some(details));
}
