//! Load for crash tests: what clients ask while services are killed, and every answer that they got.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::form::timestamp;
use futures_util::stream::{self, StreamExt};
use prost::Message;
use proto::agreement::{
    AcceptInvitationRequest, AcceptInvitationResponse, CreateAttestationRequest, CreateAttestationResponse,
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    InlineAttestation, Invitation, SignAgreementRequest, SignAgreementResponse, WithdrawAttestationRequest,
    WithdrawAttestationResponse, WithdrawSignatureRequest, WithdrawSignatureResponse, WithdrawalReason,
};
use proto::order::{
    CancelSubscriptionRequest, CancelSubscriptionResponse, ChangeSeatsRequest, ChangeSeatsResponse,
    CreateOrderRequest, CreateOrderResponse, GetSubscriptionRequest, RenewSubscriptionRequest,
    RenewSubscriptionResponse, ResumeSubscriptionRequest, ResumeSubscriptionResponse, SetAutoRenewRequest,
    SetAutoRenewResponse, Subscription, SuspendSubscriptionRequest, SuspendSubscriptionResponse,
};
use proto::types::{AcceptanceKind, Contact, GateEvidence};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use tokio::sync::watch;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::actions;
use crate::clients::{As, Identity, reason_of};
use crate::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER, RIGHTS_MANAGEMENT};

/// A request without an answer for so long counts as lost.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How long one try may take: longer than any wait inside the services.
const TRY_MAX: Duration = Duration::from_secs(20);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// With more of them clients would seldom meet at one.
const CUSTOMERS_MAX: usize = 24;

/// Those that have two partners from the start.
const SHARED_CUSTOMERS: usize = 4;

/// As many subscriptions are known at a time; older ones are left alone.
const SUBSCRIPTIONS_MAX: usize = 60;

/// The version of the Customer Agreement in force.
const VERSION: u32 = 2;

/// Requests that are repeated at the same time.
const REPEATED_AT_ONCE: usize = 8;

/// Customers that may enter their relationship again, for each round. Without an invitation no relationship ends.
const INVITATIONS_PER_ROUND: usize = 4;

/// Of the address in an attestation that an order brings along; before it stands the order's request id.
const BROUGHT_BY: &str = "@order.example";

/// Calls with their requests, request id included, and what they were answered when it was done.
macro_rules! calls {
    ($($call:ident($request:ty) -> $response:ty: $client:ident.$method:ident;)*) => {
        #[derive(Clone, Debug)]
        #[expect(clippy::large_enum_variant, reason = "few calls are open at a time")]
        pub(super) enum Call { $($call($request),)* }

        #[derive(Clone, Debug)]
        pub(super) enum Done { $($call($response),)* }

        impl Call {
            async fn send(&self, to: &As) -> Result<Done, Status> {
                match self {
                    $(Self::$call(request) => {
                        to.$client().$method(request.clone()).await.map(|done| Done::$call(done.into_inner()))
                    })*
                }
            }

            pub(super) fn request_id(&self) -> &str {
                match self { $(Self::$call(request) => &request.request_id,)* }
            }

            /// The call as the services' tables of answers name it.
            pub(super) fn name(&self) -> &'static str {
                match self { $(Self::$call(_) => stringify!($call),)* }
            }
        }

        impl Done {
            pub(super) fn encoded(&self) -> Vec<u8> {
                match self { $(Self::$call(response) => response.encode_to_vec(),)* }
            }
        }

        /// The names of all of them.
        pub(super) const CALLS: &[&str] = &[$(stringify!($call),)*];
    };
}

