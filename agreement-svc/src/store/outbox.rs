//! The mail outbox: what is to be sent, claimed in turn.
//!
//! A mail is claimed by moving the due time of its rows forward, and due again when the process that claimed it does not
//! finish. Partners take turns (ATT-9): what a partner queues delays no other one.
//!
//! What happens to it is no change of an acceptance: it takes no revision and no lock of the revision row.

use std::collections::HashMap;
use std::time::Duration;

use chassis::database::row::at;
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::{NaiveDateTime, TimeDelta};
use diesel::dsl::{auto_type, count, exists, max, min};
use diesel::prelude::*;
use uuid::Uuid;

use super::contact::contacts;
use super::notification::is_queued;
use super::schema::{acceptance, contact_notice, customer, notification, partner, template};

use crate::rules::Time;
use crate::rules::language::of_country;
use crate::rules::notification::{
    ANNOUNCED_MAX, Announced, Content, DueMail, MailFailure, NotificationState, Outcome, Sender, day_of,
    gathered_until,
};
use crate::rules::party::Support;

/// Rows that one turn holds back: a statement's worth, however many a partner has queued.
const HELD_PER_TURN: i64 = 1000;

/// Turns of one claim that may end without a mail: what they hold back stays held.
const IDLE_TURNS_MAX: usize = 16;

/// How long the mails of a sender's day are not counted anew, so that not each mail counts all of those before it.
const COUNT_AGE_MAX: TimeDelta = TimeDelta::seconds(10);

const QUEUED: &str = NotificationState::Queued.into_str();
const SENT: &str = NotificationState::Sent.into_str();
const DEAD_LETTER: &str = NotificationState::DeadLetter.into_str();

/// How mails are claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MailClaim {
    pub now: Time,
    /// How long claimed mails are left to the process that claimed them.
    pub lease: TimeDelta,
    /// How many to claim at most.
    pub limit: usize,
    /// Mails of one sender and day.
    pub per_day: u32,
    /// The least time between two mails of a partner to a customer.
    pub interval: Duration,
}

/// What a process remembers of the senders between two claims.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Whose turn was the last.
    last: Option<String>,
    /// The mails of each sender's day: as they were counted at a time, and those claimed since.
    counted: HashMap<String, (Time, i64)>,
}

/// Mails that this process may send now.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub mails: Vec<DueMail>,
    /// The claim ended at one of its limits.
    pub are_more_due: bool,
}

/// Claims mails that are due: one of the sender after the last in key order, then one of the next, and so on. What
/// another replica claims at the same moment is left to it.
pub(crate) fn mails_claim(
    connection: &mut Connection,
    claim: &MailClaim,
    turns: &mut Turns,
) -> Result<Claimed, Error> {
    let Turns { last, counted } = turns;
    counted.retain(|_, (at, _)| (claim.now - *at).abs() < COUNT_AGE_MAX);
    let mut mails = vec![];
    let mut idle = 0;
    while mails.len() < claim.limit && idle < IDLE_TURNS_MAX {
        let sender = match sender_after(connection, claim.now, last.as_deref())? {
            Some(sender) => sender,
            None if last.is_none() => break,
            None => {
                // The next round begins, unless one passed without a mail: what is due then is another replica's.
                if idle > 0 && mails.is_empty() {
                    *last = None;
                    return Ok(Claimed { mails, are_more_due: false });
                }
                *last = None;
                continue;
            }
        };
        match mail_of(connection, claim, &sender, counted)? {
            Some(mail) => mails.push(mail),
            None => idle += 1,
        }
        *last = Some(sender);
    }
    let are_more_due = mails.len() == claim.limit || idle == IDLE_TURNS_MAX;
    Ok(Claimed { mails, are_more_due })
}

