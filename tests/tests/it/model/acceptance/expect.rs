//! The model: what each call must answer, record and change, by the rules alone.

use std::collections::BTreeSet;

use chassis::clock::Time;
use proto::types::BlockReason;

use super::steps::Shown;
use super::{PARTNERS, payer};

/// A refusal's reason.
pub(crate) type Reason = &'static str;

pub(crate) const NOT_FOUND: Reason = "RESOURCE_NOT_FOUND";

#[derive(Clone)]
pub(super) struct Version {
    pub effective_from: Time,
    pub reaccept_by: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Current,
    Superseded,
    Withdrawn,
}

/// An attestation, or a signature where no partner made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Acceptance {
    pub id: String,
    pub customer: usize,
    pub partner: Option<usize>,
    pub version: u32,
    /// The person, and when it agreed.
    pub claim: Claim,
    pub at: Time,
    pub standing: Standing,
}

/// Who at the customer agreed, and when.
pub(crate) type Claim = (usize, Time);

/// An event: its kind, customer and partner, the acceptance that came or went, and the ids that say what
/// it did to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    pub kind: &'static str,
    pub customer: Option<usize>,
    pub partner: Option<usize>,
    pub acceptance: String,
    pub others: Vec<String>,
    /// Of a relationship that ended: whether its payer has another with the customer.
    pub others_remain: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Customer {
    /// The relationships, by the partner that entered each.
    pub relationships: BTreeSet<usize>,
    /// Those that ended.
    pub former: BTreeSet<usize>,
    pub first_purchase_at: Option<Time>,
    pub acceptance_revision: i64,
}

impl Customer {
    /// Whether a partner pays for it.
    pub(crate) fn is_paid_for_by(&self, partner: usize) -> bool {
        self.relationships.iter().any(|of| payer(*of) == partner)
    }

    /// Whether a partner sees it.
    pub(crate) fn is_seen_by(&self, partner: usize) -> bool {
        self.relationships.contains(&partner) || self.is_paid_for_by(partner)
    }
}

#[derive(Clone)]
pub(crate) struct Model {
    pub now: Time,
    pub(super) versions: Vec<Version>,
    pub customers: Vec<Customer>,
    /// In the order in which they were made.
    pub acceptances: Vec<Acceptance>,
    /// The revision that the history began with.
    pub base: i64,
    pub history: Vec<Happened>,
}

impl Model {
    pub(crate) fn head(&self) -> i64 {
        self.base + i64::try_from(self.history.len()).unwrap()
    }

    pub(super) fn happened(&mut self, happened: Happened) {
        let changes_acceptance = !matches!(
            happened.kind,
            "TemplateVersionPublished" | "InvitationCreated" | "InvitationAccepted" | "FirstPurchaseReported"
        );
        let customer = happened.customer;
        self.history.push(happened);
        if let Some(customer) = customer.filter(|_| changes_acceptance) {
            self.customers[customer].acceptance_revision = self.head();
        }
    }

    /// ATT-4: the first version has no lower bound.
    pub(crate) fn in_force(&self, at: Time) -> u32 {
        let begun = self.versions.iter().filter(|version| version.effective_from <= at).count();
        u32::try_from(begun.max(1)).unwrap()
    }

    /// TPL-3.
    pub(super) fn still_counts(&self, version: u32, at: Time) -> bool {
        let later = &self.versions[version as usize..];
        !later.iter().any(|later| later.reaccept_by.is_some_and(|by| by <= at))
    }

    pub(super) fn shown(&self, shown: Shown) -> u32 {
        let in_force = self.in_force(self.now);
        match shown {
            Shown::InForce => in_force,
            Shown::Before => in_force - 1,
            Shown::After => in_force + 1,
        }
    }

    pub(crate) fn current(&self, customer: usize, partner: Option<usize>) -> Option<usize> {
        let is_it =
            |a: &Acceptance| (a.customer, a.partner, a.standing) == (customer, partner, Standing::Current);
        self.acceptances.iter().position(is_it)
    }

