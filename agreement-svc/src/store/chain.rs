//! Verifies the hash chain (tamper detection): whether the audit history is whole, and the acceptances are what it says.
//!
//! Everything is read in one snapshot and page by page, beside a service that goes on. Besides a page
//! it holds what every acceptance must be, about 600 bytes each: a gigabyte does for a million and a half.
//! Rows are read as what another program may have made of them: SQLite keeps any value in any column,
//! so that a page with a value that is none is read again row by row, and rows are counted, so that
//! none hides behind a key that no order finds.

use chassis::database::row::utc;
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;

use super::acceptance::Row as AcceptanceRow;
use super::change::chained;
use super::schema::{acceptance, event, revision};

use crate::rules::Time;
use crate::rules::chain::{Acceptances, Broken, Finding, Head, Verified};
use crate::rules::event::{Event, LIFT};

/// Rows of one page: large enough that statements cost nothing, small enough to be held beside others.
const PAGE: i64 = 1000;

#[derive(Queryable, Selectable)]
#[diesel(table_name = event)]
struct EventRow {
    customer_id: Option<String>,
    partner_id: Option<String>,
    recorded_at: NaiveDateTime,
    body: String,
    hash: String,
}

/// A row by its key; `None` where something in it is no value at all.
type Read<K, R> = Vec<(K, Option<R>)>;

/// Walks the whole history and all acceptances. `kept` are heads from earlier. To be called in a
/// snapshot.
pub(crate) fn verify(connection: &mut Connection, kept: &[Head]) -> Result<Verified, Error> {
    let mut walk = Walk {
        findings: vec![],
        acceptances: Acceptances::default(),
        head: Head { revision: 0, hash: String::new() },
        is_whole: true,
        kept: kept.iter().filter(|head| head.revision != 0).collect(),
        lost: vec![],
    };
    let events: i64 = query!(connection, c => event::table.count().get_result(c))?;
    let read =
        each_page(events, |after| event_page(connection, after), |revision, row| walk.event(*revision, row))?;
    walk.keyless("event", events - read);
    walk.counter(counter(connection)?);
    walk.heads();

    let rows: i64 = query!(connection, c => acceptance::table.count().get_result(c))?;
    let read = each_page(
        rows,
        |after| acceptance_page(connection, after),
        |id: &String, row| {
            let found = match row {
                Some(row) => walk.acceptances.compare(row.stored()),
                None => vec![walk.acceptances.unreadable(id.clone())],
            };
            walk.findings.extend(found);
        },
    )?;
    walk.keyless("acceptance", rows - read);
    walk.findings.extend(walk.acceptances.gone());
    Ok(Verified { findings: walk.findings, head: walk.head })
}

/// Reads page after page and answers how many rows there were. It ends after `count` rows at the
/// latest: a key that is not what its column says may come again and again.
fn each_page<K: Clone, R>(
    count: i64,
    mut page: impl FnMut(Option<&K>) -> Result<Read<K, R>, Error>,
    mut each: impl FnMut(&K, Option<R>),
) -> Result<i64, Error> {
    let mut read = 0;
    let mut after: Option<K> = None;
    while read < count {
        let rows = page(after.as_ref())?;
        if rows.is_empty() {
            break;
        }
        for (key, row) in rows {
            each(&key, row);
            read += 1;
            after = Some(key);
        }
    }
    Ok(read)
}

/// The walk along the events.
struct Walk<'k> {
    findings: Vec<Finding>,
    acceptances: Acceptances,
    /// Number and hash of the last event, as stored.
    head: Head,
    /// No event so far breaks the chain.
    is_whole: bool,
    /// Heads from earlier that have not been met yet.
    kept: Vec<&'k Head>,
    /// The numbers of the last event of each copy that was restored, and of the event that says so.
    lost: Vec<(i64, i64)>,
}

