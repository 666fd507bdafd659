//! Text that people type. Two texts that look the same are the same, and one that looks empty is empty.

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{
    CanonicalCombiningClass, DefaultIgnorableCodePoint, EmojiPresentation, ExtendedPictographic,
    GeneralCategory, GeneralCategoryGroup, JoiningType,
};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Composed (NFC), with a plain space for every kind of space, and without spaces around it.
#[must_use]
pub fn normalized(text: &str) -> String {
    let composed = ComposingNormalizerBorrowed::new_nfc().normalize(text);
    let plain = |c| if category(c) == GeneralCategory::SpaceSeparator { ' ' } else { c };
    composed.trim().chars().map(plain).collect()
}

/// Why a text cannot be kept, if it cannot: it has a character that is not seen, that looks like a space and is
/// none, or that stands for a lost one. The answer names the code point and its place, and never the text.
#[must_use]
pub fn unseen(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let place = (0..chars.len()).find(|n| is_unseen(chars[*n]) && !is_shaping(&chars, *n))?;
    let what = match chars[place] {
        LOST => "which stands for a character that a conversion lost; write that character",
        _ => "which cannot be seen; leave it out",
    };
    Some(format!("must not contain U+{:04X} (character {}), {what}", u32::from(chars[place]), place + 1))
}

/// Whether something of a text can be seen: a letter, a digit, a sign. An accent alone, or a code point that no font
/// has a picture for, is no name.
#[must_use]
pub fn is_visible(text: &str) -> bool {
    let unseen =
        GeneralCategoryGroup::Mark.union(GeneralCategoryGroup::Separator).union(GeneralCategoryGroup::Other);
    text.chars().any(|c| !unseen.contains(category(c)))
}

/// REPLACEMENT CHARACTER: the text was read in another encoding than it was written in.
const LOST: char = '\u{fffd}';

/// Blanks by their picture, though Unicode calls them signs, letters or marks.
const BLANKS: [char; 6] = ['\u{2800}', '\u{fffc}', '\u{13441}', '\u{13442}', '\u{16fe4}', '\u{1d159}'];

const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';
const EMOJI_SELECTOR: char = '\u{fe0f}';
const KEYCAP: char = '\u{20e3}';
const SKIN_TONES: std::ops::RangeInclusive<char> = '\u{1f3fb}'..='\u{1f3ff}';

fn category(c: char) -> GeneralCategory {
    CodePointMapData::<GeneralCategory>::new().get(c)
}

fn is_unseen(c: char) -> bool {
    let is_of_no_width = matches!(
        category(c),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    );
    is_of_no_width
        || c == LOST
        || is_noncharacter(c)
        || BLANKS.contains(&c)
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Code points that will never be a character of any version of Unicode.
fn is_noncharacter(c: char) -> bool {
    u32::from(c) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&c)
}

/// Whether an unseen character changes how the letters around it are drawn. Persian names are written with U+200C between
/// letters that would join, Sinhala, Bengali and other names with U+200D beside a virama: without them they are
/// misspelt, and with them they look different, so that nothing is hidden. These are the contexts of RFC 5892 A.1 and A.2,
/// and U+200D before a virama (Bengali ra with ya-phalaa). Emoji are joined in the same way.
fn is_shaping(chars: &[char], n: usize) -> bool {
    let before = n.checked_sub(1).map(|n| chars[n]);
    let after = chars.get(n + 1).copied();
    let is_virama = |c: Option<char>| {
        let class = CodePointMapData::<CanonicalCombiningClass>::new();
        c.is_some_and(|c| class.get(c) == CanonicalCombiningClass::Virama)
    };
    let is_picture =
        |c: Option<char>| c.is_some_and(|c| CodePointSetData::new::<ExtendedPictographic>().contains(c));
    match chars[n] {
        ZERO_WIDTH_NON_JOINER => is_virama(before) || is_between_joining(chars, n),
        ZERO_WIDTH_JOINER => {
            let mut pictures = chars[..n].iter().rev().copied();
            let joined = pictures.find(|c| *c != EMOJI_SELECTOR && !SKIN_TONES.contains(c));
            is_virama(before) || is_virama(after) || (is_picture(joined) && is_picture(after))
        }
        EMOJI_SELECTOR => {
            let is_colourful = |c: char| CodePointSetData::new::<EmojiPresentation>().contains(c);
            after == Some(KEYCAP) || (is_picture(before) && !before.is_some_and(is_colourful))
        }
        _ => false,
    }
}

