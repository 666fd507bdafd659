//! What several pages show: partners, agreements and times.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use prost_types::Timestamp;
use proto::agreement::{SupportContact, TemplateDocument};
use proto::types::{ErrorReason, Refusal};

use super::texts::Texts;

/// A partner, and where its customers ask.
pub(super) struct Partner {
    pub name: String,
    /// Whether it is the provider or the reseller; empty where it is the only partner.
    pub role: &'static str,
    pub support: SupportContact,
}

/// The version of an agreement that is in force, with its text.
pub(super) struct Agreement {
    pub name: String,
    pub template_id: String,
    pub version: u32,
    pub document: TemplateDocument,
    /// That there is no text for the country and language of the customer, in a sentence; empty if there is one.
    pub fallback: String,
}

impl Partner {
    /// The telephone number as a link has it: without an extension.
    pub(super) fn telephone(&self) -> String {
        let number = self.support.phone.split('x').next().unwrap_or_default();
        number.chars().filter(|sign| sign.is_ascii_digit() || *sign == '+').collect()
    }
}

/// The partner of a relationship, and its reseller if it has one.
pub(super) fn partners(
    texts: &Texts,
    partner: (String, Option<SupportContact>),
    reseller: (String, Option<SupportContact>),
) -> Vec<Partner> {
    let is_alone = reseller.0.is_empty();
    let both = [(partner, texts.provider), (reseller, texts.reseller)];
    let both = both.into_iter().filter(|((name, _), _)| !name.is_empty());
    let shown = |((name, support), role): ((String, Option<SupportContact>), _)| Partner {
        name,
        role: if is_alone { "" } else { role },
        support: support.unwrap_or_default(),
    };
    both.map(shown).collect()
}

/// That a text replaces the missing one for a country and language.
pub(super) fn fallback(texts: &Texts, (country, language): (&str, &str), shown: &TemplateDocument) -> String {
    let [begin, middle, end] = texts.fallback;
    format!("{begin}{country}{middle}{language}{end}{}, {}.", shown.country, shown.language)
}

/// A company as a page names it: name and domain.
pub(super) fn company(name: &str, domain: &str) -> String {
    format!("{name} ({domain})")
}

/// Whether a page may link to it.
pub(super) fn is_https(link: &str) -> bool {
    link.starts_with("https://")
}

/// Why the customer cannot sign, and what it can do.
pub(super) fn sign_refusal(texts: &Texts, refusal: &Refusal) -> &'static str {
    match refusal.reason() {
        ErrorReason::ContactPartner => texts.contact_partner,
        ErrorReason::TemplateRetired => texts.retired_text,
        _ => texts.cloud_text,
    }
}

/// A time that a person reads, to the minute.
pub(super) fn time(texts: &Texts, time: Option<&Timestamp>) -> String {
    use chrono::{DateTime, Datelike};
    let time = time.and_then(|time| DateTime::from_timestamp(time.seconds, 0));
    let Some(time) = time else { return String::new() };
    let month = texts.months[time.month0() as usize];
    let clock = time.format("%H:%M");
    match texts.tag {
        "de" => format!("{}. {month} {}, {clock} Uhr (UTC)", time.day(), time.year()),
        "fr" => {
            let ordinal = if time.day() == 1 { "er" } else { "" };
            format!("{}{ordinal} {month} {} à {clock} (UTC)", time.day(), time.year())
        }
        _ => format!("{} {month} {}, {clock} (UTC)", time.day(), time.year()),
    }
}

/// A page as a response.
pub(super) fn rendered(code: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(page) => (code, Html(page)).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_each_language_and_names_its_zone() {
        let stamp = Timestamp { seconds: 1_767_263_400, nanos: 0 };
        for (tag, expected) in [
            ("en", "1 January 2026, 10:30 (UTC)"),
            ("fr", "1er janvier 2026 à 10:30 (UTC)"),
            ("de", "1. Januar 2026, 10:30 Uhr (UTC)"),
        ] {
            assert_eq!(time(Texts::of(tag), Some(&stamp)), expected);
        }
    }

    #[test]
    fn a_telephone_number_is_linked_without_its_extension() {
        for (phone, expected) in
            [("+44 20 7946 0000", "+442079460000"), ("(020) 7946-0000 x12", "02079460000")]
        {
            let support = SupportContact { phone: phone.into(), ..SupportContact::default() };
            assert_eq!(Partner { name: String::new(), role: "", support }.telephone(), expected);
        }
    }

    #[test]
    fn only_https_is_linked() {
        for (link, expected) in [
            ("https://partner.example", true),
            ("http://partner.example", false),
            ("javascript:alert(1)", false),
            ("//partner.example", false),
        ] {
            assert_eq!(is_https(link), expected, "{link}");
        }
    }
}
