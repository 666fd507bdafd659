//! Customers accept by themselves: signatures, invitations, withdrawal, and the partners they work with.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proto::agreement::{
    AcceptInvitationRequest, CreateCustomerRequest, CreateInvitationRequest, EndRelationshipRequest,
    GetCustomerRequest, GetDirectSignStatusRequest, GetDirectSignStatusResponse, GetInvitationRequest,
    InlineInvitation, Invitation, InvitationState, LinkResellerRequest, ListCustomerPartnersRequest,
    ListInvitationsRequest, PartnerKind, RevokeInvitationRequest, UnlinkResellerRequest,
    WithdrawAttestationRequest, WithdrawAttestationResponse, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::{AcceptanceKind, BlockReason, Cloud, Decision};
use rstest_reuse::apply;
use tests::actions::{self, invite, sign};
use tests::assert::refusal;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER, acceptance};
use tests::{As, Backend, Cluster, Setup, metadata_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::Uuid;

fn precondition(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.into())
}

pub(super) fn not_found() -> (Code, String) {
    (Code::NotFound, "RESOURCE_NOT_FOUND".into())
}

pub(super) fn admin_of(cluster: &Cluster, customer: &str) -> As {
    cluster.as_caller(fixtures::admin(customer.parse().unwrap()))
}

/// The gate's decision on a new purchase and its reasons, as the partner itself receives them.
async fn gate(partner: &As, payer: Uuid, customer: &str) -> (Decision, Vec<BlockReason>) {
    let answer = actions::check(partner, fixtures::new_check(payer, customer)).await.unwrap();
    (answer.decision(), answer.reasons().collect())
}

pub(super) async fn status_of(caller: &As, customer: &str) -> GetDirectSignStatusResponse {
    let request = GetDirectSignStatusRequest { customer_id: customer.into() };
    caller.signatures().get_direct_sign_status(request).await.unwrap().into_inner()
}

fn withdrawal(id: &str) -> WithdrawSignatureRequest {
    WithdrawSignatureRequest {
        request_id: fixtures::request_id(),
        signature_id: id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
        validate_only: false,
    }
}

/// Nothing was recorded since a change, and an answer without effect names the last revision there is.
pub(super) async fn assert_nothing_since(cluster: &Cluster, change: i64, named: i64) {
    assert_eq!(cluster.events_after(change).await.unwrap(), []);
    assert!((change..=cluster.head().await.unwrap()).contains(&named), "{named}");
}

pub(super) async fn invitation(partner: &As, id: &str) -> Result<Invitation, Status> {
    let request = GetInvitationRequest { invitation_id: id.into(), token: String::new() };
    let found = partner.signatures().get_invitation(request).await?.into_inner();
    Ok(found.invitation.unwrap_or_default())
}