calls! {
    CreateCustomer(CreateCustomerRequest) -> CreateCustomerResponse: customers.create_customer;
    EndRelationship(EndRelationshipRequest) -> EndRelationshipResponse: customers.end_relationship;
    CreateAttestation(CreateAttestationRequest) -> CreateAttestationResponse: attestations.create_attestation;
    WithdrawAttestation(WithdrawAttestationRequest) -> WithdrawAttestationResponse: attestations.withdraw_attestation;
    SignAgreement(SignAgreementRequest) -> SignAgreementResponse: signatures.sign_agreement;
    WithdrawSignature(WithdrawSignatureRequest) -> WithdrawSignatureResponse: signatures.withdraw_signature;
    AcceptInvitation(AcceptInvitationRequest) -> AcceptInvitationResponse: signatures.accept_invitation;
    CreateOrder(CreateOrderRequest) -> CreateOrderResponse: orders.create_order;
    ChangeSeats(ChangeSeatsRequest) -> ChangeSeatsResponse: subscriptions.change_seats;
    RenewSubscription(RenewSubscriptionRequest) -> RenewSubscriptionResponse: subscriptions.renew_subscription;
    SetAutoRenew(SetAutoRenewRequest) -> SetAutoRenewResponse: subscriptions.set_auto_renew;
    SuspendSubscription(SuspendSubscriptionRequest) -> SuspendSubscriptionResponse: subscriptions.suspend_subscription;
    ResumeSubscription(ResumeSubscriptionRequest) -> ResumeSubscriptionResponse: subscriptions.resume_subscription;
    CancelSubscription(CancelSubscriptionRequest) -> CancelSubscriptionResponse: subscriptions.cancel_subscription;
}

impl Done {
    /// The subscription as a change left it.
    pub(super) fn changed(&self) -> Option<&Subscription> {
        match self {
            Self::ChangeSeats(done) => done.subscription.as_ref(),
            Self::RenewSubscription(done) => done.subscription.as_ref(),
            Self::SetAutoRenew(done) => done.subscription.as_ref(),
            Self::SuspendSubscription(done) => done.subscription.as_ref(),
            Self::ResumeSubscription(done) => done.subscription.as_ref(),
            Self::CancelSubscription(done) => done.subscription.as_ref(),
            _ => None,
        }
    }

    /// Customer and answer of the gate, where it was asked.
    pub(super) fn gated(&self) -> Option<(&str, &GateEvidence)> {
        match self {
            Self::CreateOrder(done) => {
                let order = done.order.as_ref()?;
                Some((&order.customer_id, order.gate.as_ref()?))
            }
            Self::ChangeSeats(done) => Some((&done.subscription.as_ref()?.customer_id, done.gate.as_ref()?)),
            Self::RenewSubscription(done) => {
                Some((&done.subscription.as_ref()?.customer_id, done.gate.as_ref()?))
            }
            Self::SetAutoRenew(done) => Some((&done.subscription.as_ref()?.customer_id, done.gate.as_ref()?)),
            _ => None,
        }
    }
}

/// A request, and everything that was ever answered to it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub by: Caller,
    pub call: Call,
    pub first_sent: Instant,
    /// What was done, and when; a code where it was refused, without effect but for the order's attestation.
    pub outcomes: Vec<(Instant, Result<Done, Code>)>,
    /// The tries whose outcome is unknown.
    pub unknown: usize,
}

impl Asked {
    /// The answers that say it was done, with when they came.
    pub(super) fn done(&self) -> impl Iterator<Item = (Instant, &Done)> {
        self.outcomes.iter().filter_map(|(at, done)| Some((*at, done.as_ref().ok()?)))
    }

    /// The order that was asked for, if it brought an attestation along.
    pub(super) fn bringing(&self) -> Option<&CreateOrderRequest> {
        match &self.call {
            Call::CreateOrder(order) if order.attestation.is_some() => Some(order),
            _ => None,
        }
    }
}

/// What the clients know of, together.
#[derive(Debug, Default)]
struct Known {
    named: usize,
    /// Who may buy for a customer, and who pays.
    buyers: BTreeMap<String, Vec<(Uuid, Uuid)>>,
    /// The last attestation that a partner made, by customer and partner.
    attestations: BTreeMap<(String, Uuid), String>,
    /// The last signature, by customer.
    signatures: BTreeMap<String, String>,
    subscriptions: Vec<Subscription>,
    /// Customers with which DIRECT ended the relationship.
    former: Vec<String>,
    /// DIRECT's, for customers that come back.
    invitations: Vec<Invitation>,
}

/// The clients of a run.
pub(super) struct Load {
    /// Both services, without identity.
    services: As,
    asked: Mutex<Vec<Asked>>,
    known: Mutex<Known>,
}

