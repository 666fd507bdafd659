//! PRO-1: a reseller proposes, and its provider decides.

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proto::agreement::event::Change;
use proto::agreement::{
    ApproveProposalRequest, ApproveProposalResponse, AttestationState, EndRelationshipRequest,
    GetProposalRequest, ListEventsRequest, ListProposalsRequest, Proposal, ProposalState,
    ProposeAttestationRequest, ProposedBy, RejectProposalRequest, RejectProposalResponse, RejectionReason,
    WithdrawProposalRequest, WithdrawProposalResponse,
};
use proto::types::{AttestationDetails, Decision};
use rstest_reuse::apply;
use tests::assert::refused;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CLOUD_AGREEMENT, DIRECT, PROVIDER, RESELLER, new_check, new_proposal, person};
use tests::{As, Backend, Cluster, Setup, actions};
use tonic::{Code, Status};

use crate::each_backend;

async fn propose(reseller: &As, request: ProposeAttestationRequest) -> Result<Proposal, Status> {
    let answer = reseller.proposals().propose_attestation(request).await?.into_inner();
    Ok(answer.proposal.unwrap())
}

async fn approve(partner: &As, proposal: &Proposal) -> Result<ApproveProposalResponse, Status> {
    let request = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.proposal_id.clone(),
        validate_only: false,
    };
    Ok(partner.proposals().approve_proposal(request).await?.into_inner())
}

async fn reject(
    partner: &As,
    proposal: &Proposal,
    reason: RejectionReason,
) -> Result<RejectProposalResponse, Status> {
    let request = RejectProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.proposal_id.clone(),
        reason: reason.into(),
        validate_only: false,
    };
    Ok(partner.proposals().reject_proposal(request).await?.into_inner())
}

async fn withdraw(partner: &As, proposal: &Proposal) -> Result<WithdrawProposalResponse, Status> {
    let request = WithdrawProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.proposal_id.clone(),
        validate_only: false,
    };
    Ok(partner.proposals().withdraw_proposal(request).await?.into_inner())
}

async fn read(caller: &As, proposal: &Proposal) -> Result<Proposal, Status> {
    let request = GetProposalRequest { proposal_id: proposal.proposal_id.clone() };
    Ok(caller.proposals().get_proposal(request).await?.into_inner().proposal.unwrap())
}

