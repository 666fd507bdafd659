//! The relationships of payers, customers and resellers, as agreement-svc's history says: who may still act on a
//! subscription (ROLE-6), and what the end of a relationship does to it (CUS-3).

use uuid::Uuid;

use super::order::Parties;
use super::subscription::{Command, Subscription};
use super::withdrawal::SubscriptionFacts;
use super::{BadField, Refusal};

/// Who buys for a customer, and through which reseller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relationship {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
}

/// A relationship ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationshipEnd {
    pub relationship: Relationship,
    /// Payer and customer have another relationship; then only what has this reseller on record is concerned.
    pub others_remain: bool,
}

/// What an event does to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends at once.
    Cancelled,
    /// It runs out at the end of its term.
    NotRenewed,
}

impl RelationshipEnd {
    /// CUS-3: what the end of a relationship, of a revision, does to one of the customer's subscriptions. What has no
    /// term would never run out, so it is cancelled once payer and customer have no relationship any more.
    pub fn effect_on(&self, revision: i64, subscription: &SubscriptionFacts) -> Option<Ending> {
        let Relationship { payer_id, reseller_id, .. } = self.relationship;
        let is_concerned = subscription.payer_id == payer_id
            && (!self.others_remain
                || subscription.reseller_id == reseller_id && subscription.reseller_revision < revision)
            && !subscription.state.is_final()
            && subscription.answer_revision < revision;
        if is_concerned && subscription.is_perpetual && !self.others_remain {
            Some(Ending::Cancelled)
        } else if is_concerned && subscription.auto_renew {
            Some(Ending::NotRenewed)
        } else {
            None
        }
    }
}

/// The relationships of a payer and a customer, by their resellers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relationships {
    /// The last event of agreement-svc's history that they follow from.
    pub applied: i64,
    pub active: Vec<Option<Uuid>>,
    /// Ended, as was known before a restore of agreement-svc that lost the end.
    pub lost_ends: Vec<Option<Uuid>>,
}

impl Relationships {
    /// The end of an active one of them, if it came now.
    pub fn end_of(&self, relationship: Relationship) -> Option<RelationshipEnd> {
        let others_remain = self.active.len() > 1;
        let is_active = self.active.contains(&relationship.reseller_id);
        is_active.then_some(RelationshipEnd { relationship, others_remain })
    }
}

/// For whom a tenant acts on a subscription. All but the reseller on record go on without one that has parted.
pub fn parties_for(tenant_id: Uuid, subscription: &Subscription) -> Parties {
    let Subscription { payer_id, customer_id, .. } = *subscription;
    let reseller_id = subscription.reseller_id.filter(|reseller| *reseller == tenant_id);
    Parties { payer_id, reseller_id, customer_id }
}

/// An active relationship of the payer and the customer of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Whichever.
    Any,
    WithReseller(Uuid),
}

impl Needed {
    pub fn is_met_by(self, known: &Relationships) -> bool {
        self.is_among(&known.active)
    }

    /// Whether agreement-svc calls it active, at a revision, only because it lost the end: nothing up to there says that it
    /// began anew.
    pub fn has_lost_end(self, known: &Relationships, revision: i64) -> bool {
        revision <= known.applied && self.is_among(&known.lost_ends)
    }

    fn is_among(self, resellers: &[Option<Uuid>]) -> bool {
        match self {
            Self::Any => !resellers.is_empty(),
            Self::WithReseller(reseller) => resellers.contains(&Some(reseller)),
        }
    }
}

/// ROLE-6: the relationship without which a partner that sees a subscription may not do what it asks. The payer always ends
/// what it pays for; for everything that it buys anew the gate is asked. A reseller acts while its relationship is active.
pub fn relationship_needed(
    caller: Uuid,
    subscription: &Subscription,
    command: Command,
) -> Result<Option<Needed>, Refusal> {
    let payer_id = subscription.payer_id;
    match command {
        Command::AssignReseller(_) if caller != payer_id => Err(Refusal::PayerOnly { payer_id }),
        Command::AssignReseller(Some(reseller)) => Ok(Some(Needed::WithReseller(reseller))),
        Command::Resume if caller == payer_id => Ok(Some(Needed::Any)),
        _ => Ok((caller != payer_id).then_some(Needed::WithReseller(caller))),
    }
}

/// The refusal where the relationship is not active.
pub fn not_related(subscription: &Subscription, command: Command) -> Refusal {
    let Subscription { customer_id, payer_id, .. } = *subscription;
    match command {
        Command::AssignReseller(Some(_)) => {
            let problem =
                "has no active relationship with this customer and you; leave it empty to have no reseller";
            Refusal::Fields(vec![BadField { field: "reseller_id".into(), problem: problem.into() }])
        }
        _ => Refusal::RelationshipEnded { customer_id, payer_id },
    }
}

#[cfg(test)]
mod tests {
    use super::super::subscription::{State, tests::subscription};
    use super::*;