/// A signature opens the gate for every partner until it is withdrawn.
#[apply(each_backend)]
async fn a_signature_opens_the_gate_for_every_partner(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    assert_eq!(status_of(&direct, &customer).await.signature, None);

    let signature = sign(&admin, 2).await.unwrap();
    let order = actions::order(&direct, &customer, None, 5).await.unwrap().order.unwrap();
    let evidence = order.gate.unwrap().evidence.unwrap();
    assert_eq!(evidence.kind(), AcceptanceKind::DirectSignature);
    assert_eq!(evidence.acceptance_id, signature.signature_id);
    for caller in [&direct, &admin, &cluster.as_caller(fixtures::operator())] {
        let status = status_of(caller, &customer).await;
        assert!(status.is_signed && status.satisfies);
        assert_eq!(status.signature, Some(signature.clone()));
    }

    actions::until_bought(&cluster, &customer).await.unwrap();

    // A partner that comes later is covered too (DIR-2).
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let invited = invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    assert_eq!(gate(&provider, PROVIDER, &customer).await, (Decision::Allowed, vec![]));

    // The same version twice is once, under whatever request id.
    assert_eq!(sign(&admin, 2).await.unwrap(), signature);
    let changed = sign(&admin, 1).await.unwrap_err();
    assert_eq!(refusal(&changed), precondition("VERSION_CHANGED"));
    assert_eq!(metadata_of(&changed)["version_in_force"], "2");

    // The provider attests besides, so that the withdrawal leaves only the other one bare.
    actions::attest(&provider, &customer, Clock::system().now()).await.unwrap();
    let request = withdrawal(&signature.signature_id);
    let withdrawn = admin.signatures().withdraw_signature(request.clone()).await.unwrap().into_inner();
    assert_eq!(withdrawn.uncovered_partner_ids, [DIRECT.to_string()]);
    let record = withdrawn.signature.clone().unwrap();
    assert_eq!(record.withdrawal_reason(), WithdrawalReason::NoLongerAccepts);
    assert!(record.withdrawn_at.is_some());
    assert_eq!(gate(&direct, DIRECT, &customer).await, (Decision::Blocked, vec![BlockReason::Withdrawn]));
    assert_eq!(gate(&provider, PROVIDER, &customer).await.0, Decision::Allowed);
    assert!(!status_of(&admin, &customer).await.is_signed);

    // Replayed, repeated, and invisible to others.
    let replay = admin.signatures().withdraw_signature(request).await.unwrap().into_inner();
    assert_eq!(replay, withdrawn);
    let again = withdrawal(&signature.signature_id);
    let again = admin.signatures().withdraw_signature(again).await.unwrap().into_inner();
    assert_eq!(again.signature, withdrawn.signature);
    assert_nothing_since(&cluster, withdrawn.revision, again.revision).await;
    let stranger = cluster.as_caller(fixtures::admin(Uuid::from_u128(0xbad)));
    let unseen = withdrawal(&signature.signature_id);
    assert_eq!(refusal(&stranger.signatures().withdraw_signature(unseen).await.unwrap_err()), not_found());

    // It signed before it first bought, so it may sign again (DIR-4).
    let anew = sign(&admin, 2).await.unwrap();
    assert_ne!(anew.signature_id, signature.signature_id);
    assert_eq!(gate(&direct, DIRECT, &customer).await.0, Decision::Allowed);
}

/// DIR-1, DIR-3. A later version needs a new signature, which replaces the old one.
#[apply(each_backend)]
async fn a_later_version_needs_a_new_signature(#[case] backend: Backend) {
    tests::needs_own!("templates of its own");
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);
    let first = sign(&admin, 2).await.unwrap();
    let next = fixtures::new_version(CUSTOMER_AGREEMENT);
    actions::publish(&cluster.as_caller(fixtures::operator()), next).await.unwrap();
    let status = status_of(&admin, &customer).await;
    assert!(status.is_signed && !status.satisfies);
    let blocked = gate(&direct, DIRECT, &customer).await;
    assert_eq!(blocked, (Decision::Blocked, vec![BlockReason::VersionSuperseded]));

    assert_eq!(refusal(&sign(&admin, 2).await.unwrap_err()), precondition("VERSION_CHANGED"));
    let second = sign(&admin, 3).await.unwrap();
    assert!(status_of(&admin, &customer).await.satisfies);
    let request = withdrawal(&first.signature_id);
    let old = admin.signatures().withdraw_signature(request).await.unwrap_err();
    assert_eq!(refusal(&old), precondition("ACCEPTANCE_SUPERSEDED"));
    assert_eq!(metadata_of(&old)["current_id"], second.signature_id);
}