    /// ATT-8, given which version the date agreed selects.
    pub(crate) fn may_attest(
        &self,
        customer: usize,
        partner: usize,
        claim: Claim,
        version: u32,
    ) -> Result<(), Reason> {
        if !self.customers[customer].is_seen_by(partner) {
            return Err(NOT_FOUND);
        }
        if payer(partner) != partner {
            return Err("RESELLER_CANNOT_ATTEST");
        }
        let current = self.current(customer, Some(partner)).map(|n| &self.acceptances[n]);
        match current {
            Some(current) if (current.version, current.claim) == (version, claim) => Err("ALREADY_ATTESTED"),
            Some(current) if current.version > version => Err("OLDER_THAN_CURRENT"),
            _ => Ok(()),
        }
    }

    /// DIR-4.
    pub(crate) fn may_sign_directly(&self, customer: usize) -> bool {
        let mut signatures =
            self.acceptances.iter().filter(|a| a.customer == customer && a.partner.is_none());
        match self.customers[customer].first_purchase_at {
            None => true,
            Some(bought) => signatures.any(|signature| signature.at < bought),
        }
    }

    /// DIR-1, DIR-4: whether the call makes a new signature.
    pub(super) fn may_sign(&self, customer: usize, shown: u32) -> Result<bool, Reason> {
        let current = self.current(customer, None);
        if shown != self.in_force(self.now) {
            Err("VERSION_CHANGED")
        } else if current.is_some_and(|n| self.acceptances[n].version == shown) {
            Ok(false)
        } else if self.may_sign_directly(customer) {
            Ok(true)
        } else {
            Err("CONTACT_PARTNER")
        }
    }

    /// Adds a new acceptance, which supersedes the current one.
    pub(crate) fn accepted(
        &mut self,
        id: String,
        customer: usize,
        partner: Option<usize>,
        version: u32,
        claim: Claim,
    ) {
        let mut superseded = vec![];
        if let Some(n) = self.current(customer, partner) {
            self.acceptances[n].standing = Standing::Superseded;
            superseded.push(self.acceptances[n].id.clone());
        }
        let (at, standing) = (self.now, Standing::Current);
        let acceptance = id.clone();
        self.acceptances.push(Acceptance { id, customer, partner, version, claim, at, standing });
        let kind = if partner.is_some() { "Attested" } else { "Signed" };
        self.happened(Happened {
            kind,
            customer: Some(customer),
            partner,
            acceptance,
            others: superseded,
            others_remain: false,
        });
    }

    /// WD-1: whether anything changes.
    pub(super) fn may_withdraw(&self, which: usize) -> Result<bool, Reason> {
        match self.acceptances[which].standing {
            Standing::Current => Ok(true),
            Standing::Superseded => Err("ACCEPTANCE_SUPERSEDED"),
            Standing::Withdrawn => Ok(false),
        }
    }

    /// WD-1: withdraws; the event names the partners that this leaves without acceptance. None does where another
    /// attestation takes its place (WD-5).
    pub(super) fn withdrawn(&mut self, which: usize, is_replaced: bool) {
        self.acceptances[which].standing = Standing::Withdrawn;
        let Acceptance { ref id, customer, partner, .. } = self.acceptances[which];
        let acceptance = id.clone();
        let uncovered = self.without_acceptance(customer);
        let uncovered: Vec<_> =
            uncovered.into_iter().filter(|p| !is_replaced && partner.is_none_or(|own| own == *p)).collect();
        let uncovered: Vec<_> = uncovered.iter().map(|p| PARTNERS[*p].to_string()).collect();
        let kind = if partner.is_some() { "AttestationWithdrawn" } else { "SignatureWithdrawn" };
        self.happened(Happened {
            kind,
            customer: Some(customer),
            partner,
            acceptance,
            others: uncovered,
            others_remain: false,
        });
    }

