//! ATT-11: what a partner keeps with an attestation, and who sees it.

use chassis::auth::Caller;
use chassis::form::timestamp;
use chrono::TimeDelta;
use proto::agreement::{
    Attestation, CreateAttestationRequest, GetAttestationRequest, ImportAttestationsRequest,
    ListAttestationsRequest, Replacement, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::{CreateOrderRequest, InlineAttestation};
use proto::types::{AttestationDetails, ShownText};
use rstest_reuse::apply;
use tests::assert::refused;
use tests::fixtures::{self, DIRECT, OFFICE, new_attestation, person};
use tests::imports::with_room;
use tests::{As, Backend, actions};
use tokio_stream::iter;
use tonic::Code;

use crate::each_backend;

fn details(external_reference: &str) -> AttestationDetails {
    AttestationDetails {
        title: "Head of Purchasing".into(),
        evidence_reference: "Archive 7, folder 12".into(),
        evidence_sha256: "0123456789abcdef".repeat(4),
        on_behalf_of: "E-4711".into(),
        external_reference: external_reference.into(),
        shown_text: Some(ShownText {
            country: "FR".into(),
            language: "fr-FR".into(),
            sha256: "fedcba9876543210".repeat(4),
        }),
    }
}

async fn read(caller: &As, attestation_id: &str) -> Attestation {
    let request = GetAttestationRequest { attestation_id: attestation_id.into() };
    caller.attestations().get_attestation(request).await.unwrap().into_inner().attestation.unwrap()
}

/// The attestations with a reference: their details, and the programs that recorded them.
async fn with_reference(caller: &As, reference: &str) -> Vec<(AttestationDetails, String)> {
    let request = ListAttestationsRequest {
        external_reference: reference.into(),
        customer_id: String::new(),
        ..Default::default()
    };
    let list = caller.attestations().list_attestations(request).await.unwrap().into_inner();
    list.attestations.into_iter().map(|of| (of.details.unwrap_or_default(), of.recorded_client)).collect()
}

#[apply(each_backend)]
async fn a_partner_keeps_its_evidence_with_an_attestation(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let direct = cluster.as_caller(Caller { client: Some("shop".into()), ..fixtures::sales(DIRECT) });
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let request = CreateAttestationRequest { details: Some(details("PO 1")), ..new_attestation(&customer) };
    let made = direct.attestations().create_attestation(request.clone()).await.unwrap().into_inner();
    let made = made.attestation.unwrap();
    assert_eq!((made.details.as_ref(), &*made.recorded_client), (Some(&details("PO 1")), "shop"));
    let shown = read(&direct, &made.attestation_id).await;
    assert_eq!((shown.details, &*shown.recorded_client), (Some(details("PO 1")), "shop"));
    let operator = cluster.as_caller(fixtures::operator());
    assert_eq!(read(&operator, &made.attestation_id).await.details, Some(details("PO 1")));
    // What the partner keeps for itself is not for the customer.
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let shown = read(&admin, &made.attestation_id).await;
    let of_customer = AttestationDetails { on_behalf_of: String::new(), ..details("") };
    assert_eq!((shown.details, &*shown.recorded_client), (Some(of_customer.clone()), ""));
    let listed = admin.attestations().list_attestations(ListAttestationsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().attestations[0].details, Some(of_customer));

    // ATT-8: other details make no other attestation.
    let again = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        details: Some(details("PO 2")),
        ..request.clone()
    };
    let again = direct.attestations().create_attestation(again).await;
    assert_eq!(refused(again), (Code::AlreadyExists, "ALREADY_ATTESTED".into()));

    // WD-5: what was filed about the person who was named by mistake does not stay with another one.
    let replacement = Replacement {
        contact: Some(person("Grace")),
        agreed_at: request.agreed_at,
        ..Replacement::default()
    };
    let withdrawal = WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(replacement),
        ..fixtures::new_withdrawal(&made.attestation_id)
    };
    let replaced = direct.attestations().withdraw_attestation(withdrawal).await.unwrap().into_inner();
    let numbered = AttestationDetails { external_reference: "PO 1".into(), ..Default::default() };
    assert_eq!(replaced.replacement.unwrap().details, Some(numbered.clone()));

    // The same of an order's attestation, and of a row of an import.
    let ordering = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    let now = fixtures::now();
    let order = CreateOrderRequest {
        attestation: Some(InlineAttestation {
            details: Some(details("PO 3")),
            ..fixtures::inline_attestation(now)
        }),
        ..fixtures::new_order(&ordering, None, OFFICE, 1)
    };
    actions::place(&direct, order).await.unwrap();
    let CreateAttestationRequest { request_id, customer_id, template_id, contact, .. } =
        new_attestation(&ordering);
    let row = ImportAttestationsRequest {
        request_id,
        customer_id,
        template_id,
        contact,
        agreed_at: Some(timestamp(now - TimeDelta::days(1))),
        details: Some(details("PO 4")),
    };
    let answers =
        with_room(async || direct.attestations().import_attestations(iter([row.clone()])).await).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(answer.refusal, None);

    for (reference, expected) in [
        ("PO 1", vec![(numbered, "shop".to_owned())]),
        // Superseded by the next.
        ("PO 3", vec![]),
        ("PO 4", vec![(details("PO 4"), "shop".to_owned())]),
        ("PO", vec![]),
    ] {
        assert_eq!(with_reference(&direct, reference).await, expected, "{reference}");
    }
    let superseded = ListAttestationsRequest {
        include_history: true,
        external_reference: "PO 3".into(),
        ..ListAttestationsRequest::default()
    };
    let superseded = direct.attestations().list_attestations(superseded).await.unwrap().into_inner();
    let superseded = &superseded.attestations[0];
    assert_eq!((superseded.details.as_ref(), &*superseded.recorded_client), (Some(&details("PO 3")), "shop"));
}
