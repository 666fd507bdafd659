//! The mails about attestations to the contacts of customers (ATT-9), and those to contacts that were replaced: what
//! they say, when they are sent, and what becomes of one that could not be sent.

use std::fmt;
use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::party::Support;
use super::{Refusal, Time};

/// Waits after failures, before jitter: the first, and the longest.
pub const RETRY_BASE: Duration = Duration::from_secs(1);
pub const RETRY_MAX: Duration = Duration::from_secs(300);

/// After so many failures a notification is a dead letter. The mail has to reach the customer within half
/// an hour, and one attempt more could end after it: the waits come to at most 18.5 minutes, each attempt may take 11
/// seconds, and the first may wait for others for up to [`INTERVAL_MAX`].
pub const ATTEMPTS_MAX: u32 = 12;

/// How long a mail to a customer may wait so that the mail before it is some time ago.
pub const INTERVAL_MAX: Duration = Duration::from_secs(300);

/// Attestations in one mail: enough for every import, and a mail that can still be read.
pub const ANNOUNCED_MAX: usize = 50;

/// Characters of a name that a mail quotes: enough to recognize a company or a person, too few for a message to it.
const NAME_MAX: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum NotificationState {
    /// Will be sent, or tried again, when it is due.
    Queued,
    /// The mail server took it.
    Sent,
    /// Failed too often; waits until the partner asks for another try.
    DeadLetter,
}

/// How far the notification of an attestation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub attestation_id: Uuid,
    pub state: NotificationState,
    /// Made so far.
    pub attempts: u32,
    /// When it is tried next, or, claimed, when another process may.
    pub due_at: Time,
    pub sent_at: Option<Time>,
    /// Why the last attempt failed; empty while none did. Never what a mail server said, which may name
    /// the addressee.
    pub last_failure: String,
}

impl Notification {
    /// Queues a dead letter anew, as if it had never been tried. Why it failed last stays readable.
    pub fn retry(self, now: Time) -> Result<Self, Refusal> {
        match self.state {
            NotificationState::DeadLetter => {
                Ok(Self { state: NotificationState::Queued, attempts: 0, due_at: now, ..self })
            }
            state => Err(Refusal::NotificationNotDead { state }),
        }
    }
}

/// A mail that is due, with all that it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueMail {
    /// Of the mail, the same at every attempt: of its first attestation, or of the notice.
    pub id: Uuid,
    /// The contact's address now; empty if there is none.
    pub recipient: String,
    pub company_name: String,
    /// The customer's.
    pub language: String,
    pub content: Content,
}

impl DueMail {
    /// The partner that the mail is about.
    pub fn sender(&self) -> Option<&Sender> {
        match &self.content {
            Content::Attested { partner, .. } => Some(partner),
            Content::ContactChanged { partner, .. } => partner.as_ref(),
        }
    }

    /// Attempts, the one about to be made included.
    pub fn attempts(&self) -> u32 {
        match &self.content {
            Content::Attested { attestations, .. } => {
                attestations.iter().map(|of| of.attempts).max().unwrap_or_default()
            }
            Content::ContactChanged { attempts, .. } => *attempts,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Attestations of one partner for one customer, at least one.
    Attested { partner: Sender, attestations: Vec<Announced> },
    /// The contact was changed, by a partner, or without one by the customer's own administrator.
    ContactChanged {
        partner: Option<Sender>,
        /// Attempts, the one about to be made included.
        attempts: u32,
    },
}

/// The partner that a mail is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    pub name: String,
    /// Where the addressee asks.
    pub support: Support,
}

/// What a mail says of one attestation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub attestation_id: Uuid,
    /// Attempts, the one about to be made included.
    pub attempts: u32,
    /// Of the person attested; empty once that person was erased.
    pub first_name: String,
    pub last_name: String,
    /// The template's name.
    pub agreement: String,
    pub version: u32,
    pub agreed_at: Time,
}

/// When announcements to a customer may be sent that wait beside a mail to it: at once, or once the interval has passed
/// since that was sent, so that what comes within it is one mail. `sent_at` is absent while the mail is on its way.
pub fn gathered_until(sent_at: Option<Time>, now: Time, interval: Duration) -> Option<Time> {
    let interval = interval.min(INTERVAL_MAX);
    let until = sent_at.unwrap_or(now) + interval;
    (until > now && !interval.is_zero()).then_some(until)
}

/// The beginning of the day whose mails are counted, and of the next, in UTC.
pub fn day_of(now: Time) -> (Time, Time) {
    let begin = now.date_naive().and_time(chrono::NaiveTime::MIN).and_utc();
    (begin, begin + chrono::TimeDelta::days(1))
}