#[apply(each_backend)]
async fn who_bought_before_it_ever_signed_goes_through_its_partner(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let early = invite(&direct, Some(&customer), None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    actions::report_purchase(&cluster, &customer, DIRECT, fixtures::now()).await.unwrap();

    let admin = admin_of(&cluster, &customer);
    let status = sign(&admin, 2).await.unwrap_err();
    assert_eq!(refusal(&status), precondition("CONTACT_PARTNER"));
    assert!(status.message().contains("Contact your partner to confirm your acceptance"));
    let answer = admin.signatures().accept_invitation(acceptance(&early, None)).await.unwrap_err();
    assert_eq!(refusal(&answer), precondition("CONTACT_PARTNER"));
    assert_eq!(invitation(&direct, &early.invitation_id).await.unwrap().state(), InvitationState::Pending);
    let status = invite(&direct, Some(&customer), None).await.unwrap_err();
    assert_eq!(refusal(&status), precondition("CONTACT_PARTNER"));

    // A new partner's invitation still establishes the relationship, so that it can attest (INV-3).
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let invited = invite(&provider, None, None).await.unwrap();
    let request = acceptance(&invited, None);
    let accepted = admin.signatures().accept_invitation(request).await.unwrap().into_inner();
    assert!(accepted.contact_partner);
    assert_eq!(accepted.signature, None);
    assert_eq!(accepted.invitation.unwrap().state(), InvitationState::Accepted);
    assert_eq!(gate(&provider, PROVIDER, &customer).await.0, Decision::Blocked);
    actions::attest(&provider, &customer, Clock::system().now()).await.unwrap();
    actions::order(&provider, &customer, None, 3).await.unwrap();

    // Again is once, and tells the same.
    let request = acceptance(&invited, None);
    let again = admin.signatures().accept_invitation(request).await.unwrap().into_inner();
    assert!(again.contact_partner && again.signature.is_none());
}

/// INV-1.
#[apply(each_backend)]
async fn accepting_an_invitation_makes_a_customer_and_signs(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let request = fixtures::new_invitation(None, None);
    let made = direct.signatures().create_invitation(request.clone()).await.unwrap().into_inner();
    let replay = direct.signatures().create_invitation(request).await.unwrap().into_inner();
    assert_eq!(replay, made, "the link is shown again");
    let invited = made.invitation.unwrap();
    assert!(invited.mail_text.contains(&invited.acceptance_url));
    assert!(invited.mail_subject.contains("Northwind Direct"));
    assert_eq!(invitation(&direct, &invited.invitation_id).await.unwrap(), invited);

    let tenant = fixtures::TAILSPIN;
    let admin = cluster.as_caller(fixtures::admin(tenant));
    let good = acceptance(&invited, Some("Tailspin Toys"));
    let forged = AcceptInvitationRequest { token: good.token.chars().rev().collect(), ..good.clone() };
    let unseen = admin.signatures().accept_invitation(forged).await.unwrap_err();
    assert_eq!(refusal(&unseen), not_found());
    let unnamed = AcceptInvitationRequest { company: None, ..good.clone() };
    let unnamed = admin.signatures().accept_invitation(unnamed).await.unwrap_err();
    assert_eq!(bad_fields_of(&unnamed), ["company"]);
    let outdated = AcceptInvitationRequest { template_version: 1, ..good.clone() };
    let outdated = admin.signatures().accept_invitation(outdated).await.unwrap_err();
    assert_eq!(refusal(&outdated), precondition("VERSION_CHANGED"));
    let request = GetCustomerRequest { customer_id: tenant.to_string() };
    let unseen = direct.customers().get_customer(request.clone()).await.unwrap_err();
    assert_eq!(refusal(&unseen), not_found(), "a refused acceptance leaves nothing behind");

    // With the token a page can show what it is about; link, text and recipient stay the partner's.
    let shown =
        GetInvitationRequest { invitation_id: invited.invitation_id.clone(), token: good.token.clone() };
    let shown = admin.signatures().get_invitation(shown).await.unwrap().into_inner();
    assert_eq!(shown.partner_name, "Northwind Direct");
    let shown = shown.invitation.unwrap();
    assert_eq!((shown.acceptance_url.as_str(), shown.recipient), ("", None));

    let accepted = admin.signatures().accept_invitation(good.clone()).await.unwrap().into_inner();
    let signature = accepted.signature.clone().unwrap();
    assert_eq!(accepted.invitation.clone().unwrap().customer_id, tenant.to_string());
    actions::order(&direct, &tenant.to_string(), None, 5).await.unwrap();
    let found = direct.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
    assert_eq!((found.company_name.as_str(), found.cloud()), ("Tailspin Toys", Cloud::Public));

    let replay = admin.signatures().accept_invitation(good.clone()).await.unwrap().into_inner();
    assert_eq!(replay, accepted);
    let again = AcceptInvitationRequest { request_id: fixtures::request_id(), ..good.clone() };
    let again = admin.signatures().accept_invitation(again).await.unwrap().into_inner();
    assert_eq!(again.signature, Some(signature));
    let other = cluster.as_caller(fixtures::admin(Uuid::from_u128(0xc1)));
    let other = other.signatures().accept_invitation(good).await.unwrap_err();
    assert_eq!(refusal(&other), precondition("INVITATION_NOT_PENDING"));
    assert_eq!(metadata_of(&other)["state"], "ACCEPTED");
    let over = invitation(&direct, &invited.invitation_id).await.unwrap();
    assert_eq!((over.acceptance_url.as_str(), over.mail_text.as_str()), ("", ""));
}

/// The ids of a partner's invitations in a state.
pub(super) async fn invitations(partner: &As, state: InvitationState) -> Vec<String> {
    let request = ListInvitationsRequest { state: state.into(), ..ListInvitationsRequest::default() };
    let listed = partner.signatures().list_invitations(request).await.unwrap().into_inner();
    listed.invitations.into_iter().map(|row| row.invitation_id).collect()
}

/// An invitation that can be accepted no more.
pub(super) async fn assert_ended(admin: &As, invited: &Invitation, state: &str) {
    let answer = admin.signatures().accept_invitation(acceptance(invited, None)).await.unwrap_err();
    assert_eq!(refusal(&answer), precondition("INVITATION_NOT_PENDING"));
    assert_eq!(metadata_of(&answer)["state"], state);
}

/// An invitation ends by revocation, and each partner sees its own.
#[apply(each_backend)]
async fn a_partner_revokes_and_sees_only_its_own_invitations(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);

    let revoked = invite(&direct, Some(&customer), None).await.unwrap();
    assert_eq!(revoked.recipient, Some(fixtures::contact()));
    for _ in 0..2 {
        let request = RevokeInvitationRequest {
            request_id: fixtures::request_id(),
            invitation_id: revoked.invitation_id.clone(),
            validate_only: false,
        };
        let answer = direct.signatures().revoke_invitation(request).await.unwrap().into_inner();
        assert_eq!(answer.invitation.unwrap().state(), InvitationState::Revoked);
    }
    let other = invite(&direct, Some(&customer), None).await.unwrap();
    assert_ended(&admin, &revoked, "REVOKED").await;
    admin.signatures().accept_invitation(acceptance(&other, None)).await.unwrap();

    for (state, expected) in [
        (InvitationState::Revoked, vec![&revoked]),
        (InvitationState::Accepted, vec![&other]),
        (InvitationState::Expired, vec![]),
        (InvitationState::Unspecified, vec![&revoked, &other]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(|one| one.invitation_id.clone()).collect();
        assert_eq!(invitations(&direct, state).await, expected, "{state:?}");
    }
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    assert!(invitations(&provider, InvitationState::Unspecified).await.is_empty());
    let unseen = invitation(&provider, &other.invitation_id).await.unwrap_err();
    assert_eq!(refusal(&unseen), not_found());
}

#[apply(each_backend)]
async fn an_invitation_ends_by_time(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let clock = Clock::manual(Clock::system().now());
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);

    let late = invite(&direct, Some(&customer), None).await.unwrap();
    let ending_after = |days| CreateInvitationRequest {
        expires_at: Some(timestamp(clock.now() + Duration::days(days))),
        ..fixtures::new_invitation(Some(&customer), None)
    };
    let soon = direct.signatures().create_invitation(ending_after(1)).await.unwrap().into_inner();
    let soon = soon.invitation.unwrap();
    let too_late = direct.signatures().create_invitation(ending_after(91)).await.unwrap_err();
    assert_eq!(bad_fields_of(&too_late), ["expires_at"]);

    clock.set(clock.now() + Duration::days(1));
    assert_ended(&admin, &soon, "EXPIRED").await;
    clock.set(clock.now() + Duration::days(29) - Duration::microseconds(1));
    admin.signatures().accept_invitation(acceptance(&late, None)).await.unwrap();
    for (state, one) in [(InvitationState::Expired, &soon), (InvitationState::Accepted, &late)] {
        assert_eq!(invitations(&direct, state).await, std::slice::from_ref(&one.invitation_id));
    }
}

