//! Orders: who pays, what may be ordered, and what an accepted order becomes.

use uuid::Uuid;

use super::gate::{AgreementType, Answer, Approval};
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
            wrong("offer_id", "is not in the catalogue".into());
            if line.quantity == 0 {
                wrong("quantity", "must be at least 1".into());
            }
            continue;
        };
        if let Some(problem) = offer.quantity_problem(line.quantity) {
            wrong("quantity", problem);
        }
        if let Some(country) = country.filter(|country| !offer.is_sold_in(country)) {
            wrong("offer_id", format!("is not sold in {country}"));
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
    let approval = answer.approval()?;
    let Placing { order_id, subscription_ids, by_tenant, by, now } = placing;
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
    };
    Ok((order, subscriptions))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::gate::{Decision, Reason, Rule, Verdict};
    use super::super::offer::Term;
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

    /// A catalogue with a licence everywhere, one in France only under the Customer Agreement, and a perpetual one.
    fn catalogue() -> Catalogue {
        let offer = |offer_id: &str, term: &str, countries: &[&str], agreement_types: &[&str]| {
            json!({
                "offer_id": offer_id,
                "name": "Offer",
                "kind": "LICENSE",
                "quantity_min": 2,
                "quantity_max": 300,
                "term": term,
                "billing_cycle": "MONTHLY",
                "auto_renews": term != "PERPETUAL",
                "countries": countries,
                "agreement_types": agreement_types,
            })
        };
        let offers = [
            offer("everywhere", "YEAR", &[], &[]),
            offer("france", "MONTH", &["FR"], &["MICROSOFT_CUSTOMER_AGREEMENT"]),
            offer(
                "perpetual",
                "PERPETUAL",
                &[],
                &["MICROSOFT_CLOUD_AGREEMENT", "MICROSOFT_CUSTOMER_AGREEMENT"],
            ),
        ];
        serde_json::from_value(json!({ "offers": offers })).unwrap()
    }

    fn line(offer_id: &str, quantity: u32) -> Line {
        Line { offer_id: offer_id.into(), quantity, friendly_name: format!("{quantity} of {offer_id}") }
    }

    #[test]
    fn lines_demand_the_types_of_the_offers_that_narrow_them() {
        use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
        let (customer, either) =
            (vec![MicrosoftCustomerAgreement], vec![MicrosoftCloudAgreement, MicrosoftCustomerAgreement]);
        for (offers, expected) in [
            (vec!["everywhere"], vec![]),
            (vec!["france"], vec![customer.clone()]),
            (vec!["france", "everywhere", "france"], vec![customer.clone()]),
            (vec!["perpetual", "unknown", "france"], vec![either, customer]),
        ] {
            let lines: Vec<_> = offers.iter().map(|offer| line(offer, 2)).collect();
            assert_eq!(demands(&lines, &catalogue()), expected, "{offers:?}");
        }
    }

    /// ORD-3.
    #[test]
    fn each_line_is_checked_against_its_offer_and_the_country() {
        let catalogue = catalogue();
        let unknown = ("offer_id", "is not in the catalogue");
        let bounds = ("quantity", "must be 2 to 300");
        // offer, quantity, country -> what is wrong
        for (offer, quantity, country, expected) in [
            ("everywhere", 2, None, vec![]),
            ("everywhere", 300, Some("DE"), vec![]),
            ("everywhere", 1, Some("DE"), vec![bounds]),
            ("everywhere", 301, None, vec![bounds]),
            ("france", 2, None, vec![]),
            ("france", 2, Some("FR"), vec![]),
            ("france", 2, Some("DE"), vec![("offer_id", "is not sold in DE")]),
            ("france", 1, Some("DE"), vec![bounds, ("offer_id", "is not sold in DE")]),
            ("unknown", 2, Some("DE"), vec![unknown]),
            ("unknown", 1, None, vec![unknown]),
            ("unknown", 0, None, vec![unknown, ("quantity", "must be at least 1")]),
        ] {
            // A line that is fine stands before it.
            let checked = check_lines(&[line("perpetual", 5), line(offer, quantity)], &catalogue, country);
            let bad = |(field, problem): &(&str, &str)| BadField {
                field: format!("lines[1].{field}"),
                problem: (*problem).into(),
            };
            let found =
                checked.map(|offers| offers.iter().map(|offer| offer.offer_id.clone()).collect::<Vec<_>>());
            let expected = match expected.as_slice() {
                [] => Ok(vec!["perpetual".into(), offer.into()]),
                problems => Err(Refusal::Fields(problems.iter().map(bad).collect())),
            };
            assert_eq!(found, expected, "{quantity} of {offer} in {country:?}");
        }
    }

    fn answer(verdict: Verdict) -> Answer {
        Answer {
            customer_id: Uuid::from_u128(3),
            customer_country: "FR".into(),
            verdict,
            asked_at: Time::UNIX_EPOCH,
            valid_for: None,
        }
    }

    /// ORD-6, SUB-1.
    #[test]
    fn a_placed_order_keeps_its_lines_its_approval_and_who_placed_it() {
        let approval = Approval {
            decision: Decision::Allowed,
            rule: Rule::NotYetMandatory,
            evidence: None,
            revision: 42,
            evaluated_at: Time::UNIX_EPOCH,
        };
        let [payer_id, reseller, customer_id, order_id, tenant, user] =
            [1, 2, 3, 4, 5, 6].map(Uuid::from_u128);
        let ids = [11, 12].map(Uuid::from_u128);
        let parties = Parties { payer_id, reseller_id: Some(reseller), customer_id };
        let now = Time::UNIX_EPOCH + chrono::Duration::days(1);
        let placing = Placing { order_id, subscription_ids: ids.to_vec(), by_tenant: tenant, by: user, now };
        let lines = vec![line("france", 2), line("perpetual", 3)];
        let yes = answer(Verdict::Approved(approval.clone()));
        let (order, subscriptions) = place(parties, lines, &catalogue(), &yes, placing.clone()).unwrap();

        let subscription = |id, offer_id: &str, quantity, term, auto_renew| Subscription {
            id,
            order_id,
            payer_id,
            reseller_id: Some(reseller),
            customer_id,
            offer_id: offer_id.into(),
            quantity,
            friendly_name: format!("{quantity} of {offer_id}"),
            state: State::Active,
            auto_renew,
            started_at: now,
            term,
            term_number: 1,
            term_end: term_end(now, term, 1),
            answer_revision: 42,
            version: 1,
        };
        let expected = [
            subscription(ids[0], "france", 2, Term::Month, true),
            subscription(ids[1], "perpetual", 3, Term::Perpetual, false),
        ];
        assert_eq!(subscriptions, expected);
        let placed = [(line("france", 2), ids[0]), (line("perpetual", 3), ids[1])];
        let placed = placed.map(|(line, subscription_id)| PlacedLine { line, subscription_id }).to_vec();
        let (by_tenant, by) = (tenant, user);
        let expected = Order {
            id: order_id,
            parties,
            lines: placed,
            placed_at: now,
            placed_by_tenant: by_tenant,
            placed_by: by,
            approval: approval.clone(),
        };
        assert_eq!(order, expected);
        let creation = Change {
            number: 1,
            kind: ChangeKind::Created,
            changed_at: now,
            cause: Cause::Requested { tenant_id: tenant, user_id: user },
            quantity_before: 0,
            quantity_after: 2,
            term_number: 1,
            approval: Some(approval),
            reseller_id: None,
        };
        assert_eq!(order.creation(&subscriptions[0]), creation);

        let no = Verdict::Blocked { reasons: vec![Reason::Withdrawn], remedies: vec![] };
        let refused = place(parties, vec![line("france", 2)], &catalogue(), &answer(no), placing);
        let required =
            Refusal::AgreementRequired { customer_id, reasons: vec![Reason::Withdrawn], remedies: vec![] };
        assert_eq!(refused, Err(required));
    }
}