/// The proposals for a customer that a caller finds, by id, read page by page.
async fn found(caller: &As, customer_id: &str, state: ProposalState) -> Vec<String> {
    let mut request = ListProposalsRequest {
        customer_id: customer_id.into(),
        state: state.into(),
        page_size: 1,
        page_token: String::new(),
    };
    let mut ids = vec![];
    loop {
        let page = caller.proposals().list_proposals(request.clone()).await.unwrap().into_inner();
        ids.extend(page.proposals.into_iter().map(|proposal| proposal.proposal_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return ids;
        }
    }
}

async fn decision(provider: &As, customer: &str) -> Decision {
    let checked = provider.gate().check_eligibility(new_check(PROVIDER, customer)).await.unwrap();
    checked.into_inner().decision()
}

fn not_found() -> (Code, String) {
    (Code::NotFound, "RESOURCE_NOT_FOUND".into())
}

fn not_pending() -> (Code, String) {
    (Code::FailedPrecondition, "PROPOSAL_NOT_PENDING".into())
}

#[apply(each_backend)]
async fn a_provider_decides_on_what_its_reseller_proposes(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(Caller { client: Some("desk".into()), ..fixtures::sales(PROVIDER) });
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let details = AttestationDetails {
        title: "CFO".into(),
        external_reference: "PO 7".into(),
        ..AttestationDetails::default()
    };
    let request =
        ProposeAttestationRequest { details: Some(details.clone()), ..new_proposal(PROVIDER, &customer) };

    // As bad as an attestation would be, or of parties that do not belong together.
    let retired = ProposeAttestationRequest { template_id: CLOUD_AGREEMENT.into(), ..request.clone() };
    let refusal = refused(propose(&reseller, retired).await);
    assert_eq!(refusal, (Code::FailedPrecondition, "TEMPLATE_RETIRED".into()));
    let early = Some(timestamp(fixtures::now() + Duration::hours(1)));
    let early = propose(&reseller, ProposeAttestationRequest { agreed_at: early, ..request.clone() }).await;
    assert_eq!(bad_fields_of(&early.unwrap_err()), ["agreed_at"]);
    let elsewhere = ProposeAttestationRequest { provider_id: DIRECT.to_string(), ..request.clone() };
    assert_eq!(refused(propose(&reseller, elsewhere).await), not_found());
    for other in [&provider, &direct] {
        assert_eq!(refused(propose(other, request.clone()).await), not_found());
    }

    // Only the three see it, and it does not count.
    let proposal = propose(&reseller, request.clone()).await.unwrap();
    assert_eq!((proposal.state(), proposal.details.as_ref()), (ProposalState::Pending, Some(&details)));
    for caller in [&reseller, &provider, &operator] {
        assert_eq!(read(caller, &proposal).await.unwrap(), proposal);
    }
    assert_eq!(refused(read(&direct, &proposal).await), not_found());
    assert_eq!(refused(approve(&direct, &proposal).await), not_found());
    let refusal = refused(approve(&reseller, &proposal).await);
    assert_eq!(refusal, (Code::PermissionDenied, "RESELLER_CANNOT_ATTEST".into()));
    assert_eq!(decision(&provider, &customer).await, Decision::Blocked);

    // Approved: the provider's attestation. Once more: the same.
    let approved = approve(&provider, &proposal).await.unwrap();
    let attestation = approved.attestation.clone().unwrap();
    let proposed_by = ProposedBy {
        partner_id: RESELLER.to_string(),
        user_id: proposal.proposed_by.clone(),
        proposal_id: proposal.proposal_id.clone(),
    };
    assert_eq!((attestation.proposed_by.clone(), &*attestation.recorded_client), (Some(proposed_by), "desk"));
    assert_eq!(
        (attestation.partner_id.clone(), attestation.details.clone()),
        (PROVIDER.to_string(), Some(details))
    );
    assert_eq!(attestation.contact, request.contact);
    let shown = approved.proposal.unwrap();
    assert_eq!(
        (shown.state(), &shown.attestation_id),
        (ProposalState::Approved, &attestation.attestation_id)
    );
    assert_eq!(decision(&provider, &customer).await, Decision::Allowed);
    let again = approve(&provider, &proposal).await.unwrap();
    assert_eq!(again.proposal.unwrap(), shown);
    // Of the last change, which may be another test's.
    assert!(again.revision >= approved.revision);
    assert_eq!(again.attestation.unwrap().state(), AttestationState::Current);
    assert_eq!(refused(reject(&provider, &proposal, RejectionReason::Other).await), not_pending());

    // The provider's own attestations count when it approves, and only then.
    let same = ProposeAttestationRequest { request_id: fixtures::request_id(), ..request.clone() };
    let same = propose(&reseller, same).await.unwrap();
    let refusal = refused(approve(&provider, &same).await);
    assert_eq!(refusal, (Code::AlreadyExists, "ALREADY_ATTESTED".into()));
    let rejected = reject(&provider, &same, RejectionReason::NotNeeded).await.unwrap();
    let once = reject(&provider, &same, RejectionReason::Person).await.unwrap();
    assert_eq!(once.proposal, rejected.proposal);
    let rejected = rejected.proposal.unwrap();
    let reason = RejectionReason::NotNeeded;
    assert_eq!((rejected.state(), rejected.rejection_reason()), (ProposalState::Rejected, reason));
    assert_eq!(refused(approve(&provider, &same).await), not_pending());

    // Those that wait are bounded.
    let mut waiting = vec![];
    for n in 0..10 {
        let contact = Some(person(&format!("P{n}")));
        let new = ProposeAttestationRequest { contact, ..new_proposal(PROVIDER, &customer) };
        waiting.push(propose(&reseller, new).await.unwrap().proposal_id);
    }
    let one_more = new_proposal(PROVIDER, &customer);
    let refusal = refused(propose(&reseller, one_more).await);
    assert_eq!(refusal, (Code::FailedPrecondition, "PROPOSAL_LIMIT".into()));
    for caller in [&reseller, &provider, &operator] {
        assert_eq!(found(caller, &customer, ProposalState::Pending).await, waiting);
        let approved = std::slice::from_ref(&proposal.proposal_id);
        let rejected_ids = std::slice::from_ref(&same.proposal_id);
        assert_eq!(found(caller, &customer, ProposalState::Approved).await, approved);
        assert_eq!(found(caller, &customer, ProposalState::Rejected).await, rejected_ids);
        assert_eq!(found(caller, &customer, ProposalState::Expired).await, [""; 0]);
    }
    for partner in [&reseller, &provider] {
        assert_eq!(found(partner, "", ProposalState::Unspecified).await.len(), 12);
    }
    assert_eq!(found(&direct, "", ProposalState::Unspecified).await, [""; 0]);

    // The history has it for the provider.
    let events = ListEventsRequest { customer_id: customer.clone(), page_size: 500, ..Default::default() };
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    for (caller, expected) in [(&provider, &["proposed", "approved", "rejected"][..]), (&admin, &[])] {
        let events = caller.events().list_events(events.clone()).await.unwrap().into_inner().events;
        let kinds = events.iter().filter_map(|event| match event.change.as_ref()? {
            Change::AttestationProposed(of) if of.proposal_id == proposal.proposal_id => Some("proposed"),
            Change::ProposalApproved(of) if of.proposal_id == proposal.proposal_id => Some("approved"),
            Change::ProposalRejected(of) if of.reason() == reason => Some("rejected"),
            _ => None,
        });
        assert_eq!(kinds.collect::<Vec<_>>(), expected);
    }

    // Without the relationship there is nothing to decide.
    let request_id = fixtures::request_id();
    let provider_id = PROVIDER.to_string();
    let end = EndRelationshipRequest { request_id, customer_id: customer, provider_id, ..Default::default() };
    reseller.customers().end_relationship(end).await.unwrap();
    for partner in [&reseller, &provider] {
        assert_eq!(refused(read(partner, &proposal).await), not_found());
        assert_eq!(found(partner, "", ProposalState::Unspecified).await, [""; 0]);
    }
    assert_eq!(refused(approve(&provider, &proposal).await), not_found());
}

#[apply(each_backend)]
async fn a_proposal_expires_after_thirty_days(#[case] backend: Backend) {
    tests::needs_own!("a clock that it moves");
    tests::needs!(backend);
    let start = fixtures::now();
    let clock = Clock::manual(start);
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let new =
        ProposeAttestationRequest { agreed_at: Some(timestamp(start)), ..new_proposal(PROVIDER, &customer) };
    let proposal = propose(&reseller, new).await.unwrap();
    clock.set(start + Duration::days(30));
    assert_eq!(read(&reseller, &proposal).await.unwrap().state(), ProposalState::Expired);
    let expired = std::slice::from_ref(&proposal.proposal_id);
    assert_eq!(found(&provider, &customer, ProposalState::Expired).await, expired);
    assert_eq!(found(&provider, &customer, ProposalState::Pending).await, [""; 0]);
    assert_eq!(refused(approve(&provider, &proposal).await), not_pending());
    assert_eq!(refused(reject(&provider, &proposal, RejectionReason::Other).await), not_pending());
    assert_eq!(refused(withdraw(&reseller, &proposal).await), not_pending());
}

#[apply(each_backend)]
async fn a_withdrawn_proposal_counts_for_another_hour(#[case] backend: Backend) {
    tests::needs_own!("a clock that it moves");
    tests::needs!(backend);
    let start = fixtures::now();
    let clock = Clock::manual(start);
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let one_more = async || {
        let agreed_at = Some(timestamp(start));
        let new = ProposeAttestationRequest { agreed_at, ..new_proposal(PROVIDER, &customer) };
        propose(&reseller, new).await
    };
    let full = || (Code::FailedPrecondition, "PROPOSAL_LIMIT".to_owned());
    for minutes in [0, 1] {
        clock.set(start + Duration::minutes(minutes));
        for _ in 0..4 {
            let proposal = one_more().await.unwrap();
            withdraw(&reseller, &proposal).await.unwrap();
        }
    }
    let [waiting, rejected] = [one_more().await.unwrap(), one_more().await.unwrap()];
    assert_eq!(refused(one_more().await), full());
    // What the provider has decided counts no more.
    reject(&provider, &rejected, RejectionReason::Other).await.unwrap();
    withdraw(&reseller, &one_more().await.unwrap()).await.unwrap();
    assert_eq!(refused(one_more().await), full());
    // The first four.
    clock.set(start + Duration::hours(1));
    for _ in 0..4 {
        one_more().await.unwrap();
    }
    assert_eq!(refused(one_more().await), full());
    assert_eq!(read(&reseller, &waiting).await.unwrap().state(), ProposalState::Pending);
}

#[apply(each_backend)]
async fn a_reseller_withdraws_what_it_proposed_wrongly(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let mut proposals = vec![];
    for _ in 0..10 {
        proposals.push(propose(&reseller, new_proposal(PROVIDER, &customer)).await.unwrap());
    }
    let [approved, rejected, wrong] = [&proposals[0], &proposals[1], &proposals[2]];
    approve(&provider, approved).await.unwrap();
    reject(&provider, rejected, RejectionReason::Other).await.unwrap();
    for decided in [approved, rejected] {
        assert_eq!(refused(withdraw(&reseller, decided).await), not_pending());
    }

    // The provider rejects, and no one else sees it.
    assert_eq!(bad_fields_of(&withdraw(&provider, wrong).await.unwrap_err()), ["proposal_id"]);
    assert_eq!(refused(withdraw(&direct, wrong).await), not_found());
    assert_eq!(read(&provider, wrong).await.unwrap().state(), ProposalState::Pending);

    let withdrawn = withdraw(&reseller, wrong).await.unwrap();
    let again = withdraw(&reseller, wrong).await.unwrap();
    assert_eq!(again.proposal, withdrawn.proposal);
    let shown = withdrawn.proposal.unwrap();
    assert_eq!((shown.state(), shown.rejection_reason), (ProposalState::Withdrawn, 0));
    assert!(shown.decided_at.is_some() && shown.attestation_id.is_empty());
    assert_eq!(read(&provider, wrong).await.unwrap(), shown);
    for refusal in [
        refused(approve(&provider, wrong).await),
        refused(reject(&provider, wrong, RejectionReason::Other).await),
    ] {
        assert_eq!(refusal, not_pending());
    }
    for partner in [&reseller, &provider] {
        let of = async |state| found(partner, &customer, state).await;
        assert_eq!(of(ProposalState::Withdrawn).await, std::slice::from_ref(&wrong.proposal_id));
        assert_eq!(of(ProposalState::Rejected).await, std::slice::from_ref(&rejected.proposal_id));
        assert_eq!(of(ProposalState::Pending).await.len(), 7);
    }

    let events = ListEventsRequest { customer_id: customer.clone(), page_size: 500, ..Default::default() };
    let events = provider.events().list_events(events).await.unwrap().into_inner().events;
    let is_of = |change: &Change| matches!(change, Change::ProposalWithdrawn(of) if of.proposal_id == wrong.proposal_id);
    assert_eq!(events.iter().filter_map(|event| event.change.as_ref()).filter(|of| is_of(of)).count(), 1);

    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer,
        provider_id: PROVIDER.to_string(),
        ..EndRelationshipRequest::default()
    };
    reseller.customers().end_relationship(end).await.unwrap();
    assert_eq!(refused(withdraw(&reseller, &proposals[3]).await), not_found());
}

