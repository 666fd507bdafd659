//! Steps of a random history: what a caller does, in terms that have a meaning whatever happened before.

use proptest::prelude::*;
use proptest::sample::Index;

use super::offers::OFFERS;
use crate::model::acceptance::{self, CUSTOMERS, PARTNERS};

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A call of agreement-svc.
    Accept(acceptance::Step),
    Order {
        by: Buyer,
        customer: usize,
        lines: Vec<Line>,
        attestation: Option<Attestation>,
        validate_only: bool,
    },
    Change {
        which: Index,
        by: Actor,
        etag: Etag,
        command: Command,
        validate_only: bool,
    },
    /// An earlier request of either kind, under its request id.
    Again {
        which: Index,
        how: Again,
    },
    /// While the gate's answer to a request is on its way, another step is taken and applied.
    Overtaken {
        by: Box<Step>,
        request: Box<Step>,
    },
    /// Holds the events back from order-svc from now on, or delivers them again.
    HoldHistory(bool),
    /// Time goes on to the end of a subscription's term, or to just before or behind it, and something may
    /// be asked of the subscription before order-svc processes the end.
    AwaitTermEnd {
        which: Index,
        micros_after: i64,
        asked: Option<Command>,
    },
}

/// The caller of an order, and the partners that the order names (ORD-1).
#[derive(Clone, Copy, Debug)]
pub(super) enum Buyer {
    ForItself(usize),
    ProviderNamesReseller,
    ResellerNamesProvider,
    /// Its relationships name no reseller.
    DirectNamesReseller,
    /// No partner pays.
    NamesItselfReseller,
    /// Two would be on record.
    NamesBothOthers,
}

/// The attestation that an order carries (ORD-4).
#[derive(Clone, Copy, Debug)]
pub(super) struct Attestation {
    pub person: usize,
    pub agreed_minutes_ago: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Behind the last: one that does not exist.
    pub offer: usize,
    pub quantity: u32,
}

