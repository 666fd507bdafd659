//! The prompt: changes that carry the attestation that they need (SUB-8, ORD-5).

use proto::agreement::Attestation;
use proto::types::Contact;
use tests::fixtures::{PROVIDER, RESELLER};
use tests::reason_of;
use tonic_types::StatusExt;

use super::*;

const START: &str = "2026-01-31T12:00:00Z";

/// What asks the gate; the last one of a subscription that does not renew automatically.
const GATED: [Command; 3] = [Command::Seats(8), Command::Renew, Command::AutoRenew(true)];

fn carrying(attestation: InlineAttestation, command: Command, of: &Subscription) -> Asked {
    Asked { attestation: Some(attestation), ..Asked::of(command, of) }
}

fn by(first_name: &str, attestation: InlineAttestation) -> InlineAttestation {
    let contact = Contact { first_name: first_name.into(), ..fixtures::contact() };
    InlineAttestation { contact: Some(contact), ..attestation }
}

impl World {
    /// What a customer says now.
    fn attested_now(&self) -> InlineAttestation {
        fixtures::inline_attestation(self.clock.now())
    }

    async fn attestations(&self) -> Vec<Attestation> {
        actions::attestations_of(&self.direct, &self.customer).await.unwrap()
    }

    /// From now on the acceptance of before is not enough. What was bought is reported by then, so that the report
    /// changes nothing later.
    async fn outdate_acceptance(&self) {
        actions::until_bought(&self.cluster, &self.customer).await.unwrap();
        self.clock.set(self.clock.now() + Duration::from_secs(3600));
        self.publish(None).await;
        self.clock.set(self.clock.now() + Duration::from_secs(3600));
    }

    /// A subscription for each of the gated commands.
    async fn subscribe_for_gated(&self) -> Vec<(Command, Subscription)> {
        let mut bought = self.subscribe_to("YEAR", GATED.len()).await;
        bought[2] = self.done(Command::AutoRenew(false), &bought[2]).await;
        GATED.into_iter().zip(bought).collect()
    }

    /// Everything that a change can leave behind.
    async fn left(&self, of: &Subscription) -> (usize, i64, Subscription, usize) {
        let revision = self.cluster.head().await.unwrap();
        let attested = self.attestations().await.len();
        (attested, revision, self.now(of).await, self.changes(of).await.len())
    }
}

/// SUB-8.
#[apply(each_backend)]
async fn a_change_may_carry_the_attestation_that_it_needs(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, START).await;
    let gated = world.subscribe_for_gated().await;
    for (n, (command, subscription)) in gated.iter().enumerate() {
        world.outdate_acceptance().await;
        let refused = world.refused(*command, subscription).await;
        assert_eq!(refused, forbidden("AGREEMENT_REQUIRED"), "{command:?}");
        let asked = carrying(world.attested_now(), *command, subscription);
        let Answer { subscription: changed, gate, .. } = asked.clone().send(&world.direct).await.unwrap();

        let stored = world.attestations().await;
        assert_eq!(stored.len(), n + 2, "{command:?}");
        let (new, given) = (stored.last().unwrap(), asked.attestation.unwrap());
        assert_eq!((&new.template_id, &new.contact), (&given.template_id, &given.contact), "{command:?}");
        assert_eq!((new.agreed_at, new.partner_id.as_str()), (given.agreed_at, &*DIRECT.to_string()));
        let gate = gate.unwrap();
        assert_eq!(gate.rule(), GateRule::Attestation, "{command:?}");
        assert_eq!(gate.evidence.clone().unwrap().acceptance_id, new.attestation_id, "{command:?}");
        let last = world.changes(subscription).await.pop().unwrap();
        assert_eq!((last.reason(), last.gate.as_ref()), (Why::Requested, Some(&gate)), "{command:?}");
        assert_eq!(new.recorded_by, last.actor, "{command:?}");
        assert_eq!(world.now(subscription).await, changed, "{command:?}");
        assert_ne!(changed.etag, subscription.etag, "{command:?}");
    }
}

