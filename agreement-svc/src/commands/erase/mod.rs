//! The command `erase-contact`: a person leaves the records, the stored answers and the written mails.
//!
//! **Pieces.** A search reads everything in a snapshot, which keeps no change waiting. What it finds is erased in small changes,
//! and then everything is searched again, until nothing is found: so nothing is missed that was written meanwhile. A stored
//! answer is replaced only while it is the one that was found, so that two erasures do not undo each other.
//!
//! **Order.** Stored answers come before records, since some name the person by an attestation only. Mails that are addressed
//! to the person can be found at any time, by their address. Those that only name the person can be found only through the
//! records that still do. So mails are deleted before the records' change is committed: whatever is cut off in between, the
//! next run finds the records as they were and does it all again. A running service may write a mail from what it had read
//! before the commit, so the command searches for mails once more afterwards. What a service writes after that is for another
//! run.

mod answers;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::idempotency::answer_replace;

use super::open;
use crate::config::{self, EraseContact};
use crate::mail::MailFolder;
use crate::rules::party::is_email;
use crate::store::change::change_internal;
use crate::store::erase::{
    Person, Row, attestation_ids, customer_ids, mails_naming, person_erase, person_find,
};
use answers::{Records, answers_without};

/// Rows or answers that one change erases: other changes wait for no longer than that takes.
const PIECE: usize = 100;

/// Searches that may find something.
const ROUNDS_MAX: u32 = 20;

/// How long each of the two steps that rewrite the database's file is tried again while others hold the file.
const VACUUM_TRIED_MAX: Duration = Duration::from_secs(120);

/// What was erased, as counts without personal data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records of attestations.
    pub attestations: usize,
    /// Customers whose contact it was.
    pub customers: usize,
    /// Partners whose support contact it was.
    pub partners: usize,
    /// Invitations that were meant for it.
    pub invitations: usize,
    /// Proposals of attestations.
    pub proposals: usize,
    /// Answers kept for repeated requests.
    pub answers: usize,
    /// Mails deleted; `None` where there is no folder of them.
    pub mails: Option<usize>,
}

impl fmt::Display for Erased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attestations, customers, partners, invitations, proposals, answers, mails } = self;
        let rows = attestations + customers + partners + invitations + proposals + answers;
        if rows + mails.unwrap_or(0) == 0 {
            f.write_str("no person with this address was found")?;
        } else {
            write!(
                f,
                "erased from attestations: {attestations}, customers: {customers}, partners: {partners}, invitations: {invitations}, proposals: {proposals}, stored answers: {answers}"
            )?;
        }
        match mails {
            Some(mails) => write!(f, "; mails deleted: {mails}"),
            None => f.write_str("; there is no mail folder, so mails were not looked for"),
        }
    }
}

/// Erases the person with an e-mail address from records, stored answers and written mails. Doing it again
/// finishes what was cut off, and does no harm.
///
/// # Errors
/// A text that is no address; a database or folder that cannot be read or changed. No error message contains the address.
pub async fn erase_contact(config: &EraseContact, clock: &Clock) -> anyhow::Result<Erased> {
    let database = open(&config.database)?;
    let usual = || Some(PathBuf::from(config::MAIL_FOLDER)).filter(|folder| folder.is_dir());
    let mail_folder = config.mail_folder.clone().or_else(usual);
    erase(&database, clock, &config.email.0, mail_folder.as_deref()).await
}

