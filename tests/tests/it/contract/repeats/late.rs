//! Late repetitions: each call that has a request id, made again when the clock says something else. The answer is the
//! first one, also where a time in the request would be wrong by now.

use std::pin::Pin;

use chassis::clock::Time;
use chrono::Duration;
use proto::agreement::{
    CreateInvitationRequest, EndRelationshipRequest, ImportAttestationsRequest, ImportOutcome,
    InlineInvitation, LinkResellerRequest, NotificationState, RegisterPartnerRequest, RetireTemplateRequest,
    RetryNotificationRequest, RevokeInvitationRequest, SignAgreementRequest, UnlinkResellerRequest,
    UpdatePartnerRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::order::{
    AssignResellerRequest, CancelSubscriptionRequest, RenewSubscriptionRequest, ResumeSubscriptionRequest,
    SetAutoRenewRequest, SuspendSubscriptionRequest,
};
use tests::Setup;
use tests::assert::eventually;

use super::*;

type Repeating = Pin<Box<dyn Future<Output = Result<Vec<u8>, Status>>>>;

/// A call that was answered: its name, the bytes of its answer, and how to make it again.
struct Answered {
    name: &'static str,
    first: Vec<u8>,
    again: Box<dyn Fn() -> Repeating>,
}

/// Makes a call, remembers it, and gives back its answer.
macro_rules! call {
    ($answered:ident, $caller:ident.$service:ident.$method:ident($request:expr)) => {{
        let (caller, request) = ($caller.clone(), $request);
        let first = caller.$service().$method(request.clone()).await.unwrap().into_inner();
        $answered.push(Answered {
            name: stringify!($method),
            first: first.encode_to_vec(),
            again: Box::new(move || {
                let (caller, request) = (caller.clone(), request.clone());
                Box::pin(
                    async move { Ok(caller.$service().$method(request).await?.into_inner().encode_to_vec()) },
                )
            }),
        });
        first
    }};
}

/// The unary calls whose request has a request id, in snake case.
fn calls_with_a_request_id() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let has_request_id = |name: &str| {
        let mut messages = set.file.iter().flat_map(|file| &file.message_type);
        let message = messages.find(|message| name.ends_with(&format!(".{}", message.name())));
        message.is_some_and(|message| message.field.iter().any(|field| field.name() == "request_id"))
    };
    let methods = set.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
    let unary = methods.filter(|method| !method.client_streaming());
    let repeatable = unary.filter(|method| has_request_id(method.input_type()));
    let snake_case = |name: &str| {
        let words = name.split_inclusive(|_: char| true).map(|letter| match letter {
            upper if upper.chars().all(char::is_uppercase) => format!("_{}", upper.to_lowercase()),
            lower => lower.to_owned(),
        });
        words.collect::<String>().trim_start_matches('_').to_owned()
    };
    repeatable.map(|method| snake_case(method.name())).collect()
}

