//! Late repetitions: each call that has a request id, made again when the clock says something else. The answer is the
//! first one, also where a time in the request would be wrong by now. And dry runs: each of these calls with
//! `validate_only`.

use std::fmt::Debug;
use std::pin::Pin;

use chassis::clock::Time;
use chrono::Duration;
use proto::agreement::{
    ApproveProposalRequest, CreateInvitationRequest, DeclineInvitationRequest, DeclineReason,
    EndRelationshipRequest, ImportAttestationsRequest, ImportOutcome, InlineInvitation, LinkResellerRequest,
    NotificationState, ProposeAttestationRequest, RegisterPartnerRequest, RejectProposalRequest,
    RejectionReason, RetireTemplateRequest, RetryNotificationRequest, RevokeInvitationRequest,
    SignAgreementRequest, UnlinkResellerRequest, UpdatePartnerRequest, WithdrawProposalRequest,
    WithdrawSignatureRequest, WithdrawalReason,
};
use proto::order::{
    AssignResellerRequest, CancelSubscriptionRequest, GetWithdrawalReportRequest, RenewSubscriptionRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, SuspendSubscriptionRequest,
};
use tests::Setup;
use tests::assert::eventually;
use tests::fixtures::RESELLER;

use super::*;

type Repeating = Pin<Box<dyn Future<Output = Result<Vec<u8>, Status>>>>;

/// A call that was answered: its name, the bytes of its answer, and how to make it again.
struct Answered {
    name: &'static str,
    first: Vec<u8>,
    again: Box<dyn Fn() -> Repeating>,
}

/// The calls of a story.
struct Calls<'c> {
    answered: Vec<Answered>,
    /// The cluster in which each call is first a dry run.
    dry_runs_in: Option<&'c Cluster>,
}

