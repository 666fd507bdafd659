//! The events of the history: one for each change, in order, without gaps but for those that
//! restores leave.
//!
//! An event carries no personal data. Where a person belongs to it, it carries a commitment: a
//! salted hash that can be checked against the record as long as the record has the person.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Time;
use super::attestation::ProposedBy;
use super::invitation::{DeclineReason, InvitationKind};
use super::party::{Cloud, PartnerKind};
use super::proposal::RejectionReason;
use super::shown::ShownText;
use super::template::AgreementType;
use super::withdrawal::WithdrawalReason;

/// One change. Its JSON is what the chain of hashes covers, so fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "snake_case")]
pub enum Event {
    PartnerRegistered {
        partner_id: Uuid,
        name: String,
        kind: PartnerKind,
        cloud: Cloud,
        by: Uuid,
    },
    PartnerUpdated {
        partner_id: Uuid,
        name: String,
        /// The support contact itself may be a person's.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        support_changed: bool,
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
        cloud: Cloud,
        contact_commitment: String,
        /// Absent where none was given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        language: Option<String>,
        by: Uuid,
    },
    CustomerUpdated {
        customer_id: Uuid,
        /// After the change; so are the others.
        company_name: String,
        /// Absent where this change did not correct it; so are the country and the language. The language is empty where the
        /// one that was set was removed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        country: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        language: Option<String>,
        /// Empty where no contact was changed.
        contact_commitment: String,
        /// The partner whose contact was changed; absent where it was the customer's own. Where versions kept one
        /// contact for all partners, it is absent, too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partner_id: Option<Uuid>,
        by: Uuid,
    },
    RelationshipEstablished {
        partner_id: Uuid,
        customer_id: Uuid,
        reseller_id: Option<Uuid>,
        by: Uuid,
    },
    RelationshipEnded {
        partner_id: Uuid,
        customer_id: Uuid,
        reseller_id: Option<Uuid>,
        others_remain: bool,
        by: Uuid,
    },
    TemplateVersionPublished {
        template_id: Uuid,
        name: String,
        agreement_type: AgreementType,
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
        agreement_type: AgreementType,
        template_id: Uuid,
        template_version: u32,
        contact_commitment: String,
        agreed_at: Time,
        /// Absent where none was given; so is the next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence_sha256: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// Absent where it was not proposed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proposed_by: Option<ProposedBy>,
        /// Absent where the partner does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_text: Option<ShownText>,
        supersedes: Option<Uuid>,
        by: Uuid,
    },
    AttestationWithdrawn {
        attestation_id: Uuid,
        partner_id: Uuid,
        customer_id: Uuid,
        reason: WithdrawalReason,
        uncovered_partner_ids: Vec<Uuid>,
        by: Uuid,
    },
    Signed {
        signature_id: Uuid,
        customer_id: Uuid,
        agreement_type: AgreementType,
        template_id: Uuid,
        template_version: u32,
        /// Absent from those of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_text: Option<ShownText>,
        supersedes: Option<Uuid>,
        by: Uuid,
    },
    SignatureWithdrawn {
        signature_id: Uuid,
        customer_id: Uuid,
        reason: WithdrawalReason,
        uncovered_partner_ids: Vec<Uuid>,
        by: Uuid,
    },
    InvitationCreated {
        invitation_id: Uuid,
        kind: InvitationKind,
        partner_id: Uuid,
        reseller_id: Option<Uuid>,
        customer_id: Option<Uuid>,
        template_id: Uuid,
        /// Absent where the partner named no recipient.
        recipient_commitment: Option<String>,
        expires_at: Time,
        by: Uuid,
    },
    InvitationRevoked {
        invitation_id: Uuid,
        partner_id: Uuid,
        customer_id: Option<Uuid>,
        by: Uuid,
    },
    InvitationAccepted {
        invitation_id: Uuid,
        partner_id: Uuid,
        customer_id: Uuid,
        by: Uuid,
    },
    InvitationDeclined {
        invitation_id: Uuid,
        partner_id: Uuid,
        /// Absent where the invitation is open to any company.
        customer_id: Option<Uuid>,
        reason: DeclineReason,
        by: Uuid,
    },
    AttestationProposed {
        proposal_id: Uuid,
        /// The provider; so are the next ones.
        partner_id: Uuid,
        reseller_id: Uuid,
        customer_id: Uuid,
        template_id: Uuid,
        contact_commitment: String,
        agreed_at: Time,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence_sha256: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown_text: Option<ShownText>,
        expires_at: Time,
        by: Uuid,
    },
    ProposalApproved {
        proposal_id: Uuid,
        partner_id: Uuid,
        reseller_id: Uuid,
        customer_id: Uuid,
        attestation_id: Uuid,
        by: Uuid,
    },
    ProposalRejected {
        proposal_id: Uuid,
        partner_id: Uuid,
        reseller_id: Uuid,
        customer_id: Uuid,
        reason: RejectionReason,
        by: Uuid,
    },
    ProposalWithdrawn {
        proposal_id: Uuid,
        /// The provider.
        partner_id: Uuid,
        reseller_id: Uuid,
        customer_id: Uuid,
        by: Uuid,
    },
    FirstPurchaseReported {
        customer_id: Uuid,
        payer_id: Uuid,
        purchased_at: Time,
        /// The user who imported it; absent where order-svc reported it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Uuid>,
    },
    /// A person was erased from these records.
    ContactErased {
        /// Absent for invitations that are not accepted.
        customer_id: Option<Uuid>,
        attestation_ids: Vec<Uuid>,
        invitation_ids: Vec<Uuid>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        proposal_ids: Vec<Uuid>,
        was_primary_contact: bool,
    },
    /// The database was restored from a copy, whose last event this was. It has the revision [`LIFT`]
    /// above, so that no number of an event that was lost is used again, and old answers and cursors stay behind.
    HistoryRestored {
        last_revision: i64,
        last_hash: String,
    },
}

