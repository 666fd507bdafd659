//! The vendor's own examples, replayed as messages. They are looked for where `VENDOR_SAMPLES`
//! points; without it these tests say loudly that they were skipped.

use std::path::PathBuf;

use chassis::clock::Clock;
use chassis::form::timestamp;
use proto::agreement::{
    CreateAttestationRequest, CreateCustomerRequest, GetTemplateDocumentRequest, GetTemplateRequest,
};
use proto::order::{ChangeSeatsRequest, CreateOrderRequest, NewOrderLine};
use proto::types::Contact;
use rstest_reuse::apply;
use serde_json::Value;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{Backend, Cluster, Setup, actions, reason_of};

use crate::each_backend;
use tonic::Code;

#[expect(clippy::print_stderr, reason = "a skipped sample must be seen")]
fn samples() -> Option<PathBuf> {
    let samples = std::env::var_os("VENDOR_SAMPLES").map(PathBuf::from).filter(|path| path.is_dir());
    if samples.is_none() {
        eprintln!("SKIPPED: VENDOR_SAMPLES does not name a folder with the vendor's samples");
    }
    samples
}

/// The body of a sample: what stands behind the first blank line or brace.
fn body(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(samples()?.join(name)).unwrap();
    let start = text.find("\n{").map_or(0, |at| at + 1);
    Some(text[start..].to_owned())
}

fn text(value: &Value, path: &str) -> String {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The vendor's example of an attestation is stored, and its repetition is the vendor's duplicate.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_vendors_attestation_example_is_stored_once() {
    let Some(body) = body("confirm-agreement.2.http") else { return };
    let example: Value = serde_json::from_str(&body).unwrap();
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let agreed_at = text(&example, "/dateAgreed").parse().unwrap();
    let request = || CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        template_id: text(&example, "/templateId"),
        contact: Some(Contact {
            first_name: text(&example, "/primaryContact/firstName"),
            last_name: text(&example, "/primaryContact/lastName"),
            email: text(&example, "/primaryContact/email"),
            phone: text(&example, "/primaryContact/phoneNumber"),
        }),
        agreed_at: Some(timestamp(agreed_at)),
        validate_only: false,
        details: None,
    };
    let stored = direct.attestations().create_attestation(request()).await.unwrap().into_inner();
    let stored = stored.attestation.unwrap();
    assert_eq!((stored.template_id.as_str(), stored.template_version), (CUSTOMER_AGREEMENT, 1));
    assert_eq!(stored.contact.unwrap().last_name, "Carr");

    // 600061 is the number the vendor prints for it.
    let duplicate: Value = serde_json::from_str(
        &std::fs::read_to_string(samples().unwrap().join("confirm-agreement.1.http")).unwrap(),
    )
    .unwrap();
    let refused = direct.attestations().create_attestation(request()).await.unwrap_err();
    assert_eq!(
        tests::metadata_of(&refused)["partner_center_code"],
        duplicate["code"].as_u64().unwrap().to_string()
    );
}

/// The vendor's examples of orders are orders of offers that are in the catalogue or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_vendors_order_examples_are_placed_or_out_of_catalogue() {
    if samples().is_none() {
        return;
    }
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    for (file, is_in_the_catalogue) in
        [("create-order.1.http", true), ("create-order-indirect.1.http", false)]
    {
        let example: Value = serde_json::from_str(&body(file).unwrap()).unwrap();
        let lines = example["LineItems"].as_array().unwrap();
        let line = |line: &Value| NewOrderLine {
            offer_id: text(line, "/OfferId"),
            quantity: line["Quantity"].as_u64().unwrap().try_into().unwrap(),
            friendly_name: text(line, "/FriendlyName"),
        };
        let request = CreateOrderRequest {
            lines: lines.iter().map(line).collect(),
            ..fixtures::new_order(&customer, None, OFFICE, 1)
        };
        let placed = direct.orders().create_order(request).await;
        if is_in_the_catalogue {
            let order = placed.unwrap().into_inner().order.unwrap();
            assert_eq!(order.lines[0].friendly_name, "A_sample_Azure_RI");
        } else {
            assert_eq!(bad_fields_of(&placed.unwrap_err()), ["lines[0].offer_id"]);
        }
    }
}

