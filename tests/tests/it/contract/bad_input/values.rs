//! Bad values. A request takes one of each list for the fields that it has, and every value has its turn.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use prost_types::Timestamp;
use proto::agreement::SupportContact;
use proto::types::{AttestationDetails, Contact, ShownText};

pub(super) const IDS: [&str; 10] = [
    "",
    "ABCDEF00-0000-4000-8000-00000000ABCD",
    "00000000-0000-0000-0000-000000000000",
    "garbage",
    "abcdef000000400080000000000000ab",
    "{abcdef00-0000-4000-8000-00000000abcd}",
    "urn:uuid:abcdef00-0000-4000-8000-00000000abcd",
    " abcdef00-0000-4000-8000-00000000abcd",
    "abcdef00-0000-4000-8000-00000000abc\0",
    "abcdef00-0000-4000-8000-00000000abcd' OR '1'='1",
];
pub(super) const COUNTRIES: [&str; 7] = ["", "fr", "F", "FRA", "F\0", "ＦＲ", "FR "];
pub(super) const LANGUAGES: [&str; 8] =
    ["", "f", "fr--FR", "fr_FR", "fr-", "fr-F\0", "français", "deutsch-DE"];
pub(super) const EMAILS: [&str; 12] = [
    "",
    "tania",
    "tania@contoso",
    "tania carr@contoso.example",
    "tania\0@contoso.example",
    "tania@carr@contoso.example",
    "tania@contoso.example,mal@contoso.example",
    "tania@contoso.example\nBcc: mal@contoso.example",
    "t\u{e4}nia@contoso.example",
    "tania@contoso\u{e9}.example",
    // KELVIN SIGN, which NFC turns into an ASCII letter.
    "tania@\u{212a}ontoso.example",
    "tania\u{200b}@contoso.example",
];
pub(super) const DOMAINS: [&str; 14] = [
    "",
    " ",
    "contoso",
    "-contoso.example",
    "contoso..example",
    "contoso.example.",
    "127.0.0.1",
    "localhost",
    "contoso.local",
    "contoso.exam\0ple",
    "https://contoso.example",
    "contoso\u{e9}.example",
    // KELVIN SIGN, whose lower case is an ASCII letter.
    "\u{212a}ontoso.example",
    "con\u{ad}toso.example",
];
pub(super) const LINKS: [&str; 5] = [
    "",
    "http://contoso.example",
    "javascript:alert(1)",
    "https://contoso.example/\0",
    "https://contoso.example/\u{200b}",
];
pub(super) const DIGESTS: [&str; 4] = [
    "abc",
    "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\0",
];
pub(super) const ENUMS: [i32; 5] = [0, 99, -1, i32::MAX, i32::MIN];
pub(super) const PAGE_SIZES: [i32; 2] = [-1, i32::MIN];
pub(super) const PAGE_TOKENS: [&str; 6] =
    ["garbage", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAA", "\0", "ÿ", "' OR '1'='1"];

/// Times that are no times on the wire: finer than microseconds, or outside the years 2010 to 9999.
pub(super) const TIMES: [Timestamp; 11] = [
    Timestamp { seconds: 1_700_000_000, nanos: 1 },
    Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 },
    Timestamp { seconds: 1_700_000_000, nanos: -1 },
    Timestamp { seconds: 1_700_000_000, nanos: 1_000_000_000 },
    Timestamp { seconds: 1_700_000_000, nanos: i32::MIN },
    Timestamp { seconds: 253_402_300_800, nanos: 0 },
    Timestamp { seconds: 0, nanos: 0 },
    Timestamp { seconds: 1_262_303_999, nanos: 999_999_000 },
    Timestamp { seconds: -62_135_596_800, nanos: 0 },
    Timestamp { seconds: i64::MAX, nanos: 0 },
    Timestamp { seconds: i64::MIN, nanos: 0 },
];

/// Enough rounds for every value of every list.
pub(super) const ROUNDS: usize = 14;