/// INV-4. A reseller's invitation establishes the relationship with both partners, and the customer sees them.
#[apply(each_backend)]
async fn a_resellers_invitation_relates_both_partners(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = admin_of(&cluster, &customer);

    let alone = invite(&reseller, None, None).await.unwrap_err();
    assert_eq!(bad_fields_of(&alone), ["provider_id"]);
    let invited = invite(&reseller, None, Some(PROVIDER)).await.unwrap();
    assert!(invited.mail_subject.contains("Adventure Works Reselling"));
    assert_eq!(invitation(&provider, &invited.invitation_id).await.unwrap(), invited);

    // A reseller that is no longer linked cannot bring customers.
    let unlink = UnlinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: PROVIDER.to_string(),
        reseller_id: RESELLER.to_string(),
        validate_only: false,
    };
    operator.partners().unlink_reseller(unlink).await.unwrap();
    let answer = admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap_err();
    assert_eq!(refusal(&answer), precondition("RESELLER_NOT_LINKED"));
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: PROVIDER.to_string(),
        reseller_id: RESELLER.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await.unwrap();
    admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    actions::order(&reseller, &customer, Some(PROVIDER), 3).await.unwrap();

    let partners = async |include_ended| {
        let request = ListCustomerPartnersRequest { include_ended, ..ListCustomerPartnersRequest::default() };
        admin.customers().list_customer_partners(request).await.unwrap().into_inner().relationships
    };
    let listed = partners(false).await;
    let names: Vec<_> = listed.iter().map(|r| (r.partner_name.as_str(), r.reseller_name.as_str())).collect();
    assert_eq!(names, [("Northwind Direct", ""), ("Fabrikam Distribution", "Adventure Works Reselling")]);

    // The reseller leaves: neither it nor its provider sees the customer any more.
    let acceptance_revision = async || {
        let request = GetCustomerRequest { customer_id: customer.clone() };
        let found = direct.customers().get_customer(request).await.unwrap().into_inner();
        found.customer.unwrap().acceptance_revision
    };
    let before = acceptance_revision().await;
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        provider_id: PROVIDER.to_string(),
        reseller_id: String::new(),
        validate_only: false,
    };
    let ended = reseller.customers().end_relationship(end.clone()).await.unwrap().into_inner();
    assert!(ended.relationship.clone().unwrap().ended_at.is_some());
    let replay = reseller.customers().end_relationship(end.clone()).await.unwrap().into_inner();
    assert_eq!(replay, ended);
    let again = EndRelationshipRequest { request_id: fixtures::request_id(), ..end };
    let again = reseller.customers().end_relationship(again).await.unwrap_err();
    assert_eq!(refusal(&again), not_found());
    let order = actions::order(&reseller, &customer, Some(PROVIDER), 3).await.unwrap_err();
    assert_eq!(order.code(), Code::NotFound);
    for gone in [&reseller, &provider] {
        let request = GetCustomerRequest { customer_id: customer.clone() };
        assert_eq!(refusal(&gone.customers().get_customer(request).await.unwrap_err()), not_found());
        let unseen = invitation(gone, &invited.invitation_id).await.unwrap_err();
        assert_eq!(refusal(&unseen), not_found());
    }
    assert!(acceptance_revision().await > before, "order-svc must ask again (CUS-3)");
    assert_eq!((partners(false).await.len(), partners(true).await.len()), (1, 2));
}