#[apply(each_backend)]
async fn a_late_repetition_has_the_first_answer(#[case] backend: Backend) {
    tests::needs_own!("a clock that it moves");
    tests::needs!(backend);
    let start = fixtures::now();
    let clock = Clock::manual(start);
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let (direct, provider) =
        (cluster.as_caller(fixtures::sales(DIRECT)), cluster.as_caller(fixtures::sales(PROVIDER)));
    let (operator, service) =
        (cluster.as_caller(fixtures::operator()), cluster.as_caller(fixtures::service()));
    let id = fixtures::request_id;
    let tomorrow = || Some(timestamp(start + Duration::days(1)));
    let mut all = vec![];

    let new = RegisterPartnerRequest {
        request_id: id(),
        partner_id: id(),
        name: "Late Reselling".into(),
        kind: PartnerKind::IndirectReseller.into(),
        cloud: Cloud::Public.into(),
    };
    let registered = call!(all, operator.partners.register_partner(new)).partner.unwrap();
    let reseller = registered.partner_id;
    let rename = UpdatePartnerRequest {
        request_id: id(),
        partner_id: reseller.clone(),
        etag: registered.etag,
        name: "Later Reselling".into(),
    };
    call!(all, operator.partners.update_partner(rename));
    let (provider_id, reseller_id) = (PROVIDER.to_string(), reseller);
    let link = LinkResellerRequest {
        request_id: id(),
        provider_id: provider_id.clone(),
        reseller_id: reseller_id.clone(),
    };
    call!(all, operator.partners.link_reseller(link));
    let unlink = UnlinkResellerRequest { request_id: id(), provider_id, reseller_id };
    call!(all, operator.partners.unlink_reseller(unlink));

    // A customer with each kind of first step, whose times lie at either end of what is allowed.
    call!(all, direct.customers.create_customer(new_customer_with_attestation("Contoso Lyon")));
    let invited = CreateCustomerRequest {
        invitation: Some(InlineInvitation { template_id: CUSTOMER_AGREEMENT.into(), expires_at: tomorrow() }),
        ..fixtures::new_customer("Contoso Nantes", "FR", None)
    };
    let created = call!(all, direct.customers.create_customer(invited));
    let (customer, invitation) = (created.customer.unwrap(), created.invitation.unwrap());
    let customer_id = customer.customer_id.clone();
    let update = UpdateCustomerRequest {
        request_id: id(),
        customer_id: customer_id.clone(),
        etag: customer.etag,
        company_name: "Contoso Nancy".into(),
        primary_contact: Some(person("Grace")),
        ..UpdateCustomerRequest::default()
    };
    call!(all, direct.customers.update_customer(update));
    let admin = cluster.as_caller(fixtures::admin(customer_id.parse().unwrap()));
    call!(all, admin.signatures.accept_invitation(fixtures::acceptance(&invitation, None)));
    let signing = SignAgreementRequest {
        request_id: id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version: 2,
    };
    let signature_id = call!(all, admin.signatures.sign_agreement(signing)).signature.unwrap().signature_id;
    let reason = WithdrawalReason::NoLongerAccepts.into();
    let withdrawal = WithdrawSignatureRequest { request_id: id(), signature_id, reason };
    call!(all, admin.signatures.withdraw_signature(withdrawal));
    let invitation = CreateInvitationRequest {
        expires_at: tomorrow(),
        ..fixtures::new_invitation(Some(&customer_id), None)
    };
    let invited = call!(all, direct.signatures.create_invitation(invitation)).invitation.unwrap();
    let revocation = RevokeInvitationRequest { request_id: id(), invitation_id: invited.invitation_id };
    call!(all, direct.signatures.revoke_invitation(revocation));

    let attesting = CreateAttestationRequest {
        agreed_at: Some(timestamp(start)),
        ..fixtures::new_attestation(&customer_id)
    };
    let attested = call!(all, direct.attestations.create_attestation(attesting));
    let attestation_id = attested.attestation.unwrap().attestation_id;
    eventually("the mail is sent", async || {
        let attested = actions::attestations_of(&direct, &customer_id).await.unwrap();
        let sent = attested[0].notification.as_ref().unwrap().state() == NotificationState::Sent;
        sent.then_some(())
    })
    .await;
    cluster.agreements_sql("UPDATE notification SET state = 'DEAD_LETTER'").unwrap();
    let retry = RetryNotificationRequest { request_id: id(), attestation_id: attestation_id.clone() };
    call!(all, direct.attestations.retry_notification(retry));

    // What is bought, and what may happen to it.
    let bought = call!(all, direct.orders.create_order(fixtures::new_order(&customer_id, None, OFFICE, 5)));
    let mut bought = bought.subscriptions[0].clone();
    let subscription_id = bought.subscription_id.clone();
    bought = call!(all, direct.subscriptions.change_seats(new_seats(&bought, 6))).subscription.unwrap();
    macro_rules! change {
        ($method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
            let request = $request {
                request_id: id(),
                subscription_id: subscription_id.clone(),
                etag: bought.etag.clone(),
                $($field: $value,)*
            };
            bought = call!(all, direct.subscriptions.$method(request)).subscription.unwrap();
        }};
    }
    change!(renew_subscription, RenewSubscriptionRequest { validate_only: false, attestation: None });
    change!(set_auto_renew, SetAutoRenewRequest { auto_renew: false, attestation: None });
    change!(suspend_subscription, SuspendSubscriptionRequest {});
    change!(resume_subscription, ResumeSubscriptionRequest {});
    change!(assign_reseller, AssignResellerRequest { reseller_id: String::new() });
    change!(cancel_subscription, CancelSubscriptionRequest {});
    assert_eq!(bought.subscription_id, subscription_id);

    let row = imported_row(&provider, start).await;
    let stored = import(&provider, row.clone()).await;
    assert_eq!(stored.0, ImportOutcome::Stored);

    let report = ReportPurchaseRequest {
        request_id: id(),
        customer_id: customer_id.clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(timestamp(start)),
    };
    call!(all, service.gate.report_purchase(report));
    call!(all, direct.attestations.withdraw_attestation(fixtures::new_withdrawal(&attestation_id)));
    let end = EndRelationshipRequest { request_id: id(), customer_id, ..Default::default() };
    call!(all, direct.customers.end_relationship(end));
    let version = PublishTemplateVersionRequest {
        effective_from: tomorrow(),
        ..fixtures::new_version(CUSTOMER_AGREEMENT)
    };
    let template = call!(all, operator.templates.publish_template_version(version)).template.unwrap();
    let retire =
        RetireTemplateRequest { request_id: id(), template_id: template.template_id, etag: template.etag };
    call!(all, operator.templates.retire_template(retire));

    let tried: BTreeSet<String> = all.iter().map(|call| call.name.to_owned()).collect();
    assert_eq!(tried, calls_with_a_request_id(), "each call with a request id is repeated here");
    // An hour back, too, as clocks are set: then what just happened lies in the future.
    for moved in [Duration::days(29), Duration::hours(-1)] {
        clock.set(start + moved);
        for Answered { name, first, again } in &all {
            let repeated = again().await.unwrap_or_else(|refused| panic!("{name} {moved}: {refused}"));
            assert_eq!(&repeated, first, "{name} {moved}");
        }
        let (outcome, attestation_id) = import(&provider, row.clone()).await;
        assert_eq!((outcome, attestation_id), (ImportOutcome::Replayed, stored.1.clone()));
    }
}

/// A row of an import for a customer of the provider, agreed at a time.
async fn imported_row(provider: &As, agreed_at: Time) -> ImportAttestationsRequest {
    let customer_id = actions::create_customer(provider, "Fabrikam Metz", "FR", None).await.unwrap();
    let CreateAttestationRequest { request_id, template_id, contact, .. } =
        fixtures::new_attestation(&customer_id);
    let agreed_at = Some(timestamp(agreed_at));
    ImportAttestationsRequest { request_id, customer_id, template_id, contact, agreed_at }
}

/// Imports one row: its outcome and its attestation.
async fn import(provider: &As, row: ImportAttestationsRequest) -> (ImportOutcome, String) {
    let answers = provider.attestations().import_attestations(stream::iter([row])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    (answer.outcome(), answer.attestation_id)
}
