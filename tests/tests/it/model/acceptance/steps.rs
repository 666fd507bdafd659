//! Steps of a random history: what a caller does, in terms that have a meaning whatever happened before.

use proptest::prelude::*;
use proptest::sample::Index;

use super::CUSTOMERS;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Attest {
        partner: usize,
        customer: usize,
        person: usize,
        agreed_minutes_ago: i64,
    },
    /// With `corrects`, the person agreed a day ago in truth.
    WithdrawAttestation {
        which: Index,
        is_own: bool,
        corrects: bool,
    },
    Sign {
        customer: usize,
        shown: Shown,
    },
    WithdrawSignature {
        which: Index,
        is_own: bool,
    },
    Publish {
        effective_in: Option<i64>,
        reaccept: Reaccept,
    },
    EndRelationship {
        partner: usize,
        customer: usize,
    },
    AcceptInvitation {
        partner: usize,
        customer: usize,
        shown: Shown,
    },
    ReportPurchase {
        partner: usize,
        customer: usize,
        minutes_ago: i64,
    },
    Wait {
        micros: i64,
    },
}

/// The version that a customer was shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown {
    InForce,
    Before,
    After,
}

/// When a new version makes acceptances of earlier ones insufficient, in minutes after it takes effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reaccept {
    WhenEffective,
    After(i64),
    Never,
}

const DAY: i64 = 24 * 60;
const MINUTE_MICROS: i64 = 60_000_000;

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 30..60)
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let partner = || prop_oneof![3 => Just(0), 3 => Just(1), 1 => Just(2)];
    let payer = || 0..2_usize;
    let customer = || 0..CUSTOMERS;
    let mostly = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let shown = || prop_oneof![8 => Just(Shown::InForce), 1 => Just(Shown::Before), 1 => Just(Shown::After)];
    // Three minutes ahead is within the tolerance for a partner's clock.
    let agreed = prop_oneof![4 => Just(0), 2 => Just(-3), 4 => 0..40 * DAY, 2 => 0..1500 * DAY];
    let person = prop_oneof![3 => Just(0), 1 => Just(1), 1 => Just(2)];
    let attest = (partner(), customer(), person, agreed).prop_map(
        |(partner, customer, person, agreed_minutes_ago)| Step::Attest {
            partner,
            customer,
            person,
            agreed_minutes_ago,
        },
    );
    let which = || (any::<Index>(), mostly());
    let reaccept = prop_oneof![
        2 => Just(Reaccept::WhenEffective),
        2 => (1..60 * DAY).prop_map(Reaccept::After),
        1 => Just(Reaccept::Never),
    ];
    let begins =
        prop_oneof![3 => Just(None), 1 => (1..4_i64).prop_map(Some), 3 => (1..30 * DAY).prop_map(Some)];
    let publish =
        (begins, reaccept).prop_map(|(effective_in, reaccept)| Step::Publish { effective_in, reaccept });
    let accept = (partner(), customer(), shown())
        .prop_map(|(partner, customer, shown)| Step::AcceptInvitation { partner, customer, shown });
    let bought = prop_oneof![3 => Just(0), 1 => 0..60 * DAY];
    let purchase = (payer(), customer(), bought)
        .prop_map(|(partner, customer, minutes_ago)| Step::ReportPurchase { partner, customer, minutes_ago });
    let wait = prop_oneof![Just(1), 1..30 * DAY * MINUTE_MICROS];
    prop_oneof![
        8 => attest,
        4 => (which(), any::<bool>()).prop_map(|((which, is_own), corrects)| Step::WithdrawAttestation { which, is_own, corrects }),
        6 => (customer(), shown()).prop_map(|(customer, shown)| Step::Sign { customer, shown }),
        3 => which().prop_map(|(which, is_own)| Step::WithdrawSignature { which, is_own }),
        3 => publish,
        2 => (partner(), customer()).prop_map(|(partner, customer)| Step::EndRelationship { partner, customer }),
        4 => accept,
        1 => purchase,
        4 => wait.prop_map(|micros| Step::Wait { micros }),
    ]
}
