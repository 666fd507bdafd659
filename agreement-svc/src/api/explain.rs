//! What explains the gate's decisions, as messages: remedies, and the acceptances that count or do not.

use chassis::form::timestamp;
use proto::types;

use super::convert;
use crate::rules::eligibility::{Acceptance, AcceptanceKind, Considered, Problem, Reason, Remedy};

pub(super) fn remedy(remedy: Remedy) -> types::Remedy {
    let (kind, template_id, provider_id) = match remedy {
        Remedy::Attest { template_id } => (types::RemedyKind::Attest, template_id.to_string(), String::new()),
        Remedy::AskProvider { provider_id } => {
            (types::RemedyKind::AskProvider, String::new(), provider_id.to_string())
        }
        Remedy::InviteCustomer { template_id } => {
            (types::RemedyKind::InviteCustomer, template_id.to_string(), String::new())
        }
    };
    types::Remedy { kind: kind.into(), template_id, provider_id }
}

pub(super) fn evidence(acceptance: &Acceptance) -> types::Evidence {
    let kind = match acceptance.kind {
        AcceptanceKind::Attestation => types::AcceptanceKind::Attestation,
        AcceptanceKind::Signature => types::AcceptanceKind::DirectSignature,
    };
    types::Evidence {
        kind: kind.into(),
        acceptance_id: acceptance.id.to_string(),
        template_id: acceptance.template_id.to_string(),
        template_version: acceptance.template_version,
        agreement_type: convert::agreement_type(acceptance.agreement_type),
    }
}

pub(super) fn considered(considered: &Considered) -> types::ConsideredAcceptance {
    let Considered { acceptance, problem } = considered;
    let mut message = types::ConsideredAcceptance {
        acceptance: Some(evidence(acceptance)),
        agreed_at: Some(timestamp(acceptance.agreed_at)),
        ..Default::default()
    };
    let because = match problem {
        Problem::Withdrawn(at) => {
            message.withdrawn_at = Some(timestamp(*at));
            Reason::Withdrawn
        }
        Problem::VersionSuperseded(by) => {
            message.required_template_id = by.template_id.to_string();
            message.required_version = by.template_version;
            message.required_since = Some(timestamp(by.reaccept_by));
            Reason::VersionSuperseded
        }
        Problem::WrongAgreementType => Reason::WrongAgreementType,
    };
    message.reason = convert::reason(because);
    message
}