/// The next sender that has something due: a partner, a customer that changed its contact, or `""` for all rows of
/// versions that did not store the partner. One lookup for each partner finds it, whatever each has queued.
fn sender_after(connection: &mut Connection, now: Time, last: Option<&str>) -> Result<Option<String>, Error> {
    let now = now.naive_utc();
    let due = notification::table.filter(is_queued()).filter(notification::due_at.le(now));
    if last.is_none() {
        let is_due: bool = query!(connection, c => {
            diesel::select(exists(due.clone().filter(notification::partner_id.eq("")))).get_result(c)
        })?;
        if is_due {
            return Ok(Some(String::new()));
        }
    }
    let after = last.unwrap_or_default();
    // As a value, which PostgreSQL looks up for each partner; of an EXISTS it may make a join that reads the whole queue.
    let first_due =
        due.filter(notification::partner_id.eq(partner::id)).select(notification::due_at).limit(1);
    let of_attestations: Option<String> = query!(connection, c => {
        partner::table
            .filter(partner::id.gt(after))
            .filter(first_due.single_value().is_not_null())
            .order(partner::id)
            .select(partner::id)
            .first(c)
            .optional()
    })?;
    let of_notices: Option<String> = query!(connection, c => {
        contact_notice::table
            .filter(contact_notice::state.eq(QUEUED))
            .filter(contact_notice::due_at.le(now))
            .filter(contact_notice::sender_id.gt(after))
            .select(min(contact_notice::sender_id))
            .first(c)
    })?;
    Ok(of_attestations.into_iter().chain(of_notices).min())
}

/// Claims the next mail of a sender; none where it is held or waits for more.
fn mail_of(
    connection: &mut Connection,
    claim: &MailClaim,
    sender: &str,
    counted: &mut HashMap<String, (Time, i64)>,
) -> Result<Option<DueMail>, Error> {
    // Rows without a partner may be of any, so that no limit fits them.
    if !sender.is_empty() {
        let known = counted.get(sender).map(|(_, mails)| *mails);
        if known.is_none_or(|mails| mails >= claim.per_day.into()) {
            let mails = mails_of_day(connection, claim.now, sender)?;
            counted.insert(sender.to_owned(), (claim.now, mails));
            if mails >= claim.per_day.into() {
                hold(connection, claim.now, sender)?;
                return Ok(None);
            }
        }
    }
    let mail = match notice_claim(connection, claim, sender)? {
        Some(mail) => Some(mail),
        None => announcement_claim(connection, claim, sender)?,
    };
    if let (Some(_), Some((_, mails))) = (&mail, counted.get_mut(sender)) {
        *mails += 1;
    }
    Ok(mail)
}

/// How many mails of a sender were sent on the day.
fn mails_of_day(connection: &mut Connection, now: Time, sender: &str) -> Result<i64, Error> {
    let (begin, _) = day_of(now);
    let announcements: i64 = query!(connection, c => {
        notification::table
            .filter(notification::partner_id.eq(sender))
            .filter(notification::sent_at.ge(begin.naive_utc()))
            .select(count(notification::mail_id).aggregate_distinct())
            .first(c)
    })?;
    let notices: i64 = query!(connection, c => {
        contact_notice::table
            .filter(contact_notice::sender_id.eq(sender))
            .filter(contact_notice::sent_at.ge(begin.naive_utc()))
            .count()
            .get_result(c)
    })?;
    Ok(announcements + notices)
}

/// Loads rows for an update. Commits are shared: waiting for a row that another replica holds while it waits for a change
/// of ours would be a deadlock. SQLite has one writer at a time anyway.
macro_rules! load_to_update {
    ($connection:expr, $rows:expr) => {
        match $connection {
            Connection::Sqlite(c) => $rows.load(c)?,
            Connection::Postgres(c) => $rows.for_update().skip_locked().load(c)?,
        }
    };
}

/// Leaves what is due of a sender to the next day, and says so on each.
fn hold(connection: &mut Connection, now: Time, sender: &str) -> Result<(), Error> {
    let (_, next_day) = day_of(now);
    let (next_day, why) = (next_day.naive_utc(), MailFailure::DailyLimit.to_string());
    let announcements = notification::table
        .filter(is_queued())
        .filter(notification::partner_id.eq(sender))
        .filter(notification::due_at.le(now.naive_utc()))
        .limit(HELD_PER_TURN)
        .select(notification::attestation_id);
    let ids: Vec<String> = load_to_update!(connection, announcements);
    query!(connection, c => {
        diesel::update(notification::table.filter(notification::attestation_id.eq_any(&ids)))
            .set((notification::due_at.eq(next_day), notification::last_failure.eq(&why)))
            .execute(c)
    })?;
    let notices = contact_notice::table
        .filter(contact_notice::state.eq(QUEUED))
        .filter(contact_notice::sender_id.eq(sender))
        .filter(contact_notice::due_at.le(now.naive_utc()))
        .limit(HELD_PER_TURN)
        .select(contact_notice::id);
    let ids: Vec<String> = load_to_update!(connection, notices);
    query!(connection, c => {
        diesel::update(contact_notice::table.filter(contact_notice::id.eq_any(&ids)))
            .set((contact_notice::due_at.eq(next_day), contact_notice::last_failure.eq(&why)))
            .execute(c)
    })?;
    Ok(())
}

