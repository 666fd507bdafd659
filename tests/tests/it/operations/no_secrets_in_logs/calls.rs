//! The calls with marks in them: those that succeed, and every way for them to fail.

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::form::timestamp;
use proto::agreement::{
    ApproveProposalRequest, CreateAttestationRequest, CreateCustomerRequest, CreateInvitationRequest,
    DeclineInvitationRequest, DeclineReason, GetPartnerRequest, ImportAttestationsRequest,
    ImportCustomersRequest, ImportOutcome, InlineAttestation, Invitation, InvitationKind,
    ListAttestationsRequest, ListCustomersRequest, PartnerKind, ProposeAttestationRequest,
    RegisterPartnerRequest, RejectProposalRequest, RejectionReason, Replacement, ReportPurchaseRequest,
    UpdateCustomerRequest, UpdatePartnerRequest, WithdrawAttestationRequest, WithdrawProposalRequest,
    WithdrawalReason,
};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, InlineAttestation as OrderAttestation, ListOrdersRequest,
    RenewSubscriptionRequest, SetAutoRenewRequest,
};
use proto::types::Cloud;
use tests::clients::Identity;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER};
use tests::{As, metadata_of, reason_of};
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::marks::{
    MARK, bad_contact, bad_details, bad_support, marked, marked_contact, marked_details, marked_rows,
    marked_support, reference, too_long_reference,
};

/// What was made.
pub(super) struct Made {
    /// The direct-bill partner's customer, and the one that it imported.
    pub(super) customer: String,
    imported: String,
    /// The token of the invitation that the customer declined.
    pub(super) token: String,
    /// The imported customer's.
    pub(super) open: Invitation,
    /// The customer's current one.
    pub(super) attestation: String,
    /// The reseller's customer, and what was proposed for it.
    resold: String,
    rejected: String,
    pub(super) pending: String,
}

/// Another caller of the same services.
pub(super) fn by(direct: &As, caller: Caller) -> As {
    As { identity: Identity::of(caller), ..direct.clone() }
}

fn admin(direct: &As, customer: &str) -> As {
    by(direct, fixtures::admin(customer.parse().unwrap()))
}

pub(super) fn order(customer: &str) -> CreateOrderRequest {
    let attestation = OrderAttestation {
        contact: Some(marked_contact()),
        details: Some(marked_details()),
        ..fixtures::inline_attestation(Clock::system().now())
    };
    let mut order = CreateOrderRequest {
        attestation: Some(attestation),
        external_reference: reference(),
        ..fixtures::new_order(customer, None, OFFICE, 1)
    };
    order.lines[0].friendly_name = format!("for {MARK}");
    order
}

pub(super) fn attestation(customer: &str) -> CreateAttestationRequest {
    CreateAttestationRequest {
        details: Some(marked_details()),
        ..fixtures::new_attestation_by(customer, marked_contact())
    }
}

/// A withdrawal of an attestation that names the right person instead.
pub(super) fn replacement(attestation: &str) -> WithdrawAttestationRequest {
    let replacement = Replacement {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        details: Some(marked_details()),
    };
    WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(replacement),
        ..fixtures::new_withdrawal(attestation)
    }
}

fn proposal(customer: &str) -> ProposeAttestationRequest {
    ProposeAttestationRequest {
        contact: Some(marked_contact()),
        details: Some(marked_details()),
        ..fixtures::new_proposal(PROVIDER, customer)
    }
}

pub(super) fn approval(proposal: &str) -> ApproveProposalRequest {
    ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.into(),
        validate_only: false,
    }
}

fn rejection(proposal: &str) -> RejectProposalRequest {
    RejectProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.into(),
        reason: RejectionReason::Person.into(),
        validate_only: false,
    }
}

fn retreat(proposal: &str) -> WithdrawProposalRequest {
    WithdrawProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.into(),
        validate_only: false,
    }
}

fn decline(invitation: &str, token: &str) -> DeclineInvitationRequest {
    DeclineInvitationRequest {
        request_id: fixtures::request_id(),
        invitation_id: invitation.into(),
        token: token.into(),
        reason: DeclineReason::Terms.into(),
        validate_only: false,
    }
}

fn new_partner() -> RegisterPartnerRequest {
    RegisterPartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: fixtures::request_id(),
        name: "Litware".into(),
        kind: PartnerKind::DirectBill.into(),
        cloud: Cloud::Public.into(),
        validate_only: false,
        support: Some(marked_support()),
    }
}