async fn erase(
    database: &Database,
    clock: &Clock,
    email: &str,
    mail_folder: Option<&Path>,
) -> anyhow::Result<Erased> {
    ensure!(is_email(email.trim()), "what was given is not an e-mail address");
    let person = Person::new(email);
    let mails = mail_folder.map(|folder| Arc::new(MailFolder(folder.to_owned())));
    let mut deleted = BTreeSet::new();
    if let Some(mails) = &mails {
        deleted.extend(mails.delete(mails.addressed_to(&person)?)?);
    }

    let mut erased = Erased::default();
    let (mut customers, mut naming) = (BTreeSet::new(), vec![]);
    // Of all rounds: an answer may name an attestation that has been erased since.
    let mut records = Records::default();
    let mut rounds = 0;
    loop {
        let (of_search, mut records_of_rounds) = (person.clone(), records.clone());
        let search = move |connection: &mut Connection| {
            let found = person_find(connection, &of_search, None)?;
            records_of_rounds.attestations.extend(attestation_ids(&found));
            records_of_rounds.customers.extend(customer_ids(&found));
            let answers = answers_without(connection, &of_search, &records_of_rounds)?;
            Ok::<_, Error>((found, answers, records_of_rounds))
        };
        let (found, answers);
        (found, answers, records) = database.snapshot(search).await?;
        if found.is_empty() && answers.is_empty() {
            break;
        }
        rounds += 1;
        ensure!(rounds <= ROUNDS_MAX, "the person is named anew as fast as it is erased; find out by whom");
        for piece in answers.chunks(PIECE) {
            let piece = piece.to_vec();
            let replace = move |connection: &mut Connection| {
                let mut replaced = 0;
                for (stored, replacement) in &piece {
                    replaced += usize::from(answer_replace(connection, stored, replacement)?);
                }
                Ok::<_, Error>(replaced)
            };
            erased.answers += database.write(replace).await?;
        }
        for piece in found.chunks(PIECE) {
            let began = Instant::now();
            let (person, piece, mails) = (person.clone(), piece.to_vec(), mails.clone());
            let (rows, names, paths) = change_internal(database, clock, move |change| {
                let rows = person_erase(change, &person, &piece)?;
                let names = mails_naming(change.connection, &attestation_ids(&rows))?;
                // Last, so that no mail is lost in vain when something before it fails.
                let paths = match &mails {
                    Some(mails) => mails.delete(mails.of(&names))?,
                    None => vec![],
                };
                anyhow::Ok((rows, names, paths))
            })
            .await?;
            // Other changes have as long: SQLite has no queue for its lock.
            tokio::time::sleep(began.elapsed()).await;
            deleted.extend(paths);
            naming.extend(names);
            for (customer_id, row) in rows {
                match row {
                    Row::Attestation(_) => erased.attestations += 1,
                    Row::Invitation(_) => erased.invitations += 1,
                    Row::Proposal(_) => erased.proposals += 1,
                    Row::Support(_) => erased.partners += 1,
                    Row::Contact(_) | Row::Customer(_) => drop(customers.insert(customer_id)),
                    Row::Notice(_) => {}
                }
            }
        }
    }
    if let Some(mails) = &mails {
        deleted.extend(mails.delete(mails.addressed_to(&person)?)?);
        deleted.extend(mails.delete(mails.of(&naming))?);
    }
    database
        .vacuum(VACUUM_TRIED_MAX)
        .await
        .context("erased, but the file of the database still holds it; run this again, with less going on")?;
    Ok(Erased { customers: customers.len(), mails: mails.map(|_| deleted.len()), ..erased })
}

#[cfg(test)]
mod tests {
    use chassis::auth::{Caller, Channel};
    use chassis::clock::new_id;
    use chassis::database::Writes;
    use chassis::idempotency::{IdempotencyKey, Lookup, RequestHasher, response_find, response_store};
    use chassis::query;
    use diesel::RunQueryDsl;
    use prost::Message;
    use proto::agreement::{
        CreateInvitationResponse, GetAttestationRequest, ImportAttestationsResponse, Invitation,
    };
    use proto::types::Contact;
    use uuid::Uuid;

    use super::answers::ANSWERS_PER_PAGE;
    use super::*;
    use crate::data::read_templates;
    use crate::store::{MIGRATIONS, chain};

    const EMAIL: &str = "zeb@contoso.example";
    const TENANTS: u128 = 3;
    /// More than a page of answers, over tenants and calls.
    const REQUESTS: u128 = 2 * ANSWERS_PER_PAGE as u128 + 1;

    /// Some in every page, whatever the order.
    fn is_of_person(n: u128) -> bool {
        n % 10 == 1
    }

