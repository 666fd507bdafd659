//! Attestation (ATT-1 to ATT-11): the effect that CreateAttestation, the rows of ImportAttestations and CreateCustomer share.

use std::collections::{BTreeMap, BTreeSet};

use chassis::clock::{new_id, new_salt};
use chassis::database::Error;
use uuid::Uuid;

use super::rate::RecentChanges;
use super::template::live_instead_of;
use crate::rules::attestation::{self, Attestation, Claim, Facts, ProposedBy, check_attester};
use crate::rules::event::Event;
use crate::rules::party::{Customer, Partner, Relationship};
use crate::rules::template::{AgreementType, Document, Template};
use crate::rules::{Refusal, Time};
use crate::store::acceptance::{acceptances_supersede, attestations_current, attestations_insert};
use crate::store::change::{Change, ChangeError, attestation_commitment};
use crate::store::customer::{customers_find, customers_set_acceptance_revision, relationships_find};
use crate::store::notification::notifications_insert;
use crate::store::partner::partner_find;
use crate::store::template::{documents_of, templates_find};

/// An attestation to be stored.
pub(crate) struct NewAttestation {
    pub template_id: Uuid,
    pub claim: Claim,
    /// The partner's user who attests (ROLE-7).
    pub by: Uuid,
    /// The program that the user attests with.
    pub client: Option<String>,
    /// Who proposed it, where it is an approved proposal (PRO-1).
    pub proposed_by: Option<ProposedBy>,
}

/// Decides whether the partner may attest for the customer (ROLE-6, ATT-1), and attests.
pub(crate) fn attest_as_partner(
    change: &mut Change<'_>,
    partner_id: Uuid,
    customer_id: Uuid,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let attesting = Attesting::read(change, partner_id, &[(customer_id, &new)])?;
    attesting.attest_once(change, customer_id, new)
}

/// Attests for a customer that the attester has just created.
pub(crate) fn attest_for_new(
    change: &mut Change<'_>,
    attester: &Partner,
    relationship: Relationship,
    customer: &mut Customer,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let customers = BTreeMap::from([(customer.id, (relationship, customer.clone()))]);
    let attester = (attester.id, Some(attester.clone()));
    let attesting = Attesting::with(change, attester, customers, &[&new])?;
    let attestation = attesting.attest_once(change, customer.id, new)?;
    customer.acceptance_revision = attestation.revision;
    Ok(attestation)
}

/// Attestations of one partner, decided one after the other and stored together: each is decided as those before it have
/// left everything.
pub(crate) struct Attesting {
    partner_id: Uuid,
    /// Absent where it is not registered.
    attester: Option<Partner>,
    /// The customers that the partner may attest for.
    customers: BTreeMap<Uuid, (Relationship, Customer)>,
    templates: BTreeMap<Uuid, Template>,
    /// The template to name where one of them is retired.
    live_template_id: Option<Uuid>,
    /// Of the versions that are accepted, for the countries whose text was shown.
    documents: BTreeMap<(Uuid, u32), Vec<Document>>,
    /// The current attestations, with the times at which their versions took effect.
    current: BTreeMap<(Uuid, AgreementType), (Attestation, Time)>,
    recent: RecentChanges,
    new: Vec<Attestation>,
    /// Those of the attestations stored before that the new ones replace.
    superseded: Vec<Uuid>,
}

impl Attesting {
    /// Reads what decisions on some attestations need to know, each with its customer.
    pub(crate) fn read(
        change: &mut Change<'_>,
        partner_id: Uuid,
        asked: &[(Uuid, &NewAttestation)],
    ) -> Result<Self, Error> {
        let (customers, asked): (BTreeSet<_>, Vec<_>) = asked.iter().copied().unzip();
        let customers: Vec<Uuid> = customers.into_iter().collect();
        let mut relationships = relationships_find(change.connection, partner_id, &customers)?;
        let related: Vec<Uuid> = relationships.keys().copied().collect();
        let customers = customers_find(change.connection, &related)?.into_iter();
        let customers = customers.filter_map(|customer| {
            let relationship = relationships.remove(&customer.id)?;
            Some((customer.id, (relationship, customer)))
        });
        let customers = customers.collect();
        let attester = partner_find(change.connection, partner_id)?;
        Self::with(change, (partner_id, attester), customers, &asked)
    }

    fn with(
        change: &mut Change<'_>,
        (partner_id, attester): (Uuid, Option<Partner>),
        customers: BTreeMap<Uuid, (Relationship, Customer)>,
        asked: &[&NewAttestation],
    ) -> Result<Self, Error> {
        let ids: Vec<Uuid> = customers.keys().copied().collect();
        let templates: BTreeSet<Uuid> = asked.iter().map(|new| new.template_id).collect();
        let templates = templates_find(change.connection, &templates.into_iter().collect::<Vec<_>>())?;
        let retired = templates.iter().find(|template| template.retired_at.is_some());
        let live_template_id = retired
            .map(|retired| live_instead_of(change.connection, retired, change.now))
            .transpose()?
            .flatten();
        let current = attestations_current(change.connection, partner_id, &ids)?.into_iter();
        let current =
            current.map(|(known, since)| ((known.customer_id, known.agreement_type), (known, since)));
        let templates = templates.into_iter().map(|template| (template.id, template)).collect();
        let documents = documents_shown(change, &templates, asked)?;
        Ok(Self {
            partner_id,
            attester,
            templates,
            live_template_id,
            documents,
            current: current.collect(),
            recent: RecentChanges::read(change, partner_id, &ids)?,
            customers,
            new: vec![],
            superseded: vec![],
        })
    }