fn notice_claim(
    connection: &mut Connection,
    claim: &MailClaim,
    sender: &str,
) -> Result<Option<DueMail>, Error> {
    let due = contact_notice::table
        .filter(contact_notice::state.eq(QUEUED))
        .filter(contact_notice::sender_id.eq(sender))
        .filter(contact_notice::due_at.le(claim.now.naive_utc()))
        .order(contact_notice::due_at)
        .limit(1)
        .select(contact_notice::id);
    let ids: Vec<String> = load_to_update!(connection, due);
    let Some(id) = ids.first() else { return Ok(None) };
    query!(connection, c => {
        diesel::update(contact_notice::table.find(id))
            .set((
                contact_notice::attempts.eq(contact_notice::attempts + 1),
                contact_notice::due_at.eq((claim.now + claim.lease).naive_utc()),
            ))
            .execute(c)
    })?;
    let (attempts, recipient, company, partner): (i32, String, CompanyRow, Option<SenderRow>) = query!(connection, c => {
        contact_notice::table
            .inner_join(customer::table.on(customer::id.eq(contact_notice::customer_id)))
            .left_join(partner::table.on(partner::id.eq(contact_notice::sender_id)))
            .filter(contact_notice::id.eq(id))
            .select((
                contact_notice::attempts,
                contact_notice::email,
                COMPANY,
                SENDER.nullable(),
            ))
            .first(c)
    })?;
    let row = at("contact_notice", id);
    let content = Content::ContactChanged {
        partner: partner.map(sender_of),
        attempts: row.count("attempts", attempts)?,
    };
    let (company_name, language) = company_of(company);
    Ok(Some(DueMail { id: row.parse("id", id)?, recipient, company_name, language, content }))
}

/// Claims the oldest announcement of a sender that is due, together with those that belong into its mail.
fn announcement_claim(
    connection: &mut Connection,
    claim: &MailClaim,
    sender: &str,
) -> Result<Option<DueMail>, Error> {
    let now = claim.now.naive_utc();
    let due = notification::table
        .filter(is_queued())
        .filter(notification::partner_id.eq(sender))
        .filter(notification::due_at.le(now))
        .order(notification::due_at)
        .limit(1)
        .select((notification::attestation_id, notification::customer_id, notification::mail_id));
    let first: Vec<(String, String, String)> = load_to_update!(connection, due);
    let Some((first, customer_id, mail_id)) = first.into_iter().next() else { return Ok(None) };
    let is_gathered = !customer_id.is_empty() && !claim.interval.is_zero();
    let (ids, together): (Vec<String>, usize) =
        if !customer_id.is_empty() && (is_gathered || !mail_id.is_empty()) {
            // A mail that was tried before stays as it is.
            let rows = notification::table
                .filter(is_of_pair(&customer_id, sender))
                .filter(notification::state.ne(SENT))
                .filter(notification::state.ne(DEAD_LETTER))
                .filter(notification::mail_id.concat("").eq(&mail_id))
                .order(notification::due_at)
                .limit(ANNOUNCED_MAX as i64)
                .select(notification::attestation_id);
            let all: Vec<String> = query!(&mut *connection, c => rows.load(c))?;
            (load_to_update!(connection, rows), all.len())
        } else {
            (vec![first], 1)
        };
    // Where another replica holds some of them, the mail is left to it.
    let Some(first) = ids.first().filter(|_| ids.len() == together) else { return Ok(None) };
    if is_gathered && mail_id.is_empty() {
        let until = match last_mail(connection, sender, &customer_id, now)? {
            Some(sent_at) => gathered_until(sent_at, claim.now, claim.interval),
            None => None,
        };
        if let Some(until) = until {
            query!(connection, c => {
                diesel::update(notification::table.filter(notification::attestation_id.eq_any(&ids)))
                    .set(notification::due_at.eq(until.naive_utc()))
                    .execute(c)
            })?;
            return Ok(None);
        }
    }
    let mail_id = if mail_id.is_empty() { first.clone() } else { mail_id };
    query!(connection, c => {
        diesel::update(notification::table.filter(notification::attestation_id.eq_any(&ids)))
            .set((
                notification::attempts.eq(notification::attempts + 1),
                notification::due_at.eq((claim.now + claim.lease).naive_utc()),
                notification::mail_id.eq(&mail_id),
            ))
            .execute(c)
    })?;
    announcement(connection, &mail_id, &ids)
}