/// Does what there is to do; every call succeeds.
pub(super) async fn succeed(direct: &As) -> Made {
    // Before any mail, so that mails say whom to ask.
    say_whom_to_ask(&by(direct, fixtures::operator())).await;
    let (customer, imported) = make_customers(direct).await;
    let (declined, open) = (invite(direct, &customer).await, invite(direct, &imported).await);
    // It buys before it ever signed, so that it cannot sign.
    let purchase = ReportPurchaseRequest {
        request_id: fixtures::request_id(),
        customer_id: imported.clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(timestamp(Clock::system().now())),
        validate_only: false,
    };
    by(direct, fixtures::service()).gate().report_purchase(marked(purchase)).await.unwrap();
    let token = token_of(&declined);
    let decline = decline(&declined.invitation_id, &token);
    admin(direct, &customer).signatures().decline_invitation(marked(decline)).await.unwrap();
    direct.orders().create_order(marked(order(&customer))).await.unwrap();
    let list = ListOrdersRequest { external_reference: reference(), ..Default::default() };
    let listed = direct.orders().list_orders(marked(list)).await.unwrap().into_inner();
    assert_eq!(listed.orders.len(), 1);
    let attestation = attest(direct, &customer).await;
    let (resold, rejected, pending) = propose(direct).await;
    Made { customer, imported, token, open, attestation, resold, rejected, pending }
}

async fn say_whom_to_ask(operator: &As) {
    operator.partners().register_partner(marked(new_partner())).await.unwrap();
    let known = GetPartnerRequest { partner_id: DIRECT.to_string() };
    let known = operator.partners().get_partner(marked(known)).await.unwrap().into_inner().partner.unwrap();
    let update = UpdatePartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: known.partner_id,
        etag: known.etag,
        name: known.name,
        validate_only: false,
        support: Some(marked_support()),
    };
    operator.partners().update_partner(marked(update)).await.unwrap();
}

/// Creates a customer and updates it, creates one together with an attestation, and imports one. The answer is the
/// first and the last.
async fn make_customers(direct: &As) -> (String, String) {
    let mut new = fixtures::new_customer(&format!("Contoso {MARK}"), "FR", None);
    new.primary_contact = Some(marked_contact());
    new.domain = format!("{MARK}.example");
    new.external_reference = reference();
    let customer =
        direct.customers().create_customer(marked(new)).await.unwrap().into_inner().customer.unwrap();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.customer_id.clone(),
        etag: customer.etag,
        company_name: format!("New {MARK}"),
        primary_contact: Some(marked_contact()),
        external_reference: Some(format!("again {}", reference())),
        ..UpdateCustomerRequest::default()
    };
    direct.customers().update_customer(marked(update)).await.unwrap();
    let attestation = InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        details: Some(marked_details()),
    };
    let attested = CreateCustomerRequest {
        primary_contact: Some(marked_contact()),
        attestation: Some(attestation),
        external_reference: reference(),
        ..fixtures::new_customer(&format!("Fabrikam {MARK}"), "FR", None)
    };
    direct.customers().create_customer(marked(attested)).await.unwrap();
    let list = ListCustomersRequest { external_reference: reference(), ..Default::default() };
    let listed = direct.customers().list_customers(marked(list)).await.unwrap().into_inner();
    assert_eq!(listed.customers.len(), 1);

    let row = ImportCustomersRequest {
        request_id: fixtures::request_id(),
        customer_id: fixtures::request_id(),
        company_name: format!("Wingtip {MARK}"),
        domain: format!("wingtip-{MARK}.example"),
        country: "FR".into(),
        primary_contact: Some(marked_contact()),
        external_reference: reference(),
        ..ImportCustomersRequest::default()
    };
    let imported = row.customer_id.clone();
    let broken = ImportCustomersRequest {
        request_id: fixtures::request_id(),
        customer_id: MARK.into(),
        primary_contact: Some(bad_contact()),
        external_reference: too_long_reference(),
        ..row.clone()
    };
    let rows = marked_rows(vec![row, broken]);
    let mut results = direct.customers().import_customers(rows).await.unwrap().into_inner();
    let mut outcomes = vec![];
    while let Some(result) = results.message().await.unwrap() {
        outcomes.push(result.outcome());
    }
    assert_eq!(outcomes, [ImportOutcome::Stored, ImportOutcome::Refused]);
    (customer.customer_id, imported)
}