/// How far a restore lifts the revision: beyond whatever was recorded after the copy was made.
pub const LIFT: i64 = 1 << 32;

impl Event {
    /// Whether it is about a proposal, which customers do not see (PRO-1).
    pub fn is_of_proposal(&self) -> bool {
        matches!(
            self,
            Self::AttestationProposed { .. }
                | Self::ProposalApproved { .. }
                | Self::ProposalRejected { .. }
                | Self::ProposalWithdrawn { .. }
        )
    }

    /// The customer whose history it belongs to.
    pub fn customer_id(&self) -> Option<Uuid> {
        match self {
            Self::CustomerCreated { customer_id, .. }
            | Self::CustomerUpdated { customer_id, .. }
            | Self::RelationshipEstablished { customer_id, .. }
            | Self::RelationshipEnded { customer_id, .. }
            | Self::Attested { customer_id, .. }
            | Self::AttestationWithdrawn { customer_id, .. }
            | Self::Signed { customer_id, .. }
            | Self::SignatureWithdrawn { customer_id, .. }
            | Self::InvitationAccepted { customer_id, .. }
            | Self::AttestationProposed { customer_id, .. }
            | Self::ProposalApproved { customer_id, .. }
            | Self::ProposalRejected { customer_id, .. }
            | Self::ProposalWithdrawn { customer_id, .. }
            | Self::FirstPurchaseReported { customer_id, .. } => Some(*customer_id),
            Self::InvitationCreated { customer_id, .. }
            | Self::InvitationRevoked { customer_id, .. }
            | Self::InvitationDeclined { customer_id, .. }
            | Self::ContactErased { customer_id, .. } => *customer_id,
            Self::PartnerRegistered { .. }
            | Self::PartnerUpdated { .. }
            | Self::ResellerLinked { .. }
            | Self::ResellerUnlinked { .. }
            | Self::TemplateVersionPublished { .. }
            | Self::TemplateRetired { .. }
            | Self::HistoryRestored { .. } => None,
        }
    }

