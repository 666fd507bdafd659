//! The attestation that an order or a change of a subscription carries (ORD-4, SUB-8): read, and made before the gate is asked.

use chassis::database::{Connection, Error};
use chassis::form::Form;
use proto::order::InlineAttestation;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Api, Failure, Origin};
use crate::agreements::attest::{AttestationQuery, Attested, NotAttested};
use crate::rules::Refusal;
use crate::rules::order::Parties;
use crate::rules::relationship::Needed;
use crate::store::relationship::relationships_of;

/// An attestation that a call carries.
pub(super) struct Carried {
    attestation: InlineAttestation,
    template_id: Uuid,
    /// Of the call.
    request_id: Uuid,
    /// It is checked and not stored (ORD-5).
    validate_only: bool,
    /// Made once a call: all attempts ask the gate about the same attestation.
    attested: OnceCell<Option<Attested>>,
}

impl Carried {
    /// Checks the form of the attestation, if there is one, and reads it; agreement-svc decides whether it can be
    /// made.
    pub(super) fn read(
        form: &mut Form,
        attestation: Option<InlineAttestation>,
        request_id: Uuid,
        validate_only: bool,
    ) -> Option<Self> {
        let attestation = attestation?;
        let template_id = form.id("attestation.template_id", &attestation.template_id);
        let contact = attestation.contact.clone().unwrap_or_default();
        form.text("attestation.contact.first_name", &contact.first_name, 1, 100);
        form.text("attestation.contact.last_name", &contact.last_name, 1, 100);
        form.text("attestation.contact.email", &contact.email, 1, 254);
        form.text("attestation.contact.phone", &contact.phone, 0, 50);
        form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
        let details = attestation.details.clone().unwrap_or_default();
        form.text("attestation.details.title", &details.title, 0, 100);
        form.text("attestation.details.evidence_reference", &details.evidence_reference, 0, 200);
        form.text("attestation.details.evidence_sha256", &details.evidence_sha256, 0, 64);
        form.text("attestation.details.on_behalf_of", &details.on_behalf_of, 0, 50);
        form.text("attestation.details.external_reference", &details.external_reference, 0, 80);
        if let Some(shown) = &details.shown_text {
            form.text("attestation.details.shown_text.country", &shown.country, 1, 2);
            form.text("attestation.details.shown_text.language", &shown.language, 1, 35);
            form.text("attestation.details.shown_text.sha256", &shown.sha256, 0, 64);
        }
        Some(Self { attestation, template_id, request_id, validate_only, attested: OnceCell::new() })
    }
}

impl Api {
    /// Makes the attestation that a call carries, if it carries one and none of its attempts made it yet. `None`: what
    /// is known already stands for it.
    pub(super) async fn attest<'a>(
        &self,
        carried: Option<&'a Carried>,
        origin: &Origin,
        parties: &Parties,
    ) -> Result<Option<&'a Attested>, Failure> {
        let Some(carried) = carried else { return Ok(None) };
        let attested = carried.attested.get_or_try_init(|| self.attest_now(carried, origin, parties)).await?;
        Ok(attested.as_ref())
    }

    async fn attest_now(
        &self,
        carried: &Carried,
        origin: &Origin,
        parties: &Parties,
    ) -> Result<Option<Attested>, Failure> {
        let query = AttestationQuery {
            carrier_request_id: carried.request_id,
            hasher: self.hasher.clone(),
            customer_id: parties.customer_id,
            template_id: carried.template_id,
            contact: carried.attestation.contact.clone(),
            agreed_at: carried.attestation.agreed_at,
            details: carried.attestation.details.clone(),
            validate_only: carried.validate_only,
        };
        let Origin { caller, credentials, call_id, .. } = origin;
        match self.agreements.attest(&query, caller, credentials, call_id, origin.time_left()).await {
            Ok(attested) => Ok(attested),
            Err(NotAttested::Refused(refused)) => {
                let payer_id = self.payer_of_reseller(parties).await?;
                Err(Failure::NotAttested { refused, payer_id })
            }
            Err(NotAttested::Unknown(why)) => {
                tracing::warn!(why, "whether the attestation was stored is not known");
                Err(Refusal::GateUnavailable.into())
            }
        }
    }

    /// The payer of what a reseller buys, if the reseller serves the customer through it. agreement-svc does not know which
    /// of its providers it buys through.
    async fn payer_of_reseller(&self, parties: &Parties) -> Result<Option<Uuid>, Error> {
        let Parties { payer_id, reseller_id: Some(reseller), customer_id } = *parties else {
            return Ok(None);
        };
        let read = move |connection: &mut Connection| relationships_of(connection, customer_id, payer_id);
        let known = self.database.read(read).await?;
        Ok(known.is_some_and(|known| Needed::WithReseller(reseller).is_met_by(&known)).then_some(payer_id))
    }
}