async fn invite(direct: &As, customer: &str) -> Invitation {
    let invite = CreateInvitationRequest {
        recipient: Some(marked_contact()),
        kind: InvitationKind::Agreement.into(),
        ..fixtures::new_invitation(Some(customer), None)
    };
    let invited = direct.signatures().create_invitation(marked(invite)).await.unwrap().into_inner();
    invited.invitation.unwrap()
}

pub(super) fn token_of(invitation: &Invitation) -> String {
    invitation.acceptance_url.rsplit_once("token=").unwrap().1.to_owned()
}

/// Imports, attests, and says that it was the wrong person. The answer is the attestation of the right person.
async fn attest(direct: &As, customer: &str) -> String {
    let row = ImportAttestationsRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        details: Some(marked_details()),
    };
    let broken = ImportAttestationsRequest {
        request_id: fixtures::request_id(),
        customer_id: MARK.into(),
        contact: Some(bad_contact()),
        details: Some(bad_details()),
        ..row.clone()
    };
    let rows = marked_rows(vec![row, broken]);
    let mut results = direct.attestations().import_attestations(rows).await.unwrap().into_inner();
    let mut outcomes = vec![];
    while let Some(result) = results.message().await.unwrap() {
        outcomes.push(result.outcome());
    }
    assert_eq!(outcomes, [ImportOutcome::Stored, ImportOutcome::Refused]);
    let made = direct.attestations().create_attestation(marked(attestation(customer))).await.unwrap();
    let wrong = made.into_inner().attestation.unwrap().attestation_id;
    let replaced = direct.attestations().withdraw_attestation(marked(replacement(&wrong))).await.unwrap();
    let right = replaced.into_inner().replacement.unwrap().attestation_id;
    let list = ListAttestationsRequest {
        customer_id: customer.into(),
        include_history: true,
        external_reference: reference(),
        ..ListAttestationsRequest::default()
    };
    let listed = direct.attestations().list_attestations(marked(list)).await.unwrap().into_inner();
    // With the order's.
    assert_eq!(listed.attestations.len(), 4);
    right
}

/// A reseller proposes, and each proposal but the last has an end of its own. The answer is the customer, the
/// rejected proposal and the last one.
async fn propose(direct: &As) -> (String, String, String) {
    let [reseller, provider] = [RESELLER, PROVIDER].map(|partner| by(direct, fixtures::sales(partner)));
    let new = CreateCustomerRequest {
        primary_contact: Some(marked_contact()),
        ..fixtures::new_customer(&format!("Resold {MARK}"), "FR", Some(PROVIDER))
    };
    let created = reseller.customers().create_customer(marked(new)).await.unwrap().into_inner();
    let customer = created.customer.unwrap().customer_id;
    let propose = async || {
        let proposed = reseller.proposals().propose_attestation(marked(proposal(&customer))).await.unwrap();
        proposed.into_inner().proposal.unwrap().proposal_id
    };
    let (approved, rejected, withdrawn) = (propose().await, propose().await, propose().await);
    let pending = propose().await;
    provider.proposals().approve_proposal(marked(approval(&approved))).await.unwrap();
    provider.proposals().reject_proposal(marked(rejection(&rejected))).await.unwrap();
    reseller.proposals().withdraw_proposal(marked(retreat(&withdrawn))).await.unwrap();
    (customer, rejected, pending)
}

/// Everything that is wrong with a request, with marks in it.
pub(super) async fn fail(direct: &As, made: &Made) {
    fail_orders(direct, &made.customer).await;
    fail_attestations(direct, made).await;
    fail_customers(direct, &made.customer).await;
    fail_partners(&by(direct, fixtures::operator())).await;
    fail_proposals(direct, made).await;
    fail_signatures(direct, made).await;
    fail_malformed(direct).await;
}

