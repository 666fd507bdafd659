//! Offers: what can be ordered, how much of it, where, and under which agreement.

use std::collections::BTreeMap;

use serde::Deserialize;
use strum::{EnumString, IntoStaticStr};
use thiserror::Error;

use super::gate::AgreementType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OfferKind {
    License,
    AzurePlan,
    ReservedInstance,
    Software,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Term {
    Month,
    Year,
    ThreeYears,
    Perpetual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BillingCycle {
    Monthly,
    Annual,
    OneTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    pub offer_id: String,
    pub name: String,
    pub kind: OfferKind,
    pub quantity_min: u32,
    pub quantity_max: u32,
    pub term: Term,
    pub billing_cycle: BillingCycle,
    pub auto_renews: bool,
    /// Where it is sold; empty is everywhere.
    pub countries: Vec<String>,
    /// Any one of these, where that is narrower than the policy; empty is what the policy says.
    pub agreement_types: Vec<AgreementType>,
}

impl Offer {
    /// What is wrong with a quantity of it.
    pub fn quantity_problem(&self, quantity: u32) -> Option<String> {
        let (min, max) = (self.quantity_min, self.quantity_max);
        (!(min..=max).contains(&quantity)).then(|| format!("must be {min} to {max}"))
    }

    pub fn is_sold_in(&self, country: &str) -> bool {
        self.countries.is_empty() || self.countries.iter().any(|sold| sold == country)
    }
}

/// All offers, by id.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CatalogueFile")]
pub struct Catalogue(BTreeMap<String, Offer>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogueFile {
    offers: Vec<Offer>,
}

/// Why a catalogue is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CatalogueError {
    #[error("there is no offer")]
    Empty,
    #[error("offer id {offer_id:?} must have 1 to 100 visible ASCII characters")]
    BadId { offer_id: String },
    #[error("offer {offer_id} is listed twice")]
    Twice { offer_id: String },
    #[error("offer {offer_id}: quantity_min must be at least 1 and at most quantity_max")]
    BadBounds { offer_id: String },
    #[error("offer {offer_id}: {country:?} is not a country code in upper case")]
    BadCountry { offer_id: String, country: String },
    #[error("offer {offer_id}: a perpetual offer cannot renew")]
    PerpetualRenews { offer_id: String },
}

impl TryFrom<CatalogueFile> for Catalogue {
    type Error = CatalogueError;

    fn try_from(file: CatalogueFile) -> Result<Self, CatalogueError> {
        let mut offers = BTreeMap::new();
        for offer in file.offers {
            let offer_id = offer.offer_id.clone();
            let is_country = |c: &str| c.len() == 2 && c.bytes().all(|b| b.is_ascii_uppercase());
            if !(1..=100).contains(&offer_id.len()) || !offer_id.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(CatalogueError::BadId { offer_id });
            }
            if offer.quantity_min == 0 || offer.quantity_min > offer.quantity_max {
                return Err(CatalogueError::BadBounds { offer_id });
            }
            if let Some(country) = offer.countries.iter().find(|country| !is_country(country)) {
                return Err(CatalogueError::BadCountry { offer_id, country: country.clone() });
            }
            if offer.term == Term::Perpetual && offer.auto_renews {
                return Err(CatalogueError::PerpetualRenews { offer_id });
            }
            if offers.insert(offer_id.clone(), offer).is_some() {
                return Err(CatalogueError::Twice { offer_id });
            }
        }
        if offers.is_empty() { Err(CatalogueError::Empty) } else { Ok(Self(offers)) }
    }
}

impl Catalogue {
    pub fn find(&self, offer_id: &str) -> Option<&Offer> {
        self.0.get(offer_id)
    }

    /// The offers after a key, in key order.
    pub fn after<'a>(&'a self, key: Option<&'a str>) -> impl Iterator<Item = &'a Offer> {
        self.0.values().filter(move |offer| key.is_none_or(|key| offer.offer_id.as_str() > key))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn offer(offer_id: &str) -> Value {
        json!({
            "offer_id": offer_id,
            "name": "Offer",
            "kind": "LICENSE",
            "quantity_min": 2,
            "quantity_max": 300,
            "term": "YEAR",
            "billing_cycle": "MONTHLY",
            "auto_renews": true,
            "countries": [],
            "agreement_types": [],
        })
    }

    fn read(offers: &[Value]) -> Result<Catalogue, String> {
        serde_json::from_value(json!({ "offers": offers })).map_err(|e| e.to_string())
    }

    /// An offer with some fields changed.
    fn with(changes: &Value) -> Value {
        let mut changed = offer("a");
        changed.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        changed
    }

    /// ORD-2: the bounds of what a catalogue may say.
    #[test]
    fn a_catalogue_is_refused_with_the_offer_that_is_wrong() {
        let longest = "o".repeat(100);
        for fine in [
            json!({}),
            json!({ "offer_id": longest }),
            json!({ "offer_id": "!~" }),
            json!({ "quantity_min": 1 }),
            json!({ "quantity_min": 300 }),
            json!({ "countries": ["FR", "US"] }),
            json!({ "term": "PERPETUAL", "auto_renews": false }),
            json!({ "auto_renews": false }),
        ] {
            assert!(read(&[with(&fine)]).is_ok(), "{fine}");
        }
        let bad_id = |id: &str| format!("offer id {id:?} must have 1 to 100 visible ASCII characters");
        let bad_bounds = "offer a: quantity_min must be at least 1 and at most quantity_max";
        let bad_country = |code| format!("offer a: {code:?} is not a country code in upper case");
        let longer = "o".repeat(101);
        for (wrong, problem) in [
            (json!({ "offer_id": "" }), bad_id("")),
            (json!({ "offer_id": longer }), bad_id(&longer)),
            (json!({ "offer_id": "a b" }), bad_id("a b")),
            (json!({ "offer_id": "\u{e9}" }), bad_id("\u{e9}")),
            (json!({ "quantity_min": 0 }), bad_bounds.into()),
            (json!({ "quantity_min": 301 }), bad_bounds.into()),
            (json!({ "countries": ["FR", "fr"] }), bad_country("fr")),
            (json!({ "countries": ["F"] }), bad_country("F")),
            (json!({ "countries": ["FRA"] }), bad_country("FRA")),
            (json!({ "term": "PERPETUAL" }), "offer a: a perpetual offer cannot renew".into()),
        ] {
            assert_eq!(read(&[with(&wrong)]), Err(problem), "{wrong}");
        }
        assert_eq!(read(&[offer("a"), offer("b"), offer("a")]), Err("offer a is listed twice".into()));
        assert_eq!(read(&[]), Err("there is no offer".into()));
    }

    #[test]
    fn offers_are_found_by_id_and_listed_in_its_order() {
        let catalogue = read(&[offer("b"), offer("a"), offer("c")]).unwrap();
        for id in ["a", "b", "c"] {
            assert_eq!(catalogue.find(id).map(|offer| offer.offer_id.as_str()), Some(id));
        }
        assert_eq!(catalogue.find("d"), None);
        for (key, expected) in [
            (None, vec!["a", "b", "c"]),
            (Some("a"), vec!["b", "c"]),
            (Some("bb"), vec!["c"]),
            (Some("c"), vec![]),
        ] {
            let listed: Vec<_> = catalogue.after(key).map(|offer| offer.offer_id.as_str()).collect();
            assert_eq!(listed, expected, "after {key:?}");
        }
    }

    /// ORD-3.
    #[test]
    fn an_offer_is_sold_in_its_countries_and_within_its_bounds() {
        let parse = |value: Value| serde_json::from_value::<Offer>(value).unwrap();
        let (everywhere, in_two) = (parse(offer("a")), parse(with(&json!({ "countries": ["FR", "US"] }))));
        assert!(everywhere.is_sold_in("FR") && everywhere.is_sold_in("DE"));
        assert!(in_two.is_sold_in("FR") && in_two.is_sold_in("US") && !in_two.is_sold_in("DE"));
        for (quantity, fits) in [(0, false), (1, false), (2, true), (300, true), (301, false)] {
            let expected = (!fits).then(|| "must be 2 to 300".to_owned());
            assert_eq!(everywhere.quantity_problem(quantity), expected, "{quantity}");
        }
    }
}
