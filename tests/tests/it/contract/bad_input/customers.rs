//! Bad fields of the calls about customers and attestations.

use chassis::clock::Clock;
use chassis::form::timestamp;
use proto::agreement::{
    CreateAttestationRequest, CreateCustomerRequest, EndRelationshipRequest, GetAttestationRequest,
    GetCustomerRequest, GetRelationshipRequest, ImportAttestationsRequest, ImportCustomersRequest,
    InlineAttestation, InlineInvitation, ListAttestationsRequest, ListCustomerPartnersRequest,
    ListCustomersRequest, ListNotificationsRequest, ListRelationshipsRequest, NotificationState, Replacement,
    RetryNotificationRequest, UpdateCustomerRequest, WithdrawAttestationRequest,
};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, PROVIDER, RESELLER};

use super::existing::{Existing, Table, attestation};
use super::values::{
    COUNTRIES, DOMAINS, ENUMS, LANGUAGES, PAGE_SIZES, PAGE_TOKENS, TIMES, contact, details, expiry, given_id,
    given_text, given_time, id, pick, pick_given, required_time, text,
};

impl Existing {
    pub(super) fn customers(&self, table: &mut Table) {
        let Self { direct, operator, admin, .. } = self;
        let fields = [
            "request_id",
            "company_name",
            "domain",
            "country",
            "language",
            "primary_contact.first_name",
            "primary_contact.last_name",
            "primary_contact.email",
            "primary_contact.phone",
            "provider_id",
            "reseller_id",
            "attestation.template_id",
            "attestation.contact.first_name",
            "attestation.contact.last_name",
            "attestation.contact.email",
            "attestation.contact.phone",
            "attestation.agreed_at",
            "attestation.details.title",
            "attestation.details.evidence_reference",
            "attestation.details.evidence_sha256",
            "attestation.details.on_behalf_of",
            "attestation.details.external_reference",
            "attestation.details.shown_text.country",
            "attestation.details.shown_text.language",
            "attestation.details.shown_text.sha256",
            "customer_id",
            "external_reference",
        ];
        table.all_bad("CreateCustomer", direct, &fields, |n| CreateCustomerRequest {
            request_id: id(n),
            company_name: text(n, 200),
            domain: if n == 0 { "x.".repeat(127) } else { pick(&DOMAINS, n).into() },
            country: pick(&COUNTRIES, n).into(),
            primary_contact: contact(n),
            provider_id: given_id(n),
            reseller_id: given_id(n + 1),
            attestation: Some(InlineAttestation {
                template_id: id(n + 1),
                contact: contact(n + 1),
                agreed_at: required_time(n),
                details: details(n),
            }),
            invitation: None,
            customer_id: given_id(n + 2),
            validate_only: false,
            language: pick_given(&LANGUAGES, n),
            external_reference: given_text(n, 80),
        });
        let fields = [
            "request_id",
            "customer_id",
            "company_name",
            "domain",
            "country",
            "language",
            "primary_contact.first_name",
            "primary_contact.last_name",
            "primary_contact.email",
            "primary_contact.phone",
            "provider_id",
            "reseller_id",
            "first_purchase_at",
            "external_reference",
        ];
        table.all_bad("ImportCustomers", direct, &fields, |n| ImportCustomersRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            company_name: text(n, 200),
            domain: pick(&DOMAINS, n).into(),
            country: pick(&COUNTRIES, n).into(),
            primary_contact: contact(n),
            provider_id: given_id(n),
            reseller_id: given_id(n + 1),
            first_purchase_at: given_time(n),
            language: pick_given(&LANGUAGES, n),
            external_reference: given_text(n, 80),
        });
        let good = fixtures::new_customer("Northwind", "FR", None);
        let contact_fields =
            ["primary_contact.first_name", "primary_contact.last_name", "primary_contact.email"];
        let alone = CreateCustomerRequest { primary_contact: None, ..good.clone() };
        table.bad("CreateCustomer", "no contact", direct, &contact_fields, &alone);
        let both = CreateCustomerRequest {
            provider_id: PROVIDER.to_string(),
            reseller_id: RESELLER.to_string(),
            ..good.clone()
        };
        table.bad("CreateCustomer", "two partners", direct, &["reseller_id"], &both);
        let through =
            CreateCustomerRequest { provider_id: PROVIDER.to_string(), reseller_id: String::new(), ..both };
        table.bad("CreateCustomer", "through a provider", direct, &["provider_id"], &through);
        let with = CreateCustomerRequest { reseller_id: RESELLER.to_string(), ..good.clone() };
        table.bad("CreateCustomer", "with a reseller", direct, &["reseller_id"], &with);
        let invited = |n| InlineInvitation { template_id: id(n), expires_at: expiry(n) };
        let fields = ["invitation.template_id", "invitation.expires_at"];
        table.all_bad("CreateCustomer", direct, &fields, |n| CreateCustomerRequest {
            invitation: Some(invited(n)),
            ..good.clone()
        });
        let both = CreateCustomerRequest {
            attestation: Some(InlineAttestation {
                template_id: CUSTOMER_AGREEMENT.into(),
                contact: None,
                agreed_at: Some(timestamp(Clock::system().now())),
                details: None,
            }),
            invitation: Some(InlineInvitation { template_id: CUSTOMER_AGREEMENT.into(), expires_at: None }),
            ..good.clone()
        };
        table.bad("CreateCustomer", "attested and invited", direct, &["invitation"], &both);
        let reseller = fixtures::sales(RESELLER);
        table.bad("CreateCustomer", "a reseller by itself", &reseller, &["provider_id"], &good);