    /// The partner whose act or relationship it records. What names none is for every partner of the
    /// customer to see.
    pub fn partner_id(&self) -> Option<Uuid> {
        match self {
            Self::PartnerRegistered { partner_id, .. }
            | Self::PartnerUpdated { partner_id, .. }
            | Self::RelationshipEstablished { partner_id, .. }
            | Self::RelationshipEnded { partner_id, .. }
            | Self::Attested { partner_id, .. }
            | Self::AttestationWithdrawn { partner_id, .. }
            | Self::InvitationCreated { partner_id, .. }
            | Self::InvitationRevoked { partner_id, .. }
            | Self::InvitationDeclined { partner_id, .. }
            | Self::InvitationAccepted { partner_id, .. }
            | Self::AttestationProposed { partner_id, .. }
            | Self::ProposalApproved { partner_id, .. }
            | Self::ProposalRejected { partner_id, .. }
            | Self::ProposalWithdrawn { partner_id, .. } => Some(*partner_id),
            Self::FirstPurchaseReported { payer_id, .. } => Some(*payer_id),
            Self::ResellerLinked { provider_id, .. } | Self::ResellerUnlinked { provider_id, .. } => {
                Some(*provider_id)
            }
            Self::CustomerUpdated { partner_id, .. } => *partner_id,
            Self::CustomerCreated { .. }
            | Self::Signed { .. }
            | Self::SignatureWithdrawn { .. }
            | Self::TemplateVersionPublished { .. }
            | Self::TemplateRetired { .. }
            | Self::ContactErased { .. }
            | Self::HistoryRestored { .. } => None,
        }
    }

    /// The user who did it; the service itself has none.
    pub fn by(&self) -> Option<Uuid> {
        match self {
            Self::PartnerRegistered { by, .. }
            | Self::PartnerUpdated { by, .. }
            | Self::ResellerLinked { by, .. }
            | Self::ResellerUnlinked { by, .. }
            | Self::CustomerCreated { by, .. }
            | Self::CustomerUpdated { by, .. }
            | Self::RelationshipEstablished { by, .. }
            | Self::RelationshipEnded { by, .. }
            | Self::TemplateVersionPublished { by, .. }
            | Self::TemplateRetired { by, .. }
            | Self::Attested { by, .. }
            | Self::AttestationWithdrawn { by, .. }
            | Self::Signed { by, .. }
            | Self::SignatureWithdrawn { by, .. }
            | Self::InvitationCreated { by, .. }
            | Self::InvitationRevoked { by, .. }
            | Self::InvitationDeclined { by, .. }
            | Self::InvitationAccepted { by, .. }
            | Self::AttestationProposed { by, .. }
            | Self::ProposalApproved { by, .. }
            | Self::ProposalRejected { by, .. }
            | Self::ProposalWithdrawn { by, .. } => Some(*by).filter(|by| !by.is_nil()),
            Self::FirstPurchaseReported { by, .. } => *by,
            Self::ContactErased { .. } | Self::HistoryRestored { .. } => None,
        }
    }

