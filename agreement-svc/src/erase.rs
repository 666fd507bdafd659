//! The command `erase-contact`: a person leaves the records, the stored answers and the written mails.
//!
//! **Order.** Mails that are addressed to the person can be found at any time, by their address. Those
//! that only name it can be found only through the records that still do. So mails are deleted before
//! the records' change is committed: whatever is cut off in between, the next run finds the records as
//! they were and does it all again. A running service may write a mail from what it had read before the
//! commit, so they are looked for once more afterwards; the rest of that moment is for another run.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis::database::{Connection, Database, Error};
use chassis::idempotency::{StoredAnswer, answer_replace, answers_after};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use uuid::Uuid;

use crate::Failure;
use crate::rules::Time;
use crate::rules::party::is_email;
use crate::store::change::change_internal;
use crate::store::erase::{FoundByCustomer, Person, person_erase, person_find};

/// Answers of one page: each may be some kilobytes large.
const ANSWERS_PER_PAGE: i64 = 200;

/// How much of a mail is searched for its header, which is a few lines.
const MAIL_HEADER_BYTES_MAX: u64 = 64 * 1024;

/// The message that holds a person.
const CONTACT: &str = "csp.type.v1.Contact";

/// Where the messages are that calls answer with.
const ANSWERS: &str = "csp.agreement.v1";

/// What was erased, in numbers: it names nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records of attestations.
    pub attestations: usize,
    /// Customers whose primary contact it was.
    pub customers: usize,
    /// Invitations that were meant for it.
    pub invitations: usize,
    /// Answers kept for repeated requests.
    pub answers: usize,
    /// Mails deleted; `None` where there is no folder of them.
    pub mails: Option<usize>,
}

impl fmt::Display for Erased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attestations, customers, invitations, answers, mails } = self;
        if attestations + customers + invitations + answers + mails.unwrap_or(0) == 0 {
            f.write_str("nobody with this address was found")?;
        } else {
            write!(
                f,
                "erased from attestations: {attestations}, customers: {customers}, invitations: {invitations}, stored answers: {answers}"
            )?;
        }
        match mails {
            Some(mails) => write!(f, "; mails deleted: {mails}"),
            None => f.write_str("; there is no mail folder, so mails were not looked for"),
        }
    }
}

/// Erases whoever has the e-mail address.
pub(crate) async fn erase(
    database: &Database,
    now: Time,
    email: &str,
    mail_folder: Option<&Path>,
) -> Result<Erased, Failure> {
    if !is_email(email.trim()) {
        return Err("what was given is not an e-mail address".into());
    }
    let person = Person::new(email);
    let mails = mail_folder.map(|folder| Arc::new(Mails(folder.to_owned())));
    let mut deleted = BTreeSet::new();
    if let Some(mails) = &mails {
        deleted.extend(mails.delete(mails.addressed_to(&person)?)?);
    }

    let (of_change, mails_of_change) = (person.clone(), mails.clone());
    let (found, answers, deleted_inside) = change_internal(database, now, move |change| {
        let found = person_find(change.connection, &of_change)?;
        let naming = attestation_ids(&found);
        let answers = erase_answers(change.connection, &of_change, &naming)?;
        person_erase(change, &found)?;
        // Last, so that no mail is lost in vain when something before it fails.
        let deleted = match &mails_of_change {
            Some(mails) => mails.delete(mails.of(&naming))?,
            None => vec![],
        };
        Ok::<_, Failure>((found, answers, deleted))
    })
    .await?;
    deleted.extend(deleted_inside);
    if let Some(mails) = &mails {
        deleted.extend(mails.delete(mails.addressed_to(&person)?)?);
        deleted.extend(mails.delete(mails.of(&attestation_ids(&found)))?);
    }
    database.purge().await.map_err(|error| {
        format!(
            "erased, but the file of the database still holds it; run this again, with less going on: {error}"
        )
    })?;
    Ok(Erased {
        attestations: found.values().map(|found| found.attestation_ids.len()).sum(),
        customers: found.values().filter(|found| found.is_primary_contact).count(),
        invitations: found.values().map(|found| found.invitation_ids.len()).sum(),
        answers,
        mails: mails.map(|_| deleted.len()),
    })
}

fn attestation_ids(found: &FoundByCustomer) -> Vec<Uuid> {
    found.values().flat_map(|found| found.attestation_ids.iter().copied()).collect()
}