pub(super) fn pick<T: Clone>(values: &[T], round: usize) -> T {
    values[round % values.len()].clone()
}

/// As [`pick`], of a field that may be left empty.
pub(super) fn pick_given(values: &[&str], round: usize) -> String {
    let given: Vec<_> = values.iter().filter(|value| !value.trim().is_empty()).collect();
    pick(&given, round).to_string()
}

pub(super) fn id(round: usize) -> String {
    pick(&IDS, round).into()
}

pub(super) fn given_id(round: usize) -> String {
    pick_given(&IDS, round)
}

/// Required text of at most `max` characters: nothing, blanks, one too many, what cannot be seen.
pub(super) fn text(round: usize, max: usize) -> String {
    const UNSEEN: [&str; 10] = [
        "Con\0toso",
        "Con\ntoso",
        "Con\u{7f}toso",
        "Con\u{85}toso",
        "\u{200b}\u{feff}",
        "Con\u{ad}toso",
        "Contoso\u{3164}",
        "\u{2800}",
        "\u{202e}osotnoC",
        "\u{301}",
    ];
    let bad = ["".into(), " \t\u{3000}".into(), "x".repeat(max + 1), "😀".repeat(max + 1)];
    pick(&[&bad[..], &UNSEEN.map(String::from)].concat(), round)
}

/// Text that may be left empty.
pub(super) fn given_text(round: usize, max: usize) -> String {
    text(2 + round % 12, max)
}

pub(super) fn required_time(round: usize) -> Option<Timestamp> {
    let mut times = vec![None];
    times.extend(past_times().into_iter().map(Some));
    pick(&times, round)
}

/// As [`required_time`], of a field that may be left empty.
pub(super) fn given_time(round: usize) -> Option<Timestamp> {
    Some(pick(&past_times(), round))
}

fn past_times() -> Vec<Timestamp> {
    let in_an_hour = timestamp(Clock::system().now() + Duration::hours(1));
    let end_of_time = Timestamp { seconds: 253_402_300_799, nanos: 999_999_000 };
    TIMES.into_iter().chain([in_an_hour, end_of_time]).collect()
}

/// Until when an invitation may not be made to last: the past, more than 90 days, no time.
pub(super) fn expiry(round: usize) -> Option<Timestamp> {
    let now = Clock::system().now();
    let mut times: Vec<_> = TIMES.map(Some).to_vec();
    times.extend([now, now + Duration::days(91)].map(|time| Some(timestamp(time))));
    pick(&times, round)
}

/// A support contact with no good field.
pub(super) fn support(round: usize) -> Option<SupportContact> {
    let (email, phone, url) = (given_text(round, 254), given_text(round, 50), given_text(round, 500));
    Some(SupportContact { email, phone, url })
}

pub(super) fn contact(round: usize) -> Option<Contact> {
    Some(Contact {
        first_name: text(round, 100),
        last_name: text(round + 1, 100),
        email: if round == 0 { "x".repeat(255) } else { pick(&EMAILS, round).into() },
        phone: given_text(round, 50),
    })
}

/// The details of an attestation, all bad. agreement-svc knows a digest by its digits.
pub(super) fn details(round: usize) -> Option<AttestationDetails> {
    Some(AttestationDetails {
        title: given_text(round, 100),
        evidence_reference: given_text(round + 1, 200),
        evidence_sha256: match round % 2 {
            0 => pick(&DIGESTS, round / 2).into(),
            _ => given_text(round, 64),
        },
        on_behalf_of: given_text(round + 2, 50),
        external_reference: given_text(round + 3, 80),
        shown_text: shown_text(round),
    })
}

/// A text that was shown, of no country and language.
pub(super) fn shown_text(round: usize) -> Option<ShownText> {
    let (country, language, sha256) =
        (pick(&COUNTRIES, round), pick(&LANGUAGES, round), pick(&DIGESTS, round));
    Some(ShownText { country: country.into(), language: language.into(), sha256: sha256.into() })
}
