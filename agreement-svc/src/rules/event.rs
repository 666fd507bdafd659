//! What is written into the history: one event for each change, in order, without gaps.
//!
//! An event carries no personal data. Where a person belongs to it, it carries a commitment: a
//! salted hash that can be checked against the record as long as the record has the person.

use serde::Serialize;
use uuid::Uuid;

use super::Time;

/// One change. Its JSON is what the chain of hashes covers, so fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "snake_case")]
pub enum Event {
    PartnerRegistered {
        partner_id: Uuid,
        name: String,
        kind: &'static str,
        cloud: &'static str,
        by: Uuid,
    },
    ResellerLinked {
        provider_id: Uuid,
        reseller_id: Uuid,
        by: Uuid,
    },
    ResellerUnlinked {
        provider_id: Uuid,
        reseller_id: Uuid,
        by: Uuid,
    },
    CustomerCreated {
        customer_id: Uuid,
        company_name: String,
        domain: String,
        country: String,
        cloud: &'static str,
        contact_commitment: String,
        by: Uuid,
    },
    CustomerUpdated {
        customer_id: Uuid,
        company_name: String,
        contact_commitment: String,
        by: Uuid,
    },
    RelationshipEstablished {
        partner_id: Uuid,
        customer_id: Uuid,
        reseller_id: Option<Uuid>,
        by: Uuid,
    },
    TemplateVersionPublished {
        template_id: Uuid,
        name: String,
        agreement_type: &'static str,
        number: u32,
        effective_from: Time,
        reaccept_by: Option<Time>,
        documents_sha256: String,
        by: Uuid,
    },
    TemplateRetired {
        template_id: Uuid,
        retired_at: Time,
        by: Uuid,
    },
    Attested {
        attestation_id: Uuid,
        partner_id: Uuid,
        customer_id: Uuid,
        agreement_type: &'static str,
        template_id: Uuid,
        template_version: u32,
        contact_commitment: String,
        agreed_at: Time,
        supersedes: Option<Uuid>,
        by: Uuid,
    },
    FirstPurchaseReported {
        customer_id: Uuid,
        payer_id: Uuid,
        purchased_at: Time,
    },
}

impl Event {
    /// The customer whose history it belongs to.
    pub fn customer_id(&self) -> Option<Uuid> {
        match self {
            Self::CustomerCreated { customer_id, .. }
            | Self::CustomerUpdated { customer_id, .. }
            | Self::RelationshipEstablished { customer_id, .. }
            | Self::Attested { customer_id, .. }
            | Self::FirstPurchaseReported { customer_id, .. } => Some(*customer_id),
            Self::PartnerRegistered { .. }
            | Self::ResellerLinked { .. }
            | Self::ResellerUnlinked { .. }
            | Self::TemplateVersionPublished { .. }
            | Self::TemplateRetired { .. } => None,
        }
    }

    /// The partner whose act or relationship it records.
    pub fn partner_id(&self) -> Option<Uuid> {
        match self {
            Self::PartnerRegistered { partner_id, .. }
            | Self::RelationshipEstablished { partner_id, .. }
            | Self::Attested { partner_id, .. } => Some(*partner_id),
            Self::FirstPurchaseReported { payer_id, .. } => Some(*payer_id),
            Self::ResellerLinked { provider_id, .. } | Self::ResellerUnlinked { provider_id, .. } => {
                Some(*provider_id)
            }
            Self::CustomerCreated { .. }
            | Self::CustomerUpdated { .. }
            | Self::TemplateVersionPublished { .. }
            | Self::TemplateRetired { .. } => None,
        }
    }
}