/// Erases the person from stored answers, and forgets the content of what was asked with it: that is a
/// digest which covers the person, and somebody who guesses could check the guess. Answers that only name
/// an attestation of the person lose the content for the same reason.
fn erase_answers(
    connection: &mut Connection,
    person: &Person,
    attestation_ids: &[Uuid],
) -> Result<usize, Error> {
    let unreadable = |why: String| Error::Query(format!("stored answers cannot be searched: {why}"));
    let messages =
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|e| unreadable(e.to_string()))?;
    let ids: BTreeSet<String> = attestation_ids.iter().map(Uuid::to_string).collect();
    let mut erased = 0;
    let mut after: Option<StoredAnswer> = None;
    loop {
        let mut page = answers_after(connection, after.as_ref(), ANSWERS_PER_PAGE)?;
        let Some(last) = page.last() else { return Ok(erased) };
        after = Some(last.clone());
        for stored in &mut page {
            // Most answers are about others; reading them all field by field would take long.
            let text = String::from_utf8_lossy(&stored.answer);
            if !person.may_be_in(&text) && !ids.iter().any(|id| text.contains(id.as_str())) {
                continue;
            }
            let name = format!("{ANSWERS}.{}Response", stored.call);
            let of = messages.get_message_by_name(&name);
            let of = of.ok_or_else(|| unreadable(format!("there is no message {name}")))?;
            let mut message = DynamicMessage::decode(of, stored.answer.as_slice())
                .map_err(|_| unreadable(format!("one is no {name}")))?;
            let names_it = erase_in(&mut message, person);
            if names_it {
                stored.answer = message.encode_to_vec();
            }
            if names_it || mentions(&message, &ids) {
                answer_replace(connection, stored)?;
                erased += 1;
            }
        }
    }
}

/// Empties the person's contacts, however deep they stand.
fn erase_in(message: &mut DynamicMessage, person: &Person) -> bool {
    if message.descriptor().full_name() == CONTACT {
        let email = message.get_field_by_name("email");
        let is_person = email.is_some_and(|email| email.as_str().is_some_and(|email| person.has(email)));
        if is_person {
            *message = DynamicMessage::new(message.descriptor());
        }
        return is_person;
    }
    let mut was_there = false;
    for field in fields_of(&message.descriptor(), message) {
        match message.get_field_mut(&field) {
            Value::Message(inner) => was_there |= erase_in(inner, person),
            Value::List(values) => {
                for inner in values.iter_mut().filter_map(Value::as_message_mut) {
                    was_there |= erase_in(inner, person);
                }
            }
            Value::Map(values) => {
                for inner in values.values_mut().filter_map(Value::as_message_mut) {
                    was_there |= erase_in(inner, person);
                }
            }
            _ => {}
        }
    }
    was_there
}

/// Whether one of the ids stands in a field of its own, however deep.
fn mentions(message: &DynamicMessage, ids: &BTreeSet<String>) -> bool {
    fn is_in(value: &Value, ids: &BTreeSet<String>) -> bool {
        match value {
            Value::String(text) => ids.contains(text),
            Value::Message(inner) => mentions(inner, ids),
            Value::List(values) => values.iter().any(|value| is_in(value, ids)),
            Value::Map(values) => values.values().any(|value| is_in(value, ids)),
            _ => false,
        }
    }
    message.fields().any(|(_, value)| is_in(value, ids))
}

/// The fields that are set.
fn fields_of(
    descriptor: &MessageDescriptor,
    message: &DynamicMessage,
) -> Vec<prost_reflect::FieldDescriptor> {
    descriptor.fields().filter(|field| message.has_field(field)).collect()
}

/// The folder of written mails: each in `ATTESTATION_ID.eml`, or, while it is written and when whoever did
/// so went away, in `.ATTESTATION_ID.unfinished`.
struct Mails(PathBuf);

impl Mails {
    /// The mails of attestations, whether they were written or not.
    fn of(&self, attestation_ids: &[Uuid]) -> Vec<PathBuf> {
        let names = attestation_ids.iter().flat_map(|id| [format!("{id}.eml"), format!(".{id}.unfinished")]);
        names.map(|name| self.0.join(name)).collect()
    }

