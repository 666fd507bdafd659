//! Rows of agreement-svc's calls.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    AgreementDemand, CheckEligibilityRequest, CreateAttestationRequest, CreateCustomerRequest,
    GetAttestationRequest, GetCustomerRequest, GetPartnerRequest, GetTemplateDocumentRequest,
    GetTemplateRequest, InlineAttestation, LinkResellerRequest, ListAttestationsRequest,
    ListCustomersRequest, ListPartnersRequest, ListTemplatesRequest, PublishTemplateVersionRequest,
    RegisterPartnerRequest, ReportPurchaseRequest, RetireTemplateRequest, TemplateDocument,
    UnlinkResellerRequest, UpdateCustomerRequest,
};
use proto::types::{AgreementType, Channel, Operation};
use tests::world::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};

use super::{
    CHECK_ELIGIBILITY, COUNTRIES, CREATE_ATTESTATION, CREATE_CUSTOMER, DIGESTS, DOMAINS, ENUMS, Existing,
    GET_ATTESTATION, GET_CUSTOMER, GET_PARTNER, GET_TEMPLATE, GET_TEMPLATE_DOCUMENT, LANGUAGES,
    LINK_RESELLER, LINKS, LIST_ATTESTATIONS, LIST_CUSTOMERS, LIST_PARTNERS, LIST_TEMPLATES, PAGE_SIZES,
    PAGE_TOKENS, PUBLISH_TEMPLATE_VERSION, REGISTER_PARTNER, REPORT_PURCHASE, RETIRE_TEMPLATE, TIMES, Table,
    UNLINK_RESELLER, UPDATE_CUSTOMER, attestation, contact, document, given_id, given_text, id, pick,
    publication, required_time, text,
};

impl Existing {
    pub(super) fn templates(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let known = AgreementType::MicrosoftCustomerAgreement.into();
        let fields = ["agreement_types[0]", "agreement_types[2]"];
        table.all_bad(LIST_TEMPLATES, direct, &fields, |n| ListTemplatesRequest {
            agreement_types: vec![pick(&ENUMS, n), known, pick(&ENUMS, n + 1)],
        });
        let none = ListTemplatesRequest::default();
        table.bad(LIST_TEMPLATES, "no type", direct, &["agreement_types"], &none);

        table.all_bad(GET_TEMPLATE, direct, &["template_id"], |n| GetTemplateRequest { template_id: id(n) });

        let fields = ["template_id", "country", "language"];
        table.all_bad(GET_TEMPLATE_DOCUMENT, direct, &fields, |n| GetTemplateDocumentRequest {
            template_id: id(n),
            version: u32::MAX,
            country: pick(&COUNTRIES, n).into(),
            language: pick(&LANGUAGES, n).into(),
        });

        let fields = [
            "request_id",
            "template_id",
            "agreement_type",
            "name",
            "effective_from",
            "reaccept_by",
            "documents",
            "documents[0].country",
            "documents[0].language",
            "documents[0].link",
            "documents[0].sha256",
        ];
        table.all_bad(PUBLISH_TEMPLATE_VERSION, operator, &fields, |n| PublishTemplateVersionRequest {
            request_id: id(n),
            template_id: id(n + 1),
            agreement_type: pick(&ENUMS[1..], n),
            name: given_text(n, 200),
            effective_from: Some(pick(&TIMES, n)),
            reacceptance: Some(Reacceptance::ReacceptBy(pick(&TIMES, n + 1))),
            documents: vec![TemplateDocument {
                country: pick(&COUNTRIES, n).into(),
                language: pick(&LANGUAGES, n).into(),
                link: if n == 0 { "x".repeat(2001) } else { pick(&LINKS, n).into() },
                sha256: pick(&DIGESTS, n).into(),
            }],
            validate_only: false,
        });
        let (now, document) = (Clock::system().now(), document("US", "en-US"));
        let publish = |documents: Vec<TemplateDocument>| publication(CUSTOMER_AGREEMENT, documents);
        for (about, bad, request) in [
            ("no documents", &["documents"][..], publish(vec![])),
            ("2,001 documents", &["documents"], publish(vec![document.clone(); 2001])),
            ("a repetition", &["documents[1].language"], publish(vec![document.clone(); 2])),
            ("no last resort", &["documents"], publish(vec![self::document("FR", "fr-FR")])),
            (
                "a new template without type and name",
                &["agreement_type", "name"],
                publication(&world::request_id(), vec![document.clone()]),
            ),
            (
                "another type and name than the template has",
                &["agreement_type", "name"],
                PublishTemplateVersionRequest {
                    agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
                    name: "Another name".into(),
                    ..publish(vec![document.clone()])
                },
            ),
            (
                "reacceptance before the version",
                &["reaccept_by"],
                PublishTemplateVersionRequest {
                    effective_from: Some(timestamp(now + Duration::days(2))),
                    reacceptance: Some(Reacceptance::ReacceptBy(timestamp(now + Duration::days(1)))),
                    ..publish(vec![document])
                },
            ),
        ] {
            table.bad(PUBLISH_TEMPLATE_VERSION, about, operator, bad, &request);
        }

        let fields = ["request_id", "template_id", "etag"];
        table.all_bad(RETIRE_TEMPLATE, operator, &fields, |n| RetireTemplateRequest {
            request_id: id(n),
            template_id: id(n + 1),
            etag: text(n, 50),
        });
    }