/// Why a notification could not be sent: a category, and nothing that a mail server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailFailure {
    /// The mail server could not be reached, or went away.
    Connection,
    /// It did not answer in time.
    Timeout,
    /// It offers no encryption, or a certificate that is not trusted.
    Tls,
    /// It knows no way to log in that we know.
    Login,
    /// It refused, with this code.
    Reply(u16),
    /// The folder for mails cannot be written to.
    Folder,
    /// No mail can be sent to the address.
    Address,
    /// There is no address: no contact was set, or it was erased.
    NoContact,
    /// Its template cannot be rendered.
    Template,
    /// The mails of the sender's day are used up; it waits for the next day.
    DailyLimit,
}

impl fmt::Display for MailFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("CONNECTION"),
            Self::Timeout => f.write_str("TIMEOUT"),
            Self::Tls => f.write_str("TLS"),
            Self::Login => f.write_str("LOGIN"),
            Self::Reply(code) => write!(f, "SMTP {code}"),
            Self::Folder => f.write_str("FOLDER"),
            Self::Address => f.write_str("ADDRESS"),
            Self::NoContact => f.write_str("NO_CONTACT"),
            Self::Template => f.write_str("TEMPLATE"),
            Self::DailyLimit => f.write_str("DAILY_LIMIT"),
        }
    }
}

/// What becomes of a notification that could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Queued { due_at: Time },
    DeadLetter,
}

/// Decides after a failure: another attempt after `wait`, unless there were too many or none can help.
/// Codes that a mail server calls permanent are tried again too: only the reply's text would distinguish a full
/// mailbox, or a relay that was misconfigured for a minute, from an unknown addressee.
pub fn after_failure(failure: MailFailure, attempts: u32, now: Time, wait: Duration) -> Outcome {
    match failure {
        MailFailure::Address | MailFailure::NoContact => Outcome::DeadLetter,
        _ if attempts >= ATTEMPTS_MAX => Outcome::DeadLetter,
        _ => {
            let wait = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            Outcome::Queued { due_at: now + Duration::from_micros(wait) }
        }
    }
}

/// A name as a mail quotes it, which a tenant may have chosen to reach whom it pleases: as long as a name is, and
/// without what a mail program shows as a link.
pub fn quoted(name: &str) -> String {
    let mut text = String::new();
    let mut letters = name.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '/' | '\\' | ':' | '@' | '<' | '>' => text.push(' '),
            _ if letter.is_whitespace() || letter.is_control() => text.push(' '),
            '.' if letters.peek().is_some_and(|next| next.is_alphanumeric()) => text.push_str(". "),
            _ => text.push(letter),
        }
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(NAME_MAX) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text,
    }
}