    /// The mails that a person is the addressee of, whatever its customer's contact is now.
    fn addressed_to(&self, person: &Person) -> Result<Vec<PathBuf>, String> {
        let failed = |error: io::Error| format!("the mail folder cannot be searched: {error}");
        let mut found = vec![];
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let is_mail = path.extension().is_some_and(|suffix| suffix == "eml" || suffix == "unfinished")
                && entry.file_type().map_err(failed)?.is_file();
            if is_mail && is_to(&path, person).map_err(failed)? {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Deletes files and answers which of them there were. The folder is flushed: a file must not come
    /// back after a power failure that the commit survived.
    fn delete(&self, paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, String> {
        let failed = |error: io::Error| format!("a mail cannot be deleted: {error}");
        let mut deleted = vec![];
        for path in paths {
            match fs::remove_file(&path) {
                Ok(()) => deleted.push(path),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if !deleted.is_empty() {
            File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(deleted)
    }
}

/// Whether a mail is addressed to a person: its address is a word of the field `To`.
fn is_to(path: &Path, person: &Person) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Somebody else has deleted it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut is_in_to = false;
    for line in BufReader::new(file.take(MAIL_HEADER_BYTES_MAX)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            break;
        }
        if !line.starts_with([' ', '\t']) {
            is_in_to = line.get(..3).is_some_and(|name| name.eq_ignore_ascii_case("to:"));
        }
        let mut words = line.split(|c: char| c.is_whitespace() || ":,;<>()\"".contains(c));
        if is_in_to && words.any(|word| person.has(word)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use chassis::auth::{Caller, Channel};
    use chassis::clock::{Clock, new_id};
    use chassis::database::Writes;
    use chassis::idempotency::{IdempotencyKey, Lookup, answer_find, answer_store};
    use chassis::query;
    use diesel::RunQueryDsl;
    use proto::agreement::{
        CreateInvitationResponse, GetAttestationRequest, ImportAttestationsResponse, Invitation,
    };
    use proto::types::Contact;

    use super::*;
    use crate::data::read_templates;
    use crate::store::{MIGRATIONS, verify};

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
        read_templates(None, None).unwrap().load(&database, Clock::system().now()).await.unwrap();
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
        };
        IdempotencyKey::new(&caller, call, Uuid::from_u128(n), &GetAttestationRequest::default())
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
    async fn invitations_and_answers_of_every_call_let_go_of_the_person_and_of_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let database = empty_database(folder.path()).await;
        let now = Clock::system().now();
        let (attestation, customer) = (new_id(now), new_id(now));
        let write = move |connection: &mut Connection| {
            run(connection, "INSERT INTO partner VALUES ('p', '', '', '', '2024-01-01 00:00:00')")?;
            run(
                connection,
                &format!(
                    "INSERT INTO customer SELECT '{customer}', '', '', '', '', '', '', '', '', '', '2024-01-01 00:00:00', NULL, 0, 0"
                ),
            )?;
            let acceptance = format!(
                "INSERT INTO acceptance SELECT '{attestation}', 'ATTESTATION', 'p', '{customer}', '', template_id, number, \
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
                    "INSERT INTO invitation SELECT '{id}', '', 'p', '', '{of}', id, 'Zeb', 'Q', '{email}', '1', 'salt', \
                     '2024-01-01 00:00:00', '', '2024-01-01 00:00:00', NULL, NULL, 0 FROM template WHERE retired_at IS NULL"
                );
                run(connection, &invitation)?;
            }
            for n in 1..=REQUESTS {
                let answer = match n {
                    _ if is_of_person(n) => invited("Zeb@Contoso.example"),
                    _ => invited("ann-zeb@contoso.example"),
                };
                answer_store(connection, &key(n, "CreateInvitation"), &answer, now)?;
            }
            for n in 1..=2 {
                let id = if n == 1 { attestation } else { customer };
                answer_store(connection, &key(n, "ImportAttestations"), &imported(id), now)?;
            }
            Ok::<_, Error>(())
        };
        database.write(write).await.unwrap();

        let erased = erase(&database, now, EMAIL, None).await.unwrap();
        // One more of an import.
        let answers = (1..=REQUESTS).filter(|n| is_of_person(*n)).count() + 1;
        let expected = Erased { attestations: 1, customers: 0, invitations: 2, answers, mails: None };
        assert_eq!(erased, expected);
        let seen = |n, call| {
            let database = database.clone();
            async move { database.read(move |connection| answer_find(connection, &key(n, call))).await.unwrap() }
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

        let found = database.read(|connection| person_find(connection, &Person::new(EMAIL))).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
        let others = Person::new("ann-zeb@contoso.example");
        let found = database.read(move |connection| person_find(connection, &others)).await.unwrap();
        assert_eq!(found[&None].invitation_ids, [Uuid::from_u128(3)]);

        // Of the three templates' versions and two erasures; the acceptance itself was not recorded.
        let verified = database.snapshot(|connection| verify::verify(connection, &[])).await.unwrap();
        assert_eq!((verified.head.revision, verified.findings.len()), (6, 2), "{verified}");
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_searched_keeps_everything_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let database = empty_database(folder.path()).await;
        let now = Clock::system().now();
        let write = move |connection: &mut Connection| {
            answer_store(connection, &key(1, "CreateInvitation"), &invited(EMAIL), now)?;
            answer_store(connection, &key(2, "Unheard"), &invited(EMAIL), now)
        };
        database.write(write).await.unwrap();
        let refused = erase(&database, now, EMAIL, None).await.unwrap_err().to_string();
        assert!(refused.contains("UnheardResponse") && !refused.contains("zeb"), "{refused}");
        let seen = database.read(|connection| answer_find(connection, &key(1, "CreateInvitation"))).await;
        assert_eq!(seen.unwrap(), Lookup::Answered(invited(EMAIL)));
    }
}
