//! Resellers come and go at a provider: who has parted acts no more (ROLE-6), and the provider goes on (SUB-6).

use proto::agreement::{EndRelationshipRequest, LinkResellerRequest, PartnerKind};
use proto::order::{
    AssignResellerRequest, CancelSubscriptionRequest, ChangeSeatsRequest, GetWithdrawalReportRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, Subscription, SubscriptionChangeKind, SubscriptionState,
    SuspendSubscriptionRequest,
};
use proto::types::Cloud;
use rstest_reuse::apply;
use tests::actions::{self, get_subscription as read, subscribe as buy};
use tests::assert::{eventually, refusal};
use tests::clients::bad_fields_of;
use tests::fixtures::{self, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, metadata_of};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::each_backend;
use crate::faults::relay::Relay;

const SECOND: Uuid = Uuid::from_u128(0xf2);

/// Sends a change with the subscription's present etag, as a partner, and gives back the subscription.
macro_rules! change {
    ($by:ident.$method:ident($of:expr, $request:ident { $($field:ident: $value:expr),* })) => {{
        let now = read(&$by, &$of.subscription_id).await.unwrap();
        let request = $request {
            request_id: fixtures::request_id(),
            subscription_id: now.subscription_id,
            etag: now.etag,
            validate_only: false,
            $($field: $value,)*
        };
        $by.subscriptions().$method(request).await.map(|answer| answer.into_inner().subscription.unwrap())
    }};
}

async fn assign(by: &As, of: &Subscription, reseller: Option<Uuid>) -> Result<Subscription, Status> {
    let reseller_id = reseller.map(|id| id.to_string()).unwrap_or_default();
    change!(by.assign_reseller(of, AssignResellerRequest { reseller_id: reseller_id }))
}

async fn part(cluster: &Cluster, provider: &As, customer: &str, reseller: Uuid) {
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        reseller_id: reseller.to_string(),
        ..EndRelationshipRequest::default()
    };
    let revision = provider.customers().end_relationship(end).await.unwrap().into_inner().revision;
    let operator = cluster.as_caller(fixtures::operator());
    eventually("the end is applied", async || {
        let request = GetWithdrawalReportRequest { revision, ..GetWithdrawalReportRequest::default() };
        // It is no withdrawal, and there is no report of it.
        operator.withdrawals().get_withdrawal_report(request).await.is_err().then_some(())
    })
    .await;
}

#[apply(each_backend)]
async fn resellers_come_and_go_at_a_provider(#[case] backend: Backend) {
    tests::needs_own!("a reseller that it links");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    let kind = PartnerKind::IndirectReseller;
    actions::register_partner(&operator, SECOND, "Second Reselling", kind, Cloud::Public).await.unwrap();
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: PROVIDER.to_string(),
        reseller_id: SECOND.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await.unwrap();
    let [provider, first, second] =
        [PROVIDER, RESELLER, SECOND].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&first, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    actions::attest_now(&provider, &customer).await.unwrap();
    let bought = buy(&first, &customer, Some(PROVIDER)).await.unwrap();
    assert_eq!(bought.reseller_id, RESELLER.to_string());
    actions::until_bought(&cluster, &customer).await.unwrap();

    // The second reseller comes, then the first one goes.
    let invited = actions::invite(&second, None, Some(PROVIDER)).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    part(&cluster, &provider, &customer, RESELLER).await;

    // It still sees what it sold, and changes nothing.
    let parted = (Code::FailedPrecondition, "RELATIONSHIP_ENDED".to_owned());
    for refused in [
        change!(first.suspend_subscription(bought, SuspendSubscriptionRequest {})),
        change!(first.cancel_subscription(bought, CancelSubscriptionRequest {})),
        change!(first.set_auto_renew(bought, SetAutoRenewRequest { auto_renew: false, attestation: None })),
        change!(first.change_seats(bought, ChangeSeatsRequest { quantity: 6, attestation: None })),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refusal(&refused), parted);
        assert_eq!(metadata_of(&refused)["payer_id"], PROVIDER.to_string());
    }
    // The provider goes on, also with what the gate decides.
    let seats = change!(provider.change_seats(bought, ChangeSeatsRequest { quantity: 7, attestation: None }))
        .unwrap();
    assert_eq!(seats.quantity, 7);
    let refused = assign(&provider, &bought, Some(RESELLER)).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["reseller_id"]);
    let assigned = assign(&provider, &bought, Some(SECOND)).await.unwrap();
    assert_eq!(assigned.reseller_id, SECOND.to_string());
    let change = actions::changes_of(&provider, &bought.subscription_id).await.unwrap().pop().unwrap();
    assert_eq!(change.kind(), SubscriptionChangeKind::ResellerAssigned);
    assert_eq!((change.reseller_id, change.actor_tenant), (SECOND.to_string(), PROVIDER.to_string()));
    assert_eq!(refusal(&read(&first, &bought.subscription_id).await.unwrap_err()).0, Code::NotFound);
    change!(second.change_seats(bought, ChangeSeatsRequest { quantity: 8, attestation: None })).unwrap();
    let refused = assign(&second, &bought, None).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::PermissionDenied, "PAYER_ONLY".into()));

    // After the last reseller, and with it the last relationship, the provider can only end what it pays for.
    part(&cluster, &provider, &customer, SECOND).await;
    let refused =
        change!(provider.change_seats(bought, ChangeSeatsRequest { quantity: 9, attestation: None }))
            .unwrap_err();
    assert_eq!(refusal(&refused), parted);
    let suspended = change!(provider.suspend_subscription(bought, SuspendSubscriptionRequest {})).unwrap();
    assert_eq!(suspended.state(), SubscriptionState::Suspended);
    let refused = change!(provider.resume_subscription(bought, ResumeSubscriptionRequest {})).unwrap_err();
    assert_eq!(refusal(&refused), parted);
    assert_eq!(assign(&provider, &bought, None).await.unwrap().reseller_id, "");
    let cancelled = change!(provider.cancel_subscription(bought, CancelSubscriptionRequest {})).unwrap();
    assert_eq!(cancelled.state(), SubscriptionState::Cancelled);
}

