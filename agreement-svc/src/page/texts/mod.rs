//! Every text of the pages, in each language that texts ship in. A language without one of them does not compile.

mod de;
mod en;
mod fr;

use http::HeaderMap;
use http::header::ACCEPT_LANGUAGE;

use crate::rules::language::{SHIPPED, negotiated};

/// A sentence about partners: what stands before and after their names.
pub(super) struct Sentence {
    one: [&'static str; 2],
    several: [&'static str; 2],
}

/// The texts of a language.
pub(super) struct Texts {
    /// The language, a BCP 47 tag.
    pub tag: &'static str,
    pub months: [&'static str; 12],

    // What pages share.
    pub skip: &'static str,
    pub navigation: &'static str,
    pub error: &'static str,
    pub errors_below: &'static str,
    pub email: &'static str,
    pub phone: &'static str,
    pub site: &'static str,
    pub provider: &'static str,
    pub reseller: &'static str,
    pub agreement: &'static str,
    pub name: &'static str,
    pub version: &'static str,
    /// The same within a sentence.
    pub version_within: &'static str,
    pub text: &'static str,
    /// Before the country, between it and the language, and before those of the text that is shown.
    pub fallback: [&'static str; 3],
    pub read: &'static str,
    pub new_tab: &'static str,
    /// Before and after the name of the company.
    pub accept_box: [&'static str; 2],
    pub box_missing: &'static str,
    pub accept: &'static str,
    /// What follows from an acceptance.
    pub accept_effect: Sentence,
    pub sign_effect: &'static str,
    pub reason: &'static str,
    pub reason_missing: &'static str,
    pub choose: &'static str,
    pub signed_at: &'static str,
    /// Between the names of two partners.
    and: &'static str,

    // An invitation.
    pub invitation: &'static str,
    pub until: &'static str,
    pub invited_by: &'static str,
    pub contact_before: &'static str,
    /// Before the name of the agreement.
    pub about_agreement: &'static str,
    pub relate_effect: Sentence,
    pub relate_text: &'static str,
    /// Before and after the name of the company.
    pub relate_box: [&'static str; 2],
    pub decline: &'static str,
    pub decline_text: &'static str,
    /// By the names of the contract.
    pub decline_reasons: [(&'static str, &'static str); 4],
    pub company: &'static str,
    pub company_text: &'static str,
    /// Labels, hints, and what is wrong with an entry: name, domain, country, first name, last name, e-mail and telephone.
    pub company_fields: [[&'static str; 3]; 7],
    pub optional: &'static str,
    pub field_missing: &'static str,
    pub domain_taken: &'static str,
    pub go_on: &'static str,
    pub edit: &'static str,

    // An answered invitation.
    pub accepted: &'static str,
    pub accepted_text: &'static str,
    pub related_text: &'static str,
    pub signature_number: &'static str,
    pub already_accepted: &'static str,
    pub already_accepted_text: &'static str,
    pub nothing_to_do: &'static str,
    pub unsigned_text: &'static str,
    pub accepted_at: &'static str,
    pub declined: &'static str,
    pub declined_text: &'static str,
    pub declined_at: &'static str,
    pub revoked: &'static str,
    pub revoked_text: &'static str,
    pub revoked_at: &'static str,
    pub expired: &'static str,
    pub expired_text: &'static str,
    pub expired_at: &'static str,

    // Partners and acceptances.
    pub partners: &'static str,
    pub relationships: &'static str,
    pub no_partners: &'static str,
    pub since: &'static str,
    pub more: &'static str,
    pub signatures: &'static str,
    pub no_signatures: &'static str,
    pub sign_link: &'static str,
    pub sign_text: &'static str,
    pub signed_text: &'static str,
    pub attestations: &'static str,
    pub attestations_text: &'static str,
    pub no_attestations: &'static str,
    pub newest_only: &'static str,
    pub attested_by: &'static str,
    pub person: &'static str,
    pub agreed_at: &'static str,

    // A withdrawal.
    pub withdraw_link: &'static str,
    pub effect: &'static str,
    /// Before and after the list of the partners.
    pub effect_text: [&'static str; 2],
    pub effect_none: &'static str,
    /// By the names of the contract.
    pub withdrawal_reasons: [(&'static str, &'static str); 4],
    pub keep: &'static str,
    pub withdrawn: &'static str,
    pub withdrawn_text: &'static str,
    pub withdrawn_at: &'static str,
    pub sign_again: &'static str,

    // Refusals.
    pub no_page: &'static str,
    pub no_page_text: &'static str,
    pub unknown_link: &'static str,
    pub unknown_link_text: &'static str,
    pub not_signed_in: &'static str,
    pub not_signed_in_text: &'static str,
    pub sign_in_again: &'static str,
    pub not_allowed: &'static str,
    pub not_allowed_text: &'static str,
    pub other_site: &'static str,
    pub other_site_text: &'static str,
    pub too_often: &'static str,
    pub too_often_text: &'static str,
    pub changed: &'static str,
    pub changed_text: &'static str,
    pub form_text: &'static str,
    pub cannot_sign: &'static str,
    pub contact_partner: &'static str,
    pub retired_text: &'static str,
    pub cloud_text: &'static str,
    pub not_accepted: &'static str,
    pub is_partner_text: &'static str,
    pub not_linked_text: &'static str,
    pub superseded: &'static str,
    pub superseded_text: &'static str,
    pub failed: &'static str,
    pub failed_text: &'static str,
    pub busy: &'static str,
    pub busy_text: &'static str,

    // The sign-in for development.
    pub sign_in: &'static str,
    pub sign_in_text: &'static str,
    pub sign_in_tenant: &'static str,
    pub sign_in_user: &'static str,
    pub sign_in_button: &'static str,
    pub sign_in_ids: &'static str,
}

impl Texts {
    /// A sentence with the names of partners.
    pub(super) fn about(&self, sentence: &Sentence, names: &[&str]) -> String {
        let [before, after] = if names.len() == 1 { sentence.one } else { sentence.several };
        format!("{before}{}{after}", names.join(self.and))
    }

    /// The texts for a language tag: those of its primary language, else the English ones.
    pub(super) fn of(tag: &str) -> &'static Self {
        match negotiated(&tag.to_ascii_lowercase(), |tag| SHIPPED.contains(&tag)) {
            "fr" => &fr::TEXTS,
            "de" => &de::TEXTS,
            _ => &en::TEXTS,
        }
    }

    /// The texts in the language that a browser prefers, else the English ones.
    pub(super) fn accepted(headers: &HeaderMap) -> &'static Self {
        Self::preferred(headers).unwrap_or(&en::TEXTS)
    }

    /// The texts in the language that a browser prefers (`Accept-Language`) among those that ship, if it names one.
    pub(super) fn preferred(headers: &HeaderMap) -> Option<&'static Self> {
        let given = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let weighted = given.split(',').map(|one| {
            let (tag, weight) = one.split_once(';').unwrap_or((one, "q=1"));
            let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse().ok());
            (tag.trim().to_ascii_lowercase(), weight.unwrap_or(0.0_f32))
        });
        let is_known = |tag: &str| SHIPPED.contains(&tag.split('-').next().unwrap_or_default());
        let known = weighted.filter(|(tag, weight)| is_known(tag) && *weight > 0.0);
        // The first of the most preferred.
        let best = known.reduce(|best, other| if other.1 > best.1 { other } else { best });
        best.map(|(tag, _)| Self::of(&tag))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proto::agreement::{DeclineReason, WithdrawalReason};

    use super::*;

    #[test]
    fn a_browser_gets_the_language_that_it_prefers_and_that_ships() {
        for (accepted, expected) in [
            ("", None),
            ("fr", Some("fr")),
            ("fr-CA", Some("fr")),
            ("ja, de-AT;q=0.8, fr;q=0.9", Some("fr")),
            ("en;q=0.5, DE", Some("de")),
            ("en; q=0.8, fr; q=0.9", Some("fr")),
            ("de;q=0, fr;q=0.1", Some("fr")),
            ("*", None),
            ("ja", None),
            ("fr;q=x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static(accepted));
            assert_eq!(Texts::preferred(&headers).map(|texts| texts.tag), expected, "{accepted}");
            assert_eq!(Texts::accepted(&headers).tag, expected.unwrap_or("en"), "{accepted}");
        }
    }

    /// The texts of a language as the source has them: name and value.
    fn source(tag: &str) -> Vec<(String, String)> {
        let source = match tag {
            "en" => include_str!("en.rs"),
            "fr" => include_str!("fr.rs"),
            _ => include_str!("de.rs"),
        };
        let mut name = String::new();
        let mut found = vec![];
        for line in source.lines().skip_while(|line| !line.contains("TEXTS")) {
            if let Some((before, _)) = line.trim().split_once(": ")
                && before.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                name = before.to_owned();
            }
            for (nth, text) in line.split('"').enumerate().filter(|(nth, _)| nth % 2 == 1) {
                found.push((format!("{name}.{nth}"), text.to_owned()));
            }
        }
        found
    }

    #[test]
    fn every_language_has_every_text() {
        let english = source("en");
        assert!(english.len() > 100, "{}", english.len());
        for tag in SHIPPED {
            assert_eq!(Texts::of(tag).tag, tag);
            let texts = source(tag);
            assert_eq!(texts.len(), english.len(), "{tag}");
            for ((name, text), (_, english)) in texts.iter().zip(&english) {
                assert!(!text.trim().is_empty(), "{tag} {name}");
                let is_sentence = english.contains(' ') && english.ends_with('.');
                assert!(tag == "en" || !is_sentence || text != english, "{tag} {name} is in English");
            }
        }
    }

    #[test]
    fn the_reasons_are_those_of_the_contract() {
        for tag in SHIPPED {
            let texts = Texts::of(tag);
            for (name, _) in texts.decline_reasons {
                assert!(DeclineReason::from_str_name(name).is_some(), "{name}");
            }
            for (name, _) in texts.withdrawal_reasons {
                assert!(WithdrawalReason::from_str_name(name).is_some(), "{name}");
            }
        }
    }
}
