//! What the events of the hash chain say of acceptances, and where the records differ from them.
//!
//! The history cannot be altered unnoticed, the records can. So what each record must be is worked out
//! from the events alone, and the records are held against that. Whether the history itself is whole
//! is for the store to find out, which makes and compares the hashes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::Time;
use super::attestation::ProposedBy;
use super::eligibility::AcceptanceKind;
use super::event::Event;
use super::shown::ShownText;
use super::template::AgreementType;
use super::withdrawal::Withdrawal;

/// Where the history stood: the number of an event and its hash. Of an empty one: 0 and nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub revision: i64,
    /// 64 digits in lower-case hexadecimal.
    pub hash: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.revision, self.hash)
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || String::from("must be REVISION:HASH, as the command printed it");
        let (revision, hash) = text.split_once(':').ok_or_else(wrong)?;
        let revision = revision.parse().map_err(|_| wrong())?;
        let is_digest = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (revision, is_digest) {
            (1.., true) => Ok(Self { revision, hash: hash.to_owned() }),
            (0, _) if hash.is_empty() => Ok(Self { revision, hash: String::new() }),
            _ => Err(wrong()),
        }
    }
}

/// Something that is not as the service left it. It names records and columns, never what stands in
/// them: that may be personal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The first event that does not continue the one before it.
    Broken { revision: i64, how: Broken },
    /// Rows of the table that cannot be reached by their key, which the service never writes.
    Keyless { table: &'static str, rows: i64 },
    /// The revision row is gone.
    NoCounter,
    /// The revision row is of another event than the last one.
    Counter { counted: i64, last: i64 },
    /// The revision row has another hash than the last event.
    CounterHash { last: i64 },
    /// A head that was kept earlier is no part of the history.
    Head { kept: Head, last: i64 },
    /// A head that was kept earlier is of a part that was lost when a copy was restored, which `restored` announced.
    Lost { kept: Head, last: i64, restored: i64 },
    /// An event is about an acceptance that no event before it recorded.
    NoSuchAcceptance { revision: i64, acceptance_id: Uuid },
    /// A record of an acceptance differs from the history.
    Acceptance { id: String, how: Differs },
}

/// How an event breaks the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// There is none with this number.
    Missing,
    /// One with a number that should not come here.
    Misnumbered,
    /// Something in it is no value at all.
    Unreadable,
    /// Its hash does not follow from the hash before it and what it holds.
    Hash,
    /// Its body is no event that this program knows.
    Body,
    /// A column beside the body says something else than the body.
    Column(&'static str),
}

/// How a record of an acceptance differs. Numbers are of the event that says how it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differs {
    Column(&'static str, i64),
    /// Names, e-mail, phone and salt stand under one commitment, so only that one of them changed is known.
    Contact(i64),
    NotErased(i64),
    ErasedByNobody,
    /// A signature names a user, never a person.
    PersonOnSignature,
    Unreadable,
    Unrecorded,
    Gone(i64),
    Twice,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { revision, how } => {
                let how = match how {
                    Broken::Missing => "is missing".into(),
                    Broken::Misnumbered => "is not where its number belongs".into(),
                    Broken::Unreadable => "cannot be read".into(),
                    Broken::Hash => {
                        "was altered or moved, or the one before it was: the hash does not fit".into()
                    }
                    Broken::Body => "has a body that is no event".into(),
                    Broken::Column(column) => format!("has another {column} in its column than in its body"),
                };
                write!(
                    f,
                    "event {revision} {how}; later events cannot be verified; the records are compared with them all the same"
                )
            }
            Self::Keyless { table, rows } => write!(f, "{rows} rows of table {table} have no proper key"),
            Self::NoCounter => f.write_str("the revision row is gone"),
            Self::Counter { counted, last } if counted > last => write!(
                f,
                "the revision row counts {counted} events, but the last one is {last}: the end was cut off"
            ),
            Self::Counter { counted, last } => {
                write!(f, "the revision row counts {counted} events, but the last one is {last}")
            }
            Self::CounterHash { last } => {
                write!(f, "the revision row has another hash than event {last}, the last one")
            }
            Self::Lost { kept, last, restored } => write!(
                f,
                "the head {kept} was lost by a restore: the copy ended with event {last}, and event {restored} says so"
            ),
            Self::Head { kept, last } if kept.revision > *last => {
                write!(f, "the history ends with event {last} before the head {kept}: the end was cut off")
            }
            Self::Head { kept, .. } => write!(
                f,
                "the history does not have the head {kept}: event {} or one before it was replaced",
                kept.revision
            ),
            Self::NoSuchAcceptance { revision, acceptance_id } => {
                write!(
                    f,
                    "event {revision} is about acceptance {acceptance_id}, which no event before it records"
                )
            }
            Self::Acceptance { id, how } => {
                // A row that the service did not write may have any id.
                let id = if Uuid::try_parse(id).is_ok() { id.clone() } else { format!("{id:?}") };
                write!(f, "acceptance {id}: ")?;
                match how {
                    Differs::Column(column, event) => write!(f, "{column} does not agree with event {event}"),
                    Differs::Contact(event) => {
                        write!(
                            f,
                            "the contact or its salt does not agree with the commitment in event {event}"
                        )
                    }
                    Differs::NotErased(event) => {
                        write!(f, "the contact is there, but event {event} erased it")
                    }
                    Differs::ErasedByNobody => f.write_str("the contact is empty, but no event erased it"),
                    Differs::PersonOnSignature => f.write_str("the signature has a contact, which none has"),
                    Differs::Unreadable => f.write_str("it cannot be read"),
                    Differs::Unrecorded => f.write_str("no event records it"),
                    Differs::Gone(event) => write!(f, "event {event} records it, but there is no such row"),
                    Differs::Twice => f.write_str("there is more than one such row"),
                }
            }
        }
    }
}

