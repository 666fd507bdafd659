//! Orders: who pays, what may be ordered, and what an accepted order becomes.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::gate::{AgreementType, Answer, Approval, Hindrance, LineDemand};
use super::offer::{Catalogue, Offer};
use super::subscription::{Cause, Change, ChangeKind, State, Subscription, term_end};
use super::{BadField, Refusal, Time};

/// Who is behind an order (ORD-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub customer_id: Uuid,
}

/// Which of the parties is named wrongly where they have no active relationship, and whom the caller names instead, as
/// agreement-svc says to a caller that sees the customer (GATE-0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misnamed {
    Payer { use_payer_id: Uuid },
    Reseller,
}

/// A line to order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub offer_id: String,
    pub quantity: u32,
    pub friendly_name: String,
}

/// An accepted order. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: Uuid,
    pub parties: Parties,
    pub lines: Vec<PlacedLine>,
    pub placed_at: Time,
    pub placed_by_tenant: Uuid,
    pub placed_by: Uuid,
    pub approval: Approval,
    /// What the tenant that placed it calls it.
    pub external_reference: Option<String>,
}

/// A line of an accepted order and the subscription it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedLine {
    pub line: Line,
    pub subscription_id: Uuid,
}

/// The report of a customer's first purchase to agreement-svc (DIR-4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseReport {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
    pub order_id: Uuid,
    pub purchased_at: Time,
    /// How often it was tried, this time included.
    pub attempts: u32,
}

impl Order {
    /// The first change of one of its subscriptions.
    pub fn creation(&self, new: &Subscription) -> Change {
        Change {
            number: new.version,
            kind: ChangeKind::Created,
            changed_at: self.placed_at,
            cause: Cause::Requested { tenant_id: self.placed_by_tenant, user_id: self.placed_by },
            quantity_before: 0,
            quantity_after: new.quantity,
            term_number: new.term_number,
            approval: Some(self.approval.clone()),
            reseller_id: None,
        }
    }
}

/// Who places an order, and the ids it will have: one for the order, one for each line.
#[derive(Clone, Debug)]
pub struct Placing {
    pub order_id: Uuid,
    pub subscription_ids: Vec<Uuid>,
    pub by_tenant: Uuid,
    pub by: Uuid,
    pub now: Time,
    pub external_reference: Option<String>,
}

/// Who pays and who is the reseller on record: the caller pays, unless it names another partner as
/// payer; then it is the reseller (ORD-1).
pub fn parties(
    caller: Uuid,
    customer_id: Uuid,
    payer_id: Option<Uuid>,
    reseller_id: Option<Uuid>,
) -> Result<Parties, BadField> {
    match payer_id.filter(|payer| *payer != caller) {
        None if reseller_id == Some(caller) => {
            Err(BadField {
                field: "reseller_id".into(),
                problem: "must not be your own tenant: leave it empty, or, as a reseller, name your provider in payer_id"
                    .into(),
            })
        }
        None => Ok(Parties { payer_id: caller, reseller_id, customer_id }),
        Some(payer_id) if reseller_id.is_none_or(|reseller| reseller == caller) => {
            Ok(Parties { payer_id, reseller_id: Some(caller), customer_id })
        }
        Some(_) => Err(BadField {
            field: "reseller_id".into(),
            problem: "must be empty when another partner pays: the caller is the reseller on record".into(),
        }),
    }
}

/// What the lines demand of the agreement beyond the policy: one entry for each that does.
pub fn demands(lines: &[Line], catalogue: &Catalogue) -> Vec<Vec<AgreementType>> {
    let mut demands: Vec<Vec<AgreementType>> = lines
        .iter()
        .filter_map(|line| catalogue.find(&line.offer_id))
        .filter(|offer| !offer.agreement_types.is_empty())
        .map(|offer| offer.agreement_types.clone())
        .collect();
    demands.dedup();
    demands
}