async fn fail_orders(direct: &As, customer: &str) {
    let mut bad = order(customer);
    let attestation = bad.attestation.as_mut().unwrap();
    attestation.contact = Some(bad_contact());
    attestation.details = Some(bad_details());
    bad.request_id = format!("no id {MARK}");
    bad.lines[0].offer_id = MARK.into();
    bad.external_reference = too_long_reference();
    direct.orders().create_order(marked(bad)).await.unwrap_err();
    // agreement-svc rejects these.
    let mut bad = order(customer);
    bad.attestation.as_mut().unwrap().template_id = fixtures::request_id();
    direct.orders().create_order(marked(bad)).await.unwrap_err();
    let mut bad = order(customer);
    bad.attestation.as_mut().unwrap().contact = Some(bad_contact());
    direct.orders().create_order(marked(bad)).await.unwrap_err();
    let page = ListOrdersRequest {
        page_token: MARK.into(),
        external_reference: too_long_reference(),
        ..Default::default()
    };
    direct.orders().list_orders(marked(page)).await.unwrap_err();

    let attestation = order(customer).attestation;
    let (subscription_id, etag) = (String::from(MARK), String::from(MARK));
    let seats = ChangeSeatsRequest {
        subscription_id: subscription_id.clone(),
        etag: etag.clone(),
        attestation: attestation.clone(),
        ..Default::default()
    };
    direct.subscriptions().change_seats(marked(seats)).await.unwrap_err();
    let renewal = RenewSubscriptionRequest {
        subscription_id: subscription_id.clone(),
        etag: etag.clone(),
        attestation: attestation.clone(),
        ..Default::default()
    };
    direct.subscriptions().renew_subscription(marked(renewal)).await.unwrap_err();
    let renewing = SetAutoRenewRequest { subscription_id, etag, attestation, ..Default::default() };
    direct.subscriptions().set_auto_renew(marked(renewing)).await.unwrap_err();
}

async fn fail_attestations(direct: &As, made: &Made) {
    let bad = CreateAttestationRequest { customer_id: MARK.into(), ..attestation(&made.customer) };
    direct.attestations().create_attestation(marked(bad)).await.unwrap_err();
    let bad = CreateAttestationRequest {
        contact: Some(bad_contact()),
        details: Some(bad_details()),
        ..attestation(&made.customer)
    };
    direct.attestations().create_attestation(marked(bad)).await.unwrap_err();
    let page = ListAttestationsRequest {
        page_token: MARK.into(),
        external_reference: too_long_reference(),
        ..Default::default()
    };
    direct.attestations().list_attestations(marked(page)).await.unwrap_err();

    let unknown = replacement(MARK);
    let mut bad = replacement(&made.attestation);
    let of = bad.replacement.as_mut().unwrap();
    (of.contact, of.details) = (Some(bad_contact()), Some(bad_details()));
    let mut unpublished = replacement(&made.attestation);
    unpublished.replacement.as_mut().unwrap().template_id = fixtures::request_id();
    // Only what was recorded in error has a replacement.
    let reason = WithdrawalReason::NoLongerAccepts.into();
    let unfounded = WithdrawAttestationRequest { reason, ..replacement(&made.attestation) };
    for bad in [unknown, bad, unpublished, unfounded] {
        direct.attestations().withdraw_attestation(marked(bad)).await.unwrap_err();
    }
}

async fn fail_customers(direct: &As, customer: &str) {
    let bad = CreateCustomerRequest {
        primary_contact: Some(bad_contact()),
        external_reference: too_long_reference(),
        attestation: Some(InlineAttestation {
            template_id: MARK.into(),
            contact: Some(bad_contact()),
            agreed_at: None,
            details: Some(bad_details()),
        }),
        ..fixtures::new_customer(&format!("Litware {MARK}"), "FR", None)
    };
    direct.customers().create_customer(marked(bad)).await.unwrap_err();
    // There is one with this domain.
    let taken = CreateCustomerRequest {
        primary_contact: Some(marked_contact()),
        external_reference: reference(),
        ..fixtures::new_customer(&format!("Fabrikam {MARK}"), "FR", None)
    };
    direct.customers().create_customer(marked(taken)).await.unwrap_err();
    let stale = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        etag: MARK.into(),
        company_name: format!("New {MARK}"),
        primary_contact: Some(marked_contact()),
        external_reference: Some(reference()),
        ..UpdateCustomerRequest::default()
    };
    let bad = UpdateCustomerRequest {
        primary_contact: Some(bad_contact()),
        external_reference: Some(too_long_reference()),
        ..stale.clone()
    };
    for bad in [stale, bad] {
        direct.customers().update_customer(marked(bad)).await.unwrap_err();
    }
    let page = ListCustomersRequest {
        page_token: MARK.into(),
        external_reference: too_long_reference(),
        ..Default::default()
    };
    direct.customers().list_customers(marked(page)).await.unwrap_err();
}