/// What was found when the history was read: its text is a line for each finding and one for the head.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whatever is not as the service left it; empty when all is well.
    pub findings: Vec<Finding>,
    /// Of the last event: to be stored where an attacker with write access to the database cannot change it.
    pub head: Head,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        write!(f, "head {}", self.head)
    }
}

/// The columns of a stored acceptance but id and contact, as they stand there: another program may have
/// written them, so that they need not be what their types in the rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    pub kind: String,
    /// Empty on a signature.
    pub partner_id: String,
    pub customer_id: String,
    pub agreement_type: String,
    pub template_id: String,
    pub template_version: i64,
    pub agreed_at: Time,
    pub recorded_at: Time,
    pub recorded_by: String,
    /// Empty where none was given; so is the next.
    pub recorded_client: String,
    pub evidence_sha256: String,
    /// Empty where it was not proposed; so are the next two.
    pub proposal_id: String,
    pub proposed_by_partner: String,
    pub proposed_by_user: String,
    /// Empty where no text was named; so are the next two.
    pub shown_country: String,
    pub shown_language: String,
    pub shown_sha256: String,
    pub superseded_at: Option<Time>,
    pub withdrawn_at: Option<Time>,
    /// Empty while it is not withdrawn; so is the next.
    pub withdrawal_reason: String,
    pub withdrawn_by: String,
    pub revision: i64,
}

/// The contact, what is erased with it, and the salt of a stored acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredContact {
    /// All of them are empty.
    Empty,
    /// What they commit to.
    Of { commitment: String },
}

/// A stored acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: String,
    pub columns: Columns,
    pub contact: StoredContact,
}

/// What an acceptance must be.
#[derive(Debug)]
struct Expected {
    partner_id: Option<Uuid>,
    customer_id: Uuid,
    agreement_type: AgreementType,
    template_id: Uuid,
    template_version: u32,
    agreed_at: Time,
    recorded_at: Time,
    recorded_by: Uuid,
    recorded_client: String,
    evidence_sha256: String,
    proposed_by: Option<ProposedBy>,
    shown_text: Option<ShownText>,
    revision: i64,
    /// Of an attestation only.
    contact_commitment: Option<String>,
    /// With the event that did it; so are the next two.
    superseded: Option<(Time, i64)>,
    withdrawn: Option<(Withdrawal, i64)>,
    erased: Option<i64>,
    is_stored: bool,
}

/// All acceptances that the events tell of, by id: about 600 bytes for each.
#[derive(Debug, Default)]
pub struct Acceptances(BTreeMap<Uuid, Expected>);

