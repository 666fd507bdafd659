//! Agreement templates: their versions, which one is in force when, and which text is served.

use std::collections::BTreeSet;

use icu_locale_core::subtags::{Language, language};
use icu_locale_core::{LanguageIdentifier, Locale, langid};
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::party::is_country;
use super::{BadField, Refusal, Time};

/// Documents of one version: every country of the vendor's in eight languages.
pub const DOCUMENTS_MAX: usize = 2000;

/// Longer links are refused by common HTTP stacks.
const LINK_MAX: usize = 2000;

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    EnumString,
    IntoStaticStr,
    VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AgreementType {
    MicrosoftCloudAgreement,
    MicrosoftCustomerAgreement,
}

/// One agreement, with at least one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub id: Uuid,
    pub name: String,
    pub agreement_type: AgreementType,
    pub retired_at: Option<Time>,
    /// Of its last change: its etag.
    pub revision: i64,
    /// By number, which is also by time.
    pub versions: Vec<Version>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub number: u32,
    pub effective_from: Time,
    /// From when the gate stops counting acceptances of earlier versions; `None` is never.
    pub reaccept_by: Option<Time>,
    pub published_at: Time,
    pub document_count: u32,
}

/// The text of a version for one country and language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub country: String,
    pub language: String,
    pub link: String,
    /// Empty where the publisher gave none.
    pub sha256: String,
}

/// When a new version makes acceptances of earlier ones insufficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaccept {
    WhenEffective,
    By(Time),
    Never,
}

impl Template {
    pub fn is_retired(&self, now: Time) -> bool {
        self.retired_at.is_some_and(|at| at <= now)
    }

    /// The version with a number.
    pub fn version(&self, number: u32) -> Option<&Version> {
        self.versions.iter().find(|version| version.number == number)
    }

    /// Whether a version ever took or will take effect: one that was to after the template was retired
    /// never does.
    pub fn takes_effect(&self, version: &Version) -> bool {
        self.retired_at.is_none_or(|at| version.effective_from < at)
    }

    /// The version in force at a time. Version 1 has no lower bound (ATT-4); a version that was to
    /// take effect after the template was retired never does.
    pub fn in_force_at(&self, at: Time) -> Option<&Version> {
        let effective = self.versions.iter().filter(|version| self.takes_effect(version));
        let in_force = effective.rev().find(|version| version.effective_from <= at);
        in_force.or(self.versions.first())
    }

    /// The version that was accepted on a date (ATT-4). A date within the tolerance does not reach a version that is not in
    /// force yet.
    pub fn accepted_at(&self, agreed_at: Time, now: Time) -> Option<&Version> {
        self.in_force_at(agreed_at.min(now))
    }
}

/// The next version of a template (TPL-3). Without a time it takes effect now.
pub fn next_version(
    template: &Template,
    effective_from: Option<Time>,
    reaccept: Reaccept,
    document_count: u32,
    now: Time,
) -> Result<Version, Refusal> {
    if template.is_retired(now) {
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id: None });
    }
    let effective_from = effective_from.unwrap_or(now);
    let last = template.versions.last();
    let after_last = last.map(|last| last.effective_from + chrono::Duration::microseconds(1));
    let not_before = after_last.map_or(now, |after_last| after_last.max(now));
    if effective_from < not_before {
        return Err(Refusal::NotLaterThanLastVersion { not_before });
    }
    let reaccept_by = match reaccept {
        Reaccept::WhenEffective => Some(effective_from),
        Reaccept::Never => None,
        Reaccept::By(by) if by < effective_from => {
            return Err(Refusal::field("reaccept_by", "must not be before effective_from"));
        }
        Reaccept::By(by) => Some(by),
    };
    let number = last.map_or(1, |last| last.number + 1);
    Ok(Version { number, effective_from, reaccept_by, published_at: now, document_count })
}

