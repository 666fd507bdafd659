//! The notification of an attestation to the customer's primary contact (ATT-9): what it says, and
//! what becomes of one that could not be sent.

use std::fmt;
use std::time::Duration;

use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::{Refusal, Time};

/// Waits after failures, before jitter: the first, and the longest.
pub const RETRY_BASE: Duration = Duration::from_secs(1);
pub const RETRY_MAX: Duration = Duration::from_secs(300);

/// After so many failures a notification is a dead letter. The mail has to reach the customer within half
/// an hour, and one attempt more could end after it: the waits come to at most 18.5 minutes, and each
/// attempt may take most of one.
pub const ATTEMPTS_MAX: u32 = 12;

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

/// A notification that is due, with all that its mail says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueNotification {
    pub attestation_id: Uuid,
    /// Attempts, the one about to be made included.
    pub attempts: u32,
    /// The primary contact's address now; empty once it was erased.
    pub recipient: String,
    pub partner_name: String,
    pub company_name: String,
    /// Of the person attested; empty once that person was erased.
    pub first_name: String,
    pub last_name: String,
    /// The template's name.
    pub agreement: String,
    pub version: u32,
    pub agreed_at: Time,
}

/// Why a notification could not be sent: a category, and nothing that a mail server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
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
    /// There is no address any more.
    Erased,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("CONNECTION"),
            Self::Timeout => f.write_str("TIMEOUT"),
            Self::Tls => f.write_str("TLS"),
            Self::Login => f.write_str("LOGIN"),
            Self::Reply(code) => write!(f, "SMTP {code}"),
            Self::Folder => f.write_str("FOLDER"),
            Self::Address => f.write_str("ADDRESS"),
            Self::Erased => f.write_str("ERASED"),
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
pub fn after_failure(failure: Failure, attempts: u32, now: Time, wait: Duration) -> Outcome {
    match failure {
        Failure::Address | Failure::Erased => Outcome::DeadLetter,
        _ if attempts >= ATTEMPTS_MAX => Outcome::DeadLetter,
        _ => {
            let wait = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
            Outcome::Queued { due_at: now + Duration::from_micros(wait) }
        }
    }
}

/// Subject and text of the mail: who says so, who agreed to what and when, and whom to ask.
pub fn mail_of(notification: &DueNotification) -> (String, String) {
    let DueNotification { partner_name, company_name, first_name, last_name, agreement, version, .. } =
        notification;
    let person = match first_name.is_empty() && last_name.is_empty() {
        true => "a person whose data has been erased since".to_owned(),
        false => format!("{first_name} {last_name}"),
    };
    let agreed_on = notification.agreed_at.format("%-d %B %Y (UTC)");
    let subject = format!("{partner_name} confirmed that {company_name} accepted the {agreement}");
    let text = format!(
        "{partner_name} has confirmed to us that the {agreement} was accepted for {company_name}.\n\n\
         Accepted by: {person}\n\
         Accepted on: {agreed_on}\n\
         Version: {version}\n\
         Reference: {}\n\n\
         You receive this mail as the primary contact of {company_name}. If anything in it is not right, or \
         if you have a question, please ask {partner_name}.\n",
        notification.attestation_id
    );
    (subject, text)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn notification() -> DueNotification {
        DueNotification {
            attestation_id: Uuid::from_u128(7),
            attempts: 1,
            recipient: "primary@contoso.example".into(),
            partner_name: "Northwind Direct".into(),
            company_name: "Contoso".into(),
            first_name: "Tania".into(),
            last_name: "Carr".into(),
            agreement: "Microsoft Customer Agreement".into(),
            version: 2,
            agreed_at: Time::UNIX_EPOCH,
        }
    }

    fn written(notification: &DueNotification) -> String {
        let (subject, text) = mail_of(notification);
        format!("{subject}\n\n{text}")
    }

    #[test]
    fn the_mail_says_who_agreed_to_what_and_whom_to_ask() {
        expect![[r#"
            Northwind Direct confirmed that Contoso accepted the Microsoft Customer Agreement

            Northwind Direct has confirmed to us that the Microsoft Customer Agreement was accepted for Contoso.

            Accepted by: Tania Carr
            Accepted on: 1 January 1970 (UTC)
            Version: 2
            Reference: 00000000-0000-0000-0000-000000000007

            You receive this mail as the primary contact of Contoso. If anything in it is not right, or if you have a question, please ask Northwind Direct.
        "#]].assert_eq(&written(&notification()));
    }

    #[test]
    fn the_mail_about_an_erased_person_says_so_and_is_still_sent() {
        let erased =
            DueNotification { first_name: String::new(), last_name: String::new(), ..notification() };
        expect![[r#"
            Northwind Direct confirmed that Contoso accepted the Microsoft Customer Agreement

            Northwind Direct has confirmed to us that the Microsoft Customer Agreement was accepted for Contoso.

            Accepted by: a person whose data has been erased since
            Accepted on: 1 January 1970 (UTC)
            Version: 2
            Reference: 00000000-0000-0000-0000-000000000007

            You receive this mail as the primary contact of Contoso. If anything in it is not right, or if you have a question, please ask Northwind Direct.
        "#]].assert_eq(&written(&erased));
    }

    #[test]
    fn a_failed_mail_is_retried_until_it_is_a_dead_letter() {
        use Failure::{Address, Connection, Erased, Folder, Login, Reply, Timeout, Tls};
        let mut table = String::new();
        for failure in [Connection, Timeout, Tls, Login, Reply(451), Reply(550), Folder, Address, Erased] {
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
            ERASED              1 dead letter
            ERASED             11 dead letter
            ERASED             12 dead letter
            ERASED     4294967295 dead letter
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
