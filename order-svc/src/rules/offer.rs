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
