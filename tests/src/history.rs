//! Replays agreement-svc's events: who is covered when. Nothing here asks a service or a database.

use std::collections::{BTreeSet, HashMap};

use proto::agreement::Event;
use proto::agreement::event::Change;

/// What the events up to a revision say of acceptances and relationships.
#[derive(Debug, Default)]
pub(crate) struct History {
    head: i64,
    customers: HashMap<String, Customer>,
    withdrawals: Vec<Withdrawal>,
    relationship_ends: Vec<RelationshipEnd>,
}

/// A withdrawal and the partners that it left without any acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withdrawal {
    pub revision: i64,
    pub customer_id: String,
    pub acceptance_id: String,
    pub uncovered: BTreeSet<String>,
}

/// The end of a relationship.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelationshipEnd {
    pub revision: i64,
    pub customer_id: String,
    pub partner_id: String,
    pub reseller_id: String,
    /// The partner has another relationship with the customer.
    pub others_remain: bool,
}

#[derive(Debug, Default)]
struct Customer {
    acceptances: Vec<Acceptance>,
    relationships: Vec<Relationship>,
    /// The revisions at which either of them changed.
    revisions: BTreeSet<i64>,
}

#[derive(Debug)]
struct Acceptance {
    id: String,
    /// Empty for a signature, which counts for every partner.
    partner_id: String,
    span: Span,
}

#[derive(Debug)]
struct Relationship {
    partner_id: String,
    reseller_id: String,
    span: Span,
}

/// From a revision on, until before another.
#[derive(Debug)]
struct Span {
    from: i64,
    until: i64,
}

impl Span {
    fn from(revision: i64) -> Self {
        Self { from: revision, until: i64::MAX }
    }

    fn holds_at(&self, revision: i64) -> bool {
        self.from <= revision && revision < self.until
    }
}

impl Customer {
    fn end_acceptance(&mut self, id: &str, revision: i64) -> Result<(), String> {
        let current =
            self.acceptances.iter_mut().find(|known| known.id == id && known.span.holds_at(revision));
        current.map(|ended| ended.span.until = revision).ok_or(format!("{id} is not current at {revision}"))
    }

    fn accept(
        &mut self,
        id: String,
        partner_id: &str,
        supersedes: &str,
        revision: i64,
    ) -> Result<(), String> {
        if !supersedes.is_empty() {
            self.end_acceptance(supersedes, revision)?;
        }
        self.acceptances.push(Acceptance {
            id,
            partner_id: partner_id.to_owned(),
            span: Span::from(revision),
        });
        Ok(())
    }

    fn works_with(&self, partner_id: &str, revision: i64) -> bool {
        let related = |known: &Relationship| known.partner_id == partner_id && known.span.holds_at(revision);
        self.relationships.iter().any(related)
    }

    /// The acceptances on which the partner may buy at a revision.
    fn evidence_at(&self, partner_id: &str, revision: i64) -> BTreeSet<&str> {
        if !self.works_with(partner_id, revision) {
            return BTreeSet::new();
        }
        self.acceptances_at(partner_id, revision)
    }

    /// The acceptances that cover the partner at a revision, whether it still works with the customer or not.
    fn acceptances_at(&self, partner_id: &str, revision: i64) -> BTreeSet<&str> {
        let counts = |known: &&Acceptance| {
            (known.partner_id.is_empty() || known.partner_id == partner_id) && known.span.holds_at(revision)
        };
        self.acceptances.iter().filter(counts).map(|known| known.id.as_str()).collect()
    }

    /// The partners, present and former, that had an acceptance before a revision and have none at it.
    fn uncovered_at(&self, revision: i64) -> BTreeSet<String> {
        let partners = self.relationships.iter().map(|known| &known.partner_id);
        let is_left_bare = |partner: &&String| {
            !self.acceptances_at(partner, revision - 1).is_empty()
                && self.acceptances_at(partner, revision).is_empty()
        };
        partners.filter(is_left_bare).cloned().collect()
    }
}

impl History {
    /// The revision of the last event.
    pub(crate) fn head(&self) -> i64 {
        self.head
    }

