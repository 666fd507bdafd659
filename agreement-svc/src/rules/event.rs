//! The events of the history: one for each change, in order, without gaps but for those that
//! restores leave.
//!
//! An event carries no personal data. Where a person belongs to it, it carries a commitment: a
//! salted hash that can be checked against the record as long as the record has the person.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Time;
use super::invitation::InvitationKind;
use super::party::{Cloud, PartnerKind};
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
        by: Uuid,
    },
    CustomerUpdated {
        customer_id: Uuid,
        /// After the change; so are the others.
        company_name: String,
        /// Absent where this change did not correct it; so is the country.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        country: Option<String>,
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
    FirstPurchaseReported {
        customer_id: Uuid,
        payer_id: Uuid,
        purchased_at: Time,
    },
    /// A person was erased from these records.
    ContactErased {
        /// Absent for invitations that are not accepted.
        customer_id: Option<Uuid>,
        attestation_ids: Vec<Uuid>,
        invitation_ids: Vec<Uuid>,
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
            | Self::FirstPurchaseReported { customer_id, .. } => Some(*customer_id),
            Self::InvitationCreated { customer_id, .. }
            | Self::InvitationRevoked { customer_id, .. }
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
            | Self::InvitationAccepted { partner_id, .. } => Some(*partner_id),
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
            | Self::InvitationAccepted { by, .. } => Some(*by).filter(|by| !by.is_nil()),
            Self::FirstPurchaseReported { .. }
            | Self::ContactErased { .. }
            | Self::HistoryRestored { .. } => None,
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
            Self::ContactErased { attestation_ids, invitation_ids, .. } => {
                attestation_ids.clear();
                invitation_ids.clear();
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
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;

    const PARTNER: Uuid = Uuid::from_u128(1);
    const CUSTOMER: Uuid = Uuid::from_u128(2);
    const USER: Uuid = Uuid::from_u128(3);
    const OTHER: Uuid = Uuid::from_u128(4);

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    /// An event of each kind, about the customer, by the user.
    fn events() -> Vec<Event> {
        let (partner_id, customer_id, by) = (PARTNER, CUSTOMER, USER);
        let (agreement_type, template_id) = (AgreementType::MicrosoftCustomerAgreement, OTHER);
        let (reason, uncovered_partner_ids) = (WithdrawalReason::Other, vec![PARTNER, OTHER]);
        let updated = |contact_of| Event::CustomerUpdated {
            customer_id,
            company_name: "Contoso".into(),
            domain: None,
            country: None,
            contact_commitment: String::new(),
            partner_id: contact_of,
            by,
        };
        let invited = |customer_id| Event::InvitationCreated {
            invitation_id: OTHER,
            kind: InvitationKind::Agreement,
            partner_id,
            reseller_id: None,
            customer_id,
            template_id,
            recipient_commitment: None,
            expires_at: at(0),
            by,
        };
        let erased = |customer_id| Event::ContactErased {
            customer_id,
            attestation_ids: vec![OTHER],
            invitation_ids: vec![OTHER],
            was_primary_contact: true,
        };
        vec![
            Event::PartnerRegistered {
                partner_id,
                name: String::new(),
                kind: PartnerKind::DirectBill,
                cloud: Cloud::Public,
                by,
            },
            Event::PartnerUpdated { partner_id, name: String::new(), by },
            Event::ResellerLinked { provider_id: partner_id, reseller_id: OTHER, by },
            Event::ResellerUnlinked { provider_id: partner_id, reseller_id: OTHER, by },
            Event::CustomerCreated {
                customer_id,
                company_name: "Contoso".into(),
                domain: "contoso.example".into(),
                country: "FR".into(),
                cloud: Cloud::Public,
                contact_commitment: String::new(),
                by,
            },
            updated(None),
            updated(Some(PARTNER)),
            Event::RelationshipEstablished { partner_id, customer_id, reseller_id: Some(OTHER), by },
            Event::RelationshipEnded {
                partner_id,
                customer_id,
                reseller_id: Some(OTHER),
                others_remain: true,
                by,
            },
            Event::TemplateVersionPublished {
                template_id,
                name: String::new(),
                agreement_type,
                number: 1,
                effective_from: at(0),
                reaccept_by: None,
                documents_sha256: String::new(),
                by,
            },
            Event::TemplateRetired { template_id, retired_at: at(0), by },
            Event::Attested {
                attestation_id: OTHER,
                partner_id,
                customer_id,
                agreement_type,
                template_id,
                template_version: 1,
                contact_commitment: String::new(),
                agreed_at: at(0),
                supersedes: None,
                by,
            },
            Event::AttestationWithdrawn {
                attestation_id: OTHER,
                partner_id,
                customer_id,
                reason,
                uncovered_partner_ids: uncovered_partner_ids.clone(),
                by,
            },
            Event::Signed {
                signature_id: OTHER,
                customer_id,
                agreement_type,
                template_id,
                template_version: 1,
                supersedes: None,
                by,
            },
            Event::SignatureWithdrawn { signature_id: OTHER, customer_id, reason, uncovered_partner_ids, by },
            invited(Some(CUSTOMER)),
            invited(None),
            Event::InvitationRevoked { invitation_id: OTHER, partner_id, customer_id: None, by },
            Event::InvitationAccepted { invitation_id: OTHER, partner_id, customer_id, by },
            Event::FirstPurchaseReported { customer_id, payer_id: partner_id, purchased_at: at(0) },
            erased(Some(CUSTOMER)),
            erased(None),
            Event::HistoryRestored { last_revision: 1, last_hash: String::new() },
        ]
    }

    fn kind_of(event: &Value) -> String {
        event["event"].as_str().unwrap().to_owned()
    }

    #[test]
    fn each_event_belongs_to_a_customer_a_partner_and_a_user_or_to_none() {
        let named = |id: Option<Uuid>, whom: Uuid, name: &'static str| match id {
            Some(id) if id == whom => name,
            Some(_) => "another",
            None => "-",
        };
        let mut table = String::new();
        for event in events() {
            let kind = kind_of(&json!(event));
            let customer = named(event.customer_id(), CUSTOMER, "customer");
            let partner = named(event.partner_id(), PARTNER, "partner");
            table += &format!("{kind:<27}{customer:<9}{partner:<8}{}\n", named(event.by(), USER, "user"));
        }
        expect![[r#"
            PARTNER_REGISTERED         -        partner user
            PARTNER_UPDATED            -        partner user
            RESELLER_LINKED            -        partner user
            RESELLER_UNLINKED          -        partner user
            CUSTOMER_CREATED           customer -       user
            CUSTOMER_UPDATED           customer -       user
            CUSTOMER_UPDATED           customer partner user
            RELATIONSHIP_ESTABLISHED   customer partner user
            RELATIONSHIP_ENDED         customer partner user
            TEMPLATE_VERSION_PUBLISHED -        -       user
            TEMPLATE_RETIRED           -        -       user
            ATTESTED                   customer partner user
            ATTESTATION_WITHDRAWN      customer partner user
            SIGNED                     customer -       user
            SIGNATURE_WITHDRAWN        customer -       user
            INVITATION_CREATED         customer partner user
            INVITATION_CREATED         -        partner user
            INVITATION_REVOKED         -        partner user
            INVITATION_ACCEPTED        customer partner user
            FIRST_PURCHASE_REPORTED    customer partner -
            CONTACT_ERASED             customer -       -
            CONTACT_ERASED             -        -       -
            HISTORY_RESTORED           -        -       -
        "#]]
        .assert_eq(&table);
    }

    /// The service itself is no user.
    #[test]
    fn what_the_service_did_is_by_no_user() {
        let registered = |by| Event::PartnerUpdated { partner_id: PARTNER, name: String::new(), by };
        assert_eq!(registered(Uuid::nil()).by(), None);
        assert_eq!(registered(USER).by(), Some(USER));
    }

    /// ROLE-6: what a partner sees of an event in place of what it holds.
    #[test]
    fn a_partner_sees_neither_users_nor_records_of_others_in_an_event() {
        let mut table = String::new();
        for event in events() {
            let (whole, seen) = (json!(event), json!(event.as_seen_by(PARTNER)));
            for (field, value) in whole.as_object().unwrap() {
                if seen[field] != *value {
                    table += &format!("{} {field}: {}\n", kind_of(&whole), seen[field]);
                }
            }
        }
        expect![[r#"
            CUSTOMER_CREATED by: "00000000-0000-0000-0000-000000000000"
            CUSTOMER_UPDATED by: "00000000-0000-0000-0000-000000000000"
            SIGNATURE_WITHDRAWN uncovered_partner_ids: ["00000000-0000-0000-0000-000000000001"]
            CONTACT_ERASED attestation_ids: []
            CONTACT_ERASED invitation_ids: []
            CONTACT_ERASED attestation_ids: []
            CONTACT_ERASED invitation_ids: []
        "#]]
        .assert_eq(&table);
    }

    /// The number stands in the histories that every version has written.
    #[test]
    fn a_restore_lifts_the_revision_by_as_much_as_ever() {
        assert_eq!(LIFT, 4_294_967_296);
    }
}