async fn fail_partners(operator: &As) {
    let bad =
        RegisterPartnerRequest { partner_id: MARK.into(), support: Some(bad_support()), ..new_partner() };
    // It is registered under another name.
    let known = RegisterPartnerRequest { partner_id: DIRECT.to_string(), ..new_partner() };
    for bad in [bad, known] {
        operator.partners().register_partner(marked(bad)).await.unwrap_err();
    }
    let stale = UpdatePartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: DIRECT.to_string(),
        etag: MARK.into(),
        name: "Litware".into(),
        validate_only: false,
        support: Some(marked_support()),
    };
    let bad = UpdatePartnerRequest { support: Some(bad_support()), ..stale.clone() };
    for bad in [stale, bad] {
        operator.partners().update_partner(marked(bad)).await.unwrap_err();
    }
}

async fn fail_proposals(direct: &As, made: &Made) {
    let [reseller, provider] = [RESELLER, PROVIDER].map(|partner| by(direct, fixtures::sales(partner)));
    let bad = ProposeAttestationRequest {
        contact: Some(bad_contact()),
        details: Some(bad_details()),
        ..proposal(&made.resold)
    };
    // Of a customer that the reseller does not have, and of no customer.
    for bad in [bad, proposal(&made.customer), proposal(MARK)] {
        reseller.proposals().propose_attestation(marked(bad)).await.unwrap_err();
    }
    for of in [&*made.rejected, MARK] {
        provider.proposals().approve_proposal(marked(approval(of))).await.unwrap_err();
        reseller.proposals().withdraw_proposal(marked(retreat(of))).await.unwrap_err();
    }
    reseller.proposals().approve_proposal(marked(approval(&made.pending))).await.unwrap_err();
    provider.proposals().withdraw_proposal(marked(retreat(&made.pending))).await.unwrap_err();
    let unfounded = RejectProposalRequest { reason: 0, ..rejection(&made.pending) };
    for bad in [unfounded, rejection(MARK)] {
        provider.proposals().reject_proposal(marked(bad)).await.unwrap_err();
    }
}

async fn fail_signatures(direct: &As, made: &Made) {
    let admins = admin(direct, &made.customer);
    // A token that is right and one that is not, for an invitation that there is none of, and for none.
    for token in [&*made.token, MARK] {
        let mut accept = fixtures::acceptance(&Default::default(), Some(MARK));
        accept.company.as_mut().unwrap().primary_contact = Some(marked_contact());
        (accept.invitation_id, accept.token) = (fixtures::request_id(), token.to_owned());
        admins.signatures().accept_invitation(marked(accept)).await.unwrap_err();
        for invitation in [&*fixtures::request_id(), MARK] {
            let decline = decline(invitation, token);
            admins.signatures().decline_invitation(marked(decline)).await.unwrap_err();
        }
    }
    // The refusal says whom to ask.
    let accept = fixtures::acceptance(&made.open, None);
    let refused = admin(direct, &made.imported).signatures().accept_invitation(marked(accept)).await;
    let refused = refused.unwrap_err();
    assert_eq!(reason_of(&refused), "CONTACT_PARTNER");
    assert!(metadata_of(&refused)["support_url"].contains(MARK));
}

/// Text that is none, calls that there are none of, and malformed identities.
async fn fail_malformed(direct: &As) {
    let any = || prost_types::Any { type_url: MARK.into(), value: [MARK.as_bytes(), &[0xff]].concat() };
    for to in [&direct.agreements, &direct.orders] {
        let identified = |mut request: Request<prost_types::Any>| {
            fixtures::sales(DIRECT).present(request.metadata_mut());
            request
        };
        raw(to, format!("/csp.order.v1.OrderService/{MARK}"), identified(marked(any()))).await;
        raw(to, format!("/{MARK}?token={MARK}"), marked(any())).await;
        raw(to, "/csp.order.v1.OrderService/CreateOrder".into(), identified(marked(any()))).await;
        let customer = "/csp.agreement.v1.CustomerService/CreateCustomer";
        raw(to, customer.into(), identified(marked(any()))).await;
        for claim in ["x-tenant-id", "x-tenant-kind", "x-user-id", "x-roles", "x-channel"] {
            let mut request = identified(marked(any()));
            request.metadata_mut().insert(claim, MARK.parse().unwrap());
            raw(to, "/csp.order.v1.OrderService/CreateOrder".into(), request).await;
        }
    }
}

/// A call that is in no contract, or with a message that is none.
async fn raw(to: &Channel, path: String, message: Request<prost_types::Any>) {
    let mut client = tonic::client::Grpc::new(to.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<prost_types::Any, ()>::default();
    client.unary(message, PathAndQuery::try_from(path).unwrap(), codec).await.unwrap_err();
}