impl Walk<'_> {
    fn event(&mut self, number: i64, row: Option<EventRow>) {
        let Some(row) = row else {
            self.broken(number, Broken::Unreadable);
            self.head = Head { revision: number, hash: String::new() };
            return;
        };
        let recorded_at = utc(row.recorded_at);
        let happened: Option<Event> = serde_json::from_str(&row.body).ok();
        if let Some((number, how)) = self.breach(number, &row, recorded_at, happened.as_ref()) {
            self.broken(number, how);
        } else if number != self.head.revision + 1 {
            self.lost.push((self.head.revision, number));
        }
        if let Some(happened) = happened {
            self.findings.extend(self.acceptances.follow(number, recorded_at, &happened));
        }
        self.head = Head { revision: number, hash: row.hash };
        self.kept.retain(|kept| **kept != self.head);
    }

    /// Remembers the first break; what follows it is no news.
    fn broken(&mut self, revision: i64, how: Broken) {
        if std::mem::replace(&mut self.is_whole, false) {
            self.findings.push(Finding::Broken { revision, how });
        }
    }

    /// Where and how an event does not continue the chain.
    fn breach(
        &self,
        number: i64,
        row: &EventRow,
        recorded_at: Time,
        happened: Option<&Event>,
    ) -> Option<(i64, Broken)> {
        // A restore leaves the one gap that there may be, before the event that names the last one of the copy.
        let step = if matches!(happened, Some(Event::HistoryRestored { .. })) { LIFT } else { 1 };
        let due = self.head.revision + step;
        if number > due {
            return Some((due, Broken::Missing));
        }
        if number < due {
            return Some((number, Broken::Misnumbered));
        }
        if chained(&self.head.hash, number, recorded_at, &row.body) != row.hash {
            return Some((number, Broken::Hash));
        }
        let Some(happened) = happened else { return Some((number, Broken::Body)) };
        if let Event::HistoryRestored { last_revision, last_hash } = happened
            && (*last_revision, last_hash) != (self.head.revision, &self.head.hash)
        {
            return Some((number, Broken::Hash));
        }
        let columns = [
            ("customer_id", &row.customer_id, happened.customer_id()),
            ("partner_id", &row.partner_id, happened.partner_id()),
        ];
        let wrong = columns.into_iter().find(|(_, stored, id)| **stored != id.map(|id| id.to_string()));
        wrong.map(|(column, ..)| (number, Broken::Column(column)))
    }

    fn keyless(&mut self, table: &'static str, rows: i64) {
        if rows != 0 {
            self.findings.push(Finding::Keyless { table, rows });
        }
    }

    /// Holds the revision row against the last event.
    fn counter(&mut self, counter: Option<Head>) {
        let last = self.head.revision;
        self.findings.extend(match counter {
            None => Some(Finding::NoCounter),
            Some(counter) if counter.revision != last => {
                Some(Finding::Counter { counted: counter.revision, last })
            }
            Some(counter) if counter.hash != self.head.hash => Some(Finding::CounterHash { last }),
            Some(_) => None,
        });
    }

    /// Names the heads that no event had.
    fn heads(&mut self) {
        let last = self.head.revision;
        let lost = &self.lost;
        let unmet = self.kept.drain(..).map(|kept| {
            let kept = kept.clone();
            match lost.iter().find(|(last, restored)| (last + 1..*restored).contains(&kept.revision)) {
                Some((last, restored)) => Finding::Lost { kept, last: *last, restored: *restored },
                None => Finding::Head { kept, last },
            }
        });
        self.findings.extend(unmet);
    }
}

fn counter(connection: &mut Connection) -> Result<Option<Head>, Error> {
    let row: Option<(i64, String)> = query!(connection, c => {
        revision::table.select((revision::value, revision::head)).first(c).optional()
    })?;
    Ok(row.map(|(revision, hash)| Head { revision, hash }))
}