    async fn empty_database(folder: &Path) -> Database {
        let url = format!("sqlite:{}", folder.join("agreements.sqlite").display());
        let database = Database::open(&url.parse().unwrap(), true, Writes::Serial).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        read_templates(None, None).unwrap().load(&database, &Clock::system()).await.unwrap();
        database
    }

    fn run(connection: &mut Connection, sql: &str) -> Result<(), Error> {
        query!(connection, c => diesel::sql_query(sql).execute(c))?;
        Ok(())
    }

    fn key(n: u128, call: &'static str) -> IdempotencyKey {
        let caller = Caller {
            tenant_kind: "PARTNER",
            tenant_id: Uuid::from_u128(n % TENANTS),
            user_id: Uuid::nil(),
            roles: vec![],
            channel: Channel::Api,
            client: None,
        };
        RequestHasher::default().key(&caller, call, Uuid::from_u128(n), &GetAttestationRequest::default())
    }

    fn invited(email: &str) -> Vec<u8> {
        let recipient = Some(Contact { first_name: "Zeb".into(), email: email.into(), ..Contact::default() });
        let invitation = Some(Invitation { recipient, ..Invitation::default() });
        CreateInvitationResponse { invitation, revision: 1 }.encode_to_vec()
    }

    fn imported(attestation_id: Uuid) -> Vec<u8> {
        let attestation_id = attestation_id.to_string();
        ImportAttestationsResponse { row: 1, attestation_id, ..Default::default() }.encode_to_vec()
    }

    #[tokio::test]
    async fn invitations_and_answers_forget_only_the_erased_person() {
        let folder = tempfile::tempdir().unwrap();
        let database = empty_database(folder.path()).await;
        let now = Clock::system().now();
        let (attestation, customer) = (new_id(now), new_id(now));
        let write = move |connection: &mut Connection| {
            run(
                connection,
                "INSERT INTO partner (id, name, kind, cloud, registered_at, revision) VALUES ('p', '', '', '', '2024-01-01 00:00:00', 0)",
            )?;
            run(
                connection,
                &format!(
                    "INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email, phone, contact_salt, \
                     created_at, first_purchase_at, acceptance_revision, revision, name_key, name_revision) SELECT '{customer}', '', '', '', '', '', '', '', '', '', '2024-01-01 00:00:00', NULL, 0, 0, NULL, 0"
                ),
            )?;
            let acceptance = format!(
                "INSERT INTO acceptance (id, kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                 first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, superseded_at, \
                 withdrawn_at, revision, withdrawal_reason, withdrawn_by) SELECT '{attestation}', 'ATTESTATION', 'p', '{customer}', '', template_id, number, \
                 'Zeb', 'Q', '{EMAIL}', '', 'salt', effective_from, effective_from, '', NULL, NULL, 0, '', '' \
                 FROM template_version WHERE number = 2"
            );
            run(connection, &acceptance)?;
            for (id, of, email) in [
                (1, "", EMAIL),
                (2, &*customer.to_string(), "ZEB@contoso.example"),
                (3, "", "ann-zeb@contoso.example"),
            ] {
                let id = Uuid::from_u128(id);
                let invitation = format!(
                    "INSERT INTO invitation (id, kind, partner_id, reseller_id, customer_id, template_id, first_name, last_name, email, phone, \
                     contact_salt, created_at, created_by, expires_at, accepted_at, revoked_at, revision, declined_at, decline_reason) \
                     SELECT '{id}', '', 'p', '', '{of}', id, 'Zeb', 'Q', '{email}', '1', 'salt', \
                     '2024-01-01 00:00:00', '', '2024-01-01 00:00:00', NULL, NULL, 0, NULL, NULL FROM template WHERE retired_at IS NULL"
                );
                run(connection, &invitation)?;
            }
            for n in 1..=REQUESTS {
                let answer = match n {
                    _ if is_of_person(n) => invited("Zeb@Contoso.example"),
                    _ => invited("ann-zeb@contoso.example"),
                };
                response_store(connection, &key(n, "CreateInvitation"), &answer, now)?;
            }
            for n in 1..=2 {
                let id = if n == 1 { attestation } else { customer };
                response_store(connection, &key(n, "ImportAttestations"), &imported(id), now)?;
            }
            Ok::<_, Error>(())
        };
        database.write(write).await.unwrap();

        let erased = erase(&database, &Clock::system(), EMAIL, None).await.unwrap();
        // One more of an import.
        let answers = (1..=REQUESTS).filter(|n| is_of_person(*n)).count() + 1;
        let expected = Erased { attestations: 1, invitations: 2, answers, ..Erased::default() };
        assert_eq!(erased, expected);
        let seen = |n, call| {
            let database = database.clone();
            async move { database.read(move |connection| response_find(connection, &key(n, call))).await.unwrap() }
        };
        for n in 1..=REQUESTS {
            let expected = match n {
                _ if is_of_person(n) => Lookup::OtherContent,
                _ => Lookup::Answered(invited("ann-zeb@contoso.example")),
            };
            assert_eq!(seen(n, "CreateInvitation").await, expected, "{n}");
        }
        assert_eq!(seen(1, "ImportAttestations").await, Lookup::OtherContent);
        assert_eq!(seen(2, "ImportAttestations").await, Lookup::Answered(imported(customer)));

        let found =
            database.read(|connection| person_find(connection, &Person::new(EMAIL), None)).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
        let others = Person::new("ann-zeb@contoso.example");
        let found = database.read(move |connection| person_find(connection, &others, None)).await.unwrap();
        assert_eq!(found, [(None, Row::Invitation(Uuid::from_u128(3)))]);

        // Of the three templates' versions and two erasures; the acceptance itself was not recorded.
        let verified = database.snapshot(|connection| chain::verify(connection, &[])).await.unwrap();
        assert_eq!((verified.head.revision, verified.findings.len()), (6, 2), "{verified}");
    }