    pub(super) fn partners(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let fields = ["request_id", "partner_id", "name", "kind", "cloud"];
        table.all_bad(REGISTER_PARTNER, operator, &fields, |n| RegisterPartnerRequest {
            request_id: id(n),
            partner_id: id(n + 1),
            name: text(n, 200),
            kind: pick(&ENUMS, n),
            cloud: pick(&ENUMS, n + 1),
        });
        let fields = ["request_id", "provider_id", "reseller_id"];
        table.all_bad(LINK_RESELLER, operator, &fields, |n| LinkResellerRequest {
            request_id: id(n),
            provider_id: id(n + 1),
            reseller_id: id(n + 2),
        });
        table.all_bad(UNLINK_RESELLER, operator, &fields, |n| UnlinkResellerRequest {
            request_id: id(n),
            provider_id: id(n + 1),
            reseller_id: id(n + 2),
        });
        table.all_bad(LIST_PARTNERS, operator, &["page_size", "page_token"], |n| ListPartnersRequest {
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        table.all_bad(GET_PARTNER, direct, &["partner_id"], |n| GetPartnerRequest { partner_id: id(n) });
    }

    pub(super) fn customers(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let fields = [
            "request_id",
            "company_name",
            "domain",
            "country",
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
        ];
        table.all_bad(CREATE_CUSTOMER, direct, &fields, |n| CreateCustomerRequest {
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
            }),
            invitation: None,
        });
        let good = world::new_customer("Northwind", "FR", None);
        let contact_fields =
            ["primary_contact.first_name", "primary_contact.last_name", "primary_contact.email"];
        let alone = CreateCustomerRequest { primary_contact: None, ..good.clone() };
        table.bad(CREATE_CUSTOMER, "no contact", direct, &contact_fields, &alone);
        let both = CreateCustomerRequest {
            provider_id: PROVIDER.to_string(),
            reseller_id: RESELLER.to_string(),
            ..good.clone()
        };
        table.bad(CREATE_CUSTOMER, "two partners", direct, &["reseller_id"], &both);
        let through =
            CreateCustomerRequest { provider_id: PROVIDER.to_string(), reseller_id: String::new(), ..both };
        table.bad(CREATE_CUSTOMER, "through a provider", direct, &["provider_id"], &through);
        let with = CreateCustomerRequest { reseller_id: RESELLER.to_string(), ..good.clone() };
        table.bad(CREATE_CUSTOMER, "with a reseller", direct, &["reseller_id"], &with);
        let reseller = world::sales(RESELLER);
        table.bad(CREATE_CUSTOMER, "a reseller by itself", &reseller, &["provider_id"], &good);

        let fields = [
            "request_id",
            "customer_id",
            "etag",
            "company_name",
            "primary_contact.first_name",
            "primary_contact.last_name",
            "primary_contact.email",
            "primary_contact.phone",
        ];
        table.all_bad(UPDATE_CUSTOMER, direct, &fields, |n| UpdateCustomerRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            etag: text(n, 50),
            company_name: text(n + 1, 200),
            primary_contact: contact(n),
        });
        let alone = UpdateCustomerRequest {
            request_id: world::request_id(),
            customer_id: self.customer.customer_id.clone(),
            etag: self.customer.etag.clone(),
            company_name: "Northwind".into(),
            primary_contact: None,
        };
        table.bad(UPDATE_CUSTOMER, "no contact", direct, &contact_fields, &alone);