/// A repeated change gets its first answer and attests nothing anew, also where many send it at once.
#[apply(each_backend)]
async fn a_repeated_change_attests_once(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, START).await;
    let agents: Vec<_> = (0..4).map(|_| world.cluster.as_caller(fixtures::sales(DIRECT))).collect();
    let gated = world.subscribe_for_gated().await;
    let mut sent = vec![];
    for (n, (command, subscription)) in gated.iter().enumerate() {
        world.outdate_acceptance().await;
        let asked = carrying(world.attested_now(), *command, subscription);
        let calls = (0..CALLERS).map(|n| asked.clone().send(&agents[n % agents.len()]));
        let answers = join_all(calls).await;
        let first = answers[0].as_ref().unwrap();
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first), "{command:?}");
        assert_eq!(world.attestations().await.len(), n + 2, "{command:?}");
        sent.push((asked, first.clone()));
    }
    let last = world.attestations().await.pop().unwrap();
    actions::withdraw(&world.direct, &last.attestation_id).await.unwrap();
    for (asked, first) in sent {
        let before = world.left(&first.subscription).await;
        assert_eq!(asked.clone().send(&world.direct).await.unwrap(), first, "{:?}", asked.command);
        // Another attestation, or none, is other content.
        let other = by("Tomas", asked.attestation.clone().unwrap());
        for attestation in [None, Some(other)] {
            let other = Asked { attestation, ..asked.clone() };
            let refused = other.send(&world.direct).await.unwrap_err();
            assert_eq!(refusal(&refused), (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));
        }
        let (attested, revision, ..) = world.left(&first.subscription).await;
        assert_eq!((attested, revision), (before.0, before.1), "{:?}", asked.command);
    }
}

/// A refused change keeps its attestation: it is made once, however often the change is sent, and the change passes
/// once it is right.
#[apply(each_backend)]
async fn a_refused_change_keeps_its_attestation(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, START).await;
    for (command, subscription) in world.subscribe_for_gated().await {
        world.outdate_acceptance().await;
        let known = world.attestations().await.len();
        // Agreed before the new version, so it is an attestation of the one before.
        let too_old = fixtures::inline_attestation(world.clock.now() - Duration::from_secs(5400));
        let asked = carrying(by("Ada", too_old.clone()), command, &subscription);
        let refused = asked.clone().send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{command:?}");
        assert_eq!(world.attestations().await.len(), known + 1, "{command:?}");

        // As after a crash of order-svc between attestation and change: no answer is kept, and the attestation's own
        // request id tells that it was made, though another one counts by now.
        let other = CreateAttestationRequest {
            agreed_at: too_old.agreed_at,
            ..fixtures::new_attestation_by(&world.customer, fixtures::person("Grace"))
        };
        world.direct.attestations().create_attestation(other).await.unwrap();
        let before = world.left(&subscription).await;
        let refused = asked.clone().send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{command:?}");
        assert_eq!(world.left(&subscription).await, before, "{command:?}");

        // With another attestation it passes under the same request id.
        let right = Asked { attestation: Some(world.attested_now()), ..asked };
        let gate = right.send(&world.direct).await.unwrap().gate.unwrap();
        let stored = world.attestations().await;
        assert_eq!(stored.len(), known + 3, "{command:?}");
        assert_eq!(gate.evidence.unwrap().acceptance_id, stored[known + 2].attestation_id, "{command:?}");
    }
}