/// Whether the letters on both sides would join, were it not for what stands between them.
fn is_between_joining(chars: &[char], n: usize) -> bool {
    let types = CodePointMapData::<JoiningType>::new();
    let joining = |c: &char| Some(types.get(*c)).filter(|joining| *joining != JoiningType::Transparent);
    let before = chars[..n].iter().rev().find_map(joining);
    let after = chars[n + 1..].iter().find_map(joining);
    matches!(before, Some(JoiningType::DualJoining | JoiningType::LeftJoining))
        && matches!(after, Some(JoiningType::DualJoining | JoiningType::RightJoining))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_looks_the_same_becomes_the_same() {
        for (given, kept) in [
            ("Cafe\u{301}", "Caf\u{e9}"),
            // Vietnamese, with two accents in either order.
            ("Ngo\u{323}\u{302}c", "Ng\u{1ed9}c"),
            ("Ngo\u{302}\u{323}c", "Ng\u{1ed9}c"),
            // Hangul by its letters, the sign for Ångström.
            ("\u{1112}\u{1161}\u{11ab}", "\u{d55c}"),
            ("\u{212b}ngstr\u{f6}m", "\u{c5}ngstr\u{f6}m"),
            ("  two  words\u{a0}and\u{3000}more \u{2009}", "two  words and more"),
        ] {
            assert_eq!(normalized(given), kept, "{given}");
            assert_eq!(normalized(kept), kept, "{given}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_named() {
        for c in "\u{0}\u{7f}\u{85}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{180b}\u{180e}\u{200b}\u{200c}\u{200d}\
                  \u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2064}\u{2066}\u{2069}\u{206f}\u{2800}\
                  \u{3164}\u{fdd0}\u{fe00}\u{fe0f}\u{feff}\u{ffa0}\u{fff9}\u{fffc}\u{fffd}\u{fffe}\u{1ffff}\u{13441}\u{16fe4}\u{1d159}\u{1d173}\
                  \u{e0001}\u{e0061}\u{e007f}\u{e0100}\u{e0fff}"
            .chars()
        {
            let text = format!("Tania {c}Carr");
            let problem = unseen(&text).unwrap_or_default();
            let named = format!("must not contain U+{:04X} (character 7), ", u32::from(c));
            assert!(problem.starts_with(&named), "{c:?}: {problem}");
            assert!(unseen(&c.to_string()).is_some(), "{c:?}");
        }
    }

    #[test]
    fn joiners_stay_where_they_change_what_is_seen() {
        for text in [
            // Persian Ali-Reza, and a plural; a mark in between.
            "\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627}",
            "\u{628}\u{650}\u{200c}\u{628}",
            // Sinhala Sri, Bengali RAB, Malayalam with an old chillu, Devanagari with a visible virama.
            "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
            "\u{9b0}\u{200d}\u{9cd}\u{9af}\u{9be}\u{9ac}",
            "\u{d05}\u{d35}\u{d28}\u{d4d}\u{200d}",
            "\u{915}\u{94d}\u{200c}\u{937}",
            // A family, one of several colours, a pirate's flag, a keycap, a heart.
            "\u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}",
            "\u{1f469}\u{1f3fd}\u{200d}\u{1f52c}",
            "\u{1f3f4}\u{200d}\u{2620}\u{fe0f}",
            "1\u{fe0f}\u{20e3}",
            "\u{2764}\u{fe0f}",
        ] {
            assert_eq!(unseen(text), None, "{text}");
            assert_eq!(normalized(text), text);
        }
        for text in [
            // Between letters that never join, at the end, twice, and where it changes nothing.
            "\u{627}\u{200c}\u{628}",
            "\u{628}\u{200c}",
            "\u{628}\u{200c}\u{200c}\u{628}",
            "a\u{200d}b",
            "\u{1f600}\u{fe0f}",
            "1\u{fe0f}",
            "\u{1f469}\u{200d}",
        ] {
            assert!(unseen(text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn a_name_has_something_to_see() {
        for text in ["x", "-", "\u{674e}", "\u{1f600}", "O'Neil \"the\" `Great` \\ /", "a\u{e000}"] {
            assert!(is_visible(text), "{text}");
        }
        for text in ["", " ", "\u{301}", "\u{20e3} \u{304}", "\u{e000}", "\u{10ffff}"] {
            assert!(!is_visible(text), "{text:?}");
        }
    }
}