/// The lines that keep the types of all others from satisfying: those whose offers take no type that some other line's
/// take, or else all whose offers take certain types only.
pub fn excluding_lines(lines: &[Line], catalogue: &Catalogue) -> Vec<LineDemand> {
    let mut by_types: BTreeMap<Vec<AgreementType>, Vec<usize>> = BTreeMap::new();
    for (n, line) in lines.iter().enumerate() {
        let offer = catalogue.find(&line.offer_id).filter(|offer| !offer.agreement_types.is_empty());
        let Some(mut types) = offer.map(|offer| offer.agreement_types.clone()) else { continue };
        types.sort_unstable();
        types.dedup();
        by_types.entry(types).or_default().push(n);
    }
    let excludes = |types: &[AgreementType]| {
        by_types.keys().any(|others| !others.iter().any(|other| types.contains(other)))
    };
    let all = by_types.iter().map(|(types, lines)| LineDemand { types: types.clone(), lines: lines.clone() });
    let excluding: Vec<_> = all.clone().filter(|of| excludes(&of.types)).collect();
    if excluding.is_empty() { all.collect() } else { excluding }
}

/// The lines with their offers, or every bad line (ORD-3). Without a country only what can be known
/// without the customer is checked.
pub fn check_lines<'a>(
    lines: &[Line],
    catalogue: &'a Catalogue,
    country: Option<&str>,
) -> Result<Vec<&'a Offer>, Refusal> {
    let mut offers = vec![];
    let mut bad = vec![];
    for (n, line) in lines.iter().enumerate() {
        let mut wrong = |field: &str, problem: String| {
            bad.push(BadField { field: format!("lines[{n}].{field}"), problem });
        };
        let Some(offer) = catalogue.find(&line.offer_id) else {
            wrong("offer_id", "is not in the catalogue; ListOffers names what is".into());
            if line.quantity == 0 {
                wrong("quantity", "must be at least 1".into());
            }
            continue;
        };
        if let Some(problem) = offer.quantity_problem(line.quantity) {
            wrong("quantity", problem);
        }
        if let Some(country) = country.filter(|country| !offer.is_sold_in(country)) {
            wrong(
                "offer_id",
                format!("is not sold in {country}, where the customer is; order another offer"),
            );
        }
        offers.push(offer);
    }
    if bad.is_empty() { Ok(offers) } else { Err(Refusal::Fields(bad)) }
}

/// Places an order on the gate's answer: the order, and a subscription for each line.
pub fn place(
    parties: Parties,
    lines: Vec<Line>,
    catalogue: &Catalogue,
    answer: &Answer,
    placing: Placing,
) -> Result<(Order, Vec<Subscription>), Refusal> {
    let offers = check_lines(&lines, catalogue, Some(&answer.customer_country))?;
    let approval = answer.approval().map_err(|refusal| match refusal {
        Refusal::AgreementRequired {
            customer_id,
            reasons,
            remedies,
            considered,
            hindrance: Some(Hindrance::Offers(_)),
        } => {
            let hindrance = Some(Hindrance::Offers(excluding_lines(&lines, catalogue)));
            Refusal::AgreementRequired { customer_id, reasons, remedies, considered, hindrance }
        }
        other => other,
    })?;
    let Placing { order_id, subscription_ids, by_tenant, by, now, external_reference } = placing;
    // A reseller through which alone the payer serves the customer would not see the order otherwise.
    let parties = Parties { reseller_id: parties.reseller_id.or(answer.only_reseller_id), ..parties };
    let mut subscriptions = vec![];
    let mut placed = vec![];
    for ((line, offer), id) in lines.into_iter().zip(offers).zip(subscription_ids) {
        subscriptions.push(Subscription {
            id,
            order_id,
            payer_id: parties.payer_id,
            reseller_id: parties.reseller_id,
            customer_id: parties.customer_id,
            offer_id: line.offer_id.clone(),
            quantity: line.quantity,
            friendly_name: line.friendly_name.clone(),
            state: State::Active,
            auto_renew: offer.auto_renews,
            started_at: now,
            term: offer.term,
            term_number: 1,
            term_end: term_end(now, offer.term, 1),
            answer_revision: approval.revision,
            version: 1,
        });
        placed.push(PlacedLine { line, subscription_id: id });
    }
    let order = Order {
        id: order_id,
        parties,
        lines: placed,
        placed_at: now,
        placed_by_tenant: by_tenant,
        placed_by: by,
        approval: approval.clone(),
        external_reference,
    };
    Ok((order, subscriptions))
}