/// The vendor's quantity change is a seat change, and its placeholder etag is stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_vendors_quantity_change_is_a_seat_change() {
    let Some(body) = body("change-quantity.1.http") else { return };
    let example: Value = serde_json::from_str(&body).unwrap();
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let bought = actions::order(&direct, &customer, None, 1).await.unwrap().subscriptions.remove(0);
    let request = |etag: String| ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: bought.subscription_id.clone(),
        quantity: example["Quantity"].as_u64().unwrap().try_into().unwrap(),
        etag,
        validate_only: false,
        attestation: None,
    };
    let stale = direct.subscriptions().change_seats(request(text(&example, "/Attributes/Etag"))).await;
    let stale = stale.unwrap_err();
    assert_eq!((stale.code(), reason_of(&stale).as_str()), (Code::Aborted, "ETAG_STALE"));
    let changed =
        direct.subscriptions().change_seats(request(bought.etag.clone())).await.unwrap().into_inner();
    assert_eq!(changed.subscription.unwrap().quantity, 2);
    // An id as the vendor prints it, in another case, is not one of ours.
    let other =
        ChangeSeatsRequest { subscription_id: text(&example, "/Id").to_uppercase(), ..request("1".into()) };
    let refused = direct.subscriptions().change_seats(other).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["subscription_id"]);
}

/// What the vendor prints as invalid JSON is still an accepted or a refused message.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_vendors_invalid_json_is_accepted_or_refused() {
    tests::needs_own!("a domain that it takes for good");
    let Some(body) = body("create-customer.1.http") else { return };
    assert!(serde_json::from_str::<Value>(&body).is_err());
    // Taken apart by hand, since no parser takes it: the fields are those of a customer.
    let field = |name: &str| {
        let (_, rest) = body.split_once(&format!("\"{name}\": \"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let cluster = Cluster::on(Backend::Sqlite).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let request = CreateCustomerRequest {
        company_name: field("CompanyName"),
        domain: field("Domain"),
        country: field("Country"),
        primary_contact: Some(Contact {
            first_name: field("FirstName"),
            last_name: field("LastName"),
            email: field("Email"),
            phone: String::new(),
        }),
        ..fixtures::new_customer("Contoso", "US", None)
    };
    let created = direct.customers().create_customer(request.clone()).await.unwrap().into_inner();
    assert_eq!(created.customer.unwrap().domain, "xyz.ccsctp.net");
    // The vendor writes its culture where a country could be expected.
    let request =
        CreateCustomerRequest { request_id: fixtures::request_id(), country: field("Culture"), ..request };
    let refused = direct.customers().create_customer(request).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["country"]);
}

/// The vendor's table of countries serves every country in every language that it lists.
#[apply(each_backend)]
async fn the_vendors_countries_are_served_in_every_listed_language(#[case] backend: Backend) {
    tests::needs_own!("settings of its own");
    tests::needs!(backend);
    let Some(folder) = samples() else { return };
    let table = folder.join("mca-country-language.csv");
    let setup = Setup { backend, document_table: Some(table.clone()), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let request = GetTemplateRequest { template_id: CUSTOMER_AGREEMENT.into() };
    let template = direct.templates().get_template(request).await.unwrap().into_inner().template.unwrap();
    let mut pairs = 0;
    for row in csv::Reader::from_path(&table).unwrap().records() {
        let row = row.unwrap();
        for language in row[2].split(';') {
            let without_region = language.rsplit_once('-').unwrap().0;
            for asked in [language, &language.to_lowercase(), &language.to_uppercase(), without_region] {
                let request = GetTemplateDocumentRequest {
                    template_id: CUSTOMER_AGREEMENT.into(),
                    version: 0,
                    country: row[1].into(),
                    language: asked.into(),
                };
                let served = direct.templates().get_template_document(request).await.unwrap().into_inner();
                let document = served.document.unwrap();
                let pair = (document.country.as_str(), document.language.as_str());
                assert_eq!((pair, served.is_fallback), ((&row[1], language), false), "{asked}");
            }
            pairs += 1;
        }
    }
    assert_eq!(template.versions[0].document_count, pairs);
    let request = GetTemplateDocumentRequest {
        template_id: CUSTOMER_AGREEMENT.into(),
        version: 0,
        country: "FR".into(),
        language: "ja-JP".into(),
    };
    let served = direct.templates().get_template_document(request).await.unwrap().into_inner();
    assert!(served.is_fallback);
    assert_eq!(served.document.unwrap().language, "en-US");
}
