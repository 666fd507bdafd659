//! What several pages show: partners, agreements and times.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;
use prost_types::Timestamp;
use proto::agreement::{SupportContact, TemplateDocument};
use proto::types::Refusal;

use super::texts::Texts;

/// A partner, and where its customers ask.
#[derive(Default)]
pub(super) struct Partner {
    pub name: String,
    pub support: SupportContact,
}

/// The version of an agreement that is in force, with its text.
pub(super) struct Agreement {
    pub name: String,
    pub template_id: String,
    pub version: u32,
    pub document: TemplateDocument,
    /// The text is not in the language of the customer.
    pub is_fallback: bool,
}

impl Partner {
    pub(super) fn new(name: String, support: Option<SupportContact>) -> Self {
        Self { name, support: support.unwrap_or_default() }
    }
}

/// Whether a page may link to it.
pub(super) fn is_https(link: &str) -> bool {
    link.starts_with("https://")
}

/// Why the customer cannot sign, in its language.
pub(super) fn sign_refusal(texts: &'static Texts, refusal: &Refusal) -> String {
    use proto::types::ErrorReason::{ContactPartner, TemplateRetired};
    match refusal.reason() {
        ContactPartner if !refusal.localized_message.is_empty() => format!("{}.", refusal.localized_message),
        ContactPartner => texts.contact_partner.to_owned(),
        TemplateRetired => texts.retired_text.to_owned(),
        _ => texts.cloud_text.to_owned(),
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
        "fr" => format!("{} {month} {} à {clock} (UTC)", time.day(), time.year()),
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
            ("fr", "1 janvier 2026 à 10:30 (UTC)"),
            ("de", "1. Januar 2026, 10:30 Uhr (UTC)"),
        ] {
            assert_eq!(time(Texts::of(tag), Some(&stamp)), expected);
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