#[cfg(test)]
mod tests {
    use super::super::gate::{Decision, Reason, Rule, Verdict};
    use super::super::offer::Term;
    use super::super::offer::tests::{catalogue, offer};
    use super::*;

    #[test]
    fn the_caller_pays_unless_it_names_another_partner() {
        let [caller, other, customer] = [1, 2, 3].map(Uuid::from_u128);
        let of = |payer, reseller| {
            parties(caller, customer, payer, reseller)
                .map(|p| (p.payer_id, p.reseller_id))
                .map_err(|b| b.field)
        };
        assert_eq!(of(None, None), Ok((caller, None)));
        assert_eq!(of(Some(caller), None), Ok((caller, None)));
        assert_eq!(of(None, Some(other)), Ok((caller, Some(other))));
        assert_eq!(of(Some(other), None), Ok((other, Some(caller))));
        assert_eq!(of(Some(other), Some(caller)), Ok((other, Some(caller))));
        assert_eq!(of(Some(other), Some(other)), Err("reseller_id".into()));
        assert_eq!(of(None, Some(caller)), Err("reseller_id".into()));
    }

    /// ORD-3: every bad line is named; a country counts once it is known.
    #[test]
    fn lines_are_of_the_catalogue_within_bounds_and_sold_there() {
        let sold_in_france = Offer { countries: vec!["FR".into()], ..offer("local") };
        let catalogue = catalogue(vec![offer("a"), sold_in_france]).unwrap();
        let line = |offer_id: &str, quantity| Line {
            offer_id: offer_id.into(),
            quantity,
            friendly_name: String::new(),
        };
        let bad = |fields: &[&str]| fields.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (lines, country, expected) in [
            (vec![line("a", 2), line("local", 300)], None, bad(&[])),
            (vec![line("a", 2), line("local", 300)], Some("FR"), bad(&[])),
            (vec![line("a", 2), line("local", 300)], Some("DE"), bad(&["lines[1].offer_id"])),
            (vec![line("a", 1), line("a", 301)], None, bad(&["lines[0].quantity", "lines[1].quantity"])),
            (vec![line("none", 5)], None, bad(&["lines[0].offer_id"])),
            (vec![line("none", 0)], Some("FR"), bad(&["lines[0].offer_id", "lines[0].quantity"])),
        ] {
            let found = match check_lines(&lines, &catalogue, country) {
                Ok(offers) => {
                    let ids = offers.iter().map(|offer| &offer.offer_id);
                    assert!(ids.eq(lines.iter().map(|line| &line.offer_id)));
                    vec![]
                }
                Err(Refusal::Fields(fields)) => fields.into_iter().map(|of| of.field).collect(),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{lines:?} {country:?}");
        }
    }

    /// GATE-6: what offers demand beyond the policy is asked once for lines that follow each other.
    #[test]
    fn lines_demand_what_their_offers_narrow() {
        use AgreementType::{MicrosoftCloudAgreement as Cloud, MicrosoftCustomerAgreement as Customer};
        let narrowed =
            |id: &str, types: &[AgreementType]| Offer { agreement_types: types.to_vec(), ..offer(id) };
        let catalogue = catalogue(vec![
            offer("any"),
            narrowed("cloud", &[Cloud]),
            narrowed("customer", &[Customer]),
            narrowed("both", &[Customer, Cloud]),
        ])
        .unwrap();
        for (ids, expected) in [
            (&["any", "none"][..], vec![]),
            (&["cloud"], vec![vec![Cloud]]),
            (&["cloud", "any", "cloud"], vec![vec![Cloud]]),
            (&["cloud", "customer"], vec![vec![Cloud], vec![Customer]]),
            (&["both"], vec![vec![Customer, Cloud]]),
        ] {
            let lines: Vec<_> = ids
                .iter()
                .map(|id| Line { offer_id: id.to_string(), quantity: 2, friendly_name: String::new() })
                .collect();
            assert_eq!(demands(&lines, &catalogue), expected, "{ids:?}");
        }
    }

    /// ORD-2 and ORD-6: an order becomes a subscription for each line, on the gate's answer.
    #[test]
    fn an_order_becomes_subscriptions_on_the_gates_yes() {
        let at = |seconds| Time::from_timestamp(seconds, 0).unwrap();
        let approval = Approval {
            decision: Decision::Allowed,
            rule: Rule::NotYetMandatory,
            evidence: None,
            revision: 7,
            evaluated_at: at(1),
        };
        let [payer_id, reseller, customer_id, order_id, by_tenant, by] =
            [1, 2, 3, 4, 5, 6].map(Uuid::from_u128);
        let answer = |verdict| Answer {
            customer_id,
            customer_country: "FR".into(),
            only_reseller_id: None,
            revision: 7,
            verdict,
            asked_at: at(1),
            valid_for: None,
        };
        let catalogue = catalogue(vec![offer("a"), Offer { auto_renews: false, ..offer("b") }]).unwrap();
        let parties = Parties { payer_id, reseller_id: Some(reseller), customer_id };
        let subscription_ids = [7, 8].map(Uuid::from_u128).to_vec();
        let placing = Placing {
            order_id,
            subscription_ids: subscription_ids.clone(),
            by_tenant,
            by,
            now: at(2),
            external_reference: Some("PO 7".into()),
        };
        let line = |offer_id: &str, quantity| Line {
            offer_id: offer_id.into(),
            quantity,
            friendly_name: offer_id.to_uppercase(),
        };
        let lines = vec![line("a", 2), line("b", 3)];
        let yes = answer(Verdict::Approved(approval.clone()));
        let (order, subscriptions) =
            place(parties, lines.clone(), &catalogue, &yes, placing.clone()).unwrap();
        assert_eq!((order.id, order.parties, order.placed_at), (order_id, parties, at(2)));
        assert_eq!((order.placed_by_tenant, order.placed_by, &order.approval), (by_tenant, by, &approval));
        assert!(order.lines.iter().map(|placed| &placed.line).eq(&lines));
        assert!(order.lines.iter().map(|placed| placed.subscription_id).eq(subscription_ids));
        let [first, second] = &subscriptions[..] else { panic!("{subscriptions:?}") };
        let expected = Subscription {
            id: Uuid::from_u128(7),
            order_id,
            payer_id,
            reseller_id: Some(reseller),
            customer_id,
            offer_id: "a".into(),
            quantity: 2,
            friendly_name: "A".into(),
            state: State::Active,
            auto_renew: true,
            started_at: at(2),
            term: Term::Year,
            term_number: 1,
            term_end: term_end(at(2), Term::Year, 1),
            answer_revision: 7,
            version: 1,
        };
        assert_eq!(*first, expected);
        assert_eq!((second.quantity, second.auto_renew), (3, false));
        let created = Change {
            number: 1,
            kind: ChangeKind::Created,
            changed_at: at(2),
            cause: Cause::Requested { tenant_id: by_tenant, user_id: by },
            quantity_before: 0,
            quantity_after: 3,
            term_number: 1,
            approval: Some(approval),
            reseller_id: None,
        };
        assert_eq!(order.creation(second), created);

        // A no places nothing, and neither does a bad line.
        let (reasons, remedies) = (vec![Reason::NoAcceptance], vec![]);
        let no = answer(Verdict::Blocked { reasons, remedies, considered: vec![], hindrance: None });
        let refused = place(parties, lines, &catalogue, &no, placing.clone()).unwrap_err();
        assert!(matches!(refused, Refusal::AgreementRequired { customer_id: of, .. } if of == customer_id));
        let refused = place(parties, vec![line("a", 1)], &catalogue, &yes, placing).unwrap_err();
        assert!(matches!(refused, Refusal::Fields(_)));
    }

    /// ROLE-6: an order that names no reseller has the only one on record, which would not see it otherwise.
    #[test]
    fn an_order_that_names_no_reseller_has_the_only_one() {
        let [payer_id, customer_id, own, only] = [1, 2, 3, 4].map(Uuid::from_u128);
        let catalogue = catalogue(vec![offer("a")]).unwrap();
        for (named, only_reseller_id, expected) in [
            (None, None, None),
            (None, Some(only), Some(only)),
            (Some(own), None, Some(own)),
            (Some(own), Some(only), Some(own)),
        ] {
            let approval = Approval {
                decision: Decision::Allowed,
                rule: Rule::NotYetMandatory,
                evidence: None,
                revision: 7,
                evaluated_at: Time::UNIX_EPOCH,
            };
            let answer = Answer {
                customer_id,
                customer_country: "FR".into(),
                only_reseller_id,
                revision: 7,
                verdict: Verdict::Approved(approval),
                asked_at: Time::UNIX_EPOCH,
                valid_for: None,
            };
            let placing = Placing {
                order_id: Uuid::from_u128(5),
                subscription_ids: vec![Uuid::from_u128(6)],
                by_tenant: payer_id,
                by: Uuid::from_u128(7),
                now: Time::UNIX_EPOCH,
                external_reference: None,
            };
            let line = Line { offer_id: "a".into(), quantity: 2, friendly_name: String::new() };
            let parties = Parties { payer_id, reseller_id: named, customer_id };
            let (order, subscriptions) = place(parties, vec![line], &catalogue, &answer, placing).unwrap();
            assert_eq!(order.parties.reseller_id, expected, "{named:?} {only_reseller_id:?}");
            assert_eq!(subscriptions[0].reseller_id, expected, "{named:?} {only_reseller_id:?}");
        }
    }

    #[test]
    fn lines_whose_offers_exclude_each_other_are_named() {
        const CLOUD: &str = "MICROSOFT_CLOUD_AGREEMENT";
        const CUSTOMER: &str = "MICROSOFT_CUSTOMER_AGREEMENT";
        let offer = |id: &str, types: &[&str]| {
            serde_json::json!({
                "offer_id": id, "name": id, "kind": "LICENSE", "quantity_min": 1, "quantity_max": 9,
                "term": "YEAR", "billing_cycle": "ANNUAL", "auto_renews": true, "countries": [],
                "agreement_types": types,
            })
        };
        let offers = [
            offer("cloud", &[CLOUD]),
            offer("customer", &[CUSTOMER]),
            offer("either", &[CUSTOMER, CLOUD]),
            offer("any", &[]),
        ];
        let catalogue: Catalogue = serde_json::from_value(serde_json::json!({ "offers": offers })).unwrap();
        // offers ordered -> the types and lines that are named
        for (ordered, expected) in [
            (
                &["cloud", "any", "customer", "cloud"][..],
                &[(&[CLOUD][..], &[0, 3][..]), (&[CUSTOMER], &[2])][..],
            ),
            (&["either", "customer", "cloud"], &[(&[CLOUD], &[2]), (&[CUSTOMER], &[1])]),
            (&["any", "cloud"], &[(&[CLOUD], &[1])]),
            (&["cloud", "either"], &[(&[CLOUD], &[0]), (&[CLOUD, CUSTOMER], &[1])]),
            (&["any", "unknown"], &[]),
        ] {
            let line = |id: &&str| Line { offer_id: (*id).into(), quantity: 1, friendly_name: String::new() };
            let lines: Vec<_> = ordered.iter().map(line).collect();
            let found = excluding_lines(&lines, &catalogue);
            let found: Vec<_> = found
                .iter()
                .map(|of| {
                    (of.types.iter().map(AgreementType::into_str).collect::<Vec<_>>(), of.lines.clone())
                })
                .collect();
            let expected: Vec<_> = expected.iter().map(|(t, lines)| (t.to_vec(), lines.to_vec())).collect();
            assert_eq!(found, expected, "{ordered:?}");
        }
    }
}