/// A customer is created with its invitation in one step, or not at all.
#[apply(each_backend)]
async fn customer_and_invitation_are_created_together(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let with = |template: &str| CreateCustomerRequest {
        invitation: Some(InlineInvitation { template_id: template.into(), expires_at: None }),
        ..fixtures::new_customer("Contoso", "FR", None)
    };
    let status = direct.customers().create_customer(with(fixtures::CLOUD_AGREEMENT)).await.unwrap_err();
    assert_eq!(refusal(&status), precondition("TEMPLATE_RETIRED"));
    let created = direct.customers().create_customer(with(CUSTOMER_AGREEMENT)).await.unwrap().into_inner();
    let (customer, invited) = (created.customer.unwrap().customer_id, created.invitation.unwrap());
    assert_eq!(invited.customer_id, customer);
    assert_eq!(gate(&direct, DIRECT, &customer).await.0, Decision::Blocked);
    // Made for this customer, so no other customer can see it.
    let stranger = cluster.as_caller(fixtures::admin(Uuid::from_u128(0xbad)));
    let unseen = stranger.signatures().accept_invitation(acceptance(&invited, Some("Other"))).await;
    assert_eq!(refusal(&unseen.unwrap_err()), not_found());
    let admin = admin_of(&cluster, &customer);
    admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    actions::order(&direct, &customer, None, 5).await.unwrap();
}