impl Load {
    pub(super) fn new(services: As) -> Self {
        Self { services, asked: Mutex::default(), known: Mutex::default() }
    }

    /// Everything that was asked so far.
    pub(super) fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn as_caller(&self, caller: Caller) -> As {
        As { identity: Identity::of(caller), ..self.services.clone() }
    }

    /// Registers the partners, makes customers that have two of them, and what many rounds need.
    pub(super) async fn begin(&self, rounds: usize) -> Result<(), String> {
        let failed = |status: Status| status.to_string();
        actions::register_partners_as(&self.as_caller(fixtures::operator())).await.map_err(failed)?;
        let provider = self.as_caller(fixtures::sales(PROVIDER));
        for _ in 0..SHARED_CUSTOMERS {
            let request = self.known().new_customer(DIRECT, false);
            let Some(Done::CreateCustomer(created)) =
                self.ask(fixtures::sales(DIRECT), Call::CreateCustomer(request)).await?
            else {
                return Err("the first customers are refused".into());
            };
            let customer_id = created.customer.unwrap_or_default().customer_id;
            let admin = fixtures::admin(customer_id.parse().map_err(|_| "no id")?);
            let invitation = actions::invite(&provider, None, None).await.map_err(failed)?;
            self.ask(admin, Call::AcceptInvitation(fixtures::acceptance(&invitation, None))).await?;
        }
        let direct = self.as_caller(fixtures::sales(DIRECT));
        for _ in 0..rounds * INVITATIONS_PER_ROUND {
            let invitation = actions::invite(&direct, None, None).await.map_err(failed)?;
            self.known().invitations.push(invitation);
        }
        Ok(())
    }

    /// Asks one thing after the other, until the signal to stop.
    pub(super) async fn run(&self, mut random: StdRng, stop: watch::Receiver<bool>) -> Result<(), String> {
        while !*stop.borrow() {
            let next = self.known().next(&mut random);
            let (by, mut call) = next;
            // Others may have changed the subscription; half of the time that is found out first.
            if random.random_bool(0.5) {
                self.refresh(&by, &mut call).await;
            }
            if random.random_bool(0.1) {
                let n = self.note(by, call);
                let (one, other) = tokio::join!(self.settle(n), self.settle(n));
                one.and(other)?;
            } else {
                self.ask(by, call).await?;
            }
        }
        Ok(())
    }

