//! Partners, customers and the relationships between them.
//!
//! Who may make which call is in `api::access`; this file defines the kinds of partners, and which kind can be
//! payer, provider or reseller.

use std::collections::{BTreeMap, BTreeSet};

use icu_normalizer::ComposingNormalizerBorrowed;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::language::of_country;
use super::{Refusal, Time};

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PartnerKind {
    DirectBill,
    IndirectProvider,
    IndirectReseller,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Cloud {
    Public,
    UsGovernment,
    Germany,
    #[strum(serialize = "CHINA_21VIANET")]
    #[serde(rename = "CHINA_21VIANET")]
    China21vianet,
}

/// Where the customers of a partner ask. What is empty, the operator did not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    pub email: String,
    pub phone: String,
    pub url: String,
}

impl Support {
    pub fn is_empty(&self) -> bool {
        self.email.is_empty() && self.phone.is_empty() && self.url.is_empty()
    }

    /// A partner's name with what there is of it, as a text says whom to ask: `Northwind (help@northwind.example)`.
    pub fn beside(&self, name: &str) -> String {
        let ways = [&self.email, &self.phone, &self.url].map(String::as_str);
        let ways: Vec<&str> = ways.into_iter().filter(|way| !way.is_empty()).collect();
        if ways.is_empty() { name.to_owned() } else { format!("{name} ({})", ways.join(", ")) }
    }
}

/// A partner tenant. Its kind and cloud are the operator's word and never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    pub id: Uuid,
    pub name: String,
    pub kind: PartnerKind,
    pub cloud: Cloud,
    pub registered_at: Time,
    pub support: Support,
    /// Of the last change to it: its etag.
    pub revision: i64,
}

/// A person at the customer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    pub first_name: String,
    pub last_name: String,
    pub email: String,
    pub phone: String,
}

impl Contact {
    /// Whether it is none: it was not given, or was erased.
    pub fn is_empty(&self) -> bool {
        self.email.is_empty()
    }

    /// Whether all four fields agree, the e-mail address whatever its case (ATT-8). Outer spaces are gone before a
    /// contact is made. Contacts of older releases are not composed.
    pub fn is_same(&self, other: &Self) -> bool {
        let nfc = ComposingNormalizerBorrowed::new_nfc();
        let is_same = |one: &str, other: &str| nfc.normalize(one) == nfc.normalize(other);
        is_same(&self.first_name, &other.first_name)
            && is_same(&self.last_name, &other.last_name)
            && is_same(&self.phone, &other.phone)
            && is_same(&self.email.to_lowercase(), &other.email.to_lowercase())
    }
}

/// The contacts of a customer (ATT-9). No partner decides where the announcements of another one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    /// The one that the customer's own administrator set: for all announcements.
    pub own: Option<Contact>,
    /// Those that partners set, each for its own announcements. An empty one was not given, or was erased.
    pub of_partners: BTreeMap<Uuid, Contact>,
    /// The one for all partners, as older versions kept it: for partners that have none in `of_partners`.
    pub shared: Option<Contact>,
    pub active: Vec<Relationship>,
    pub ended: Vec<Relationship>,
}

impl Contacts {
    /// The contact for a partner's announcements, unless the customer has its own: what the partner set, or what the
    /// other partner of its relationship did where it set none.
    pub fn of(&self, partner: Uuid) -> Option<&Contact> {
        let given = |partner: Uuid| self.of_partners.get(&partner).filter(|contact| !contact.is_empty());
        if !self.of_partners.contains_key(&partner) {
            return self.shared.as_ref().filter(|contact| !contact.is_empty());
        }
        let is_of_partner = |of: &&Relationship| of.payer_id == partner || of.reseller_id == Some(partner);
        // Who has parted receives no more of it while there is another.
        let relationships = match self.active.iter().any(|of| is_of_partner(&of)) {
            true => &self.active,
            false => &self.ended,
        };
        let beside =
            relationships.iter().filter(is_of_partner).filter_map(|of| match of.payer_id == partner {
                true => of.reseller_id,
                false => Some(of.payer_id),
            });
        std::iter::once(partner).chain(beside).find_map(given)
    }