    /// DIR-4: the earliest purchase that was reported counts.
    pub(crate) fn purchased(&mut self, partner: usize, customer: usize, at: Time) {
        let known = self.customers[customer].first_purchase_at;
        if known.is_none_or(|known| at < known) {
            self.customers[customer].first_purchase_at = Some(at);
            let kind = "FirstPurchaseReported";
            let (customer, partner) = (Some(customer), Some(partner));
            self.happened(Happened { kind, customer, partner, ..Happened::default() });
        }
    }

    /// The customer's partners for which neither their own attestation nor a signature is current.
    pub(super) fn without_acceptance(&self, customer: usize) -> Vec<usize> {
        let is_bare =
            |p: &usize| self.current(customer, Some(*p)).is_none() && self.current(customer, None).is_none();
        let payers: BTreeSet<_> = self.customers[customer]
            .relationships
            .union(&self.customers[customer].former)
            .map(|of| payer(*of))
            .collect();
        payers.into_iter().filter(is_bare).collect()
    }

    /// GATE-4 to GATE-6: the acceptance that the answer rests on, or the reasons to block.
    pub(crate) fn gate(
        &self,
        customer: usize,
        partner: usize,
        at: Time,
    ) -> Result<&Acceptance, BTreeSet<&'static str>> {
        let kinds = [None, Some(partner)];
        let mut current = kinds.iter().filter_map(|of| self.current(customer, *of)).peekable();
        let has_current = current.peek().is_some();
        if let Some(n) = current.find(|n| self.still_counts(self.acceptances[*n].version, at)) {
            return Ok(&self.acceptances[n]);
        }
        let is_withdrawn_and_not_replaced = |of: &Option<usize>| {
            let is_withdrawn =
                |a: &Acceptance| (a.customer, a.partner, a.standing) == (customer, *of, Standing::Withdrawn);
            self.current(customer, *of).is_none() && self.acceptances.iter().any(is_withdrawn)
        };
        let mut reasons = BTreeSet::new();
        if kinds.iter().any(is_withdrawn_and_not_replaced) {
            reasons.insert(BlockReason::Withdrawn.as_str_name());
        }
        if has_current {
            reasons.insert(BlockReason::VersionSuperseded.as_str_name());
        }
        if reasons.is_empty() {
            reasons.insert(BlockReason::NoAcceptance.as_str_name());
        }
        Err(reasons)
    }

    /// The acceptances that do not count, of a pair that is blocked: which each may be, and the reason.
    pub(crate) fn considered(&self, customer: usize, partner: usize) -> Vec<(Vec<&str>, BlockReason)> {
        let of = |kind: &Option<usize>| {
            if let Some(n) = self.current(customer, *kind) {
                return Some((vec![self.acceptances[n].id.as_str()], BlockReason::VersionSuperseded));
            }
            let is_withdrawn = |a: &&Acceptance| {
                (a.customer, a.partner, a.standing) == (customer, *kind, Standing::Withdrawn)
            };
            let withdrawn = self.acceptances.iter().filter(is_withdrawn);
            let ids: Vec<_> = withdrawn.map(|acceptance| acceptance.id.as_str()).collect();
            (!ids.is_empty()).then_some((ids, BlockReason::Withdrawn))
        };
        [Some(partner), None].iter().filter_map(of).collect()
    }

    pub(crate) fn is_signature(&self, id: &str) -> bool {
        self.acceptances.iter().any(|acceptance| acceptance.id == id && acceptance.partner.is_none())
    }

    /// The next instant at which time alone changes the answer.
    pub(super) fn gate_changes_at(&self, customer: usize, partner: usize) -> Option<Time> {
        let now = self.gate(customer, partner, self.now);
        let mut times: Vec<_> = self.versions.iter().filter_map(|version| version.reaccept_by).collect();
        times.sort_unstable();
        times.into_iter().find(|at| *at > self.now && self.gate(customer, partner, *at) != now)
    }
}