/// A withdrawn attestation uncovers its partner, unless another acceptance still counts.
#[apply(each_backend)]
async fn a_withdrawn_attestation_uncovers_only_its_partner(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let old = "2020-06-01T00:00:00Z".parse().unwrap();
    let first = actions::attest(&direct, &customer, old).await.unwrap().attestation.unwrap();
    let second = actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let second = second.attestation.unwrap();
    let withdraw = async |caller: &As, id: &str| {
        let request = WithdrawAttestationRequest {
            reason: WithdrawalReason::RecordedInError.into(),
            ..fixtures::new_withdrawal(id)
        };
        caller.attestations().withdraw_attestation(request).await.map(tonic::Response::into_inner)
    };
    let superseded = withdraw(&direct, &first.attestation_id).await.unwrap_err();
    assert_eq!(refusal(&superseded), precondition("ACCEPTANCE_SUPERSEDED"));
    assert_eq!(metadata_of(&superseded)["current_id"], second.attestation_id);
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    assert_eq!(refusal(&withdraw(&provider, &second.attestation_id).await.unwrap_err()), not_found());

    sign(&admin_of(&cluster, &customer), 2).await.unwrap();
    let covered = withdraw(&direct, &second.attestation_id).await.unwrap();
    assert!(!covered.uncovered, "the signature counts");
    assert_eq!(gate(&direct, DIRECT, &customer).await.0, Decision::Allowed);

    let other = actions::create_customer(&direct, "Tailspin", "FR", None).await.unwrap();
    let only = actions::attest(&direct, &other, Clock::system().now()).await.unwrap().attestation.unwrap();
    let bare = withdraw(&direct, &only.attestation_id).await.unwrap();
    assert!(bare.uncovered);
    assert_eq!(gate(&direct, DIRECT, &other).await, (Decision::Blocked, vec![BlockReason::Withdrawn]));
    let twice = withdraw(&direct, &only.attestation_id).await.unwrap();
    let withdrawn_at =
        |answer: &WithdrawAttestationResponse| answer.attestation.clone().unwrap().withdrawn_at;
    assert_eq!(withdrawn_at(&twice), withdrawn_at(&bare));
    assert_nothing_since(&cluster, bare.revision, twice.revision).await;
    // What was withdrawn can be attested anew (ATT-8).
    let anew = actions::attest(&direct, &other, Clock::system().now()).await.unwrap().attestation.unwrap();
    assert_ne!(anew.attestation_id, only.attestation_id);
    assert_eq!(gate(&direct, DIRECT, &other).await.0, Decision::Allowed);
}

/// INV-3. A tenant is a partner or a customer: no partner becomes a customer, its own least of all, and no customer a
/// partner.
#[apply(each_backend)]
async fn a_tenant_is_a_partner_or_a_customer(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    for invited in [invite(&direct, None, None), invite(&reseller, None, Some(PROVIDER))] {
        let invited = invited.await.unwrap();
        let before = cluster.head().await.unwrap();
        for partner in [DIRECT, PROVIDER, RESELLER] {
            let admin = admin_of(&cluster, &partner.to_string());
            let accepted = admin.signatures().accept_invitation(acceptance(&invited, Some("Own"))).await;
            let refused = accepted.unwrap_err();
            assert_eq!(refusal(&refused), precondition("TENANT_OF_OTHER_KIND"));
            let said = metadata_of(&refused);
            assert_eq!((said["tenant_id"].clone(), said["kind"].as_str()), (partner.to_string(), "PARTNER"));
        }
        assert_eq!(cluster.events_after(before).await.unwrap(), []);
    }

    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    let (id, kind) = (customer.parse().unwrap(), PartnerKind::DirectBill);
    let refused = actions::register_partner(&operator, id, "Contoso", kind, Cloud::Public).await.unwrap_err();
    assert_eq!(refusal(&refused), precondition("TENANT_OF_OTHER_KIND"));
    assert_eq!(metadata_of(&refused)["kind"], "CUSTOMER");
}
