//! Attestations across customers, and signatures.

use chassis::form::timestamp;
use chrono::TimeDelta;
use proto::agreement::{
    AttestationState, CreateAttestationRequest, EndRelationshipRequest, GetSignatureRequest,
    ListAttestationsRequest, ListSignaturesRequest, SignAgreementRequest, Signature,
};
use rstest_reuse::apply;
use tests::assert::refused;
use tests::clients::bad_fields_of;
use tests::fixtures::{
    self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, new_attestation, new_version, person, time,
};
use tests::{As, Backend, actions};
use tonic::{Code, Status};

use crate::each_backend;

async fn found(caller: &As, filter: ListAttestationsRequest) -> Vec<String> {
    let mut ids = vec![];
    let mut request = ListAttestationsRequest { page_size: 2, ..filter };
    loop {
        let page = caller.attestations().list_attestations(request.clone()).await.unwrap().into_inner();
        ids.extend(page.attestations.into_iter().map(|attestation| attestation.attestation_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return ids;
        }
    }
}

async fn attest(caller: &As, customer_id: &str, who: &str, agreed_at: &str) -> String {
    let request = CreateAttestationRequest {
        contact: Some(person(who)),
        agreed_at: Some(timestamp(time(agreed_at))),
        ..new_attestation(customer_id)
    };
    let made = caller.attestations().create_attestation(request).await.unwrap().into_inner();
    made.attestation.unwrap().attestation_id
}

#[apply(each_backend)]
async fn attestations_are_found_across_customers(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let operator = cluster.as_caller(fixtures::operator());
    let mut customers = vec![];
    for name in ["Contoso", "Northwind", "Litware"] {
        customers.push(actions::create_customer(&direct, name, "FR", None).await.unwrap());
    }
    let others = actions::create_customer(&provider, "Wingtip", "FR", None).await.unwrap();
    let first = attest(&direct, &customers[0], "Ann", "2024-01-01T00:00:00Z").await;
    let second = attest(&direct, &customers[1], "Bob", "2024-03-01T00:00:00Z").await;
    let third = attest(&direct, &customers[0], "Cid", "2024-02-01T00:00:00Z").await;
    let fourth = attest(&direct, &customers[2], "Dee", "2024-04-01T00:00:00Z").await;
    let of_provider = attest(&provider, &others, "Eve", "2024-02-02T00:00:00Z").await;
    actions::withdraw(&direct, &fourth).await.unwrap();

    let all = ListAttestationsRequest { include_history: true, ..Default::default() };
    let every = [&first, &second, &third, &fourth].map(Clone::clone);
    assert_eq!(found(&direct, all.clone()).await, every);
    let newest_first = ListAttestationsRequest { newest_first: true, ..all.clone() };
    let reversed: Vec<_> = every.iter().rev().cloned().collect();
    assert_eq!(found(&direct, newest_first).await, reversed);
    assert_eq!(found(&direct, ListAttestationsRequest::default()).await, [&second, &third].map(Clone::clone));
    for (state, expected) in [
        (AttestationState::Current, vec![&second, &third]),
        (AttestationState::Superseded, vec![&first]),
        (AttestationState::Withdrawn, vec![&fourth]),
    ] {
        let filter = ListAttestationsRequest { state: state.into(), ..Default::default() };
        let expected: Vec<_> = expected.into_iter().cloned().collect();
        assert_eq!(found(&direct, filter).await, expected, "{state:?}");
    }

    // From a time on, and before another.
    let on = |at: &str| Some(timestamp(time(at)));
    let agreed = ListAttestationsRequest {
        agreed_from: on("2024-02-01T00:00:00Z"),
        agreed_before: on("2024-04-01T00:00:00Z"),
        ..all.clone()
    };
    assert_eq!(found(&direct, agreed).await, [&second, &third].map(Clone::clone));
    let now = fixtures::now();
    let (hour_ago, in_an_hour) = (now - TimeDelta::hours(1), now + TimeDelta::hours(1));
    for (from, before, count) in [
        (Some(hour_ago), None, 4),
        (None, Some(hour_ago), 0),
        (None, Some(in_an_hour), 4),
        (Some(in_an_hour), None, 0),
    ] {
        let filter = ListAttestationsRequest {
            recorded_from: from.map(timestamp),
            recorded_before: before.map(timestamp),
            ..all.clone()
        };
        assert_eq!(found(&direct, filter).await.len(), count, "{from:?} {before:?}");
    }
    for (template, count) in [(CUSTOMER_AGREEMENT, 4), (CLOUD_AGREEMENT, 0)] {
        let filter = ListAttestationsRequest { template_id: template.into(), ..all.clone() };
        assert_eq!(found(&direct, filter).await.len(), count, "{template}");
    }

    // Each sees its own; the operator names whose.
    assert_eq!(found(&provider, all.clone()).await, [of_provider]);
    let refused_all = operator.attestations().list_attestations(all.clone()).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_all), ["customer_id"]);
    let of_direct = ListAttestationsRequest { partner_id: DIRECT.to_string(), ..all.clone() };
    assert_eq!(found(&operator, of_direct).await, every);
    let admin = cluster.as_caller(fixtures::admin(customers[0].parse().unwrap()));
    assert_eq!(found(&admin, all.clone()).await, [&first, &third].map(Clone::clone));
    let elsewhere = ListAttestationsRequest { customer_id: customers[1].clone(), ..all.clone() };
    let refusal = refused(admin.attestations().list_attestations(elsewhere).await);
    assert_eq!(refusal, (Code::NotFound, "RESOURCE_NOT_FOUND".into()));

    // Who has parted finds the customer's no more.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customers[0].clone(),
        ..Default::default()
    };
    direct.customers().end_relationship(end).await.unwrap();
    assert_eq!(found(&direct, all).await, [&second, &fourth].map(Clone::clone));
}