    /// Whether a contact that is set takes the place of the shared one, too, for older versions that still run: unless
    /// a partner has no other, or the customer's own has this place.
    pub fn may_replace_shared(&self, set_by: Option<Uuid>) -> bool {
        let has_own = self.own.as_ref().is_some_and(|own| !own.is_empty());
        let relationships = self.active.iter().chain(&self.ended);
        let mut partners = relationships.flat_map(|of| [Some(of.payer_id), of.reseller_id]).flatten();
        let needs_shared = partners.any(|of| Some(of) != set_by && !self.of_partners.contains_key(&of));
        let is_own = has_own && set_by.is_some();
        !needs_shared && !is_own
    }

    /// Whether a partner set a contact, or has or had a relationship.
    pub fn knows(&self, partner: Uuid) -> bool {
        let mut relationships = self.active.iter().chain(&self.ended);
        self.of_partners.contains_key(&partner)
            || relationships.any(|of| of.payer_id == partner || of.reseller_id == Some(partner))
    }

    /// Who receives a partner's announcements.
    pub fn addressee(&self, partner: Uuid) -> Option<&Contact> {
        self.own.as_ref().filter(|own| !own.is_empty()).or_else(|| self.of(partner))
    }

    /// The partners with an active relationship, each with its contact, in key order.
    pub fn of_active_partners(&self) -> BTreeMap<Uuid, &Contact> {
        let partners = self.active.iter().flat_map(|of| [Some(of.payer_id), of.reseller_id]).flatten();
        partners.filter_map(|partner| Some((partner, self.of(partner)?))).collect()
    }

    /// The addresses that receive fewer announcements than before once a partner, or without one the customer itself,
    /// has set another contact. Each gets a notice.
    pub fn replaced_by(&self, new: &Contact, set_by: Option<Uuid>) -> BTreeSet<String> {
        let own = self.own.as_ref().filter(|own| !own.is_empty());
        let replaced: Vec<&Contact> = match (own, set_by) {
            (Some(own), None) => vec![own],
            (None, None) => self.of_active_partners().into_values().collect(),
            (None, Some(partner)) => self.of(partner).into_iter().collect(),
            // Nothing came to the partner's contact.
            (Some(_), Some(_)) => vec![],
        };
        let addresses = replaced.into_iter().map(|contact| contact.email.to_lowercase());
        addresses.filter(|address| *address != new.email.to_lowercase()).collect()
    }
}

/// What a customer is called and where it is, when it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub company_name: String,
    /// In lower case.
    pub domain: String,
    pub country: String,
    /// Empty where none was given.
    pub language: String,
    pub primary_contact: Contact,
}

/// A text in lower case letter by letter, so that a part of a text is folded as it is by itself.
pub fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// The key under which a customer is found by the beginning of its name: what sorts by name, and among equal names by id.
pub fn name_key(company_name: &str, id: Uuid) -> String {
    // A name has no control character, so the id is no part of it.
    format!("{}\0{id}", folded(company_name))
}

/// A customer tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    pub id: Uuid,
    pub company_name: String,
    pub domain: String,
    pub country: String,
    /// Of texts for it; empty where none was given.
    pub given_language: String,
    pub cloud: Cloud,
    /// The one contact for all partners, as older versions know it; see [`Contacts`].
    pub primary_contact: Contact,
    /// Makes the commitment to the contact in the history impossible to guess.
    pub contact_salt: String,
    pub created_at: Time,
    pub first_purchase_at: Option<Time>,
    /// Of the last event about an acceptance or relationship of it.
    pub acceptance_revision: i64,
    /// Of the last change to its own particulars or contacts: its etag.
    pub revision: i64,
}

