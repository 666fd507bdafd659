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
pub(super) mod tests {
    use super::*;

    pub(crate) fn offer(offer_id: &str) -> Offer {
        Offer {
            offer_id: offer_id.into(),
            name: "Offer".into(),
            kind: OfferKind::License,
            quantity_min: 2,
            quantity_max: 300,
            term: Term::Year,
            billing_cycle: BillingCycle::Annual,
            auto_renews: true,
            countries: vec![],
            agreement_types: vec![],
        }
    }

    pub(crate) fn catalogue(offers: Vec<Offer>) -> Result<Catalogue, CatalogueError> {
        Catalogue::try_from(CatalogueFile { offers })
    }

    #[test]
    fn a_quantity_and_a_country_are_within_the_offer() {
        for (quantity, problem) in [(0, true), (1, true), (2, false), (300, false), (301, true)] {
            let expected = problem.then(|| "must be 2 to 300".to_owned());
            assert_eq!(offer("a").quantity_problem(quantity), expected, "{quantity}");
        }
        let sold_in = |countries: &[&str]| Offer {
            countries: countries.iter().map(ToString::to_string).collect(),
            ..offer("a")
        };
        for (countries, country, is_sold) in
            [(&[][..], "FR", true), (&["DE", "FR"], "FR", true), (&["DE", "FR"], "IT", false)]
        {
            assert_eq!(sold_in(countries).is_sold_in(country), is_sold, "{countries:?} {country}");
        }
    }

    /// Each bound of a catalogue, on both sides.
    #[test]
    fn a_catalogue_is_right_or_names_what_is_wrong() {
        use CatalogueError as Wrong;
        let id = |id: &str| offer(id);
        let long = "a".repeat(100);
        let bounds = |quantity_min, quantity_max| Offer { quantity_min, quantity_max, ..offer("a") };
        let sold_in = |country: &str| Offer { countries: vec!["FR".into(), country.into()], ..offer("a") };
        let lasting = |term, auto_renews| Offer { term, auto_renews, ..offer("a") };
        let bad_id = |offer_id: &str| Some(Wrong::BadId { offer_id: offer_id.into() });
        let bad_bounds = || Some(Wrong::BadBounds { offer_id: "a".into() });
        let bad_country =
            |country: &str| Some(Wrong::BadCountry { offer_id: "a".into(), country: country.into() });
        for (offers, expected) in [
            (vec![], Some(Wrong::Empty)),
            (vec![id("a"), id("b")], None),
            (vec![id("a"), id("b"), id("a")], Some(Wrong::Twice { offer_id: "a".into() })),
            (vec![id(&long)], None),
            (vec![id(&format!("{long}a"))], bad_id(&format!("{long}a"))),
            (vec![id("")], bad_id("")),
            (vec![id("a b")], bad_id("a b")),
            (vec![id("é")], bad_id("é")),
            (vec![bounds(1, 1)], None),
            (vec![bounds(0, 1)], bad_bounds()),
            (vec![bounds(2, 1)], bad_bounds()),
            (vec![sold_in("DE")], None),
            (vec![sold_in("de")], bad_country("de")),
            (vec![sold_in("DEU")], bad_country("DEU")),
            (vec![sold_in("D1")], bad_country("D1")),
            (vec![lasting(Term::Perpetual, false)], None),
            (vec![lasting(Term::Perpetual, true)], Some(Wrong::PerpetualRenews { offer_id: "a".into() })),
            (vec![lasting(Term::Month, false)], None),
        ] {
            let about = format!("{offers:?}");
            assert_eq!(catalogue(offers).err(), expected, "{about}");
        }
    }

    #[test]
    fn offers_are_found_and_listed_by_id() {
        let catalogue = catalogue(["b", "a", "c"].map(offer).to_vec()).unwrap();
        assert_eq!(catalogue.find("b").map(|offer| offer.offer_id.as_str()), Some("b"));
        assert_eq!(catalogue.find("d"), None);
        for (after, expected) in
            [(None, &["a", "b", "c"][..]), (Some("a"), &["b", "c"]), (Some("bb"), &["c"]), (Some("c"), &[])]
        {
            let listed: Vec<_> = catalogue.after(after).map(|offer| offer.offer_id.as_str()).collect();
            assert_eq!(listed, expected, "{after:?}");
        }
    }
}
