//! WD-5, ATT-8: what was recorded in error is corrected, and nothing is cancelled.

use proto::agreement::{
    Attestation, AttestationState, CreateAttestationRequest, GetAttestationRequest, Replacement,
    WithdrawAttestationRequest, WithdrawAttestationResponse, WithdrawalReason,
};

use super::*;

async fn correct(
    partner: &As,
    attestation_id: &str,
    replacement: Replacement,
) -> Result<WithdrawAttestationResponse, Status> {
    let request = WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(replacement),
        ..fixtures::new_withdrawal(attestation_id)
    };
    Ok(partner.attestations().withdraw_attestation(request).await?.into_inner())
}

async fn get(partner: &As, attestation_id: &str) -> Attestation {
    let request = GetAttestationRequest { attestation_id: attestation_id.into() };
    partner.attestations().get_attestation(request).await.unwrap().into_inner().attestation.unwrap()
}

fn on(date: &str) -> Option<prost_types::Timestamp> {
    Some(date.parse().unwrap())
}

/// The date is corrected by attesting again, within a version; the order stays.
#[apply(each_backend)]
async fn a_corrected_date_supersedes_and_cancels_nothing(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let wrong = attest_now(&direct, &customer).await.unwrap();
    let bought = buy(&direct, &customer, None).await.unwrap();
    let request = CreateAttestationRequest {
        agreed_at: on("2024-02-03T00:00:00Z"),
        ..fixtures::new_attestation(&customer)
    };
    let corrected = direct.attestations().create_attestation(request.clone()).await.unwrap().into_inner();
    let corrected = corrected.attestation.unwrap();
    assert_eq!(corrected.agreed_at, on("2024-02-03T00:00:00Z"));
    assert_eq!(get(&direct, &wrong).await.state(), AttestationState::Superseded);
    followed(&direct, corrected.revision).await;
    assert_eq!(read(&direct, &bought.subscription_id).await.unwrap(), bought);
    // Said again it is a duplicate.
    let again = CreateAttestationRequest { request_id: fixtures::request_id(), ..request };
    let refused = direct.attestations().create_attestation(again).await.unwrap_err();
    assert_eq!(reason_of(&refused), "ALREADY_ATTESTED");
}

/// A replacement may be of an earlier version than what it replaces. No partner is uncovered, so nothing is cancelled.
#[apply(each_backend)]
async fn a_replaced_attestation_cancels_nothing(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let wrong = attest_now(&direct, &customer).await.unwrap();
    let bought = buy(&direct, &customer, None).await.unwrap();

    // Tried first: without a replacement the partner would have no acceptance. Nothing is stored.
    let tried = WithdrawAttestationRequest { validate_only: true, ..fixtures::new_withdrawal(&wrong) };
    let tried = direct.attestations().withdraw_attestation(tried).await.unwrap().into_inner();
    assert!(tried.uncovered && tried.attestation.unwrap().state() == AttestationState::Withdrawn);
    assert_eq!(get(&direct, &wrong).await.state(), AttestationState::Current);

    // Of version 1, which was in force then; attesting it again would be refused as older.
    let early = Replacement { agreed_at: on("2020-02-03T00:00:00Z"), ..Replacement::default() };
    let answer = correct(&direct, &wrong, early.clone()).await.unwrap();
    let (withdrawn, made) = (answer.attestation.unwrap(), answer.replacement.unwrap());
    assert!(!answer.uncovered);
    assert_eq!((withdrawn.state(), withdrawn.withdrawal_reason()), {
        (AttestationState::Withdrawn, WithdrawalReason::RecordedInError)
    });
    assert_eq!((made.state(), made.template_version), (AttestationState::Current, 1));
    assert_eq!((&made.contact, made.agreed_at), (&withdrawn.contact, early.agreed_at));
    assert_eq!(answer.revision, made.revision);

    let withdrawal = made.revision - 1;
    let report = applied(&operator, withdrawal).await;
    assert!(report.report.as_ref().unwrap().uncovered_partner_ids.is_empty());
    assert_eq!(counts_and_outcomes(&report).0.0, 0);
    followed(&operator, made.revision).await;
    assert_eq!(read(&direct, &bought.subscription_id).await.unwrap(), bought);

    // What is withdrawn already is not replaced, nor is what was not recorded in error.
    let refused = correct(&direct, &wrong, early.clone()).await.unwrap_err();
    assert_eq!(tests::clients::bad_fields_of(&refused), ["replacement"]);
    let other_reason = WithdrawAttestationRequest {
        replacement: Some(early),
        ..fixtures::new_withdrawal(&made.attestation_id)
    };
    let refused = direct.attestations().withdraw_attestation(other_reason).await.unwrap_err();
    assert_eq!(tests::clients::bad_fields_of(&refused), ["replacement"]);
    // A refused replacement leaves the attestation as it is.
    let retired = Replacement {
        template_id: fixtures::CLOUD_AGREEMENT.into(),
        agreed_at: on("2020-02-03T00:00:00Z"),
        ..Replacement::default()
    };
    let refused = correct(&direct, &made.attestation_id, retired).await.unwrap_err();
    assert_eq!(reason_of(&refused), "TEMPLATE_RETIRED");
    assert_eq!(get(&direct, &made.attestation_id).await.state(), AttestationState::Current);
}