    /// Repeats every request since then under its id, refused orders with a stored attestation included.
    pub(super) async fn repeat_since(&self, first: usize) -> Result<(), String> {
        let done: Vec<usize> = {
            let asked = self.asked();
            let has_effect = |one: &Asked| one.done().next().is_some() || one.bringing().is_some();
            (first..asked.len()).filter(|n| has_effect(&asked[*n])).collect()
        };
        let repeated = stream::iter(done).map(|n| self.settle(n)).buffer_unordered(REPEATED_AT_ONCE);
        repeated.collect::<Vec<_>>().await.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    async fn ask(&self, by: Caller, call: Call) -> Result<Option<Done>, String> {
        let n = self.note(by, call);
        self.settle(n).await
    }

    fn note(&self, by: Caller, call: Call) -> usize {
        let mut asked = self.asked();
        asked.push(Asked { by, call, first_sent: Instant::now(), outcomes: vec![], unknown: 0 });
        asked.len() - 1
    }

    /// Repeats a request under its one id until its outcome is known; `None` where it was refused.
    async fn settle(&self, n: usize) -> Result<Option<Done>, String> {
        let (by, call) = {
            let asked = &self.asked()[n];
            (asked.by.clone(), asked.call.clone())
        };
        let caller = self.as_caller(by.clone());
        let began = Instant::now();
        loop {
            let sent = tokio::time::timeout(TRY_MAX, call.send(&caller)).await;
            let answer = sent.unwrap_or_else(|_| Err(Status::unavailable("no answer in time")));
            let outcome = match answer {
                Ok(done) => Ok(done),
                Err(status) if !is_known(&status) => {
                    self.asked()[n].unknown += 1;
                    if began.elapsed() > ANSWER_MAX {
                        return Err(format!("{call:?} is not answered: {status}"));
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(status) if may_be_refused(&by, &call, status.code()) => Err(status.code()),
                // A defect, or something that was acknowledged and is gone.
                Err(status) => return Err(format!("{call:?} is answered {status}")),
            };
            let is_news = {
                let asked = &mut self.asked()[n];
                let is_news = asked.done().next().is_none();
                asked.outcomes.push((Instant::now(), outcome.clone()));
                is_news
            };
            if let (Ok(done), true) = (&outcome, is_news) {
                self.known().learn(&call, by.tenant_id, done);
            }
            return Ok(outcome.ok());
        }
    }

    /// Puts the etag of now into a change of a subscription.
    async fn refresh(&self, by: &Caller, call: &mut Call) {
        let Some((subscription_id, etag)) = call.changes() else { return };
        let request = GetSubscriptionRequest { subscription_id: subscription_id.clone() };
        let found = self.as_caller(by.clone()).subscriptions().get_subscription(request).await;
        if let Ok(Some(current)) = found.map(|found| found.into_inner().subscription) {
            *etag = current.etag;
        }
    }
}

/// Whether an answer says the outcome of the call. Where no service gave a reason, the connection broke or
/// no server listened; `UNAVAILABLE` is what services say when they do not know either.
fn is_known(status: &Status) -> bool {
    !reason_of(status).is_empty() && status.code() != Code::Unavailable
}

/// Whether a request that was right when it was made may be refused so.
fn may_be_refused(by: &Caller, call: &Call, code: Code) -> bool {
    match code {
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => true,
        // A partner without a relationship does not see the customer any more.
        Code::NotFound => by.tenant_id == DIRECT,
        // That an offer is not sold in the customer's country is found out last.
        Code::InvalidArgument => {
            let is_unsold = |order: &CreateOrderRequest| order.lines[0].offer_id == RIGHTS_MANAGEMENT;
            matches!(call, Call::CreateOrder(order) if is_unsold(order))
        }
        _ => false,
    }
}

/// The request id of the order that brought an attestation along, by the address in it.
pub(super) fn brought_by(email: &str) -> Option<&str> {
    email.strip_suffix(BROUGHT_BY)
}

impl Call {
    /// The etag of what it was to change.
    pub(super) fn etag(&self) -> Option<String> {
        self.clone().changes().map(|(_, etag)| etag.clone())
    }

    /// The subscription that it is to change, and the etag.
    fn changes(&mut self) -> Option<(&mut String, &mut String)> {
        match self {
            Self::ChangeSeats(request) => Some((&mut request.subscription_id, &mut request.etag)),
            Self::RenewSubscription(request) => Some((&mut request.subscription_id, &mut request.etag)),
            Self::SetAutoRenew(request) => Some((&mut request.subscription_id, &mut request.etag)),
            Self::SuspendSubscription(request) => Some((&mut request.subscription_id, &mut request.etag)),
            Self::ResumeSubscription(request) => Some((&mut request.subscription_id, &mut request.etag)),
            Self::CancelSubscription(request) => Some((&mut request.subscription_id, &mut request.etag)),
            _ => None,
        }
    }
}

impl Known {
    /// What a client does next.
    fn next(&mut self, random: &mut StdRng) -> (Caller, Call) {
        let chosen = match random.random_range(0..100) {
            0..4 => None,
            4..20 => self.attestation(random),
            20..29 => self.withdrawal(random),
            29..34 => self.signature(random),
            34..38 => self.signature_withdrawal(random),
            38..43 => self.relationship_end(random),
            43..47 => self.coming_back(),
            47..69 => self.order(random),
            _ => self.change(random),
        };
        // Where there is nothing yet to do that with, and no room for a customer, a partner orders.
        let room = self.buyers.len() < CUSTOMERS_MAX;
        let chosen = chosen.or_else(|| if room { None } else { self.order(random) });
        chosen.unwrap_or_else(|| {
            let by = *[DIRECT, PROVIDER, RESELLER].choose(random).unwrap_or(&DIRECT);
            (fixtures::sales(by), Call::CreateCustomer(self.new_customer(by, random.random_bool(0.7))))
        })
    }

    fn new_customer(&mut self, by: Uuid, attested: bool) -> CreateCustomerRequest {
        self.named += 1;
        let through = (by == RESELLER).then_some(PROVIDER);
        CreateCustomerRequest {
            // Only who pays may attest.
            attestation: (attested && by != RESELLER).then(|| InlineAttestation {
                template_id: CUSTOMER_AGREEMENT.into(),
                contact: None,
                agreed_at: Some(timestamp(Clock::system().now())),
                details: None,
            }),
            ..fixtures::new_customer(&format!("Killed {}", self.named), "FR", through)
        }
    }

    /// A customer, who buys for it, and who pays.
    fn pair(&self, random: &mut StdRng) -> Option<(&str, Uuid, Uuid)> {
        let (customer, buyers) = self.buyers.iter().choose(random)?;
        let (buyer, payer) = buyers.choose(random)?;
        Some((customer, *buyer, *payer))
    }

    fn attestation(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let (customer_id, _, payer) = self.pair(random)?;
        let email = format!("person-{}@contoso.example", random.random_range(0..1000));
        let request = CreateAttestationRequest {
            request_id: fixtures::request_id(),
            customer_id: customer_id.to_owned(),
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(Contact { email, ..fixtures::contact() }),
            agreed_at: Some(timestamp(Clock::system().now())),
            validate_only: false,
            details: None,
        };
        Some((fixtures::sales(payer), Call::CreateAttestation(request)))
    }

    fn withdrawal(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let ((_, partner), attestation_id) = self.attestations.iter().choose(random)?;
        let request = fixtures::new_withdrawal(attestation_id);
        Some((fixtures::sales(*partner), Call::WithdrawAttestation(request)))
    }

    fn signature(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let customer = self.buyers.keys().choose(random)?;
        let request = SignAgreementRequest {
            request_id: fixtures::request_id(),
            template_id: CUSTOMER_AGREEMENT.into(),
            template_version: VERSION,
            validate_only: false,
            shown_text: None,
        };
        Some((fixtures::admin(customer.parse().ok()?), Call::SignAgreement(request)))
    }

    fn signature_withdrawal(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let (customer, signature_id) = self.signatures.iter().choose(random)?;
        let request = WithdrawSignatureRequest {
            request_id: fixtures::request_id(),
            signature_id: signature_id.clone(),
            reason: WithdrawalReason::NoLongerAccepts.into(),
            validate_only: false,
        };
        Some((fixtures::admin(customer.parse().ok()?), Call::WithdrawSignature(request)))
    }

    fn relationship_end(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        if self.invitations.len() <= self.former.len() {
            return None;
        }
        let is_direct = |(_, buyers): &(&String, &Vec<_>)| buyers.contains(&(DIRECT, DIRECT));
        let (customer_id, _) = self.buyers.iter().filter(is_direct).choose(random)?;
        let request = EndRelationshipRequest {
            request_id: fixtures::request_id(),
            customer_id: customer_id.clone(),
            ..EndRelationshipRequest::default()
        };
        Some((fixtures::sales(DIRECT), Call::EndRelationship(request)))
    }

    fn coming_back(&mut self) -> Option<(Caller, Call)> {
        let customer = self.former.pop()?.parse().ok()?;
        let invitation = self.invitations.pop()?;
        Some((fixtures::admin(customer), Call::AcceptInvitation(fixtures::acceptance(&invitation, None))))
    }

    fn order(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let (customer, buyer, payer) = self.pair(random)?;
        let mut request = fixtures::new_order(customer, Some(payer), OFFICE, random.random_range(1..=300));
        // Only who pays may attest.
        if buyer == payer && random.random_bool(0.4) {
            let email = format!("{}{BROUGHT_BY}", request.request_id);
            let attestation = fixtures::inline_attestation(Clock::system().now());
            let contact = Some(Contact { email, ..fixtures::contact() });
            request.attestation = Some(proto::order::InlineAttestation { contact, ..attestation });
            // Not sold to any of the customers: refused once the attestation is stored.
            if random.random_bool(0.3) {
                request.lines[0].offer_id = RIGHTS_MANAGEMENT.into();
            }
        }
        Some((fixtures::sales(buyer), Call::CreateOrder(request)))
    }

    fn change(&self, random: &mut StdRng) -> Option<(Caller, Call)> {
        let known = self.subscriptions.choose(random)?;
        let (request_id, subscription_id, etag) =
            (fixtures::request_id(), known.subscription_id.clone(), known.etag.clone());
        macro_rules! change {
            ($call:ident, $request:ident $(, $field:ident: $value:expr)?) => {
                Call::$call($request { request_id, subscription_id, etag, $($field: $value,)? ..Default::default() })
            };
        }
        let call = match random.random_range(0..20) {
            0..11 => change!(ChangeSeats, ChangeSeatsRequest, quantity: random.random_range(1..=300)),
            11..14 => change!(RenewSubscription, RenewSubscriptionRequest),
            14..17 => change!(SetAutoRenew, SetAutoRenewRequest, auto_renew: random.random_bool(0.5)),
            17 => change!(SuspendSubscription, SuspendSubscriptionRequest),
            18 => change!(ResumeSubscription, ResumeSubscriptionRequest),
            _ => change!(CancelSubscription, CancelSubscriptionRequest),
        };
        Some((fixtures::sales(known.payer_id.parse().ok()?), call))
    }

    /// Remembers what can be gone on with.
    fn learn(&mut self, call: &Call, by: Uuid, done: &Done) {
        match (call, done) {
            (Call::CreateCustomer(_), Done::CreateCustomer(created)) => {
                let customer = created.customer.clone().unwrap_or_default().customer_id;
                if let Some(attested) = &created.attestation {
                    self.attestations.insert((customer.clone(), by), attested.attestation_id.clone());
                }
                let payer = if by == RESELLER { PROVIDER } else { by };
                self.buyers.insert(customer, vec![(by, payer), (payer, payer)]);
            }
            (_, Done::AcceptInvitation(accepted)) => {
                let entered = accepted.invitation.clone().unwrap_or_default();
                let partner = entered.partner_id.parse().unwrap_or_default();
                self.buyers.entry(entered.customer_id).or_default().push((partner, partner));
                if let Some(signature) = accepted.signature.clone() {
                    self.signatures.insert(signature.customer_id, signature.signature_id);
                }
            }
            (Call::EndRelationship(ended), _) => {
                let Some(buyers) = self.buyers.get_mut(&ended.customer_id) else { return };
                buyers.retain(|(_, payer)| *payer != by);
                if buyers.is_empty() {
                    self.buyers.remove(&ended.customer_id);
                }
                self.former.push(ended.customer_id.clone());
            }
            (_, Done::CreateAttestation(created)) => {
                let made = created.attestation.clone().unwrap_or_default();
                let partner = made.partner_id.parse().unwrap_or_default();
                self.attestations.insert((made.customer_id, partner), made.attestation_id);
            }
            (_, Done::SignAgreement(signed)) => {
                let signature = signed.signature.clone().unwrap_or_default();
                self.signatures.insert(signature.customer_id, signature.signature_id);
            }
            (_, Done::CreateOrder(placed)) => {
                let order = placed.order.clone().unwrap_or_default();
                let evidence = order.gate.and_then(|gate| gate.evidence).unwrap_or_default();
                if evidence.kind() == AcceptanceKind::Attestation {
                    let payer = order.payer_id.parse().unwrap_or_default();
                    self.attestations.insert((order.customer_id, payer), evidence.acceptance_id);
                }
                self.subscriptions.extend(placed.subscriptions.iter().cloned());
                if self.subscriptions.len() > SUBSCRIPTIONS_MAX {
                    self.subscriptions.remove(0);
                }
            }
            (_, done) => {
                let Some(changed) = done.changed() else { return };
                let same = |known: &&mut Subscription| known.subscription_id == changed.subscription_id;
                if let Some(known) = self.subscriptions.iter_mut().find(same) {
                    *known = changed.clone();
                }
            }
        }
    }
}