/// ROLE-6: a relationship that order-svc has not heard of yet is not said to be over.
#[apply(each_backend)]
async fn a_relationship_of_this_moment_is_not_refused(#[case] backend: Backend) {
    tests::needs_own!("a history that it holds back");
    tests::needs!(backend);
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let mut cluster = Cluster::start(Setup { backend, agreements_at, ..Setup::default() }).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let [provider, reseller] =
        [PROVIDER, RESELLER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&provider, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();
    let bought = buy(&provider, &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
    let refused = assign(&provider, &bought, Some(RESELLER)).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["reseller_id"]);

    relay.hold_history(true);
    let invited = actions::invite(&reseller, None, Some(PROVIDER)).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    let refused = assign(&provider, &bought, Some(RESELLER)).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    relay.hold_history(false);
    let assigned =
        eventually("it is heard of", async || assign(&provider, &bought, Some(RESELLER)).await.ok()).await;
    assert_eq!(assigned.reseller_id, RESELLER.to_string());
}

/// During a rolling upgrade a replica of a version without relationships may apply events. What it left out is read again,
/// also when nothing else happens.
#[apply(each_backend)]
async fn what_an_older_replica_left_out_is_made_up_for(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let [provider, reseller] =
        [PROVIDER, RESELLER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let mut bought = vec![];
    for name in ["Contoso", "Fabrikam"] {
        let customer = actions::create_customer(&reseller, name, "FR", Some(PROVIDER)).await.unwrap();
        let attestation = actions::attest_now(&provider, &customer).await.unwrap();
        bought.push((attestation, buy(&reseller, &customer, Some(PROVIDER)).await.unwrap()));
    }
    let [(_, kept), (attestation, _)] = &bought[..] else { unreachable!() };
    let revision = actions::withdraw(&provider, attestation).await.unwrap();
    let report = async || {
        let request = GetWithdrawalReportRequest { revision, ..GetWithdrawalReportRequest::default() };
        let answer = provider.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner();
        answer.report.filter(|_| answer.applied)
    };
    let written = eventually("the withdrawal is applied", &report).await;

    // It moved the cursor alone, and ended what a newer replica had begun.
    let as_older = "BEGIN; DELETE FROM relationship; DELETE FROM withdrawal_partner; \
                    UPDATE withdrawal SET is_complete = FALSE, cancelled = 0; \
                    UPDATE follower SET relationships_revision = 0; COMMIT";
    cluster.orders_sql(as_older).unwrap();
    let suspended = eventually("the relationship is known", async || {
        change!(reseller.suspend_subscription(kept, SuspendSubscriptionRequest {})).ok()
    });
    assert_eq!(suspended.await.state(), SubscriptionState::Suspended);
    let again = eventually("the report is complete", &report).await;
    assert_eq!((again.cancelled, again.uncovered_partner_ids), (1, written.uncovered_partner_ids));

    // It took the cursor back after a restore, and left a relationship whose beginning the restore lost.
    let (customer, provider_id) = (&kept.customer_id, PROVIDER);
    let as_older = format!(
        "BEGIN; INSERT INTO relationship (customer_id, payer_id, reseller_id, is_active, revision) \
         VALUES ('{customer}', '{provider_id}', '{SECOND}', TRUE, {revision}); \
         UPDATE follower SET revision = 0, head = NULL; COMMIT"
    );
    cluster.orders_sql(&as_older).unwrap();
    let resumed = eventually("the relationship is known again", async || {
        change!(reseller.resume_subscription(kept, ResumeSubscriptionRequest {})).ok()
    });
    assert_eq!(resumed.await.state(), SubscriptionState::Active);
    let refused = assign(&provider, kept, Some(SECOND)).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["reseller_id"]);
}
