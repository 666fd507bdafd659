//! The catalogue that the model knows, and the terms of its offers.

use chassis::clock::Time;
use chrono::{Datelike, NaiveDate};
use proto::order::{BillingCycle, OfferKind, Term};
use proto::types::AgreementType;

/// As shipped in order-svc/data, the licences first.
pub(super) struct Offer {
    pub id: &'static str,
    pub kind: OfferKind,
    pub quantity_max: u32,
    /// How long a term is; without one it lasts for good.
    pub term: Term,
    pub billing: BillingCycle,
    pub auto_renews: bool,
    pub sold_in: Option<&'static str>,
    pub demands: Option<AgreementType>,
}

pub(super) const OFFICE: Offer = Offer {
    id: "031C9E47-4802-4248-838E-778FB1D2CC05",
    kind: OfferKind::License,
    quantity_max: 300,
    term: Term::Year,
    billing: BillingCycle::Monthly,
    auto_renews: true,
    sold_in: None,
    demands: None,
};

pub(super) const OFFERS: [Offer; 7] = [
    OFFICE,
    Offer {
        id: "DZH318Z0BXWC:0002:DZH318Z0BMRV",
        kind: OfferKind::Software,
        quantity_max: 10_000,
        term: Term::Month,
        ..OFFICE
    },
    Offer {
        id: "E60E0348-1710-484B-992A-32B294D4CDE1",
        quantity_max: 10_000_000,
        billing: BillingCycle::Annual,
        sold_in: Some("US"),
        ..OFFICE
    },
    Offer {
        id: "DZH318Z0BQ4B:0047:DZH318Z0DSM8",
        kind: OfferKind::ReservedInstance,
        quantity_max: 1000,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        ..OFFICE
    },
    Offer {
        id: "DG7GMGF0DWTL:0001:DG7GMGF0DSFM",
        kind: OfferKind::Software,
        quantity_max: 1000,
        term: Term::Perpetual,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        ..OFFICE
    },
    Offer {
        id: "DZH318Z0BPS6:0001",
        kind: OfferKind::AzurePlan,
        quantity_max: 1,
        term: Term::Perpetual,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        demands: Some(AgreementType::MicrosoftCustomerAgreement),
        ..OFFICE
    },
    Offer {
        id: "MS-AZR-0145P",
        kind: OfferKind::AzurePlan,
        quantity_max: 1,
        term: Term::Perpetual,
        auto_renews: false,
        demands: Some(AgreementType::MicrosoftCloudAgreement),
        ..OFFICE
    },
];

pub(super) const UNKNOWN_OFFER: &str = "NO-SUCH-OFFER";

pub(super) fn offer(id: &str) -> Option<&'static Offer> {
    OFFERS.iter().find(|offer| offer.id == id)
}

/// SUB-3: when the n-th term ends.
pub(super) fn term_end(started_at: Time, term: Term, number: u32) -> Option<Time> {
    let months = match term {
        Term::Month => 1,
        Term::Year => 12,
        Term::ThreeYears => 36,
        Term::Perpetual | Term::Unspecified => return None,
    };
    let months = started_at.year() * 12 + i32::try_from(started_at.month0() + months * number).unwrap();
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12).unsigned_abs() + 1);
    // The last day of the month, where it has no such day.
    let day = (1..=started_at.day()).rev().find_map(|day| NaiveDate::from_ymd_opt(year, month, day));
    day.map(|day| day.and_time(started_at.time()).and_utc())
}