impl Customer {
    /// The language of texts for it (CUS-5).
    pub fn language(&self) -> &str {
        if self.given_language.is_empty() { of_country(&self.country) } else { &self.given_language }
    }
}

/// Who pays for a customer, and through which reseller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relationship {
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
}

impl Relationship {
    /// The partner that the customer of an invitation to it knows: the reseller, if there is one.
    pub fn inviter(self) -> Uuid {
        self.reseller_id.unwrap_or(self.payer_id)
    }
}

/// A relationship with the names of its partners and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partnership {
    pub customer_id: Uuid,
    pub relationship: Relationship,
    pub payer_name: String,
    pub payer_kind: PartnerKind,
    pub payer_support: Support,
    pub reseller_name: Option<String>,
    pub reseller_support: Support,
    pub established_at: Time,
    pub ended_at: Option<Time>,
    pub revision: i64,
}

/// Checks that two partners can be provider and reseller of each other.
pub fn check_link(provider: &Partner, reseller: &Partner) -> Result<(), Refusal> {
    require_kind(provider, PartnerKind::IndirectProvider)?;
    require_kind(reseller, PartnerKind::IndirectReseller)?;
    if provider.cloud != reseller.cloud {
        return Err(wrong_kind(reseller));
    }
    Ok(())
}

/// The relationship that a partner enters with a customer, or ends: a reseller through the
/// provider it names, a provider for itself or for the reseller it names, a direct-bill partner for
/// itself. A refusal reveals nothing about a partner that is not linked, not even whether it exists (ROLE-6).
pub fn relationship_of(creator: &Partner, named: Named) -> Result<Relationship, Refusal> {
    let through = |provider_id, reseller_id, is_linked: bool| match is_linked {
        true => Ok(Relationship { payer_id: provider_id, reseller_id: Some(reseller_id) }),
        false => Err(Refusal::ResellerNotLinked { provider_id, reseller_id }),
    };
    match (creator.kind, named) {
        (PartnerKind::IndirectReseller, Named::Provider(provider, is_linked)) => {
            through(provider, creator.id, is_linked)
        }
        (PartnerKind::IndirectReseller, _) => {
            Err(Refusal::field("provider_id", "must name the provider that the reseller works through"))
        }
        (PartnerKind::IndirectProvider, Named::Reseller(reseller, is_linked)) => {
            through(creator.id, reseller, is_linked)
        }
        (_, Named::Neither) => Ok(Relationship { payer_id: creator.id, reseller_id: None }),
        (_, Named::Provider(..)) => {
            Err(Refusal::field("provider_id", "must be empty: only an indirect reseller names its provider"))
        }
        (PartnerKind::DirectBill, Named::Reseller(..)) => {
            Err(Refusal::field("reseller_id", "must be empty: only an indirect provider names a reseller"))
        }
    }
}

/// Who can no longer buy for a customer because a relationship ended (CUS-3): the payer with its reseller; and the payer
/// itself if it has no other one. Only the payer learns of the latter: what else it has with the customer is no concern of
/// the reseller's (ROLE-6).
pub fn cut_off(ended: Relationship, others_remain: bool, caller: Uuid) -> Vec<Relationship> {
    let with_reseller = ended.reseller_id.is_some().then_some(ended);
    let is_named = caller == ended.payer_id && !others_remain;
    let alone = is_named.then_some(Relationship { reseller_id: None, ..ended });
    alone.into_iter().chain(with_reseller).collect()
}

/// The other partner that a request names, and whether it is linked to the caller.
#[derive(Clone, Copy, Debug)]
pub enum Named {
    Neither,
    Provider(Uuid, bool),
    Reseller(Uuid, bool),
}

fn require_kind(partner: &Partner, kind: PartnerKind) -> Result<(), Refusal> {
    if partner.kind == kind { Ok(()) } else { Err(wrong_kind(partner)) }
}

