//! The text that was shown to the person who accepted.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Refusal;
use super::template::{Document, choose_document};

/// Which text of the accepted version was shown. A client names it; what is recorded is the text that this finds (TPL-5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownText {
    pub country: String,
    pub language: String,
    /// Of the publisher, else of the client; empty where neither gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

impl ShownText {
    /// What is recorded of a text that a client showed, given the documents of the accepted version (TPL-5).
    pub fn recorded(&self, template_id: Uuid, documents: &[Document]) -> Result<Self, Refusal> {
        let chosen = choose_document(documents, &self.country, &self.language);
        let unseen = Refusal::NotFound { resource: "template document", id: template_id };
        let (Document { country, language, sha256, .. }, _) = chosen.ok_or(unseen)?;
        if !self.sha256.is_empty() && !sha256.is_empty() && self.sha256 != *sha256 {
            let problem = format!("must be {sha256}, the digest of the text for {country} in {language}");
            return Err(Refusal::field("shown_text.sha256", problem));
        }
        let sha256 = if sha256.is_empty() { &self.sha256 } else { sha256 };
        Ok(Self { country: country.clone(), language: language.clone(), sha256: sha256.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TPL-5.
    #[test]
    fn the_text_that_was_found_is_recorded_and_its_digest_must_be_right() {
        let (published, other) = ("a".repeat(64), "b".repeat(64));
        let document = |country: &str, language: &str, sha256: &str| Document {
            country: country.into(),
            language: language.into(),
            link: "https://example.com".into(),
            sha256: sha256.into(),
        };
        let documents = [
            document("FR", "fr-FR", &published),
            document("FR", "en-US", ""),
            document("US", "en-US", &published),
        ];
        let recorded = |country: &str, language: &str, sha256: &str| {
            let shown =
                ShownText { country: country.into(), language: language.into(), sha256: sha256.into() };
            shown
                .recorded(Uuid::from_u128(1), &documents)
                .map(|text| [text.country, text.language, text.sha256])
        };
        let is =
            |country: &str, language: &str, sha256: &str| Ok([country, language, sha256].map(str::to_owned));
        let wrong = |text| {
            let problem = format!("must be {published}, the digest of the text for {text}");
            Err(Refusal::field("shown_text.sha256", problem))
        };
        for (country, language, sha256, expected) in [
            ("FR", "fr-FR", "", is("FR", "fr-FR", &published)),
            ("FR", "fr-FR", &*published, is("FR", "fr-FR", &published)),
            ("FR", "fr-FR", &other, wrong("FR in fr-FR")),
            ("FR", "fr", "", is("FR", "fr-FR", &published)),
            // The fallbacks were shown.
            ("FR", "de-DE", "", is("FR", "en-US", "")),
            ("DE", "de-DE", "", is("US", "en-US", &published)),
            ("DE", "de-DE", &other, wrong("US in en-US")),
            // The publisher gave none.
            ("FR", "en-US", &other, is("FR", "en-US", &other)),
        ] {
            assert_eq!(recorded(country, language, sha256), expected, "{country} {language} {sha256}");
        }
        let shown = ShownText { country: "FR".into(), language: "fr-FR".into(), sha256: String::new() };
        let unseen = Refusal::NotFound { resource: "template document", id: Uuid::from_u128(1) };
        assert_eq!(shown.recorded(Uuid::from_u128(1), &[]), Err(unseen));
    }
}