    /// Decides on an attestation, and records it.
    pub(crate) fn attest(
        &mut self,
        change: &mut Change<'_>,
        customer_id: Uuid,
        new: NewAttestation,
    ) -> Result<Attestation, ChangeError> {
        let NewAttestation { template_id, mut claim, by, client, proposed_by } = new;
        let unseen = |resource, id| Refusal::NotFound { resource, id };
        let known = self.customers.get(&customer_id);
        let (relationship, customer) = known.ok_or_else(|| unseen("customer", customer_id))?;
        let attester = self.attester.as_ref().ok_or_else(|| unseen("partner", self.partner_id))?;
        check_attester(attester, *relationship)?;
        let template = self.templates.get(&template_id).ok_or_else(|| unseen("template", template_id))?;
        let current = self.current.get(&(customer_id, template.agreement_type));
        let facts = Facts {
            customer,
            template,
            live_template_id: self.live_template_id,
            current: current.map(|(attestation, effective_from)| (attestation, *effective_from)),
        };
        let now = change.now;
        let accepted = attestation::attest(&facts, &claim, now)?;
        if let Some(shown) = claim.details.shown_text.take() {
            let version = (template_id, accepted.template_version);
            let documents = self.documents.get(&version).map(Vec::as_slice).unwrap_or_default();
            let recorded = shown.recorded(template_id, documents);
            claim.details.shown_text = Some(recorded.map_err(|refusal| refusal.within("details."))?);
        }
        self.recent.take_room(change, customer_id)?;

        let contact_salt = new_salt();
        let id = new_id(now);
        let revision = change.record(&Event::Attested {
            attestation_id: id,
            partner_id: attester.id,
            customer_id,
            agreement_type: accepted.agreement_type,
            template_id,
            template_version: accepted.template_version,
            contact_commitment: attestation_commitment(&contact_salt, &claim.contact, &claim.details),
            agreed_at: claim.agreed_at,
            evidence_sha256: Some(claim.details.evidence_sha256.clone()).filter(|text| !text.is_empty()),
            client: client.clone(),
            proposed_by,
            shown_text: claim.details.shown_text.clone(),
            supersedes: accepted.supersedes,
            by,
        })?;
        let attestation = Attestation {
            id,
            partner_id: attester.id,
            customer_id,
            agreement_type: accepted.agreement_type,
            template_id,
            template_version: accepted.template_version,
            contact: claim.contact,
            contact_salt,
            agreed_at: claim.agreed_at,
            recorded_at: now,
            recorded_by: by,
            recorded_client: client.unwrap_or_default(),
            details: claim.details,
            proposed_by,
            superseded_at: None,
            withdrawn: None,
            revision,
        };
        if let Some(superseded) = accepted.supersedes {
            match self.new.iter_mut().find(|new| new.id == superseded) {
                Some(new) => new.superseded_at = Some(now),
                None => self.superseded.push(superseded),
            }
        }
        let key = (customer_id, accepted.agreement_type);
        self.current.insert(key, (attestation.clone(), accepted.effective_from));
        self.new.push(attestation.clone());
        Ok(attestation)
    }

    /// Stores what was attested, and queues the mails about it.
    pub(crate) fn store_all(self, change: &mut Change<'_>) -> Result<(), Error> {
        let now = change.now;
        // The later of two comes last.
        let revisions = self.new.iter().map(|new| (new.customer_id, new.revision)).collect();
        acceptances_supersede(change.connection, &self.superseded, now)?;
        attestations_insert(change.connection, &self.new)?;
        notifications_insert(change.connection, &self.new, now)?;
        customers_set_acceptance_revision(change.connection, &revisions)
    }

    fn attest_once(
        mut self,
        change: &mut Change<'_>,
        customer_id: Uuid,
        new: NewAttestation,
    ) -> Result<Attestation, ChangeError> {
        let attestation = self.attest(change, customer_id, new)?;
        self.store_all(change)?;
        Ok(attestation)
    }
}

/// The documents among which the texts are that were shown.
fn documents_shown(
    change: &mut Change<'_>,
    templates: &BTreeMap<Uuid, Template>,
    asked: &[&NewAttestation],
) -> Result<BTreeMap<(Uuid, u32), Vec<Document>>, Error> {
    let now = change.now;
    let shown = asked.iter().filter_map(|new| {
        let text = new.claim.details.shown_text.as_ref()?;
        let version = templates.get(&new.template_id)?.accepted_at(new.claim.agreed_at, now)?;
        Some(((new.template_id, version.number), text.country.as_str()))
    });
    let (versions, countries): (BTreeSet<_>, BTreeSet<_>) = shown.unzip();
    if versions.is_empty() {
        return Ok(BTreeMap::new());
    }
    documents_of(change.connection, &versions, &countries.into_iter().collect::<Vec<_>>())
}
