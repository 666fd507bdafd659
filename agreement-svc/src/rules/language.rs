//! The language of texts for a customer, by language tag (BCP 47): its default by country, and the negotiation with the
//! languages that texts exist in.

/// The languages that texts ship in. The first is the last resort.
pub const SHIPPED: [&str; 3] = ["en", "fr", "de"];

/// The language of a customer that named none, by its country.
pub fn of_country(country: &str) -> &'static str {
    const FRENCH: &str =
        "BF BI BJ BL CD CF CG CI CM DJ FR GA GF GN GP HT KM LU MC MF MG ML MQ NC NE PF PM RE SN TD TG WF YT";
    const GERMAN: &str = "AT CH DE LI";
    let speaks = |countries: &str| countries.split(' ').any(|known| known == country);
    match country {
        _ if speaks(FRENCH) => "fr",
        _ if speaks(GERMAN) => "de",
        _ => "en",
    }
}

/// The language to write in: the tag itself, else its language without region and script, else English.
pub fn negotiated(tag: &str, is_known: impl Fn(&str) -> bool) -> &str {
    let primary = tag.split('-').next().unwrap_or_default();
    [tag, primary].into_iter().find(|tag| is_known(tag)).unwrap_or(SHIPPED[0])
}

/// The vendor's sentence for a customer that cannot sign directly (DIR-4), in a language, with the tag of that language.
pub fn contact_partner(tag: &str) -> (&str, &'static str) {
    let language = negotiated(tag, |tag| SHIPPED.contains(&tag));
    let sentence = match language {
        "fr" => "Contactez votre partenaire pour confirmer votre acceptation du Contrat client Microsoft",
        "de" => {
            "Wenden Sie sich an Ihren Partner, um Ihre Zustimmung zur Microsoft-Kundenvereinbarung zu bestätigen"
        }
        _ => "Contact your partner to confirm your acceptance of the Microsoft Customer Agreement",
    };
    (language, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CUS-5.
    #[test]
    fn a_language_is_the_tag_its_primary_subtag_or_english() {
        let known = ["en", "fr", "pt-BR"];
        for (tag, expected) in
            [("fr", "fr"), ("fr-CA", "fr"), ("pt-BR", "pt-BR"), ("pt-PT", "en"), ("de-AT", "en"), ("", "en")]
        {
            assert_eq!(negotiated(tag, |tag| known.contains(&tag)), expected, "{tag}");
        }
        for (country, expected) in [("FR", "fr"), ("AT", "de"), ("US", "en"), ("BE", "en"), ("", "en")] {
            assert_eq!(of_country(country), expected, "{country}");
        }
    }

    /// DIR-4.
    #[test]
    fn the_sentence_of_the_vendor_is_there_in_every_language_that_ships() {
        for (tag, language, begin) in [
            ("en-GB", "en", "Contact your partner"),
            ("fr-BE", "fr", "Contactez votre partenaire"),
            ("de", "de", "Wenden Sie sich an Ihren Partner"),
            ("ja", "en", "Contact your partner"),
        ] {
            let (said, sentence) = contact_partner(tag);
            assert!(said == language && sentence.starts_with(begin), "{tag}: {said} {sentence}");
        }
    }
}