/// A row, unless the database is there and something in the row is no value.
fn if_readable<R>(row: QueryResult<R>) -> Result<Option<R>, Error> {
    match row.map_err(Error::from) {
        Ok(row) => Ok(Some(row)),
        Err(Error::Query(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn event_page(connection: &mut Connection, after: Option<&i64>) -> Result<Read<i64, EventRow>, Error> {
    let page: Result<Vec<(i64, EventRow)>, _> = query!(connection, c => {
        let mut page = event::table
            .filter(event::revision.is_not_null())
            .order(event::revision)
            .limit(PAGE)
            .select((event::revision, EventRow::as_select()))
            .into_boxed();
        if let Some(after) = after {
            page = page.filter(event::revision.gt(after));
        }
        page.load(c)
    });
    if let Ok(rows) = page {
        return Ok(rows.into_iter().map(|(key, row)| (key, Some(row))).collect());
    }
    let keys: Vec<i64> = query!(connection, c => {
        let mut page = event::table
            .filter(event::revision.is_not_null())
            .order(event::revision)
            .limit(PAGE)
            .select(event::revision)
            .into_boxed();
        if let Some(after) = after {
            page = page.filter(event::revision.gt(after));
        }
        page.load(c)
    })?;
    let read = |key: i64| {
        let row = query!(connection, c => event::table.find(key).select(EventRow::as_select()).first(c));
        Ok((key, if_readable(row)?))
    };
    keys.into_iter().map(read).collect()
}

fn acceptance_page(
    connection: &mut Connection,
    after: Option<&String>,
) -> Result<Read<String, AcceptanceRow>, Error> {
    let page: Result<Vec<(String, AcceptanceRow)>, _> = query!(connection, c => {
        let mut page = acceptance::table
            .filter(acceptance::id.is_not_null())
            .order(acceptance::id)
            .limit(PAGE)
            .select((acceptance::id, AcceptanceRow::as_select()))
            .into_boxed();
        if let Some(after) = after {
            page = page.filter(acceptance::id.gt(after));
        }
        page.load(c)
    });
    if let Ok(rows) = page {
        return Ok(rows.into_iter().map(|(key, row)| (key, Some(row))).collect());
    }
    let keys: Vec<String> = query!(connection, c => {
        let mut page = acceptance::table
            .filter(acceptance::id.is_not_null())
            .order(acceptance::id)
            .limit(PAGE)
            .select(acceptance::id)
            .into_boxed();
        if let Some(after) = after {
            page = page.filter(acceptance::id.gt(after));
        }
        page.load(c)
    })?;
    let read = |key: String| {
        let row = query!(connection, c => {
            acceptance::table.find(&key).select(AcceptanceRow::as_select()).first(c)
        });
        Ok((key, if_readable(row)?))
    };
    keys.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use chassis::clock::Clock;
    use chassis::database::{Database, Writes};
    use uuid::Uuid;

    use super::*;
    use crate::data::read_templates;
    use crate::rules::chain::Differs;
    use crate::rules::party::{Cloud, Contact, Customer};
    use crate::rules::signature::Signature;
    use crate::rules::template::AgreementType;
    use crate::rules::withdrawal::{Withdrawal, WithdrawalReason};
    use crate::store::MIGRATIONS;
    use crate::store::acceptance::{acceptance_supersede, acceptance_withdraw, signature_insert};
    use crate::store::change::{Change, ChangeError, change_internal, commitment};
    use crate::store::customer::customer_insert;

    const AGREEMENT: Uuid = Uuid::from_u128(0x117a77b0_9360_443b_8795_c6dedc750cf9);
    const CUSTOMER: Uuid = Uuid::from_u128(1);
    const ADMIN: Uuid = Uuid::from_u128(2);

    fn create(change: &mut Change<'_>) -> Result<(), Error> {
        let primary_contact = Contact {
            first_name: "Tania".into(),
            last_name: "Carr".into(),
            email: "tania.carr@contoso.example".into(),
            phone: String::new(),
        };
        let contact_salt = "salt".to_owned();
        let revision = change.record(&Event::CustomerCreated {
            customer_id: CUSTOMER,
            company_name: "Contoso".into(),
            domain: "contoso.example".into(),
            country: "FR".into(),
            cloud: Cloud::Public,
            contact_commitment: commitment(&contact_salt, &primary_contact),
            language: None,
            by: ADMIN,
        })?;
        customer_insert(
            change.connection,
            &Customer {
                id: CUSTOMER,
                company_name: "Contoso".into(),
                domain: "contoso.example".into(),
                country: "FR".into(),
                given_language: String::new(),
                cloud: Cloud::Public,
                primary_contact,
                contact_salt,
                created_at: change.now,
                first_purchase_at: None,
                acceptance_revision: revision,
                revision,
            },
        )
    }

    /// Signs a version in the place of another signature.
    fn sign(change: &mut Change<'_>, id: Uuid, version: u32, supersedes: Option<Uuid>) -> Result<(), Error> {
        let agreement_type = AgreementType::MicrosoftCustomerAgreement;
        let revision = change.record(&Event::Signed {
            signature_id: id,
            customer_id: CUSTOMER,
            agreement_type,
            template_id: AGREEMENT,
            template_version: version,
            shown_text: None,
            supersedes,
            by: ADMIN,
        })?;
        if let Some(superseded) = supersedes {
            acceptance_supersede(change.connection, superseded, change.now)?;
        }
        signature_insert(
            change.connection,
            &Signature {
                id,
                customer_id: CUSTOMER,
                agreement_type,
                template_id: AGREEMENT,
                template_version: version,
                signed_at: change.now,
                signed_by: ADMIN,
                superseded_at: None,
                withdrawn: None,
                revision,
                shown_text: None,
            },
        )
    }

    fn withdraw(change: &mut Change<'_>, id: Uuid) -> Result<(), Error> {
        let reason = WithdrawalReason::NoLongerAccepts;
        let uncovered_partner_ids = vec![];
        change.record(&Event::SignatureWithdrawn {
            signature_id: id,
            customer_id: CUSTOMER,
            reason,
            uncovered_partner_ids,
            by: ADMIN,
        })?;
        acceptance_withdraw(change.connection, id, Withdrawal { at: change.now, reason, by: ADMIN })
    }

    #[tokio::test]
    async fn signatures_are_held_against_the_history_too() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("agreements.sqlite").display());
        let database = Database::open(&url.parse().unwrap(), true, Writes::Serial).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        let clock = Clock::system();
        read_templates(None, None).unwrap().load(&database, &clock).await.unwrap();
        let [first, second] = [Uuid::from_u128(11), Uuid::from_u128(12)];
        let last: i64 = change_internal(&database, &clock, move |change| {
            create(change)?;
            sign(change, first, 1, None)?;
            sign(change, second, 2, Some(first))?;
            withdraw(change, second)?;
            Ok::<_, ChangeError>(change.revision())
        })
        .await
        .unwrap();

        let differs = |id: Uuid, how| Finding::Acceptance { id: id.to_string(), how };
        let superseded = differs(first, Differs::Column("superseded_at", last - 1));
        let withdrawn = ["withdrawn_at", "withdrawal_reason", "withdrawn_by"];
        let withdrawn = withdrawn.map(|column| differs(second, Differs::Column(column, last))).to_vec();
        for (set, expected) in [
            ("kind = kind", vec![]),
            (
                "first_name = 'Tania' WHERE withdrawn_at IS NULL",
                vec![differs(first, Differs::PersonOnSignature)],
            ),
            (
                "contact_salt = '1' WHERE withdrawn_at IS NULL",
                vec![differs(first, Differs::PersonOnSignature)],
            ),
            (
                "partner_id = '1' WHERE withdrawn_at IS NULL",
                vec![differs(first, Differs::Column("partner_id", last - 2))],
            ),
            (
                "agreed_at = '2001-01-01 00:00:00' WHERE withdrawn_at IS NULL",
                vec![differs(first, Differs::Column("agreed_at", last - 2))],
            ),
            ("superseded_at = NULL", vec![superseded]),
            ("withdrawn_at = NULL, withdrawal_reason = '', withdrawn_by = ''", withdrawn),
        ] {
            let found = database.write(move |connection| {
                query!(connection, c => diesel::sql_query(format!("UPDATE acceptance SET {set}")).execute(c))?;
                let verified = verify(connection, &[])?;
                // Nothing of it is to stay.
                Err::<(), _>(Tried(Ok(verified)))
            });
            let Err(Tried(verified)) = found.await else { panic!("{set} was kept") };
            assert_eq!(verified.unwrap().findings, expected, "{set}");
        }
    }

    /// What was seen in a transaction that is undone.
    struct Tried(Result<Verified, Error>);

    impl From<Error> for Tried {
        fn from(error: Error) -> Self {
            Self(Err(error))
        }
    }

    impl From<diesel::result::Error> for Tried {
        fn from(error: diesel::result::Error) -> Self {
            Self(Err(error.into()))
        }
    }
}