fn wrong_kind(partner: &Partner) -> Refusal {
    Refusal::WrongPartnerKind { partner_id: partner.id, kind: partner.kind, cloud: partner.cloud }
}

/// Whether a text has the form of an e-mail address (ATT-2): one `@`, something before it and a
/// host name behind it. Whether the address exists is the partner's word.
pub fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.rsplit_once('@') else { return false };
    let local_is_fine = (1..=64).contains(&local.len())
        && local.chars().all(|c| !c.is_whitespace() && !c.is_control() && !"@()<>[],;:\\\"".contains(c))
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..");
    local_is_fine && is_domain(host)
}

/// What is wrong with a text as the e-mail address of a new contact, and what to send instead. Mail servers deliver to
/// letters outside ASCII only where all of them on the way agreed to (RFC 6531), so the announcement would be lost.
pub fn email_problem(text: &str) -> Option<&'static str> {
    let (local, host) = text.rsplit_once('@').unwrap_or((text, ""));
    if !local.is_ascii() {
        Some("must be in ASCII before the @; send another address of the person, or one of a colleague")
    } else if !host.is_ascii() {
        Some(
            "must be in ASCII behind the @; send the domain in its ASCII form, as xn--bcher-kva.example for bücher.example",
        )
    } else if is_address(host) {
        Some("must have a domain behind the @, not the address of a computer")
    } else {
        (!is_email(text)).then_some("must have the form of an e-mail address, such as name@example.com")
    }
}

/// Last labels of names that belong to one computer or network, or that never resolve (RFC 6761, RFC 6762 with its
/// appendix G, RFC 7686, RFC 9476, ICANN's `internal`), and of the infrastructure. `example` and `test` are not among
/// them: they can belong to no company either, and are there for documents, tests and demonstrations (RFC 2606).
const PRIVATE_LABELS: [&str; 13] = [
    "alt",
    "arpa",
    "corp",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "onion",
    "private",
];

/// What is wrong with a text as the domain of a customer, and what to send instead. Each customer has one of its own (CUS-1),
/// so an address, and a name that means something else in each network, are none.
pub fn domain_problem(text: &str) -> Option<&'static str> {
    let last = text.rsplit('.').next().unwrap_or_default();
    if !text.is_ascii() {
        Some("must be in ASCII; send its ASCII form, as xn--bcher-kva.example for bücher.example")
    } else if !is_domain(text) {
        Some("must be a host name such as contoso.example")
    } else if is_address(text) {
        Some("must not be an address; send the domain that the customer registered, such as contoso.example")
    } else if PRIVATE_LABELS.iter().any(|label| last.eq_ignore_ascii_case(label)) {
        Some(
            "must not be a name of a private network; send the domain that the customer registered, such as contoso.example",
        )
    } else {
        None
    }
}

/// Whether a text can be a telephone number (ATT-2): it has a digit, and otherwise what numbers are written with.
pub fn is_phone(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || "+()-./ xX".contains(c))
}

/// Whether a text is the address of a computer rather than a name: no top-level domain begins with a digit.
fn is_address(host: &str) -> bool {
    host.rsplit('.').next().is_some_and(|last| last.starts_with(|first: char| first.is_ascii_digit()))
}

/// Whether a text has the form of a host name with at least two labels.
pub fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_label)
}

/// Whether a text is an ISO 3166-1 alpha-2 code in upper case, or one of the user-assigned codes
/// that the vendor sells under (Kosovo, Jan Mayen, Saba, Sint Eustatius).
pub fn is_country(text: &str) -> bool {
    const CODES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL \
        BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ \
        DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS \
        GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR \
        KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU \
        MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY \
        QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH \
        TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW \
        XK XJ XS XE";
    text.len() == 2 && CODES.split_ascii_whitespace().any(|code| code == text)
}

#[cfg(test)]
mod tests;