        table.all_bad(GET_CUSTOMER, direct, &["customer_id"], |n| GetCustomerRequest { customer_id: id(n) });
        table.all_bad(LIST_CUSTOMERS, operator, &["page_size", "page_token"], |n| ListCustomersRequest {
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
    }

    pub(super) fn attestations(&self, table: &mut Table) {
        let direct = &self.direct;
        let fields = [
            "request_id",
            "customer_id",
            "template_id",
            "contact.first_name",
            "contact.last_name",
            "contact.email",
            "contact.phone",
            "agreed_at",
        ];
        table.all_bad(CREATE_ATTESTATION, direct, &fields, |n| CreateAttestationRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            template_id: id(n + 2),
            contact: contact(n),
            agreed_at: required_time(n),
            validate_only: n % 2 == 0,
        });
        let alone =
            CreateAttestationRequest { contact: None, ..attestation(&self.customer.customer_id, None) };
        let fields = ["contact.first_name", "contact.last_name", "contact.email", "agreed_at"];
        table.bad(CREATE_ATTESTATION, "no contact and no date", direct, &fields, &alone);

        table.all_bad(GET_ATTESTATION, direct, &["attestation_id"], |n| GetAttestationRequest {
            attestation_id: id(n),
        });
        let fields = ["customer_id", "page_size", "page_token"];
        table.all_bad(LIST_ATTESTATIONS, direct, &fields, |n| ListAttestationsRequest {
            customer_id: id(n),
            include_history: n % 2 == 0,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
    }

    pub(super) fn gate(&self, table: &mut Table) {
        let Self { direct, service, .. } = self;
        let fields = [
            "payer_id",
            "customer_id",
            "reseller_id",
            "operation",
            "channel",
            "demands[0].agreement_types",
            "demands[1].agreement_types[1]",
            "at_least_revision",
            "acting_partner_id",
            "acting_roles[0]",
            "acting_roles[2]",
            "as_of",
        ];
        let known = AgreementType::MicrosoftCustomerAgreement.into();
        let question = |n| CheckEligibilityRequest {
            payer_id: id(n),
            customer_id: id(n + 1),
            reseller_id: given_id(n),
            operation: pick(&ENUMS, n),
            channel: pick(&ENUMS, n),
            demands: vec![
                AgreementDemand::default(),
                AgreementDemand { agreement_types: vec![known, pick(&ENUMS, n)] },
            ],
            at_least_revision: pick(&[-1, i64::MIN], n),
            acting_partner_id: given_id(n + 1),
            acting_roles: vec![pick(&ENUMS, n), 1, pick(&ENUMS, n + 1)],
            as_of: Some(pick(&TIMES, n)),
        };
        table.all_bad(CHECK_ELIGIBILITY, service, &fields, question);
        // A partner user's identity says who acts and how, whatever the request claims.
        let fields: Vec<_> = fields.into_iter().filter(|field| !field.contains("roles[")).collect();
        let fields = [&fields[..], &["acting_roles"]].concat();
        table.all_bad(CHECK_ELIGIBILITY, direct, &fields, |n| CheckEligibilityRequest {
            channel: pick(&ENUMS[1..], n),
            ..question(n)
        });
        let good = CheckEligibilityRequest {
            payer_id: DIRECT.to_string(),
            customer_id: self.customer.customer_id.clone(),
            operation: Operation::NewPurchase.into(),
            channel: Channel::Api.into(),
            ..CheckEligibilityRequest::default()
        };
        let many = vec![AgreementDemand { agreement_types: vec![known] }; 101];
        let many = CheckEligibilityRequest { demands: many, ..good.clone() };
        table.bad(CHECK_ELIGIBILITY, "101 demands", service, &["demands"], &many);
        let as_of = Some(timestamp(Clock::system().now()));
        let then = CheckEligibilityRequest { as_of, ..good.clone() };
        table.bad(CHECK_ELIGIBILITY, "a service at another time", service, &["as_of"], &then);
        let claims =
            CheckEligibilityRequest { acting_partner_id: DIRECT.to_string(), acting_roles: vec![1], ..good };
        let fields = ["channel", "acting_partner_id", "acting_roles"];
        table.bad(CHECK_ELIGIBILITY, "a partner with a service's claims", direct, &fields, &claims);

        let fields = ["request_id", "customer_id", "payer_id", "purchased_at"];
        table.all_bad(REPORT_PURCHASE, service, &fields, |n| ReportPurchaseRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            payer_id: id(n + 2),
            purchased_at: required_time(n),
        });
    }
}