impl Acceptances {
    /// Follows the next event. Answers with the acceptances it is about that no event recorded.
    pub fn follow(&mut self, revision: i64, recorded_at: Time, event: &Event) -> Vec<Finding> {
        let without_acceptance = match event {
            Event::Attested {
                attestation_id,
                partner_id,
                customer_id,
                agreement_type,
                template_id,
                template_version,
                contact_commitment,
                agreed_at,
                evidence_sha256,
                client,
                proposed_by,
                shown_text,
                supersedes,
                by,
            } => {
                let expected = Expected {
                    partner_id: Some(*partner_id),
                    customer_id: *customer_id,
                    agreement_type: *agreement_type,
                    template_id: *template_id,
                    template_version: *template_version,
                    agreed_at: *agreed_at,
                    recorded_at,
                    recorded_by: *by,
                    recorded_client: client.clone().unwrap_or_default(),
                    evidence_sha256: evidence_sha256.clone().unwrap_or_default(),
                    proposed_by: *proposed_by,
                    shown_text: shown_text.clone(),
                    revision,
                    contact_commitment: Some(contact_commitment.clone()),
                    superseded: None,
                    withdrawn: None,
                    erased: None,
                    is_stored: false,
                };
                self.insert(*attestation_id, *supersedes, expected)
            }
            Event::Signed {
                signature_id,
                customer_id,
                agreement_type,
                template_id,
                template_version,
                shown_text,
                supersedes,
                by,
            } => {
                let expected = Expected {
                    partner_id: None,
                    customer_id: *customer_id,
                    agreement_type: *agreement_type,
                    template_id: *template_id,
                    template_version: *template_version,
                    agreed_at: recorded_at,
                    recorded_at,
                    recorded_by: *by,
                    recorded_client: String::new(),
                    evidence_sha256: String::new(),
                    proposed_by: None,
                    shown_text: shown_text.clone(),
                    revision,
                    contact_commitment: None,
                    superseded: None,
                    withdrawn: None,
                    erased: None,
                    is_stored: false,
                };
                self.insert(*signature_id, *supersedes, expected)
            }
            Event::AttestationWithdrawn { attestation_id: id, reason, by, .. }
            | Event::SignatureWithdrawn { signature_id: id, reason, by, .. } => {
                let withdrawal = Withdrawal { at: recorded_at, reason: *reason, by: *by };
                self.alter(&[*id], |expected| expected.withdrawn = Some((withdrawal, revision)))
            }
            Event::ContactErased { attestation_ids, .. } => {
                self.alter(attestation_ids, |expected| expected.erased = Some(revision))
            }
            Event::PartnerRegistered { .. }
            | Event::PartnerUpdated { .. }
            | Event::ResellerLinked { .. }
            | Event::ResellerUnlinked { .. }
            | Event::CustomerCreated { .. }
            | Event::CustomerUpdated { .. }
            | Event::RelationshipEstablished { .. }
            | Event::RelationshipEnded { .. }
            | Event::TemplateVersionPublished { .. }
            | Event::TemplateRetired { .. }
            | Event::InvitationCreated { .. }
            | Event::InvitationRevoked { .. }
            | Event::InvitationDeclined { .. }
            | Event::InvitationAccepted { .. }
            | Event::AttestationProposed { .. }
            | Event::ProposalApproved { .. }
            | Event::ProposalRejected { .. }
            | Event::ProposalWithdrawn { .. }
            | Event::FirstPurchaseReported { .. }
            | Event::HistoryRestored { .. } => vec![],
        };
        without_acceptance
            .into_iter()
            .map(|acceptance_id| Finding::NoSuchAcceptance { revision, acceptance_id })
            .collect()
    }

    /// Holds a stored acceptance against the events; all of them must have been followed.
    pub fn compare(&mut self, stored: Stored) -> Vec<Finding> {
        let Stored { id, columns, contact } = stored;
        let finding = |how| Finding::Acceptance { id: id.clone(), how };
        let Some(expected) = self.expected(&id) else { return vec![finding(Differs::Unrecorded)] };
        if std::mem::replace(&mut expected.is_stored, true) {
            return vec![finding(Differs::Twice)];
        }
        let differing = expected.differing(&columns).into_iter();
        let differing = differing.map(|(column, event)| Differs::Column(column, event));
        differing.chain(expected.contact_differs(&contact)).map(finding).collect()
    }

    /// A stored acceptance of which nothing but the id could be read.
    pub fn unreadable(&mut self, id: String) -> Finding {
        if let Some(expected) = self.expected(&id) {
            expected.is_stored = true;
        }
        Finding::Acceptance { id, how: Differs::Unreadable }
    }

    /// The acceptances that were recorded and of which no row has been seen.
    pub fn gone(&self) -> impl Iterator<Item = Finding> {
        let gone = self.0.iter().filter(|(_, expected)| !expected.is_stored);
        gone.map(|(id, expected)| Finding::Acceptance {
            id: id.to_string(),
            how: Differs::Gone(expected.revision),
        })
    }

    /// By its id exactly as the service writes it.
    fn expected(&mut self, id: &str) -> Option<&mut Expected> {
        let uuid = Uuid::try_parse(id).ok().filter(|uuid| uuid.to_string() == id)?;
        self.0.get_mut(&uuid)
    }

    fn insert(&mut self, id: Uuid, supersedes: Option<Uuid>, expected: Expected) -> Vec<Uuid> {
        let by = (expected.recorded_at, expected.revision);
        let without_acceptance =
            self.alter(supersedes.as_slice(), |superseded| superseded.superseded = Some(by));
        self.0.entry(id).or_insert(expected);
        without_acceptance
    }

