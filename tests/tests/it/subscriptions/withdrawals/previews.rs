//! Previews (WD-6): what a withdrawal, or the end of a relationship, would do, as each caller may see it.

use proto::order::preview_withdrawal_request::Subject;
use proto::order::{
    PreviewEffect, PreviewOutcome, PreviewWithdrawalRequest, PreviewWithdrawalResponse, RelationshipName,
};
use tests::assert::{refusal, refused};

use super::*;

async fn preview(caller: &As, subject: &Subject) -> Result<PreviewWithdrawalResponse, Status> {
    let request = PreviewWithdrawalRequest { subject: Some(subject.clone()), ..Default::default() };
    Ok(caller.withdrawals().preview_withdrawal(request).await?.into_inner())
}

/// How many would be cancelled, lose automatic renewal and stay; the outcomes by subscription; and who would be uncovered.
type Seen = ((u32, u32, u32), Vec<(String, PreviewOutcome)>, Vec<String>);

fn outcome(effect: &PreviewEffect) -> (String, PreviewOutcome) {
    (effect.subscription_id.clone(), effect.outcome())
}

async fn seen(caller: &As, subject: &Subject) -> Seen {
    let PreviewWithdrawalResponse { cancelled, not_renewed, stayed, effects, uncovered_partner_ids, .. } =
        preview(caller, subject).await.unwrap();
    ((cancelled, not_renewed, stayed), effects.iter().map(outcome).collect(), uncovered_partner_ids)
}

fn expected(counts: (u32, u32, u32), of: &[(&Subscription, PreviewOutcome)], uncovered: &[Uuid]) -> Seen {
    let mut outcomes: Vec<_> = of.iter().map(|(s, outcome)| (s.subscription_id.clone(), *outcome)).collect();
    outcomes.sort();
    (counts, outcomes, uncovered.iter().map(Uuid::to_string).collect())
}

fn unseen() -> (Code, String) {
    (Code::NotFound, "RESOURCE_NOT_FOUND".into())
}

/// WD-6, WD-4, ROLE-6.
#[apply(each_backend)]
async fn a_preview_says_what_the_withdrawal_then_does(#[case] backend: Backend) {
    use PreviewOutcome::{Cancelled, NotRenewed, StillCovered, Unaffected};
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    let operator = cluster.as_caller(fixtures::operator());
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let invited = actions::invite(&reseller, None, Some(PROVIDER)).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    let of_direct = buy(&direct, &customer, None).await.unwrap();
    let of_provider = buy(&provider, &customer, None).await.unwrap();
    let through = buy(&reseller, &customer, Some(PROVIDER)).await.unwrap();
    assert_eq!((of_provider.reseller_id.as_str(), &through.reseller_id), ("", &RESELLER.to_string()));
    let attested = attest_now(&direct, &customer).await.unwrap();
    followed(&operator, cluster.head().await.unwrap()).await;

    // The signature covers everyone, and only one of them has an attestation, too.
    let request = GetDirectSignStatusRequest { customer_id: customer.clone() };
    let signed = admin.signatures().get_direct_sign_status(request).await.unwrap().into_inner();
    let signature = Subject::AcceptanceId(signed.signature.unwrap().signature_id);
    let all = [(&of_direct, StillCovered), (&of_provider, Cancelled), (&through, Cancelled)];
    for caller in [&operator, &admin] {
        assert_eq!(seen(caller, &signature).await, expected((2, 0, 1), &all, &[PROVIDER]));
    }
    let other_customer = cluster.as_caller(fixtures::admin(Uuid::from_u128(0x4000_8000_0000_0bad_0002)));
    assert_eq!(refused(preview(&other_customer, &signature).await), unseen());
    assert_eq!(seen(&direct, &signature).await, expected((0, 0, 1), &all[..1], &[]));
    assert_eq!(seen(&provider, &signature).await, expected((2, 0, 0), &all[1..], &[PROVIDER]));
    assert_eq!(seen(&reseller, &signature).await, expected((1, 0, 0), &all[2..], &[]));

    let attestation = Subject::AcceptanceId(attested);
    for caller in [&operator, &direct] {
        assert_eq!(seen(caller, &attestation).await, expected((0, 0, 1), &all[..1], &[]));
    }
    for (caller, subject) in [
        (&provider, &attestation),
        (&reseller, &attestation),
        (&operator, &Subject::AcceptanceId(fixtures::request_id())),
    ] {
        assert_eq!(refused(preview(caller, subject).await), unseen());
    }

    let relationship = |partner: Uuid, reseller: Option<Uuid>| {
        let reseller_id = reseller.map(|id| id.to_string()).unwrap_or_default();
        let (customer_id, partner_id) = (customer.clone(), partner.to_string());
        Subject::Relationship(RelationshipName { customer_id, partner_id, reseller_id })
    };
    let end = relationship(PROVIDER, Some(RESELLER));
    let ending = [(&of_provider, Unaffected), (&through, NotRenewed)];
    for caller in [&operator, &provider] {
        assert_eq!(seen(caller, &end).await, expected((0, 1, 1), &ending, &[]));
    }
    assert_eq!(seen(&reseller, &end).await, expected((0, 1, 0), &ending[1..], &[]));
    for (caller, subject) in [
        (&direct, end),
        (&reseller, relationship(PROVIDER, None)),
        (&operator, relationship(DIRECT, Some(RESELLER))),
        (&provider, relationship(DIRECT, None)),
    ] {
        assert_eq!(refused(preview(caller, &subject).await), unseen());
    }

    // Page by page, under tokens of this preview.
    let page = async |subject: &Subject, page_token: &str| {
        let subject = Some(subject.clone());
        let request = PreviewWithdrawalRequest { subject, page_size: 2, page_token: page_token.into() };
        Ok::<_, Status>(operator.withdrawals().preview_withdrawal(request).await?.into_inner())
    };
    let first = page(&signature, "").await.unwrap();
    let second = page(&signature, &first.next_page_token).await.unwrap();
    assert_eq!((second.cancelled, second.stayed, second.next_page_token.as_str()), (2, 1, ""));
    let listed: Vec<_> = first.effects.iter().chain(&second.effects).map(outcome).collect();
    assert_eq!(listed, expected((2, 0, 1), &all, &[]).1);
    let elsewhere = page(&attestation, &first.next_page_token).await.unwrap_err();
    assert_eq!(reason_of(&elsewhere), "INVALID_FIELDS");

    // Nothing has happened; then it does, as it was said.
    for bought in [&of_direct, &of_provider, &through] {
        assert_eq!(read(&operator, &bought.subscription_id).await.unwrap(), *bought);
    }
    let revision = withdraw_signature(&admin, &customer).await.unwrap();
    let report = applied(&operator, revision).await;
    let done = counts_and_outcomes(&report);
    let cancelled = WithdrawalOutcome::Cancelled;
    assert_eq!(done, ((2, 1), outcomes(&[(&of_provider, cancelled), (&through, cancelled)])));
    let again = preview(&operator, &signature).await.unwrap();
    assert!(!again.is_current && again.effects.is_empty() && again.uncovered_partner_ids.is_empty());
    assert_eq!((again.cancelled, again.not_renewed, again.stayed), (0, 0, 0));
    assert!(again.applied_up_to >= revision);
}

/// I8. Without agreement-svc it is not known whom a withdrawal would leave without acceptance.
#[apply(each_backend)]
async fn without_agreement_svc_there_is_no_preview(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attested = attest_now(&direct, &customer).await.unwrap();
    cluster.stop_agreements();
    let refused = preview(&direct, &Subject::AcceptanceId(attested)).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
}