/// Mails for the tests of their content and of their texts.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn announced(id: u128) -> Announced {
        Announced {
            attestation_id: Uuid::from_u128(id),
            attempts: 1,
            first_name: "Tania".into(),
            last_name: "Carr".into(),
            agreement: "Microsoft Customer Agreement".into(),
            version: 2,
            agreed_at: Time::UNIX_EPOCH,
        }
    }

    pub(crate) fn sender(name: &str) -> Sender {
        let support = Support { email: "help@northwind.example".into(), ..Support::default() };
        Sender { name: name.into(), support }
    }

    pub(crate) fn mail(partner_name: &str, company_name: &str, attestations: Vec<Announced>) -> DueMail {
        DueMail {
            id: Uuid::from_u128(7),
            recipient: "primary@contoso.example".into(),
            company_name: company_name.into(),
            language: "en".into(),
            content: Content::Attested { partner: sender(partner_name), attestations },
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::testing::{announced, mail};
    use super::*;

    /// ATT-9: a name is quoted as a name, so that it carries no message.
    #[test]
    fn a_mail_quotes_names_without_links_and_no_longer_than_names_are() {
        let mut table = String::new();
        for name in [
            "Contoso",
            "Contoso S.A., Paris",
            "O\u{2019}Neil & Sons (UK) Ltd.",
            "  Contoso \u{a0} Paris ",
            "Win at https://evil.example/prize?id=1",
            "www.evil.example",
            "call me <boss@evil.example>",
        ] {
            table += &format!("{}\n", quoted(name));
        }
        expect![[r#"
            Contoso
            Contoso S. A., Paris
            O’Neil & Sons (UK) Ltd.
            Contoso Paris
            Win at https evil. example prize?id=1
            www. evil. example
            call me boss evil. example
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn a_quoted_name_is_cut_after_sixty_characters_and_has_no_control_characters() {
        let sixty = "\u{e9}".repeat(60);
        for (name, expected) in [
            (sixty.clone(), sixty.clone()),
            (format!("{sixty}x"), format!("{sixty}…")),
            (format!("{} and more", "x".repeat(59)), format!("{}…", "x".repeat(59))),
            ("Con\u{7}toso\nParis".into(), "Con toso Paris".into()),
            ("a/b\\c:d@e<f>g".into(), "a b c d e f g".into()),
        ] {
            assert_eq!(quoted(&name), expected);
        }
    }

    /// Announcements that joined a mail may have fewer attempts behind them than it has.
    #[test]
    fn a_mail_has_as_many_attempts_as_its_most_tried_announcement() {
        let tried = |attempts| Announced { attempts, ..announced(u128::from(attempts)) };
        assert_eq!(mail("", "", vec![tried(2), tried(5), tried(3)]).attempts(), 5);
        let content = Content::ContactChanged { partner: None, attempts: 4 };
        assert_eq!(DueMail { content, ..mail("", "", vec![]) }.attempts(), 4);
    }

    #[test]
    fn a_day_of_mails_begins_at_midnight_utc() {
        let time = |text: &str| text.parse::<Time>().unwrap();
        let days @ (today, tomorrow) = (time("2024-02-29T00:00:00Z"), time("2024-03-01T00:00:00Z"));
        for now in ["2024-02-29T00:00:00Z", "2024-02-29T12:34:56Z", "2024-02-29T23:59:59.999999Z"] {
            assert_eq!(day_of(time(now)), days, "{now}");
        }
        assert_eq!(day_of(today - Duration::from_micros(1)).1, today);
        assert_eq!(day_of(tomorrow).0, tomorrow);
    }

    #[test]
    fn announcements_wait_until_the_interval_after_the_last_mail() {
        let (now, interval) = (Time::UNIX_EPOCH + Duration::from_secs(1000), Duration::from_secs(60));
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        let wait = |sent_at, interval| {
            gathered_until(sent_at, now, interval).map(|until| (until - now).num_seconds())
        };
        assert_eq!(wait(None, interval), Some(60));
        assert_eq!(wait(ago(0), interval), Some(60));
        assert_eq!(wait(ago(59), interval), Some(1));
        assert_eq!(wait(ago(60), interval), None);
        assert_eq!(wait(ago(0), Duration::ZERO), None);
        assert_eq!(wait(None, Duration::ZERO), None);
        assert_eq!(wait(None, Duration::from_secs(100_000)), Some(300));
    }

    #[test]
    fn a_failed_mail_is_retried_until_it_is_a_dead_letter() {
        use MailFailure::{Address, Connection, Folder, Login, NoContact, Reply, Timeout, Tls};
        let mut table = String::new();
        for failure in [Connection, Timeout, Tls, Login, Reply(451), Reply(550), Folder, Address, NoContact] {
            for attempts in [1, ATTEMPTS_MAX - 1, ATTEMPTS_MAX, u32::MAX] {
                let outcome = after_failure(failure, attempts, Time::UNIX_EPOCH, Duration::from_secs(9));
                let outcome = match outcome {
                    Outcome::Queued { due_at } => format!("queued for {}", due_at.timestamp()),
                    Outcome::DeadLetter => "dead letter".into(),
                };
                table += &format!("{:<10} {attempts:>10} {outcome}\n", failure.to_string());
            }
        }
        expect![[r#"
            CONNECTION          1 queued for 9
            CONNECTION         11 queued for 9
            CONNECTION         12 dead letter
            CONNECTION 4294967295 dead letter
            TIMEOUT             1 queued for 9
            TIMEOUT            11 queued for 9
            TIMEOUT            12 dead letter
            TIMEOUT    4294967295 dead letter
            TLS                 1 queued for 9
            TLS                11 queued for 9
            TLS                12 dead letter
            TLS        4294967295 dead letter
            LOGIN               1 queued for 9
            LOGIN              11 queued for 9
            LOGIN              12 dead letter
            LOGIN      4294967295 dead letter
            SMTP 451            1 queued for 9
            SMTP 451           11 queued for 9
            SMTP 451           12 dead letter
            SMTP 451   4294967295 dead letter
            SMTP 550            1 queued for 9
            SMTP 550           11 queued for 9
            SMTP 550           12 dead letter
            SMTP 550   4294967295 dead letter
            FOLDER              1 queued for 9
            FOLDER             11 queued for 9
            FOLDER             12 dead letter
            FOLDER     4294967295 dead letter
            ADDRESS             1 dead letter
            ADDRESS            11 dead letter
            ADDRESS            12 dead letter
            ADDRESS    4294967295 dead letter
            NO_CONTACT          1 dead letter
            NO_CONTACT         11 dead letter
            NO_CONTACT         12 dead letter
            NO_CONTACT 4294967295 dead letter
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn only_a_dead_letter_can_be_retried_and_keeps_its_failure() {
        let now = Time::UNIX_EPOCH + Duration::from_secs(60);
        for state in NotificationState::VARIANTS {
            let notification = Notification {
                attestation_id: Uuid::from_u128(7),
                state: *state,
                attempts: ATTEMPTS_MAX,
                due_at: Time::UNIX_EPOCH,
                sent_at: None,
                last_failure: "SMTP 550".into(),
            };
            let expected = match state {
                NotificationState::DeadLetter => Ok(Notification {
                    state: NotificationState::Queued,
                    attempts: 0,
                    due_at: now,
                    ..notification.clone()
                }),
                NotificationState::Queued | NotificationState::Sent => {
                    Err(Refusal::NotificationNotDead { state: *state })
                }
            };
            assert_eq!(notification.retry(now), expected);
        }
    }
}