    const PAYER: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);
    const RESELLER: Uuid = Uuid::from_u128(3);
    const CUSTOMER: Uuid = Uuid::from_u128(9);
    const REVISION: i64 = 10;

    /// CUS-3, every case.
    #[test]
    fn the_end_of_a_relationship_stops_renewal() {
        // payer, reseller of the relationship, other relationships remain -> whether the subscription is concerned
        for (payer_id, reseller_id, others_remain, is_concerned) in [
            (PAYER, None, false, true),
            (PAYER, Some(RESELLER), false, true),
            (PAYER, Some(OTHER), false, true),
            (PAYER, None, true, false),
            (PAYER, Some(RESELLER), true, true),
            (PAYER, Some(OTHER), true, false),
            (OTHER, None, false, false),
            (OTHER, Some(RESELLER), true, false),
        ] {
            let relationship = Relationship { customer_id: CUSTOMER, payer_id, reseller_id };
            let end = RelationshipEnd { relationship, others_remain };
            let states = [State::Active, State::Suspended, State::Cancelled, State::Expired];
            let answers = [0, REVISION - 1, REVISION, REVISION + 1];
            // A reseller that was assigned after the end came back before.
            let revisions = answers.into_iter().flat_map(|a| [0, REVISION - 1, REVISION].map(|r| (a, r)));
            for (state, (answer_revision, reseller_revision)) in
                states.into_iter().flat_map(|s| revisions.clone().map(move |r| (s, r)))
            {
                let is_concerned = is_concerned && (!others_remain || reseller_revision < REVISION);
                for (auto_renew, is_perpetual) in [(true, false), (false, false), (true, true), (false, true)]
                {
                    let of = SubscriptionFacts {
                        payer_id: PAYER,
                        reseller_id: Some(RESELLER),
                        state,
                        auto_renew,
                        is_perpetual,
                        answer_revision,
                        reseller_revision,
                    };
                    let is_open = matches!(state, State::Active | State::Suspended);
                    let expected = match is_concerned && is_open && answer_revision < REVISION {
                        true if is_perpetual && !others_remain => Some(Ending::Cancelled),
                        true if auto_renew => Some(Ending::NotRenewed),
                        _ => None,
                    };
                    assert_eq!(end.effect_on(REVISION, &of), expected, "{end:?} {of:?}");
                }
            }
        }
    }

    /// WD-3a: an end is lost for what agreement-svc says at a revision that was applied here, and not later.
    #[test]
    fn a_lost_end_explains_what_agreement_svc_says_up_to_what_was_applied() {
        let known = |lost_ends: &[Option<Uuid>]| Relationships {
            applied: REVISION,
            active: vec![Some(RESELLER)],
            lost_ends: lost_ends.to_vec(),
        };
        let (none, other, both) = (known(&[]), known(&[Some(OTHER)]), known(&[None, Some(RESELLER)]));
        for (needed, known, is_lost) in [
            (Needed::Any, &none, false),
            (Needed::Any, &other, true),
            (Needed::WithReseller(RESELLER), &none, false),
            (Needed::WithReseller(RESELLER), &other, false),
            (Needed::WithReseller(RESELLER), &both, true),
        ] {
            let revisions = [REVISION - 1, REVISION, REVISION + 1];
            let lost = revisions.map(|revision| needed.has_lost_end(known, revision));
            assert_eq!(lost, [is_lost, is_lost, false], "{needed:?} {known:?}");
        }
    }

    /// ROLE-6, every case: who asks for what, while which relationships are active.
    #[test]
    fn who_has_parted_acts_no_more() {
        let of = Subscription {
            payer_id: PAYER,
            reseller_id: Some(RESELLER),
            customer_id: CUSTOMER,
            ..subscription(State::Active)
        };
        let ended = || Err(Refusal::RelationshipEnded { customer_id: CUSTOMER, payer_id: PAYER });
        let payer_only = || Err(Refusal::PayerOnly { payer_id: PAYER });
        let unrelated = || {
            let problem =
                "has no active relationship with this customer and you; leave it empty to have no reseller";
            Err(Refusal::Fields(vec![BadField { field: "reseller_id".into(), problem: problem.into() }]))
        };
        // A lost end is no relationship.
        let active = |resellers: &[Option<Uuid>]| Relationships {
            applied: 1,
            active: resellers.to_vec(),
            lost_ends: vec![None, Some(RESELLER), Some(OTHER)],
        };
        let (none, own, other) = (active(&[]), active(&[None]), active(&[Some(OTHER)]));
        let both = active(&[Some(OTHER), Some(RESELLER)]);
        for (command, payer_alone) in [
            (Command::Cancel, Ok(())),
            (Command::Suspend, Ok(())),
            (Command::AutoRenew(false), Ok(())),
            (Command::AssignReseller(None), Ok(())),
            // The gate answers these.
            (Command::Seats(3), Ok(())),
            (Command::Renew, Ok(())),
            (Command::AutoRenew(true), Ok(())),
            (Command::Resume, ended()),
            (Command::AssignReseller(Some(OTHER)), unrelated()),
        ] {
            let check = |caller, active| match relationship_needed(caller, &of, command)? {
                Some(needed) if !needed.is_met_by(active) => Err(not_related(&of, command)),
                Some(_) | None => Ok(()),
            };
            assert_eq!(check(PAYER, &none), payer_alone, "{command:?}");
            let with_own = match command {
                Command::AssignReseller(Some(_)) => unrelated(),
                _ => Ok(()),
            };
            assert_eq!(check(PAYER, &own), with_own, "{command:?}");
            assert_eq!(check(PAYER, &other), Ok(()), "{command:?}");
            let of_reseller = |may| match command {
                Command::AssignReseller(_) => payer_only(),
                _ if may => Ok(()),
                _ => ended(),
            };
            for (active, may) in [(&none, false), (&own, false), (&other, false), (&both, true)] {
                assert_eq!(check(RESELLER, active), of_reseller(may), "{command:?} {active:?}");
            }
        }
    }
}
