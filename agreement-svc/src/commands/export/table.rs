//! A partner's attestations as a CSV file that can be imported again.

use prost_reflect::Value;
use uuid::Uuid;

use super::calls::{Calls, part, text};

const COLUMNS: [&str; 15] = [
    "CustomerTenantId",
    "FirstName",
    "LastName",
    "Email",
    "PhoneNumber",
    "TemplateId",
    "DateAgreed",
    "JobTitle",
    "EvidenceReference",
    "EvidenceSha256",
    "OnBehalfOf",
    "ExternalReference",
    "ShownCountry",
    "ShownLanguage",
    "ShownSha256",
];

/// Reads the current attestations, oldest first. Those of erased persons are left out: they could not be imported.
pub(super) async fn attestations(calls: &Calls, partner: Option<Uuid>) -> anyhow::Result<Vec<u8>> {
    let partner: Vec<_> =
        partner.map(|id| ("partner_id", Value::String(id.to_string()))).into_iter().collect();
    let rows = calls.list("csp.agreement.v1.AttestationService.ListAttestations", &partner).await?;
    let mut file = csv::Writer::from_writer(vec![]);
    file.write_record(COLUMNS)?;
    for row in rows {
        let Some(contact) = part(&row, "contact").filter(|contact| !text(contact, "email").is_empty()) else {
            continue;
        };
        let details = part(&row, "details");
        let detail = |field| details.as_ref().map(|details| text(details, field)).unwrap_or_default();
        let shown = details.as_ref().and_then(|details| part(details, "shown_text"));
        let shown = |field| shown.as_ref().map(|shown| text(shown, field)).unwrap_or_default();
        let agreed_at = part(&row, "agreed_at").map(|at| at.transcode_to::<prost_types::Timestamp>());
        file.write_record([
            text(&row, "customer_id"),
            text(&contact, "first_name"),
            text(&contact, "last_name"),
            text(&contact, "email"),
            text(&contact, "phone"),
            text(&row, "template_id"),
            agreed_at.transpose()?.map(|at| at.to_string()).unwrap_or_default(),
            detail("title"),
            detail("evidence_reference"),
            detail("evidence_sha256"),
            detail("on_behalf_of"),
            detail("external_reference"),
            shown("country"),
            shown("language"),
            shown("sha256"),
        ])?;
    }
    Ok(file.into_inner()?)
}