/// Makes a call, remembers it, and gives back its answer.
macro_rules! call {
    ($calls:ident, $caller:ident.$service:ident.$method:ident($request:expr)) => {{
        let (caller, request) = ($caller.clone(), $request);
        let name = stringify!($method);
        let mut tried = None;
        if let Some(cluster) = $calls.dry_runs_in {
            let mut dry_run = request.clone();
            dry_run.validate_only = true;
            let before = everything_settled(cluster).await;
            let answer = caller.$service().$method(dry_run).await;
            let answer = answer.unwrap_or_else(|refused| panic!("a dry run of {name}: {refused}"));
            assert_eq!(everything_settled(cluster).await, before, "a dry run of {name}");
            tried = Some(shape(answer.get_ref(), &request));
        }
        let first = caller.$service().$method(request.clone()).await.unwrap().into_inner();
        if let Some(tried) = tried {
            assert_eq!(tried, shape(&first, &request), "a dry run of {name}");
        }
        $calls.answered.push(Answered {
            name,
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
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let row = imported_row(&provider, start).await;
    let stored = import(&provider, row.clone()).await;
    assert_eq!(stored.0, ImportOutcome::Stored);
    let mut calls = Calls { answered: vec![], dry_runs_in: None };
    make_every_call(&cluster, start, &mut calls).await;

    // An hour back, too, as clocks are set: then what just happened lies in the future.
    for moved in [Duration::days(29), Duration::hours(-1)] {
        clock.set(start + moved);
        for Answered { name, first, again } in &calls.answered {
            let repeated = again().await.unwrap_or_else(|refused| panic!("{name} {moved}: {refused}"));
            assert_eq!(&repeated, first, "{name} {moved}");
        }
        let (outcome, attestation_id) = import(&provider, row.clone()).await;
        assert_eq!((outcome, attestation_id), (ImportOutcome::Replayed, stored.1.clone()));
    }
}

/// I9. A call with `validate_only` stores nothing, whichever it is, and is answered as the call itself then is.
#[apply(each_backend)]
async fn a_dry_run_changes_nothing_and_is_answered_as_the_call_is(#[case] backend: Backend) {
    tests::needs_own!("databases whose rows it counts");
    tests::needs!(backend);
    let start = fixtures::now();
    // Both are answered at the same time.
    let setup = Setup { backend, clock: Clock::manual(start), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let mut calls = Calls { answered: vec![], dry_runs_in: Some(&cluster) };
    make_every_call(&cluster, start, &mut calls).await;
}

/// How much there is of everything, once order-svc has applied what happened and reported its purchases.
async fn everything_settled(cluster: &Cluster) -> Everything {
    let operator = cluster.as_caller(fixtures::operator());
    eventually("order-svc has nothing left to do", async || {
        let mut orders = behind(cluster.orders_database());
        let sql = "SELECT COUNT(*) AS count FROM purchase_report WHERE reported_at IS NULL";
        let unreported: Count = query!(&mut orders, c => sql_query(sql).get_result(c)).unwrap();
        let revision = cluster.head().await.unwrap();
        let request = GetWithdrawalReportRequest { revision, ..Default::default() };
        let is_applied = match operator.withdrawals().get_withdrawal_report(request).await {
            Ok(report) => report.get_ref().applied,
            Err(refused) => reason_of(&refused) == "RESOURCE_NOT_FOUND",
        };
        (unreported.count == 0 && is_applied).then_some(())
    })
    .await;
    everything(cluster).await
}

/// An answer without what differs between a dry run and the call: new ids, which are numbered, the link of an invitation,
/// and the impact of a publication, which only a dry run counts.
fn shape(answer: &impl Debug, request: &impl Debug) -> String {
    let request = format!("{request:?}");
    let text = format!("{answer:#?}");
    let is_link = |line: &&str| {
        ["acceptance_url:", "mail_subject:", "mail_text:"].iter().any(|field| line.trim().starts_with(field))
    };
    let text = text.lines().filter(|line| !is_link(line)).collect::<Vec<_>>().join("\n");
    let cut = ["impact: None", "impact: Some(\n        PublicationImpact"].map(|impact| text.find(impact));
    let text = &text[..cut.into_iter().flatten().min().unwrap_or(text.len())];
    let mut new_ids: Vec<&str> = vec![];
    let parts = text.split('"').map(|part| {
        if Uuid::parse_str(part).is_err() || request.contains(part) {
            return part.to_owned();
        }
        let known = new_ids.iter().position(|id| *id == part);
        let number = known.unwrap_or_else(|| {
            new_ids.push(part);
            new_ids.len() - 1
        });
        format!("new id {number}")
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// A story with each call that has a request id.
async fn make_every_call(cluster: &Cluster, start: Time, all: &mut Calls<'_>) {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let (operator, service) =
        (cluster.as_caller(fixtures::operator()), cluster.as_caller(fixtures::service()));
    let id = fixtures::request_id;
    let tomorrow = || Some(timestamp(start + Duration::days(1)));

    let new = RegisterPartnerRequest {
        request_id: id(),
        partner_id: id(),
        name: "Late Reselling".into(),
        kind: PartnerKind::IndirectReseller.into(),
        cloud: Cloud::Public.into(),
        validate_only: false,
        support: None,
    };
    let registered = call!(all, operator.partners.register_partner(new)).partner.unwrap();
    let reseller = registered.partner_id;
    let rename = UpdatePartnerRequest {
        request_id: id(),
        partner_id: reseller.clone(),
        etag: registered.etag,
        name: "Later Reselling".into(),
        validate_only: false,
        support: None,
    };
    call!(all, operator.partners.update_partner(rename));
    let (provider_id, reseller_id) = (PROVIDER.to_string(), reseller);
    let link = LinkResellerRequest {
        request_id: id(),
        provider_id: provider_id.clone(),
        reseller_id: reseller_id.clone(),
        validate_only: false,
    };
    call!(all, operator.partners.link_reseller(link));
    let unlink = UnlinkResellerRequest { request_id: id(), provider_id, reseller_id, validate_only: false };
    call!(all, operator.partners.unlink_reseller(unlink));

    // A customer with each kind of first step, whose times lie at either end of what is allowed.
    call!(all, direct.customers.create_customer(new_customer_with_attestation("Contoso Lyon")));
    let invited = CreateCustomerRequest {
        invitation: Some(InlineInvitation { template_id: CUSTOMER_AGREEMENT.into(), expires_at: tomorrow() }),
        external_reference: "C 1".into(),
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
        external_reference: Some(String::new()),
        ..UpdateCustomerRequest::default()
    };
    call!(all, direct.customers.update_customer(update));
    let admin = cluster.as_caller(fixtures::admin(customer_id.parse().unwrap()));
    call!(all, admin.signatures.accept_invitation(fixtures::acceptance(&invitation, None)));
    let signing = SignAgreementRequest {
        request_id: id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version: 2,
        validate_only: false,
        shown_text: None,
    };
    let signature_id = call!(all, admin.signatures.sign_agreement(signing)).signature.unwrap().signature_id;
    let reason = WithdrawalReason::NoLongerAccepts.into();
    let withdrawal =
        WithdrawSignatureRequest { request_id: id(), signature_id, reason, validate_only: false };
    call!(all, admin.signatures.withdraw_signature(withdrawal));
    let invitation = CreateInvitationRequest {
        expires_at: tomorrow(),
        ..fixtures::new_invitation(Some(&customer_id), None)
    };
    let invited = call!(all, direct.signatures.create_invitation(invitation)).invitation.unwrap();
    let revocation = RevokeInvitationRequest {
        request_id: id(),
        invitation_id: invited.invitation_id,
        validate_only: false,
    };
    call!(all, direct.signatures.revoke_invitation(revocation));
    let invitation = CreateInvitationRequest {
        expires_at: tomorrow(),
        ..fixtures::new_invitation(Some(&customer_id), None)
    };
    let declined = fixtures::acceptance(
        &call!(all, direct.signatures.create_invitation(invitation)).invitation.unwrap(),
        None,
    );
    let declining = DeclineInvitationRequest {
        request_id: id(),
        invitation_id: declined.invitation_id,
        token: declined.token,
        reason: DeclineReason::Terms.into(),
        validate_only: false,
    };
    call!(all, admin.signatures.decline_invitation(declining));

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
    let retry = RetryNotificationRequest {
        request_id: id(),
        attestation_id: attestation_id.clone(),
        validate_only: false,
    };
    call!(all, direct.attestations.retry_notification(retry));

    // What a reseller proposes, and its provider approves or rejects, or it withdraws itself.
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let resells = cluster.as_caller(fixtures::sales(RESELLER));
    let resold = fixtures::new_customer("Contoso Lille", "FR", Some(PROVIDER));
    let resold = call!(all, resells.customers.create_customer(resold)).customer.unwrap().customer_id;
    let mut proposed = vec![];
    for _ in 0..3 {
        let proposing = ProposeAttestationRequest {
            agreed_at: Some(timestamp(start)),
            ..fixtures::new_proposal(PROVIDER, &resold)
        };
        let proposal = call!(all, resells.proposals.propose_attestation(proposing)).proposal.unwrap();
        proposed.push(proposal.proposal_id);
    }
    let approval =
        ApproveProposalRequest { request_id: id(), proposal_id: proposed[0].clone(), validate_only: false };
    let approved = call!(all, provider.proposals.approve_proposal(approval)).attestation.unwrap();
    eventually("the mail is sent", async || {
        let attested = actions::attestations_of(&provider, &approved.customer_id).await.unwrap();
        let sent = attested[0].notification.as_ref().unwrap().state() == NotificationState::Sent;
        sent.then_some(())
    })
    .await;
    let rejection = RejectProposalRequest {
        request_id: id(),
        proposal_id: proposed[1].clone(),
        reason: RejectionReason::NotNeeded.into(),
        validate_only: false,
    };
    call!(all, provider.proposals.reject_proposal(rejection));
    let withdrawal =
        WithdrawProposalRequest { request_id: id(), proposal_id: proposed[2].clone(), validate_only: false };
    call!(all, resells.proposals.withdraw_proposal(withdrawal));

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
                validate_only: false,
                $($field: $value,)*
            };
            bought = call!(all, direct.subscriptions.$method(request)).subscription.unwrap();
        }};
    }
    change!(renew_subscription, RenewSubscriptionRequest { attestation: None });
    change!(set_auto_renew, SetAutoRenewRequest { auto_renew: false, attestation: None });
    change!(suspend_subscription, SuspendSubscriptionRequest {});
    change!(resume_subscription, ResumeSubscriptionRequest {});
    change!(assign_reseller, AssignResellerRequest { reseller_id: String::new() });
    change!(cancel_subscription, CancelSubscriptionRequest {});
    assert_eq!(bought.subscription_id, subscription_id);

    let report = ReportPurchaseRequest {
        request_id: id(),
        customer_id: customer_id.clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(timestamp(start)),
        validate_only: false,
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
    let retire = RetireTemplateRequest {
        request_id: id(),
        template_id: template.template_id,
        etag: template.etag,
        validate_only: false,
    };
    call!(all, operator.templates.retire_template(retire));

    let tried: BTreeSet<String> = all.answered.iter().map(|call| call.name.to_owned()).collect();
    assert_eq!(tried, calls_with_a_request_id(), "each call with a request id is made here");
}

/// A row of an import for a customer of the provider, agreed at a time.
async fn imported_row(provider: &As, agreed_at: Time) -> ImportAttestationsRequest {
    let customer_id = actions::create_customer(provider, "Fabrikam Metz", "FR", None).await.unwrap();
    let CreateAttestationRequest { request_id, template_id, contact, .. } =
        fixtures::new_attestation(&customer_id);
    let agreed_at = Some(timestamp(agreed_at));
    ImportAttestationsRequest { request_id, customer_id, template_id, contact, agreed_at, details: None }
}

/// Imports one row: its outcome and its attestation.
async fn import(provider: &As, row: ImportAttestationsRequest) -> (ImportOutcome, String) {
    let answers = provider.attestations().import_attestations(stream::iter([row])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    (answer.outcome(), answer.attestation_id)
}