/// The text for a country and language, and whether it is a fallback (TPL-2): the exact pair, or the country's text in the
/// language where one of the two names no region or the asked one no script, else the country in `en-US`, else `US` in
/// `en-US`.
pub fn choose_document<'a>(
    documents: &'a [Document],
    country: &str,
    language: &str,
) -> Option<(&'a Document, bool)> {
    const FALLBACK: u8 = 4;
    let asked = parse_language(language);
    let tags = documents.iter().filter(|document| document.country == country);
    let tags = tags.filter_map(|document| parse_language(&document.language));
    let of_language = tags.filter(|tag| asked.as_ref().is_some_and(|asked| asked.language == tag.language));
    let scripts = of_language.map(|tag| tag.script).collect::<BTreeSet<_>>().len();
    let rank = |document: &Document| {
        let tag = parse_language(&document.language)?;
        let is_english = tag == langid!("en-US");
        if document.country != country {
            return (is_english && document.country == "US").then_some(FALLBACK + 1);
        }
        match &asked {
            Some(asked) if *asked == tag => Some(0),
            Some(asked) if is_in(&tag, asked, scripts > 1) && asked.region == tag.region => Some(1),
            // A country may have texts in a language of several regions.
            Some(asked) if is_in(&tag, asked, scripts > 1) => {
                Some(if tag.region.is_some_and(|region| region.as_str() == country) { 2 } else { 3 })
            }
            _ => is_english.then_some(FALLBACK),
        }
    };
    let ranked = documents.iter().filter_map(|document| Some((rank(document)?, document)));
    let best = ranked.min_by_key(|(rank, document)| (*rank, document.language.as_str()));
    best.map(|(rank, document)| (document, rank >= FALLBACK))
}

/// Whether a text is in the language that was asked for. Browsers send `sr-RS` for what the vendor publishes as `sr-Latn-RS`;
/// where there are several scripts, that does not say which.
fn is_in(text: &LanguageIdentifier, asked: &LanguageIdentifier, are_scripts_several: bool) -> bool {
    text.language == asked.language
        && text.variants == asked.variants
        && (text.script == asked.script || asked.script.is_none() && !are_scripts_several)
        && (asked.region.is_none() || text.region.is_none() || text.region == asked.region)
}

/// Every problem of a version's documents, by path, with the place of the document that has it: each names a country, a
/// language and a link, none stands there twice, and there is one to fall back on (TPL-2).
pub fn document_problems(documents: &[Document]) -> Vec<(Option<usize>, BadField)> {
    let mut bad = vec![];
    if documents.is_empty() {
        let problem = format!("must have 1 to {DOCUMENTS_MAX} entries");
        bad.push((None, BadField { field: "documents".into(), problem }));
        return bad;
    }
    let mut seen = BTreeSet::new();
    for (n, document) in documents.iter().enumerate() {
        let mut wrong = |name: &str, problem: String| {
            bad.push((Some(n), BadField { field: format!("documents[{n}].{name}"), problem }));
        };
        if !is_country(&document.country) {
            wrong("country", "must be an ISO 3166-1 alpha-2 code in upper case".into());
        }
        match language_tag(&document.language).map(|tag| seen.insert((document.country.as_str(), tag))) {
            None => wrong("language", "must be a language tag such as fr-FR".into()),
            Some(false) => wrong("language", "repeats an earlier country and language".into()),
            Some(true) => {}
        }
        if !is_link(&document.link) {
            let problem = format!("must begin with https:// and have at most {LINK_MAX} characters");
            wrong("link", problem);
        }
        if !document.sha256.is_empty() && !is_digest(&document.sha256) {
            wrong("sha256", "must be empty or 64 lower-case hexadecimal digits".into());
        }
    }
    if !seen.contains(&("US", "en-US".to_owned())) {
        let problem = "must have one for US in en-US, the last resort of every request".into();
        bad.push((None, BadField { field: "documents".into(), problem }));
    }
    bad
}

fn is_link(text: &str) -> bool {
    text.starts_with("https://") && text.chars().count() <= LINK_MAX && !text.chars().any(char::is_control)
}

pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A language tag (BCP 47) as it is usually written: `fr-FR` for `FR-fr`, `he` for the outdated `iw`. It has a language,
/// and may have a script, a region and variants; extensions, such as a calendar, say nothing about a document and are left out.
pub fn language_tag(text: &str) -> Option<String> {
    parse_language(text).map(|tag| tag.to_string())
}