    /// Its record may be erased between the search of a round and the storing of an answer that names it.
    #[tokio::test]
    async fn an_answer_that_names_an_erased_record_loses_its_digest_once() {
        let folder = tempfile::tempdir().unwrap();
        let database = empty_database(folder.path()).await;
        let now = Clock::system().now();
        let (attestation, other) = (new_id(now), new_id(now));
        let found = move |connection: &mut Connection| {
            for (n, id) in [(1, attestation), (2, other)] {
                response_store(connection, &key(n, "ImportAttestations"), &imported(id), now)?;
            }
            for (n, id) in [(3, attestation), (4, other)] {
                response_store(connection, &key(n, "ImportCustomers"), &imported(id), now)?;
            }
            // Each is known as one of both kinds.
            let records =
                Records { attestations: BTreeSet::from([attestation]), customers: BTreeSet::from([other]) };
            let found = answers_without(connection, &Person::new(EMAIL), &records)?;
            for (stored, replacement) in &found {
                assert!(answer_replace(connection, stored, replacement)?);
            }
            let replacements: Vec<_> = found.into_iter().map(|(_, replacement)| replacement).collect();
            let left = answers_without(connection, &Person::new(EMAIL), &records)?.len();
            Ok::<_, Error>((replacements, left))
        };
        let (replacements, left) = database.write(found).await.unwrap();
        assert_eq!((replacements, left), (vec![imported(attestation), imported(other)], 0));
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_searched_keeps_everything_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let database = empty_database(folder.path()).await;
        let now = Clock::system().now();
        let write = move |connection: &mut Connection| {
            response_store(connection, &key(1, "CreateInvitation"), &invited(EMAIL), now)?;
            response_store(connection, &key(2, "Unheard"), &invited(EMAIL), now)
        };
        database.write(write).await.unwrap();
        let refused = format!("{:#}", erase(&database, &Clock::system(), EMAIL, None).await.unwrap_err());
        assert!(refused.contains("UnheardResponse") && !refused.contains("zeb"), "{refused}");
        let seen = database.read(|connection| response_find(connection, &key(1, "CreateInvitation"))).await;
        assert_eq!(seen.unwrap(), Lookup::Answered(invited(EMAIL)));
    }
}
