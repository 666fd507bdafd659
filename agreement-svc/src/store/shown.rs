//! The columns of the text that was shown, of acceptances and proposals.

use crate::rules::shown::ShownText;

/// The text in a row: none where no country is named.
pub(super) fn shown_text([country, language, sha256]: [String; 3]) -> Option<ShownText> {
    (!country.is_empty()).then_some(ShownText { country, language, sha256 })
}

/// Country, language and digest of a text; empty without one.
pub(super) fn shown_columns(text: Option<&ShownText>) -> [String; 3] {
    let columns = |text: &ShownText| [&text.country, &text.language, &text.sha256].map(String::clone);
    text.map(columns).unwrap_or_default()
}