fn parse_language(text: &str) -> Option<LanguageIdentifier> {
    const LENGTH_MAX: usize = 35;
    /// What older Java runtimes still send.
    const RENAMED: [(Language, Language); 3] = [
        (language!("iw"), language!("he")),
        (language!("in"), language!("id")),
        (language!("ji"), language!("yi")),
    ];
    let is_short = text.len() <= LENGTH_MAX;
    let mut tag = Locale::try_from_str(text).ok().filter(|_| is_short)?.id;
    if let Some((_, current)) = RENAMED.iter().find(|(outdated, _)| *outdated == tag.language) {
        tag.language = *current;
    }
    (!tag.language.is_unknown()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn version(number: u32, effective: i64, reaccept: Option<i64>) -> Version {
        Version {
            number,
            effective_from: at(effective),
            reaccept_by: reaccept.map(at),
            published_at: at(0),
            document_count: 1,
        }
    }

    fn template(versions: Vec<Version>) -> Template {
        Template {
            id: Uuid::from_u128(1),
            name: "Agreement".into(),
            agreement_type: AgreementType::MicrosoftCustomerAgreement,
            retired_at: None,
            revision: 1,
            versions,
        }
    }

    #[test]
    fn the_version_in_force_is_the_last_that_took_effect() {
        let template = template(vec![version(1, 100, None), version(2, 200, Some(200))]);
        for (time, number) in [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (999, 2)] {
            assert_eq!(template.in_force_at(at(time)).map(|v| v.number), Some(number), "at {time}");
        }
    }

    /// TPL-3, ATT-4.
    #[test]
    fn a_version_that_was_due_after_its_template_retired_never_takes_effect() {
        for (retired_at, takes_effect, in_force) in [
            (None, [true, true], 2),
            (Some(201), [true, true], 2),
            (Some(200), [true, false], 1),
            (Some(100), [false, false], 1),
        ] {
            let mut template = template(vec![version(1, 100, None), version(2, 200, None)]);
            template.retired_at = retired_at.map(at);
            let effects = [0, 1].map(|n| template.takes_effect(&template.versions[n]));
            assert_eq!(effects, takes_effect, "{retired_at:?}");
            assert_eq!(template.in_force_at(at(999)).map(|v| v.number), Some(in_force), "{retired_at:?}");
        }
    }

    #[test]
    fn a_version_is_found_by_its_number() {
        let template = template(vec![version(1, 100, None), version(2, 200, None)]);
        let found = |number| template.version(number).map(|version| version.effective_from);
        assert_eq!([0, 1, 2, 3].map(found), [None, Some(at(100)), Some(at(200)), None]);
    }

    #[test]
    fn the_first_version_is_number_one_and_takes_effect_now_or_later() {
        let publish = |effective: i64| {
            next_version(&template(vec![]), Some(at(effective)), Reaccept::Never, 7, at(300))
        };
        assert_eq!(
            publish(300),
            Ok(Version { published_at: at(300), document_count: 7, ..version(1, 300, None) })
        );
        assert_eq!(publish(299), Err(Refusal::NotLaterThanLastVersion { not_before: at(300) }));
    }

    #[test]
    fn a_version_takes_effect_now_or_later_and_after_the_one_before() {
        let template = template(vec![version(1, 100, None), version(2, 200, Some(200))]);
        let publish = |effective: Option<i64>, reaccept, now| {
            next_version(&template, effective.map(at), reaccept, 1, at(now))
                .map(|v| (v.number, v.effective_from, v.reaccept_by))
        };
        assert_eq!(publish(None, Reaccept::WhenEffective, 300), Ok((3, at(300), Some(at(300)))));
        assert_eq!(publish(Some(300), Reaccept::Never, 300), Ok((3, at(300), None)));
        assert_eq!(publish(Some(400), Reaccept::By(at(500)), 300), Ok((3, at(400), Some(at(500)))));
        assert_eq!(
            publish(Some(299), Reaccept::Never, 300),
            Err(Refusal::NotLaterThanLastVersion { not_before: at(300) })
        );
        let just_after = at(200) + chrono::Duration::microseconds(1);
        assert_eq!(
            publish(Some(200), Reaccept::Never, 150),
            Err(Refusal::NotLaterThanLastVersion { not_before: just_after })
        );
        assert_eq!(publish(Some(400), Reaccept::By(at(400)), 300), Ok((3, at(400), Some(at(400)))));
        assert_eq!(publish(Some(201), Reaccept::Never, 150), Ok((3, at(201), None)));
        assert_eq!(
            publish(Some(400), Reaccept::By(at(399)), 300),
            Err(Refusal::field("reaccept_by", "must not be before effective_from"))
        );
    }

    #[test]
    fn a_retired_template_gets_no_version() {
        let mut retired = template(vec![version(1, 100, None)]);
        retired.retired_at = Some(at(200));
        let publish = |now| next_version(&retired, None, Reaccept::Never, 1, at(now));
        assert!(publish(199).is_ok());
        assert!(matches!(publish(200), Err(Refusal::TemplateRetired { .. })));
    }

    /// TPL-2.
    #[test]
    fn the_document_falls_back_to_english_then_to_the_united_states() {
        let document = |country: &str, language: &str| Document {
            country: country.into(),
            language: language.into(),
            link: "https://example.com".into(),
            sha256: String::new(),
        };
        let documents = [
            document("US", "en-US"),
            document("FR", "en-US"),
            document("FR", "fr-FR"),
            document("CH", "fr-FR"),
            document("CH", "fr-CH"),
            document("CH", "de-LI"),
            document("CH", "de-AT"),
            document("RS", "sr-Latn-RS"),
            document("IL", "he-IL"),
            document("ME", "sr-Latn-ME"),
            document("ME", "sr-Cyrl-ME"),
            document("BE", "nl"),
            // As an older release kept it.
            document("TW", "ZH-hant-tw"),
        ];
        for (country, language, expected) in [
            ("FR", "fr-FR", ("FR", "fr-FR", false)),
            ("FR", "fr-fr", ("FR", "fr-FR", false)),
            ("FR", "FR-FR", ("FR", "fr-FR", false)),
            ("FR", "fr", ("FR", "fr-FR", false)),
            ("FR", "Fr", ("FR", "fr-FR", false)),
            ("FR", "en", ("FR", "en-US", false)),
            ("FR", "fr-CA", ("FR", "en-US", true)),
            ("FR", "f", ("FR", "en-US", true)),
            ("FR", "de-DE", ("FR", "en-US", true)),
            // Its own region first, then the first by name, whatever the order.
            ("CH", "fr", ("CH", "fr-CH", false)),
            ("CH", "de", ("CH", "de-AT", false)),
            ("CH", "it", ("US", "en-US", true)),
            ("RS", "SR-LATN-rs", ("RS", "sr-Latn-RS", false)),
            ("RS", "sr-Latn", ("RS", "sr-Latn-RS", false)),
            ("RS", "sr", ("RS", "sr-Latn-RS", false)),
            ("RS", "sr-RS", ("RS", "sr-Latn-RS", false)),
            ("RS", "sr-Cyrl-RS", ("US", "en-US", true)),
            ("RS", "sr-ME", ("US", "en-US", true)),
            ("ME", "sr-ME", ("US", "en-US", true)),
            ("ME", "sr-Latn", ("ME", "sr-Latn-ME", false)),
            ("TW", "zh-TW", ("TW", "ZH-hant-tw", false)),
            ("BE", "nl-BE", ("BE", "nl", false)),
            ("BE", "nl", ("BE", "nl", false)),
            ("CH", "de-LI-u-co-phonebk", ("CH", "de-LI", false)),
            ("IL", "iw-IL", ("IL", "he-IL", false)),
            ("TW", "zh-Hant", ("TW", "ZH-hant-tw", false)),
            ("JP", "ja-JP", ("US", "en-US", true)),
        ] {
            let (document, is_fallback) = choose_document(&documents, country, language).unwrap();
            let served = (document.country.as_str(), document.language.as_str(), is_fallback);
            assert_eq!(served, expected, "{country} {language}");
        }
        assert_eq!(choose_document(&documents[2..], "JP", "ja-JP"), None);
        // Neither another country's English nor another language of the United States is the last resort.
        let others = [document("FR", "en-US"), document("US", "de-US"), document("US", "en-US")];
        assert_eq!(choose_document(&others, "JP", "ja-JP"), Some((&others[2], true)));
        assert_eq!(choose_document(&others[..2], "JP", "ja-JP"), None);
    }

    #[test]
    fn a_language_tag_has_one_spelling() {
        for (text, tag) in [
            ("fr-FR", "fr-FR"),
            ("FR-fr", "fr-FR"),
            ("sr-latn-rs", "sr-Latn-RS"),
            ("es-419", "es-419"),
            ("iw", "he"),
            ("CA-es-VALENCIA", "ca-ES-valencia"),
            ("de-de-u-co-phonebk", "de-DE"),
        ] {
            assert_eq!(language_tag(text).as_deref(), Some(tag), "{text}");
        }
        // As long as tags may be, and one character longer.
        let longest = "sr-Latn-RS-variant1-variant2-varian";
        assert_eq!(language_tag(longest).map(|tag| tag.len()), Some(35));
        assert_eq!(language_tag(&format!("{longest}3")), None);
        let long = format!("fr-{}", ["variant1", "variant2", "variant3", "variant4"].join("-"));
        for text in [
            "",
            "f",
            "fr_FR",
            "fr-",
            "-fr",
            "fr--FR",
            "fr-F",
            "fran\u{e7}ais",
            "deutsch-DE",
            "und",
            "*",
            "fr-FR ",
            &long,
        ] {
            assert_eq!(language_tag(text), None, "{text}");
        }
    }

    /// TPL-2.
    #[test]
    fn every_problem_of_the_documents_is_named_by_its_path() {
        let document = |country: &str, language: &str, link: &str, sha256: &str| Document {
            country: country.into(),
            language: language.into(),
            link: link.into(),
            sha256: sha256.into(),
        };
        let us = document("US", "en-US", "https://example.com", "");
        let problems_beside_us = |other| {
            let problems = document_problems(&[us.clone(), other]).into_iter();
            problems.map(|(_, bad)| format!("{} {}", bad.field, bad.problem)).collect::<Vec<_>>()
        };
        let digest = "0123456789abcdef".repeat(4);
        let link_of = |length: usize| format!("https://{}", "\u{e9}".repeat(length - 8));
        for fine in [
            document("FR", "fr-FR", "https://example.com", ""),
            document("US", "es-US", "https://example.com", &digest),
            document("FR", "en-US", &link_of(2000), ""),
        ] {
            assert_eq!(problems_beside_us(fine), [""; 0]);
        }
        let country = "documents[1].country must be an ISO 3166-1 alpha-2 code in upper case";
        let language = "documents[1].language must be a language tag such as fr-FR";
        let repeated = "documents[1].language repeats an earlier country and language";
        let link = "documents[1].link must begin with https:// and have at most 2000 characters";
        let sha256 = "documents[1].sha256 must be empty or 64 lower-case hexadecimal digits";
        for (wrong, expected) in [
            (document("fr", "fr-FR", "https://example.com", ""), vec![country]),
            (document("FR", "f", "https://example.com", ""), vec![language]),
            (document("US", "EN-us", "https://example.com", ""), vec![repeated]),
            (document("FR", "fr-FR", "http://example.com", ""), vec![link]),
            (document("FR", "fr-FR", "https://example.com/\n", ""), vec![link]),
            (document("FR", "fr-FR", &link_of(2001), ""), vec![link]),
            (document("FR", "fr-FR", "https://example.com", &digest[1..]), vec![sha256]),
            (document("FR", "fr-FR", "https://example.com", &format!("{digest}0")), vec![sha256]),
            (document("FR", "fr-FR", "https://example.com", &digest.to_uppercase()), vec![sha256]),
            (document("FR", "fr-FR", "https://example.com", &digest.replace('f', "g")), vec![sha256]),
            (document("", "", "", "-"), vec![country, language, link, sha256]),
        ] {
            assert_eq!(problems_beside_us(wrong.clone()), expected, "{wrong:?}");
        }
        let of_all = |documents: &[Document]| {
            let problems = document_problems(documents).into_iter();
            problems.map(|(_, bad)| (bad.field, bad.problem)).collect::<Vec<_>>()
        };
        let entries = "must have 1 to 2000 entries";
        let last_resort = "must have one for US in en-US, the last resort of every request";
        assert_eq!(of_all(&[]), [("documents".into(), entries.into())]);
        let french = document("FR", "fr-FR", "https://example.com", "");
        assert_eq!(of_all(&[french]), [("documents".into(), last_resort.into())]);
    }
}