/// What the provider attests is what the reseller proposed, not what the database says since.
#[apply(each_backend)]
async fn a_proposal_that_was_altered_is_not_approved(#[case] backend: Backend) {
    tests::needs_own!("a database to write to");
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let other = actions::create_customer(&reseller, "Fabrikam", "FR", Some(PROVIDER)).await.unwrap();
    for altered in [
        "last_name = 'Brambleton'".to_owned(),
        "title = 'CEO'".into(),
        "agreed_at = '2020-01-01 00:00:00'".into(),
        format!("customer_id = '{other}'"),
        "revision = 1".into(),
        "expires_at = '2099-01-01 00:00:00'".into(),
    ] {
        let proposal = propose(&reseller, new_proposal(PROVIDER, &customer)).await.unwrap();
        let id = &proposal.proposal_id;
        cluster.agreements_sql(&format!("UPDATE proposal SET {altered} WHERE id = '{id}'")).unwrap();
        assert_eq!(
            refused(approve(&provider, &proposal).await),
            (Code::Internal, "INTERNAL".into()),
            "{altered}"
        );
        reject(&provider, &proposal, RejectionReason::Other).await.unwrap();
    }
    approve(&provider, &propose(&reseller, new_proposal(PROVIDER, &customer)).await.unwrap()).await.unwrap();
}