    /// All withdrawals, oldest first.
    pub(crate) fn withdrawals(&self) -> &[Withdrawal] {
        &self.withdrawals
    }

    /// All ends of relationships, oldest first.
    pub(crate) fn relationship_ends(&self) -> &[RelationshipEnd] {
        &self.relationship_ends
    }

    /// The acceptances on which a partner may buy for a customer at a revision: none where it is not
    /// covered.
    pub(crate) fn evidence_at(&self, customer_id: &str, partner_id: &str, revision: i64) -> BTreeSet<&str> {
        self.customers
            .get(customer_id)
            .map(|customer| customer.evidence_at(partner_id, revision))
            .unwrap_or_default()
    }

    /// Whether a customer's acceptances or relationships changed at a revision.
    pub(crate) fn changed_at(&self, customer_id: &str, revision: i64) -> bool {
        self.customers.get(customer_id).is_some_and(|customer| customer.revisions.contains(&revision))
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// A gap, or an event that cannot follow on those before.
    pub(crate) fn apply(&mut self, event: Event) -> Result<(), String> {
        let Event { revision, customer_id, partner_id, change, .. } = event;
        // A restore leaves a gap, of that size and behind the last event of the copy.
        let is_next = match &change {
            Some(Change::HistoryRestored(restored)) => {
                restored.last_revision == self.head && revision == self.head + (1 << 32)
            }
            _ => revision == self.head + 1,
        };
        if !is_next {
            return Err(format!("event {revision} follows on {}", self.head));
        }
        self.head = revision;
        let customer = self.customers.entry(customer_id.clone()).or_default();
        let withdrawn = match change.ok_or("an event without change")? {
            Change::RelationshipEstablished(established) => {
                let reseller_id = established.reseller_id;
                customer.relationships.push(Relationship {
                    partner_id,
                    reseller_id,
                    span: Span::from(revision),
                });
                None
            }
            Change::RelationshipEnded(ended) => {
                let known = customer.relationships.iter_mut().find(|known| {
                    (&known.partner_id, &known.reseller_id) == (&partner_id, &ended.reseller_id)
                        && known.span.holds_at(revision)
                });
                known.ok_or("a relationship ends that does not exist")?.span.until = revision;
                let others_remain = customer.works_with(&partner_id, revision);
                if others_remain != ended.others_remain {
                    return Err(format!(
                        "at {revision} others remain: {others_remain}, and it says otherwise"
                    ));
                }
                let reseller_id = ended.reseller_id;
                let customer_id = customer_id.clone();
                self.relationship_ends.push(RelationshipEnd {
                    revision,
                    customer_id,
                    partner_id,
                    reseller_id,
                    others_remain,
                });
                None
            }
            Change::Attested(it) => {
                customer.accept(it.attestation_id, &partner_id, &it.supersedes_id, revision)?;
                None
            }
            Change::Signed(it) => {
                customer.accept(it.signature_id, "", &it.supersedes_id, revision)?;
                None
            }
            Change::AttestationWithdrawn(it) => Some((it.attestation_id, it.uncovered_partner_ids)),
            Change::SignatureWithdrawn(it) => Some((it.signature_id, it.uncovered_partner_ids)),
            // They change no coverage.
            _ => return Ok(()),
        };
        customer.revisions.insert(revision);
        if let Some((acceptance_id, recorded)) = withdrawn {
            customer.end_acceptance(&acceptance_id, revision)?;
            let uncovered = customer.uncovered_at(revision);
            if uncovered != recorded.iter().cloned().collect() {
                return Err(format!("withdrawal {revision} uncovers {uncovered:?}, and says {recorded:?}"));
            }
            self.withdrawals.push(Withdrawal { revision, customer_id, acceptance_id, uncovered });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::agreement::{
        Attested, CustomerCreated, HistoryRestored, RelationshipEnded, RelationshipEstablished,
        SignatureWithdrawn, Signed,
    };

    fn event(revision: i64, partner_id: &str, change: Change) -> Event {
        Event {
            revision,
            customer_id: "customer".into(),
            partner_id: partner_id.into(),
            change: Some(change),
            ..Event::default()
        }
    }

    fn attested(id: &str, supersedes: &str) -> Change {
        Change::Attested(Attested {
            attestation_id: id.into(),
            supersedes_id: supersedes.into(),
            ..Attested::default()
        })
    }

    fn signature_withdrawn(id: &str, uncovered: &[&str]) -> Change {
        Change::SignatureWithdrawn(SignatureWithdrawn {
            signature_id: id.into(),
            uncovered_partner_ids: uncovered.iter().map(ToString::to_string).collect(),
            ..SignatureWithdrawn::default()
        })
    }

    /// Two partners; the customer signs, one partner attests twice, and the signature is withdrawn.
    fn story(uncovered: &[&str]) -> Result<History, String> {
        let related = || Change::RelationshipEstablished(RelationshipEstablished::default());
        let signed = Signed { signature_id: "signature".into(), ..Signed::default() };
        let mut history = History::default();
        for next in [
            event(1, "", Change::CustomerCreated(CustomerCreated::default())),
            event(2, "a", related()),
            event(3, "b", related()),
            event(4, "", Change::Signed(signed)),
            event(5, "a", attested("first", "")),
            event(6, "a", attested("second", "first")),
            event(7, "", signature_withdrawn("signature", uncovered)),
            event(8, "a", Change::RelationshipEnded(RelationshipEnded::default())),
        ] {
            history.apply(next)?;
        }
        Ok(history)
    }

    #[test]
    fn at_each_revision_it_is_known_who_may_buy_on_what() {
        let history = story(&["b"]).unwrap();
        let at = |partner: &str, revision: i64| -> Vec<&str> {
            history.evidence_at("customer", partner, revision).into_iter().collect()
        };
        for (revision, of_a, of_b) in [
            (3, vec![], vec![]),
            (4, vec!["signature"], vec!["signature"]),
            (5, vec!["first", "signature"], vec!["signature"]),
            (6, vec!["second", "signature"], vec!["signature"]),
            (7, vec!["second"], vec![]),
            (8, vec![], vec![]),
            (99, vec![], vec![]),
        ] {
            assert_eq!((at("a", revision), at("b", revision)), (of_a, of_b), "{revision}");
        }
        assert_eq!(at("c", 6), Vec::<&str>::new());
        let [withdrawal] = history.withdrawals() else { panic!("one withdrawal") };
        assert_eq!((withdrawal.revision, withdrawal.acceptance_id.as_str()), (7, "signature"));
        let [relationship_end] = history.relationship_ends() else { panic!("one relationship_end") };
        assert_eq!(
            (relationship_end.revision, relationship_end.partner_id.as_str(), relationship_end.others_remain),
            (8, "a", false)
        );
        let changed: Vec<i64> =
            (0..10).filter(|revision| history.changed_at("customer", *revision)).collect();
        assert_eq!(changed, [2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_history_that_cannot_be_is_refused() {
        for uncovered in [&[][..], &["a"], &["a", "b"]] {
            assert!(story(uncovered).is_err(), "{uncovered:?}");
        }
        let mut history = story(&["b"]).unwrap();
        assert!(history.apply(event(10, "b", attested("third", ""))).is_err());
        assert!(history.apply(event(9, "b", attested("third", "unknown"))).is_err());
        let mut history = story(&["b"]).unwrap();
        assert!(history.apply(event(9, "", signature_withdrawn("signature", &[]))).is_err());
        let restored = |last_revision| {
            Change::HistoryRestored(HistoryRestored { last_revision, ..HistoryRestored::default() })
        };
        for (revision, last_revision) in [(9, 8), (8 + (1 << 32), 7), (9 + (1 << 32), 8)] {
            let mut history = story(&["b"]).unwrap();
            assert!(history.apply(event(revision, "", restored(last_revision))).is_err(), "{revision}");
        }
        let mut history = story(&["b"]).unwrap();
        history.apply(event(8 + (1 << 32), "", restored(8))).unwrap();
        history.apply(event(9 + (1 << 32), "b", attested("third", ""))).unwrap();
        let mut history = story(&["b"]).unwrap();
        let ended = RelationshipEnded { others_remain: true, ..RelationshipEnded::default() };
        assert!(history.apply(event(9, "b", Change::RelationshipEnded(ended))).is_err());
    }
}