/// The caller of a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Actor {
    Payer,
    Reseller,
    OtherPayer,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Etag {
    Current,
    Before,
    Next,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Command {
    Seats(u32),
    Renew,
    AutoRenew(bool),
    Suspend,
    Resume,
    Cancel,
    /// The reseller of the world, or none.
    AssignReseller(bool),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Again {
    AsItWas,
    OtherContent,
    Stored,
    By(usize),
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let buyer = prop_oneof![
        4 => Just(Buyer::ForItself(0)),
        4 => Just(Buyer::ForItself(1)),
        3 => Just(Buyer::ProviderNamesReseller),
        3 => Just(Buyer::ResellerNamesProvider),
        1 => Just(Buyer::ForItself(2)),
        1 => Just(Buyer::DirectNamesReseller),
        1 => Just(Buyer::NamesItselfReseller),
        1 => Just(Buyer::NamesBothOthers),
    ];
    let offer = prop_oneof![24 => Just(0), 16 => Just(1), 4 => Just(2), 9 => 3..OFFERS.len(), 1 => Just(OFFERS.len())];
    let quantity = || {
        prop_oneof![
            30 => Just(1_u32), 20 => 2..6_u32, 3 => Just(300), 1 => Just(301), 1 => Just(0), 1 => Just(u32::MAX)
        ]
    };
    let line = (offer, quantity()).prop_map(|(offer, quantity)| Line { offer, quantity });
    let rarely = || prop::bool::weighted(0.1);
    let attestation = (0..3_usize, prop_oneof![3 => Just(0), 1 => 0..400_i64 * 24 * 60])
        .prop_map(|(person, agreed_minutes_ago)| Attestation { person, agreed_minutes_ago });
    let attestation = prop::option::weighted(0.3, attestation);
    let lines = prop::collection::vec(line, 1..4);
    let order = (buyer.clone(), 0..CUSTOMERS, lines, attestation, rarely()).prop_map(
        |(by, customer, lines, attestation, validate_only)| Step::Order {
            by,
            customer,
            lines,
            attestation,
            validate_only,
        },
    );
    let actor =
        prop_oneof![8 => Just(Actor::Payer), 3 => Just(Actor::Reseller), 1 => Just(Actor::OtherPayer)];
    let etag = prop_oneof![10 => Just(Etag::Current), 1 => Just(Etag::Before), 1 => Just(Etag::Next)];
    let command = prop_oneof![
        6 => quantity().prop_map(Command::Seats),
        4 => Just(Command::Renew),
        3 => Just(Command::AutoRenew(true)),
        3 => Just(Command::AutoRenew(false)),
        2 => Just(Command::Suspend),
        3 => Just(Command::Resume),
        1 => Just(Command::Cancel),
        2 => any::<bool>().prop_map(Command::AssignReseller),
    ];
    let change = (any::<Index>(), actor, etag, command.clone(), rarely()).prop_map(
        |(which, by, etag, command, validate_only)| Step::Change { which, by, etag, command, validate_only },
    );
    let how = prop_oneof![
        4 => Just(Again::AsItWas),
        2 => Just(Again::OtherContent),
        1 => Just(Again::Stored),
        1 => (0..PARTNERS.len()).prop_map(Again::By),
    ];
    let again = (any::<Index>(), how).prop_map(|(which, how)| Step::Again { which, how });
    let micros = prop_oneof![2 => Just(0_i64), 2 => Just(-1), 1 => Just(1)];
    let await_end = (any::<Index>(), micros, prop::option::of(command))
        .prop_map(|(which, micros_after, asked)| Step::AwaitTermEnd { which, micros_after, asked });
    let good_order = (buyer, 0..CUSTOMERS, 1..9_u32).prop_map(|(by, customer, quantity)| Step::Order {
        by,
        customer,
        lines: vec![Line { offer: 0, quantity }],
        attestation: None,
        validate_only: false,
    });
    let is_quick = |step: &acceptance::Step| {
        use acceptance::Step::{EndRelationship, WithdrawAttestation, WithdrawSignature};
        matches!(step, EndRelationship { .. } | WithdrawAttestation { .. } | WithdrawSignature { .. })
    };
    let withdrawal = || acceptance::step().prop_filter("a withdrawal or an end", is_quick);
    let withdrawn = prop::collection::vec(withdrawal(), 1..4);
    let other = acceptance::step()
        .prop_filter("time stands still", |step| !matches!(step, acceptance::Step::Wait { .. }));
    let gated = prop_oneof![3 => (1..9_u32).prop_map(Command::Seats), 2 => Just(Command::Renew), 1 => Just(Command::AutoRenew(true))];
    let free = prop_oneof![
        Just(Command::Suspend),
        Just(Command::Cancel),
        Just(Command::AutoRenew(false)),
        (1..9_u32).prop_map(Command::Seats)
    ];
    let of_payer = |which, command| {
        Box::new(Step::Change { which, by: Actor::Payer, etag: Etag::Current, command, validate_only: false })
    };
    let overtaken = prop_oneof![
        4 => (prop_oneof![2 => withdrawal(), 1 => other], prop_oneof![good_order, order.clone(), change.clone()])
            .prop_map(|(by, request)| (Box::new(Step::Accept(by)), Box::new(request))),
        3 => (any::<Index>(), free, gated)
            .prop_map(move |(which, by, command)| (of_payer(which, by), of_payer(which, command))),
    ];
    let overtaken = overtaken.prop_map(|(by, request)| Step::Overtaken { by, request });
    let step = prop_oneof![
        5 => overtaken,
        2 => prop::bool::ANY.prop_map(Step::HoldHistory),
        9 => acceptance::step().prop_map(Step::Accept),
        7 => order,
        14 => change,
        4 => again,
        2 => await_end,
    ];
    // A withdrawal that reaches order-svc only once the partner has attested anew and bought on that attestation.
    let late = (withdrawn, 0..2_usize, 0..CUSTOMERS, any::<Index>(), 1..9_u32, any::<bool>()).prop_map(
        move |(withdrawn, partner, customer, which, seats, is_order)| {
            let agreed_minutes_ago = 0;
            let attest = acceptance::Step::Attest { partner, customer, person: 0, agreed_minutes_ago };
            let lines = vec![Line { offer: 0, quantity: seats }];
            let (by, attestation, validate_only) = (Buyer::ForItself(partner), None, false);
            let bought = match is_order {
                true => Step::Order { by, customer, lines, attestation, validate_only },
                false => *of_payer(which, Command::Seats(seats)),
            };
            let withdrawn = withdrawn.into_iter().map(Step::Accept);
            let before = [Step::HoldHistory(false), Step::HoldHistory(true)].into_iter().chain(withdrawn);
            before.chain([Step::Accept(attest), bought, Step::HoldHistory(false)]).collect::<Vec<_>>()
        },
    );
    let some = prop_oneof![20 => step.prop_map(|step| vec![step]), 1 => late];
    prop::collection::vec(some, 25..50).prop_map(|some| some.concat())
}
