//! `AGREEMENT_REQUIRED`: what is missing, what was considered, and what the caller can do, for people and for programs.

use std::collections::BTreeSet;

use crate::rules::Time;
use crate::rules::gate::{AgreementType, Considered, Hindrance, LineDemand, Problem, Reason, Remedy};

/// What an attestation needs to know of the user, and what it also takes: paths in one.
const REQUIRED_FIELDS: &str = "template_id,contact.first_name,contact.last_name,contact.email,agreed_at";
const OPTIONAL_FIELDS: &str = "contact.phone,details.title,details.evidence_reference,details.evidence_sha256,\
                               details.on_behalf_of,details.external_reference,\
                               details.shown_text.country,details.shown_text.language,details.shown_text.sha256";

/// How many lines the message itself names of each kind; the metadata name all.
const LINES_IN_MESSAGE: usize = 5;

/// What is missing and what the caller can do about it: the sentence, and the metadata for programs.
pub(super) fn explain(
    reasons: &[Reason],
    remedies: &[Remedy],
    considered: &[Considered],
    hindrance: Option<&Hindrance>,
) -> (String, Vec<(&'static str, String)>) {
    let mut keys = vec![];
    let mut advice = vec![];
    let mut metadata = vec![];
    for remedy in remedies {
        match remedy {
            Remedy::Attest { template_id } => {
                keys.push("ATTEST");
                advice.push(format!("attest its acceptance of template {template_id}"));
                metadata.push(("template_id", template_id.to_string()));
                metadata.push(("required_fields", REQUIRED_FIELDS.to_owned()));
                metadata.push(("optional_fields", OPTIONAL_FIELDS.to_owned()));
            }
            Remedy::AskProvider { provider_id } => {
                keys.push("ASK_PROVIDER");
                advice.push(format!("ask provider {provider_id} to attest"));
                metadata.push(("provider_id", provider_id.to_string()));
            }
            Remedy::InviteCustomer { template_id } => {
                keys.push("INVITE_CUSTOMER");
                advice.push("invite the customer to sign directly".to_owned());
                metadata.push(("template_id", template_id.to_string()));
            }
        }
    }
    let names = reasons.iter().map(Reason::into_str).collect::<Vec<_>>().join(",");
    let mut not_accepted = format!("the customer has not accepted what is required ({names})");
    if !considered.is_empty() {
        let each: Vec<_> = considered.iter().map(considered_sentence).collect();
        not_accepted = format!("{not_accepted}: {}", each.join(", and "));
        metadata.push(("considered", serde_json::to_string(considered).unwrap_or_default()));
    }
    let sentence = match hindrance {
        Some(Hindrance::Offers(demands)) => {
            let lines = demands.iter().flat_map(|of| &of.lines).collect::<BTreeSet<_>>();
            if !lines.is_empty() {
                let lines = lines.into_iter().map(|n| format!("lines[{n}]")).collect::<Vec<_>>().join(",");
                metadata.push(("lines", lines));
            }
            format!("no acceptance satisfies this ({names}): {}", offers_sentence(demands))
        }
        Some(Hindrance::NoVersion) => {
            format!(
                "{not_accepted}, and no version of the agreement is in force; ask the operator to publish one"
            )
        }
        None if advice.is_empty() => {
            format!("{not_accepted}; CheckEligibility of agreement-svc says what helps")
        }
        None => format!("{not_accepted}; remedy: {}", advice.join(", or ")),
    };
    metadata.push(("reasons", names));
    metadata.push(("remedies", keys.join(",")));
    (sentence, metadata)
}

/// Why an acceptance does not count.
fn considered_sentence(Considered { acceptance, agreed_at, problem }: &Considered) -> String {
    let date = |at: &Time| at.format("%Y-%m-%d").to_string();
    let accepted = format!("version {}, accepted on {},", acceptance.template_version, date(agreed_at));
    match problem {
        Problem::Withdrawn { withdrawn_at } => format!("{accepted} was withdrawn on {}", date(withdrawn_at)),
        Problem::VersionSuperseded { required_version, required_since, .. } => {
            let since = date(required_since);
            format!(
                "{accepted} has not counted since {since}, when version {required_version} became required"
            )
        }
        Problem::WrongAgreementType => {
            let of = acceptance.agreement_type.into_str();
            format!("{accepted} is of the type {of}, which does not count")
        }
    }
}

/// Which offers keep each other, or the policy, from being satisfied, and what helps.
fn offers_sentence(demands: &[LineDemand]) -> String {
    let lines = |of: &LineDemand| {
        let (lines, rest) = of.lines.split_at(of.lines.len().min(LINES_IN_MESSAGE));
        let mut lines: Vec<_> = lines.iter().map(|n| format!("lines[{n}]")).collect();
        if !rest.is_empty() {
            lines.push(format!("{} more", rest.len()));
        }
        lines.join(", ")
    };
    let types =
        |of: &LineDemand| of.types.iter().map(AgreementType::into_str).collect::<Vec<_>>().join(" or ");
    match demands {
        [] => "the offer takes no agreement that counts today; order another offer".to_owned(),
        [of] => format!(
            "the offers of {} take only {}, which does not count today; order other offers",
            lines(of),
            types(of)
        ),
        several => {
            let each = several.iter().map(|of| format!("{} (only {})", lines(of), types(of)));
            format!(
                "no agreement counts for the offers of {} together; order these lines separately",
                each.collect::<Vec<_>>().join(" and of ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use agreement_gate_client::{self as client, AgreementRequired};
    use proto::types::{AcceptanceKind, BlockReason};
    use uuid::Uuid;

    use super::super::status::refused;
    use super::*;
    use crate::rules::Refusal;
    use crate::rules::gate::{Evidence, EvidenceKind};

    /// What other programs read is what is written here.
    #[test]
    fn the_client_reads_what_is_written() {
        let [customer_id, template_id, provider_id, acceptance_id] = [1, 2, 3, 4].map(Uuid::from_u128);
        let required = |reasons, remedies, considered, hindrance| {
            let refusal =
                Refusal::AgreementRequired { customer_id, reasons, remedies, considered, hindrance };
            let read = AgreementRequired::of(&refused(&refusal)).unwrap();
            assert_eq!(read.customer_id, customer_id.to_string());
            read
        };
        let remedies = vec![
            Remedy::Attest { template_id },
            Remedy::AskProvider { provider_id },
            Remedy::InviteCustomer { template_id },
        ];
        let at = |seconds| Time::from_timestamp(seconds, 250_000_000).unwrap();
        let considered = Considered {
            acceptance: Evidence {
                kind: EvidenceKind::DirectSignature,
                acceptance_id,
                template_id,
                template_version: 2,
                agreement_type: AgreementType::MicrosoftCustomerAgreement,
            },
            agreed_at: at(5),
            problem: Problem::VersionSuperseded {
                required_template_id: template_id,
                required_version: 3,
                required_since: at(9),
            },
        };
        let reasons = vec![
            Reason::NoAcceptance,
            Reason::Withdrawn,
            Reason::VersionSuperseded,
            Reason::WrongAgreementType,
        ];
        let read = required(reasons, remedies, vec![considered], None);
        assert_eq!(
            read.reasons,
            [
                BlockReason::NoAcceptance,
                BlockReason::Withdrawn,
                BlockReason::VersionSuperseded,
                BlockReason::WrongAgreementType
            ]
        );
        let fields = |paths: &str| paths.split(',').map(str::to_owned).collect();
        let template = template_id.to_string();
        assert_eq!(
            read.remedies,
            [
                client::Remedy::Attest {
                    template_id: template.clone(),
                    required_fields: fields(REQUIRED_FIELDS),
                    optional_fields: fields(OPTIONAL_FIELDS),
                },
                client::Remedy::AskProvider { provider_id: provider_id.to_string() },
                client::Remedy::InviteCustomer { template_id: template.clone() },
            ]
        );
        let [of] = &read.considered[..] else { panic!("{:?}", read.considered) };
        let acceptance = of.acceptance.as_ref().unwrap();
        assert_eq!(
            (acceptance.kind(), of.reason()),
            (AcceptanceKind::DirectSignature, BlockReason::VersionSuperseded)
        );
        assert_eq!(acceptance.agreement_type(), proto::types::AgreementType::MicrosoftCustomerAgreement);
        assert_eq!(
            (&acceptance.acceptance_id, acceptance.template_version, of.required_version),
            (&acceptance_id.to_string(), 2, 3)
        );
        assert_eq!((&acceptance.template_id, &of.required_template_id), (&template, &template));
        let time = |at: Time| Some(chassis::form::timestamp(at));
        assert_eq!((of.agreed_at, of.withdrawn_at, of.required_since), (time(at(5)), None, time(at(9))));

        let of = |lines| LineDemand { types: vec![AgreementType::MicrosoftCloudAgreement], lines };
        let hindrance = Hindrance::Offers(vec![of(vec![0, 2]), of(vec![11])]);
        let read = required(vec![Reason::WrongAgreementType], vec![], vec![], Some(hindrance));
        assert_eq!((read.remedies, read.lines), (vec![], vec![0, 2, 11]));
    }
}
