//! The page of what was done, and of what can no longer be done.

use askama::Template;
use proto::agreement::Signature;

use super::texts::Texts;
use super::view::{self, Partner};

/// The page of what was done, or can no longer be done.
#[derive(Template)]
#[template(path = "answered.html")]
pub(super) struct Answered<'a> {
    pub texts: &'static Texts,
    pub title: &'a str,
    pub sentences: Vec<&'a str>,
    pub partners: Vec<Partner>,
    /// Labels and values.
    pub facts: Vec<(&'static str, String)>,
    /// The agreement that the customer can sign now; empty if the page does not offer it.
    pub template_to_sign: String,
}

/// What a page says of a signature that is stored. What could not be read is left out.
pub(super) fn receipt(
    texts: &Texts,
    agreement: String,
    company: String,
    signature: Signature,
) -> Vec<(&'static str, String)> {
    let facts = [
        (texts.agreement, agreement),
        (texts.version, signature.template_version.to_string()),
        (texts.company, company),
        (texts.signed_at, view::time(texts, signature.signed_at.as_ref())),
        (texts.withdrawn_at, view::time(texts, signature.withdrawn_at.as_ref())),
        (texts.signature_number, signature.signature_id),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