/// For what is refused without asking the gate, nothing is attested.
#[apply(each_backend)]
async fn a_change_that_cannot_be_made_attests_nothing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, START).await;
    let gated = world.subscribe_for_gated().await;
    world.outdate_acceptance().await;
    for (command, subscription) in &gated {
        let before = world.left(subscription).await;
        let outdated = Asked { etag: "0".into(), ..carrying(world.attested_now(), *command, subscription) };
        assert_eq!(refusal(&outdated.send(&world.direct).await.unwrap_err()), stale(), "{command:?}");
        assert_eq!(world.left(subscription).await, before, "{command:?}");
    }
    let (_, subscription) = &gated[0];
    let before = world.left(subscription).await;
    let too_many = carrying(world.attested_now(), Command::Seats(301), subscription);
    assert_eq!(bad_fields_of(&too_many.send(&world.direct).await.unwrap_err()), ["quantity"]);
    assert_eq!(world.left(subscription).await, before);
    let cancelled = world.done(Command::Cancel, subscription).await;
    let before = world.left(&cancelled).await;
    for (command, reason) in [
        (Command::Seats(8), "SUBSCRIPTION_NOT_ACTIVE"),
        (Command::Renew, "SUBSCRIPTION_NOT_ACTIVE"),
        (Command::AutoRenew(true), "SUBSCRIPTION_ENDED"),
    ] {
        let refused = carrying(world.attested_now(), command, &cancelled).send(&world.direct).await;
        assert_eq!(refusal(&refused.unwrap_err()), forbidden(reason), "{command:?}");
        assert_eq!(world.left(&cancelled).await, before, "{command:?}");
    }
}

/// An attestation is refused where no change needs it, and made where only this one does not: a success never leaves it
/// out.
#[apply(each_backend)]
async fn an_attestation_is_made_or_refused_where_the_gate_is_not_asked(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, START).await;
    let subscription = world.subscribe("YEAR").await;
    for (n, command) in [Command::Seats(5), Command::AutoRenew(true)].into_iter().enumerate() {
        world.outdate_acceptance().await;
        let asked = carrying(world.attested_now(), command, &subscription);
        for _ in 0..2 {
            let answer = asked.clone().send(&world.direct).await.unwrap();
            assert_eq!((&answer.subscription, &answer.gate), (&subscription, &None), "{command:?}");
            assert_eq!(world.attestations().await.len(), n + 2, "{command:?}");
        }
    }
    world.outdate_acceptance().await;
    let before = world.left(&subscription).await;
    let off = carrying(world.attested_now(), Command::AutoRenew(false), &subscription);
    let refused = off.send(&world.direct).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into()));
    assert_eq!(bad_fields_of(&refused), ["attestation"]);
    let message = refused.message();
    assert!(message.starts_with("INVALID_FIELDS: attestation must be absent: "), "{message}");
    assert_eq!(world.left(&subscription).await, before);
}

/// ORD-5. What is only validated has the answer of a real change, and stores nothing in either service.
#[apply(each_backend)]
async fn a_validated_change_assumes_its_attestation(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    // What does not depend on when and under which ids it was answered.
    let essence = |answer: Result<Answer, Status>| {
        let answer = answer.map_err(|status| (status.code(), status.message().to_owned()))?;
        let gate = answer.gate.map(|mut gate| {
            (gate.revision, gate.evaluated_at) = (0, None);
            gate.evidence.as_mut().unwrap().acceptance_id.clear();
            gate
        });
        Ok::<_, (Code, String)>((answer.subscription, gate))
    };
    let world = World::new(backend, START).await;
    for command in [Command::Seats(8), Command::Renew, Command::Seats(5)] {
        let subscription = world.subscribe("YEAR").await;
        world.outdate_acceptance().await;
        let now = world.attested_now();
        let too_old = fixtures::inline_attestation(world.clock.now() - Duration::from_secs(5400));
        let ahead = fixtures::inline_attestation(world.clock.now() + Duration::from_secs(3600));
        let mut passed = 0;
        for attestation in [None, Some(ahead), Some(by("Ada", too_old)), Some(now)] {
            let asked = Asked { attestation, ..Asked::of(command, &subscription) };
            let before = world.left(&subscription).await;
            let dry_run = Asked { validate_only: true, ..asked.clone() };
            let would_be = dry_run.send(&world.direct).await;
            assert_eq!(world.left(&subscription).await, before, "{asked:?}");
            // The request id was left alone, and what it said is what happens.
            let about = format!("{asked:?}");
            let done = asked.send(&world.direct).await;
            passed += usize::from(done.is_ok());
            assert_eq!(essence(would_be), essence(done), "{about}");
        }
        assert_eq!(passed, if command == Command::Seats(5) { 3 } else { 1 }, "{command:?}");
    }
}