/// That a notification is from a sender to a customer, in words that only the customer's index serves. A customer has few;
/// a database that knows little of the table may otherwise look for them among all of the sender.
#[auto_type(no_type_alias)]
fn is_of_pair<'a>(customer_id: &'a str, sender: &'a str) -> _ {
    notification::customer_id.eq(customer_id).and(notification::partner_id.concat("").eq(sender))
}

/// When the last mail of a partner to a customer was sent; `Some(None)` while it is on its way for the first time.
fn last_mail(
    connection: &mut Connection,
    sender: &str,
    customer_id: &str,
    now: NaiveDateTime,
) -> Result<Option<Option<Time>>, Error> {
    let of_pair = notification::table.filter(is_of_pair(customer_id, sender));
    let is_on_its_way: bool = query!(connection, c => {
        let claimed = of_pair
            .filter(notification::state.ne(SENT))
            .filter(notification::state.ne(DEAD_LETTER))
            .filter(notification::mail_id.ne(""))
            .filter(notification::last_failure.eq(""))
            .filter(notification::due_at.gt(now));
        diesel::select(exists(claimed)).get_result(c)
    })?;
    if is_on_its_way {
        return Ok(Some(None));
    }
    let sent_at: Option<NaiveDateTime> =
        query!(connection, c => of_pair.select(max(notification::sent_at)).first(c))?;
    Ok(sent_at.map(|sent_at| Some(sent_at.and_utc())))
}

/// A partner's name and its support contact: e-mail address, phone and page.
type SenderRow = (String, String, String, String);

const SENDER: (partner::name, partner::support_email, partner::support_phone, partner::support_url) =
    (partner::name, partner::support_email, partner::support_phone, partner::support_url);

fn sender_of((name, email, phone, url): SenderRow) -> Sender {
    Sender { name, support: Support { email, phone, url } }
}

/// A customer's name, country and language.
type CompanyRow = (String, String, String);

const COMPANY: (customer::company_name, customer::country, customer::language) =
    (customer::company_name, customer::country, customer::language);

/// The name, and the language to write in.
fn company_of((name, country, given): CompanyRow) -> (String, String) {
    let language = if given.is_empty() { of_country(&country).to_owned() } else { given };
    (name, language)
}

#[derive(Queryable)]
struct AnnouncedRow {
    attestation_id: String,
    attempts: i32,
    partner_id: String,
    customer_id: String,
    partner: SenderRow,
    company: CompanyRow,
    first_name: String,
    last_name: String,
    agreement: String,
    version: i32,
    agreed_at: NaiveDateTime,
}