    /// What a partner may know of it (ROLE-6): of others neither their users nor their records, nor that
    /// they are uncovered.
    pub fn as_seen_by(mut self, partner: Uuid) -> Self {
        match &mut self {
            Self::SignatureWithdrawn { uncovered_partner_ids, .. } => {
                uncovered_partner_ids.retain(|uncovered| *uncovered == partner);
            }
            // Whose records these are is not in the event.
            Self::ContactErased { attestation_ids, invitation_ids, proposal_ids, .. } => {
                attestation_ids.clear();
                invitation_ids.clear();
                proposal_ids.clear();
            }
            Self::CustomerCreated { by, .. } | Self::CustomerUpdated { by, partner_id: None, .. } => {
                *by = Uuid::nil();
            }
            _ => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::party::{Cloud, PartnerKind};
    use super::*;

    const CUSTOMER: Uuid = Uuid::from_u128(1);
    const PARTNER: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);
    const USER: Uuid = Uuid::from_u128(4);

    fn withdrawn(uncovered: &[Uuid]) -> Event {
        Event::SignatureWithdrawn {
            signature_id: Uuid::from_u128(5),
            customer_id: CUSTOMER,
            reason: WithdrawalReason::Other,
            uncovered_partner_ids: uncovered.to_vec(),
            by: USER,
        }
    }

    fn updated(partner_id: Option<Uuid>, by: Uuid) -> Event {
        Event::CustomerUpdated {
            customer_id: CUSTOMER,
            company_name: "Contoso".into(),
            domain: None,
            country: None,
            language: None,
            contact_commitment: String::new(),
            partner_id,
            by,
        }
    }

    fn erased(customer_id: Option<Uuid>, attestation_ids: Vec<Uuid>) -> Event {
        Event::ContactErased {
            customer_id,
            invitation_ids: attestation_ids.clone(),
            proposal_ids: attestation_ids.clone(),
            attestation_ids,
            was_primary_contact: false,
        }
    }

    fn created(by: Uuid) -> Event {
        Event::CustomerCreated {
            customer_id: CUSTOMER,
            company_name: "Contoso".into(),
            domain: "contoso.example".into(),
            country: "FR".into(),
            cloud: Cloud::Public,
            contact_commitment: String::new(),
            language: None,
            by,
        }
    }

    #[test]
    fn an_event_belongs_to_a_customer_a_partner_and_a_user() {
        let registered = Event::PartnerRegistered {
            partner_id: PARTNER,
            name: "Partner".into(),
            kind: PartnerKind::DirectBill,
            cloud: Cloud::Public,
            by: USER,
        };
        let linked = Event::ResellerLinked { provider_id: PARTNER, reseller_id: OTHER, by: USER };
        let purchased = |by| Event::FirstPurchaseReported {
            customer_id: CUSTOMER,
            payer_id: PARTNER,
            purchased_at: Time::UNIX_EPOCH,
            by,
        };
        let (customer, partner, user) = (Some(CUSTOMER), Some(PARTNER), Some(USER));
        for (event, expected) in [
            (registered, (None, partner, user)),
            (linked, (None, partner, user)),
            (created(USER), (customer, None, user)),
            // The service itself.
            (created(Uuid::nil()), (customer, None, None)),
            (updated(partner, USER), (customer, partner, user)),
            (updated(None, USER), (customer, None, user)),
            (withdrawn(&[]), (customer, None, user)),
            (purchased(None), (customer, partner, None)),
            (purchased(user), (customer, partner, user)),
            (erased(customer, vec![]), (customer, None, None)),
            (erased(None, vec![]), (None, None, None)),
        ] {
            assert_eq!((event.customer_id(), event.partner_id(), event.by()), expected, "{event:?}");
        }
    }

    /// ROLE-6.
    #[test]
    fn a_partner_sees_no_user_and_no_record_of_others() {
        for (event, seen) in [
            (withdrawn(&[OTHER, PARTNER]), withdrawn(&[PARTNER])),
            (withdrawn(&[OTHER]), withdrawn(&[])),
            (erased(Some(CUSTOMER), vec![OTHER]), erased(Some(CUSTOMER), vec![])),
            (created(USER), created(Uuid::nil())),
            (updated(None, USER), updated(None, Uuid::nil())),
            (updated(Some(PARTNER), USER), updated(Some(PARTNER), USER)),
        ] {
            assert_eq!(event.clone().as_seen_by(PARTNER), seen, "{event:?}");
        }
    }

    /// The number stands in the histories that every version has written.
    #[test]
    fn a_restore_lifts_the_revision_by_as_much_as_ever() {
        assert_eq!(LIFT, 4_294_967_296);
    }
}