/// order-svc refuses a change whose attestation is refused in the words of agreement-svc, with the fields of the
/// request.
#[apply(each_backend)]
async fn a_refused_attestation_refuses_its_change_word_for_word(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let domain_of = |status: &Status| status.get_details_error_info().unwrap().domain;
    let world = World::new(backend, START).await;
    let gated = world.subscribe_for_gated().await;
    world.outdate_acceptance().await;
    let unknown = InlineAttestation { template_id: fixtures::request_id(), ..world.attested_now() };
    let bad = InlineAttestation {
        contact: Some(Contact { email: "tania@contoso".into(), ..fixtures::contact() }),
        ..fixtures::inline_attestation(world.clock.now() + Duration::from_secs(3600))
    };
    for (command, subscription) in &gated {
        let before = world.left(subscription).await;
        let refused =
            carrying(unknown.clone(), *command, subscription).send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::NotFound, "RESOURCE_NOT_FOUND".into()), "{command:?}");
        assert_eq!(domain_of(&refused), "agreement-svc");
        assert_eq!(refused.get_details_resource_info().unwrap().resource_type, "template");
        let refused = carrying(bad.clone(), *command, subscription).send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into()), "{command:?}");
        assert_eq!(domain_of(&refused), "agreement-svc");
        assert_eq!(bad_fields_of(&refused), ["attestation.contact.email", "attestation.agreed_at"]);
        assert_eq!(world.left(subscription).await, before, "{command:?}");
    }

    // The parties of a subscription had a relationship, so it is its end that is named. It stops no renewal here, so
    // the etag stays.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: world.customer.clone(),
        ..EndRelationshipRequest::default()
    };
    world.direct.customers().end_relationship(end).await.unwrap();
    let (command, subscription) = &gated[2];
    let asked = carrying(world.attested_now(), *command, subscription);
    let without = Asked { attestation: None, ..asked.clone() }.send(&world.direct).await.unwrap_err();
    let refused = asked.send(&world.direct).await.unwrap_err();
    assert_eq!((reason_of(&refused), domain_of(&refused)), ("RELATIONSHIP_ENDED".into(), "order-svc".into()));
    assert_eq!((refused.code(), refused.message()), (without.code(), without.message()));
    assert_eq!(metadata_of(&refused), metadata_of(&without));
}

/// ATT-1. A reseller is sent to the payer of the subscription, which changes it with an attestation of its own.
#[apply(each_backend)]
async fn a_reseller_that_attests_is_sent_to_the_payer_of_the_subscription(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let [provider, reseller] = [PROVIDER, RESELLER].map(|id| cluster.as_caller(fixtures::sales(id)));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();
    let bought = actions::subscribe(&reseller, &customer, Some(PROVIDER)).await.unwrap();
    let attestation = by("Tomas", fixtures::inline_attestation(fixtures::now()));
    let asked = carrying(attestation, Command::Seats(8), &bought);
    // order-svc follows the history on its own; until then it does not know the relationship.
    let refused = eventually("the reseller is known", async || {
        let refused = asked.clone().send(&reseller).await.unwrap_err();
        (refusal(&refused) != unavailable()).then_some(refused)
    });
    let refused = refused.await;
    assert_eq!(refusal(&refused), (Code::PermissionDenied, "RESELLER_CANNOT_ATTEST".into()));
    assert_eq!(metadata_of(&refused)["provider_id"], PROVIDER.to_string());
    assert_eq!(actions::attestations_of(&provider, &customer).await.unwrap().len(), 1);

    let changed = asked.send(&provider).await.unwrap();
    let stored = actions::attestations_of(&provider, &customer).await.unwrap();
    assert_eq!(stored.len(), 2);
    let evidence = changed.gate.unwrap().evidence.unwrap();
    assert_eq!(evidence.acceptance_id, stored[1].attestation_id);
}