fn announcement(
    connection: &mut Connection,
    mail_id: &str,
    ids: &[String],
) -> Result<Option<DueMail>, Error> {
    let rows: Vec<AnnouncedRow> = query!(connection, c => {
        notification::table
            .inner_join(acceptance::table.on(acceptance::id.eq(notification::attestation_id)))
            .inner_join(customer::table.on(customer::id.eq(acceptance::customer_id)))
            .inner_join(partner::table.on(partner::id.eq(acceptance::partner_id)))
            .inner_join(template::table.on(template::id.eq(acceptance::template_id)))
            .filter(notification::attestation_id.eq_any(ids))
            .order(acceptance::revision)
            .select((
                notification::attestation_id,
                notification::attempts,
                acceptance::partner_id,
                acceptance::customer_id,
                SENDER,
                COMPANY,
                acceptance::first_name,
                acceptance::last_name,
                template::name,
                acceptance::template_version,
                acceptance::agreed_at,
            ))
            .load(c)
    })?;
    let Some(AnnouncedRow { partner_id, customer_id, partner, company, .. }) = rows.first() else {
        return Ok(None);
    };
    let (partner, (company_name, language)) = (sender_of(partner.clone()), company_of(company.clone()));
    let partner_id: Uuid = at("acceptance", mail_id).parse("partner_id", partner_id)?;
    let customer_id: Uuid = at("acceptance", mail_id).parse("customer_id", customer_id)?;
    let contacts = contacts(connection, customer_id)?;
    let recipient = contacts.addressee(partner_id).map(|contact| contact.email.clone()).unwrap_or_default();
    let read = |row: AnnouncedRow| {
        let key = at("notification", &row.attestation_id);
        Ok(Announced {
            attestation_id: key.parse("attestation_id", &row.attestation_id)?,
            attempts: key.count("attempts", row.attempts)?,
            first_name: row.first_name,
            last_name: row.last_name,
            agreement: row.agreement,
            version: at("acceptance", &row.attestation_id).count("template_version", row.version)?,
            agreed_at: row.agreed_at.and_utc(),
        })
    };
    let attestations = rows.into_iter().map(read).collect::<Result<_, Error>>()?;
    let content = Content::Attested { partner, attestations };
    let id = at("notification", mail_id).parse("mail_id", mail_id)?;
    Ok(Some(DueMail { id, recipient, company_name, language, content }))
}

/// The mail server took it, whether or not another process claimed it meanwhile.
pub(crate) fn mail_sent(connection: &mut Connection, mail: &DueMail, now: Time) -> Result<(), Error> {
    let (state, now) = (SENT, now.naive_utc());
    match &mail.content {
        Content::Attested { attestations, .. } => {
            let ids: Vec<String> = attestations.iter().map(|of| of.attestation_id.to_string()).collect();
            query!(connection, c => {
                diesel::update(notification::table.filter(notification::attestation_id.eq_any(&ids)))
                    .filter(notification::state.ne(state))
                    .set((
                        notification::state.eq(state),
                        notification::sent_at.eq(now),
                        notification::last_failure.eq(""),
                    ))
                    .execute(c)
            })?;
        }
        Content::ContactChanged { .. } => {
            query!(connection, c => {
                diesel::update(contact_notice::table.find(mail.id.to_string()))
                    .set((
                        contact_notice::state.eq(state),
                        contact_notice::email.eq(""),
                        contact_notice::sent_at.eq(now),
                        contact_notice::last_failure.eq(""),
                    ))
                    .execute(c)
            })?;
        }
    }
    Ok(())
}

/// An attempt failed. Nothing is stored where another process has claimed or settled it meanwhile.
pub(crate) fn mail_failed(
    connection: &mut Connection,
    mail: &DueMail,
    failure: MailFailure,
    outcome: impl Fn(u32) -> Outcome,
) -> Result<(), Error> {
    let settled = |attempts| match outcome(attempts) {
        Outcome::Queued { due_at } => (QUEUED, Some(due_at.naive_utc())),
        Outcome::DeadLetter => (DEAD_LETTER, None),
    };
    let attempted = |attempts: u32| i32::try_from(attempts).unwrap_or(i32::MAX);
    match &mail.content {
        Content::Attested { attestations, .. } => {
            for Announced { attestation_id, attempts, .. } in attestations {
                let (state, due_at) = settled(*attempts);
                query!(connection, c => {
                    diesel::update(notification::table.find(attestation_id.to_string()))
                        .filter(notification::state.eq(QUEUED))
                        .filter(notification::attempts.eq(attempted(*attempts)))
                        .set((
                            notification::state.eq(state),
                            due_at.map(|due_at| notification::due_at.eq(due_at)),
                            notification::last_failure.eq(failure.to_string()),
                        ))
                        .execute(c)
                })?;
            }
        }
        Content::ContactChanged { attempts, .. } => {
            let (state, due_at) = settled(*attempts);
            query!(connection, c => {
                diesel::update(contact_notice::table.find(mail.id.to_string()))
                    .filter(contact_notice::state.eq(QUEUED))
                    .filter(contact_notice::attempts.eq(attempted(*attempts)))
                    .set((
                        contact_notice::state.eq(state),
                        due_at.map(|due_at| contact_notice::due_at.eq(due_at)),
                        due_at.is_none().then(|| contact_notice::email.eq("")),
                        contact_notice::last_failure.eq(failure.to_string()),
                    ))
                    .execute(c)
            })?;
        }
    }
    Ok(())
}
