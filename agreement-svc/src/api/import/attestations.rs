//! `ImportAttestations`: a row is an attestation (ATT-10).

use proto::agreement::{ImportAttestationsRequest, ImportAttestationsResponse, ImportOutcome};
use uuid::Uuid;

use super::{Import, Settled};
use crate::actions::attest::{Attesting, NewAttestation};
use crate::api::Mutation;
use crate::api::statement::read_statement;
use crate::rules::Refusal;
use crate::store::change::ChangeError;

pub(in crate::api) const ATTESTATIONS: Import<ImportAttestationsRequest, (Uuid, NewAttestation), Attesting> =
    Import {
        name: "ImportAttestations",
        request_id: |row| &mut row.request_id,
        read: |row| {
            let Mutation { caller, form, message, timed, .. } = row;
            let ImportAttestationsRequest { customer_id, template_id, contact, agreed_at, details, .. } =
                message;
            let stated = (contact.as_ref(), agreed_at.as_ref(), details.as_ref());
            read_statement(form, timed, caller, (customer_id, template_id), stated)
        },
        prepare: |change, partner_id, rows| {
            let asked: Vec<_> = rows.iter().map(|(customer_id, new)| (*customer_id, new)).collect();
            Attesting::read(change, partner_id, &asked)
        },
        decide: |attesting, change, (customer_id, new)| match attesting.attest(change, customer_id, new) {
            Ok(attestation) => Ok((ImportOutcome::Stored, attestation.id)),
            // This is remembered, unlike a refusal. A row that was superfluous when it came first
            // must not become an attestation when it comes again after rows that followed it.
            Err(ChangeError::Refused(Refusal::AlreadyAttested { attestation_id })) => {
                Ok((ImportOutcome::Duplicate, attestation_id))
            }
            Err(error) => Err(error),
        },
        store: Attesting::store_all,
    };

impl From<Settled> for ImportAttestationsResponse {
    fn from(settled: Settled) -> Self {
        let Settled { row, request_id, outcome, id, refusal } = settled;
        Self { row, request_id, outcome: outcome.into(), attestation_id: id, refusal }
    }
}

impl From<ImportAttestationsResponse> for Settled {
    fn from(answer: ImportAttestationsResponse) -> Self {
        let outcome = answer.outcome();
        let ImportAttestationsResponse { row, request_id, attestation_id: id, refusal, .. } = answer;
        Self { row, request_id, outcome, id, refusal }
    }
}