    /// Answers with those that are not there.
    fn alter(&mut self, ids: &[Uuid], set: impl Fn(&mut Expected)) -> Vec<Uuid> {
        let mut unknown = vec![];
        for id in ids {
            match self.0.get_mut(id) {
                Some(expected) => set(expected),
                None => unknown.push(*id),
            }
        }
        unknown
    }
}

impl Expected {
    /// The columns that differ, each with the event that says what it should be.
    fn differing(&self, stored: &Columns) -> Vec<(&'static str, i64)> {
        let Columns {
            kind,
            partner_id,
            customer_id,
            agreement_type,
            template_id,
            template_version,
            agreed_at,
            recorded_at,
            recorded_by,
            recorded_client,
            evidence_sha256,
            proposal_id,
            proposed_by_partner,
            proposed_by_user,
            shown_country,
            shown_language,
            shown_sha256,
            superseded_at,
            withdrawn_at,
            withdrawal_reason,
            withdrawn_by,
            revision,
        } = stored;
        let is_kind = match self.partner_id {
            Some(_) => AcceptanceKind::Attestation,
            None => AcceptanceKind::Signature,
        };
        let is = |text: &str, id: Uuid| text == id.to_string();
        let is_proposed = |text: &str, id: fn(ProposedBy) -> Uuid| {
            text == self.proposed_by.map(|by| id(by).to_string()).unwrap_or_default()
        };
        let is_shown = |text: &str, part: fn(&ShownText) -> &String| {
            text == self.shown_text.as_ref().map(part).map_or("", String::as_str)
        };
        let withdrawal = self.withdrawn.map(|(withdrawal, _)| withdrawal);
        let own = self.revision;
        let superseding = self.superseded.map_or(own, |(_, event)| event);
        let withdrawing = self.withdrawn.map_or(own, |(_, event)| event);
        let agrees = [
            ("kind", kind == is_kind.into_str(), own),
            ("partner_id", *partner_id == self.partner_id.map(|id| id.to_string()).unwrap_or_default(), own),
            ("customer_id", is(customer_id, self.customer_id), own),
            ("agreement_type", agreement_type == self.agreement_type.into_str(), own),
            ("template_id", is(template_id, self.template_id), own),
            ("template_version", *template_version == i64::from(self.template_version), own),
            ("agreed_at", *agreed_at == self.agreed_at, own),
            ("recorded_at", *recorded_at == self.recorded_at, own),
            ("recorded_by", is(recorded_by, self.recorded_by), own),
            ("recorded_client", *recorded_client == self.recorded_client, own),
            ("evidence_sha256", *evidence_sha256 == self.evidence_sha256, own),
            ("proposal_id", is_proposed(proposal_id, |by| by.proposal_id), own),
            ("proposed_by_partner", is_proposed(proposed_by_partner, |by| by.partner_id), own),
            ("proposed_by_user", is_proposed(proposed_by_user, |by| by.user_id), own),
            ("shown_country", is_shown(shown_country, |text| &text.country), own),
            ("shown_language", is_shown(shown_language, |text| &text.language), own),
            ("shown_sha256", is_shown(shown_sha256, |text| &text.sha256), own),
            ("revision", *revision == own, own),
            ("superseded_at", *superseded_at == self.superseded.map(|(at, _)| at), superseding),
            ("withdrawn_at", *withdrawn_at == withdrawal.map(|withdrawal| withdrawal.at), withdrawing),
            (
                "withdrawal_reason",
                withdrawal_reason == withdrawal.map_or("", |withdrawal| withdrawal.reason.into_str()),
                withdrawing,
            ),
            (
                "withdrawn_by",
                *withdrawn_by == withdrawal.map(|withdrawal| withdrawal.by.to_string()).unwrap_or_default(),
                withdrawing,
            ),
        ];
        agrees
            .into_iter()
            .filter(|(_, agrees, _)| !agrees)
            .map(|(column, _, event)| (column, event))
            .collect()
    }

    fn contact_differs(&self, stored: &StoredContact) -> Option<Differs> {
        match (stored, &self.contact_commitment, self.erased) {
            (StoredContact::Empty, None, _) | (StoredContact::Empty, Some(_), Some(_)) => None,
            (StoredContact::Empty, Some(_), None) => Some(Differs::ErasedByNobody),
            (StoredContact::Of { .. }, None, _) => Some(Differs::PersonOnSignature),
            (StoredContact::Of { .. }, Some(_), Some(event)) => Some(Differs::NotErased(event)),
            (StoredContact::Of { commitment }, Some(expected), None) => {
                (commitment != expected).then_some(Differs::Contact(self.revision))
            }
        }
    }
}

#[cfg(test)]
mod tests;