        let fields = ["request_id", "customer_id", "etag", "company_name", "domain", "country", "language"];
        let others = ["primary_contact.phone", "external_reference"];
        let fields = [&fields[..], &contact_fields, &others].concat();
        table.all_bad("UpdateCustomer", direct, &fields, |n| UpdateCustomerRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            etag: text(n, 50),
            company_name: text(n + 1, 200),
            primary_contact: contact(n),
            domain: "contoso.example".into(),
            country: "FR".into(),
            validate_only: false,
            language: Some(pick_given(&LANGUAGES, n)),
            external_reference: Some(given_text(n, 80)),
        });
        let alone = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: self.customer.customer_id.clone(),
            etag: self.customer.etag.clone(),
            company_name: "Northwind".into(),
            ..UpdateCustomerRequest::default()
        };
        table.all_bad("UpdateCustomer", operator, &["domain", "country"], |n| UpdateCustomerRequest {
            domain: pick_given(&DOMAINS, n),
            country: pick_given(&COUNTRIES, n),
            ..alone.clone()
        });
        table.bad("UpdateCustomer", "no contact", direct, &contact_fields, &alone);
        let emptied = UpdateCustomerRequest { external_reference: Some(String::new()), ..alone.clone() };
        table.bad("UpdateCustomer", "another's number", operator, &["external_reference"], &emptied);
        let by_customer = UpdateCustomerRequest {
            company_name: String::new(),
            primary_contact: Some(fixtures::contact()),
            ..emptied
        };
        table.bad("UpdateCustomer", "a partner's number", admin, &["external_reference"], &by_customer);

        table.all_bad("GetCustomer", direct, &["customer_id"], |n| GetCustomerRequest { customer_id: id(n) });
        let fields =
            ["page_size", "page_token", "domain", "company_name_prefix", "reseller_id", "external_reference"];
        table.all_bad("ListCustomers", direct, &fields, |n| ListCustomersRequest {
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            domain: given_text(n, 253),
            company_name_prefix: given_text(n + 1, 200),
            reseller_id: given_id(n),
            external_reference: given_text(n + 2, 80),
        });
        let numbered = ListCustomersRequest { external_reference: "C 7".into(), ..Default::default() };
        for caller in [operator, admin] {
            table.bad("ListCustomers", "a partner's number", caller, &["external_reference"], &numbered);
        }
        let fields = ["customer_id", "partner_id", "reseller_id"];
        table.all_bad("GetRelationship", operator, &fields, |n| GetRelationshipRequest {
            customer_id: id(n),
            partner_id: id(n + 1),
            reseller_id: given_id(n),
        });
        let beside = GetRelationshipRequest {
            customer_id: self.customer.customer_id.clone(),
            partner_id: PROVIDER.to_string(),
            reseller_id: RESELLER.to_string(),
        };
        table.bad("GetRelationship", "of two others", direct, &["reseller_id"], &beside);
        let fields = ["customer_id", "partner_id", "reseller_id", "page_size", "page_token"];
        table.all_bad("ListRelationships", operator, &fields, |n| ListRelationshipsRequest {
            customer_id: given_id(n),
            partner_id: given_id(n + 1),
            reseller_id: given_id(n + 2),
            include_ended: n % 2 == 0,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        let everyones = ListRelationshipsRequest { include_ended: true, ..Default::default() };
        table.bad("ListRelationships", "of everyone", operator, &["partner_id"], &everyones);
        table.bad("ListRelationships", "ended ones", direct, &["include_ended"], &everyones);
        let of_another = ListRelationshipsRequest { partner_id: PROVIDER.to_string(), ..Default::default() };
        table.bad("ListRelationships", "of another", direct, &["partner_id"], &of_another);
        let fields = ["page_size", "page_token"];
        table.all_bad("ListCustomerPartners", admin, &fields, |n| ListCustomerPartnersRequest {
            include_ended: n % 2 == 0,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });

        let fields = ["request_id", "customer_id", "provider_id", "reseller_id"];
        table.all_bad("EndRelationship", direct, &fields, |n| EndRelationshipRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            provider_id: given_id(n),
            reseller_id: given_id(n + 1),
            validate_only: false,
        });
        let end = |provider_id: &str, reseller_id: &str| EndRelationshipRequest {
            request_id: fixtures::request_id(),
            customer_id: self.customer.customer_id.clone(),
            provider_id: provider_id.into(),
            reseller_id: reseller_id.into(),
            validate_only: false,
        };
        let (provider, other) = (PROVIDER.to_string(), RESELLER.to_string());
        for (about, bad, request) in [
            ("two partners", "reseller_id", end(&provider, &other)),
            ("through a provider", "provider_id", end(&provider, "")),
            ("with a reseller", "reseller_id", end("", &other)),
        ] {
            table.bad("EndRelationship", about, direct, &[bad], &request);
        }
    }

    pub(super) fn attestations(&self, table: &mut Table) {
        let Self { direct, operator, admin, .. } = self;
        let fields = [
            "request_id",
            "customer_id",
            "template_id",
            "contact.first_name",
            "contact.last_name",
            "contact.email",
            "contact.phone",
            "agreed_at",
            "details.title",
            "details.evidence_reference",
            "details.evidence_sha256",
            "details.on_behalf_of",
            "details.external_reference",
            "details.shown_text.country",
            "details.shown_text.language",
            "details.shown_text.sha256",
        ];
        table.all_bad("CreateAttestation", direct, &fields, |n| CreateAttestationRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            template_id: id(n + 2),
            contact: contact(n),
            agreed_at: required_time(n),
            validate_only: n % 2 == 0,
            details: details(n),
        });
        table.all_bad("ImportAttestations", direct, &fields, |n| ImportAttestationsRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            template_id: id(n + 2),
            contact: contact(n),
            agreed_at: required_time(n),
            details: details(n),
        });
        let alone =
            CreateAttestationRequest { contact: None, ..attestation(&self.customer.customer_id, None) };
        let fields = ["contact.first_name", "contact.last_name", "contact.email", "agreed_at"];
        table.bad("CreateAttestation", "no contact and no date", direct, &fields, &alone);

        let fields = [
            "request_id",
            "attestation_id",
            "reason",
            "replacement",
            "replacement.template_id",
            "replacement.contact.first_name",
            "replacement.contact.last_name",
            "replacement.contact.email",
            "replacement.contact.phone",
            "replacement.agreed_at",
            "replacement.details.title",
            "replacement.details.evidence_reference",
            "replacement.details.evidence_sha256",
            "replacement.details.on_behalf_of",
            "replacement.details.external_reference",
            "replacement.details.shown_text.country",
            "replacement.details.shown_text.language",
            "replacement.details.shown_text.sha256",
        ];
        table.all_bad("WithdrawAttestation", direct, &fields, |n| WithdrawAttestationRequest {
            request_id: id(n),
            attestation_id: id(n + 1),
            reason: pick(&ENUMS, n),
            replacement: Some(Replacement {
                template_id: given_id(n + 2),
                contact: contact(n),
                agreed_at: required_time(n),
                details: details(n),
            }),
            validate_only: n % 2 == 0,
        });
        let fields = ["state", "page_size", "page_token"];
        table.all_bad("ListNotifications", &self.operator, &fields, |n| ListNotificationsRequest {
            state: pick(&ENUMS, n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        let sent = ListNotificationsRequest {
            state: NotificationState::Sent.into(),
            ..ListNotificationsRequest::default()
        };
        table.bad("ListNotifications", "mails that were sent", &self.operator, &["state"], &sent);
        let fields = ["request_id", "attestation_id"];
        table.all_bad("RetryNotification", direct, &fields, |n| RetryNotificationRequest {
            request_id: id(n),
            attestation_id: id(n + 1),
            validate_only: false,
        });
        table.all_bad("GetAttestation", direct, &["attestation_id"], |n| GetAttestationRequest {
            attestation_id: id(n),
        });
        let fields = [
            "customer_id",
            "page_size",
            "page_token",
            "state",
            "template_id",
            "agreed_from",
            "agreed_before",
            "recorded_from",
            "recorded_before",
            "partner_id",
            "external_reference",
        ];
        table.all_bad("ListAttestations", operator, &fields, |n| ListAttestationsRequest {
            customer_id: given_id(n),
            include_history: n % 2 == 0,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            state: pick(&ENUMS[1..], n),
            template_id: given_id(n + 1),
            agreed_from: Some(pick(&TIMES, n)),
            agreed_before: Some(pick(&TIMES, n + 1)),
            recorded_from: Some(pick(&TIMES, n + 2)),
            recorded_before: Some(pick(&TIMES, n + 3)),
            newest_first: n % 2 == 0,
            partner_id: given_id(n + 2),
            external_reference: given_text(n, 80),
        });
        let everyone = ListAttestationsRequest::default();
        table.bad("ListAttestations", "of everyone", operator, &["customer_id"], &everyone);
        let of_another = ListAttestationsRequest { partner_id: PROVIDER.to_string(), ..everyone };
        table.bad("ListAttestations", "of another partner", direct, &["partner_id"], &of_another);
        let by_reference = ListAttestationsRequest {
            external_reference: "PO 7".into(),
            ..ListAttestationsRequest::default()
        };
        table.bad("ListAttestations", "by a reference", admin, &["external_reference"], &by_reference);
    }
}