async fn signatures(caller: &As, filter: ListSignaturesRequest) -> Result<Vec<Signature>, Status> {
    Ok(caller.signatures().list_signatures(filter).await?.into_inner().signatures)
}

async fn sign(admin: &As, template_version: u32) -> String {
    let request = SignAgreementRequest {
        request_id: fixtures::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version,
        validate_only: false,
        shown_text: None,
    };
    admin.signatures().sign_agreement(request).await.unwrap().into_inner().signature.unwrap().signature_id
}

#[apply(each_backend)]
async fn a_customer_sees_its_past_signatures_and_partners_the_current_one(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("a version that it publishes");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let operator = cluster.as_caller(fixtures::operator());
    let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let other = actions::create_customer(&provider, "Northwind", "FR", None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer_id.parse().unwrap()));
    let other_admin = cluster.as_caller(fixtures::admin(other.parse().unwrap()));
    let others = sign(&other_admin, 2).await;
    let first = sign(&admin, 2).await;
    let version = new_version(CUSTOMER_AGREEMENT);
    operator.templates().publish_template_version(version).await.unwrap();
    let second = sign(&admin, 3).await;

    let of = |customer_id: &str, include_history, newest_first| ListSignaturesRequest {
        customer_id: customer_id.into(),
        include_history,
        newest_first,
        ..Default::default()
    };
    let ids = |listed: Result<Vec<Signature>, Status>| -> Vec<String> {
        listed.unwrap().into_iter().map(|signature| signature.signature_id).collect()
    };
    let (past, now) = ([first.clone(), second.clone()], [second.clone()]);
    assert_eq!(ids(signatures(&admin, of("", true, false)).await), past);
    assert_eq!(ids(signatures(&admin, of(&customer_id, true, true)).await), [second.clone(), first.clone()]);
    assert_eq!(ids(signatures(&admin, of("", false, false)).await), now);
    assert_eq!(ids(signatures(&direct, of(&customer_id, false, false)).await), now);
    assert_eq!(ids(signatures(&operator, of(&customer_id, true, false)).await), past);
    let all = ids(signatures(&operator, of("", true, false)).await);
    assert_eq!(all, [others.clone(), first.clone(), second.clone()]);

    let refused_history = signatures(&direct, of(&customer_id, true, false)).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_history), ["include_history"]);
    let refused_all = signatures(&direct, of("", false, false)).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused_all), ["customer_id"]);
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    assert_eq!(refused(signatures(&provider, of(&customer_id, false, false)).await), not_found);
    assert_eq!(refused(signatures(&admin, of(&other, true, false)).await), not_found);

    for (about, caller, id, sees) in [
        ("its own, past", &admin, &first, true),
        ("its own", &admin, &second, true),
        ("another customer's", &admin, &others, false),
        ("operator, past", &operator, &first, true),
        ("partner, current", &direct, &second, true),
        ("partner, past", &direct, &first, false),
        ("unrelated partner", &provider, &second, false),
        ("unrelated partner, its own customer's", &provider, &others, true),
    ] {
        let request = GetSignatureRequest { signature_id: id.clone() };
        match caller.signatures().get_signature(request).await {
            Ok(read) => {
                assert!(sees, "{about}");
                assert_eq!(&read.into_inner().signature.unwrap().signature_id, id, "{about}");
            }
            Err(status) => {
                assert!(!sees, "{about}: {status}");
                assert_eq!(tests::assert::refusal(&status), not_found, "{about}");
            }
        }
    }
}
