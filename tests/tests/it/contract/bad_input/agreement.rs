//! Rows of agreement-svc's calls.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    AcceptInvitationRequest, AgreementDemand, ApproveProposalRequest, AssumedAttestation,
    BatchCheckEligibilityRequest, CheckEligibilityRequest, CheckWithdrawalRequest, CompanyProfile,
    CreateInvitationRequest, DeclineInvitationRequest, GetDirectSignStatusRequest, GetInvitationRequest,
    GetPartnerRequest, GetProposalRequest, GetSignatureRequest, GetTemplateDocumentRequest,
    GetTemplateRequest, LinkResellerRequest, ListBlockedCustomersRequest, ListEventsRequest,
    ListInvitationsRequest, ListPartnersRequest, ListProposalsRequest, ListSignaturesRequest,
    ListTemplateDocumentsRequest, ListTemplatesRequest, ProposeAttestationRequest,
    PublishTemplateVersionRequest, RegisterPartnerRequest, RejectProposalRequest, ReportPurchaseRequest,
    RetireTemplateRequest, RevokeInvitationRequest, SignAgreementRequest, SupportContact, TemplateDocument,
    UnlinkResellerRequest, UpdatePartnerRequest, WatchEventsRequest, WithdrawProposalRequest,
    WithdrawSignatureRequest,
};
use proto::types::{AgreementType, Channel, Operation};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};

use super::existing::{Existing, Table, document, publication};
use super::values::{
    COUNTRIES, DIGESTS, DOMAINS, ENUMS, LANGUAGES, LINKS, PAGE_SIZES, PAGE_TOKENS, TIMES, contact, details,
    expiry, given_id, given_text, id, pick, pick_given, required_time, shown_text, support, text,
};

impl Existing {
    pub(super) fn templates(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let known = AgreementType::MicrosoftCustomerAgreement.into();
        let fields = ["agreement_types[0]", "agreement_types[2]"];
        table.all_bad("ListTemplates", direct, &fields, |n| ListTemplatesRequest {
            agreement_types: vec![pick(&ENUMS, n), known, pick(&ENUMS, n + 1)],
        });
        table.bad("ListTemplates", "no type", direct, &["agreement_types"], &ListTemplatesRequest::default());
        table.all_bad("GetTemplate", direct, &["template_id"], |n| GetTemplateRequest { template_id: id(n) });

        let fields = ["template_id", "country", "page_size", "page_token"];
        table.all_bad("ListTemplateDocuments", direct, &fields, |n| ListTemplateDocumentsRequest {
            template_id: id(n),
            version: 0,
            country: pick_given(&COUNTRIES, n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        let fields = ["template_id", "country", "language"];
        table.all_bad("GetTemplateDocument", direct, &fields, |n| GetTemplateDocumentRequest {
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
        table.all_bad("PublishTemplateVersion", operator, &fields, |n| PublishTemplateVersionRequest {
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
            (
                "a repetition in other letters",
                &["documents[1].language"],
                publish(vec![document.clone(), self::document("US", "EN-us")]),
            ),
            ("no last resort", &["documents"], publish(vec![self::document("FR", "fr-FR")])),
            (
                "a new template without type and name",
                &["agreement_type", "name"],
                publication(&fixtures::request_id(), vec![document.clone()]),
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
            table.bad("PublishTemplateVersion", about, operator, bad, &request);
        }

        let fields = ["request_id", "template_id", "etag"];
        table.all_bad("RetireTemplate", operator, &fields, |n| RetireTemplateRequest {
            request_id: id(n),
            template_id: id(n + 1),
            etag: text(n, 50),
            validate_only: false,
        });
    }

    pub(super) fn partners(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let support_fields = ["support.email", "support.phone", "support.url"];
        let fields = [&["request_id", "partner_id", "name", "kind", "cloud"][..], &support_fields].concat();
        table.all_bad("RegisterPartner", operator, &fields, |n| RegisterPartnerRequest {
            request_id: id(n),
            partner_id: id(n + 1),
            name: text(n, 200),
            kind: pick(&ENUMS, n),
            cloud: pick(&ENUMS, n + 1),
            validate_only: false,
            support: support(n),
        });
        let fields = [&["request_id", "partner_id", "etag", "name"][..], &support_fields].concat();
        table.all_bad("UpdatePartner", operator, &fields, |n| UpdatePartnerRequest {
            request_id: id(n),
            partner_id: id(n + 1),
            etag: text(n, 50),
            name: text(n + 1, 200),
            validate_only: false,
            support: support(n),
        });
        for (field, bad) in [
            ("support.email", SupportContact { email: "help@bücher.example".into(), ..Default::default() }),
            ("support.phone", SupportContact { phone: "call us".into(), ..Default::default() }),
            (
                "support.url",
                SupportContact { url: "http://partner.example/help".into(), ..Default::default() },
            ),
            (
                "support.url",
                SupportContact { url: "https://partner.example/a page".into(), ..Default::default() },
            ),
        ] {
            let request = UpdatePartnerRequest {
                request_id: fixtures::request_id(),
                partner_id: DIRECT.to_string(),
                etag: "1".into(),
                name: "Northwind Direct".into(),
                validate_only: false,
                support: Some(bad),
            };
            table.bad("UpdatePartner", "a support contact", operator, &[field], &request);
        }
        let fields = ["request_id", "provider_id", "reseller_id"];
        table.all_bad("LinkReseller", operator, &fields, |n| LinkResellerRequest {
            request_id: id(n),
            provider_id: id(n + 1),
            reseller_id: id(n + 2),
            validate_only: false,
        });
        table.all_bad("UnlinkReseller", operator, &fields, |n| UnlinkResellerRequest {
            request_id: id(n),
            provider_id: id(n + 1),
            reseller_id: id(n + 2),
            validate_only: false,
        });
        let fields = ["page_size", "page_token", "kind"];
        table.all_bad("ListPartners", operator, &fields, |n| ListPartnersRequest {
            kind: pick(&ENUMS[1..], n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        table.all_bad("GetPartner", direct, &["partner_id"], |n| GetPartnerRequest { partner_id: id(n) });
    }

    pub(super) fn invitations(&self, table: &mut Table) {
        let Self { direct, admin, .. } = self;
        let fields = [
            "request_id",
            "kind",
            "customer_id",
            "template_id",
            "provider_id",
            "reseller_id",
            "recipient.first_name",
            "recipient.last_name",
            "recipient.email",
            "recipient.phone",
            "expires_at",
            "language",
        ];
        table.all_bad("CreateInvitation", direct, &fields, |n| CreateInvitationRequest {
            request_id: id(n),
            kind: pick(&ENUMS, n),
            customer_id: given_id(n),
            template_id: id(n + 1),
            provider_id: given_id(n + 1),
            reseller_id: given_id(n + 2),
            recipient: contact(n),
            expires_at: expiry(n),
            validate_only: false,
            language: pick_given(&LANGUAGES, n),
        });
        let of_customer = fixtures::new_invitation(Some(&self.customer.customer_id), None);
        let open_invitation = fixtures::new_invitation(None, None);
        let (provider, other) = (PROVIDER.to_string(), RESELLER.to_string());
        let through = |invitation: &CreateInvitationRequest| CreateInvitationRequest {
            provider_id: provider.clone(),
            ..invitation.clone()
        };
        let with = |invitation: CreateInvitationRequest| CreateInvitationRequest {
            reseller_id: other.clone(),
            ..invitation
        };
        let of_no_customer = CreateInvitationRequest { customer_id: String::new(), ..of_customer.clone() };
        let for_a_customer = CreateInvitationRequest { kind: open_invitation.kind, ..of_customer.clone() };
        let reseller = fixtures::sales(RESELLER);
        for (about, by, bad, request) in [
            ("of no customer", direct, &["customer_id"][..], of_no_customer),
            (
                "of a customer, by others",
                direct,
                &["provider_id", "reseller_id"],
                with(through(&of_customer)),
            ),
            ("of a customer, to enter", direct, &["customer_id"], for_a_customer),
            ("two partners", direct, &["reseller_id"], with(through(&open_invitation))),
            ("through a provider", direct, &["provider_id"], through(&open_invitation)),
            ("with a reseller", direct, &["reseller_id"], with(open_invitation.clone())),
            ("a reseller by itself", &reseller, &["provider_id"], open_invitation),
        ] {
            table.bad("CreateInvitation", about, by, bad, &request);
        }

        let fields = ["request_id", "invitation_id"];
        table.all_bad("RevokeInvitation", direct, &fields, |n| RevokeInvitationRequest {
            request_id: id(n),
            invitation_id: id(n + 1),
            validate_only: false,
        });
        let fields = ["request_id", "invitation_id", "token", "reason"];
        table.all_bad("DeclineInvitation", admin, &fields, |n| DeclineInvitationRequest {
            request_id: id(n),
            invitation_id: id(n + 1),
            token: String::new(),
            reason: pick(&ENUMS, n),
            validate_only: false,
        });
        // Customers need a token; to others it is of no use.
        for (by, token) in [(admin, ""), (direct, "token")] {
            table.all_bad("GetInvitation", by, &["invitation_id", "token"], |n| GetInvitationRequest {
                invitation_id: id(n),
                token: token.into(),
            });
        }
        table.all_bad("GetSignature", direct, &["signature_id"], |n| GetSignatureRequest {
            signature_id: id(n),
        });
        let fields = ["customer_id", "page_size", "page_token"];
        table.all_bad("ListSignatures", direct, &fields, |n| ListSignaturesRequest {
            customer_id: id(n),
            include_history: false,
            newest_first: n % 2 == 0,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        let fields = ["customer_id", "state", "page_size", "page_token"];
        table.all_bad("ListInvitations", direct, &fields, |n| ListInvitationsRequest {
            customer_id: given_id(n),
            state: pick(&ENUMS[1..], n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            newest_first: n % 2 == 0,
        });
        let fields = [
            "request_id",
            "invitation_id",
            "token",
            "template_version",
            "company.company_name",
            "company.domain",
            "company.country",
            "company.language",
            "company.primary_contact.first_name",
            "company.primary_contact.last_name",
            "company.primary_contact.email",
            "company.primary_contact.phone",
            "shown_text.country",
            "shown_text.language",
            "shown_text.sha256",
        ];
        table.all_bad("AcceptInvitation", admin, &fields, |n| AcceptInvitationRequest {
            request_id: id(n),
            invitation_id: id(n + 1),
            token: String::new(),
            template_version: 0,
            company: Some(CompanyProfile {
                company_name: text(n, 200),
                domain: pick(&DOMAINS, n).into(),
                country: pick(&COUNTRIES, n).into(),
                primary_contact: contact(n),
                language: pick_given(&LANGUAGES, n),
            }),
            validate_only: false,
            shown_text: shown_text(n),
        });
        let fields = [
            "company.company_name",
            "company.domain",
            "company.country",
            "company.primary_contact.first_name",
            "company.primary_contact.last_name",
            "company.primary_contact.email",
        ];
        let unnamed = AcceptInvitationRequest {
            request_id: fixtures::request_id(),
            invitation_id: fixtures::request_id(),
            token: "token".into(),
            template_version: 2,
            company: Some(CompanyProfile::default()),
            validate_only: false,
            shown_text: None,
        };
        table.bad("AcceptInvitation", "an empty company", admin, &fields, &unnamed);
    }

    pub(super) fn proposals(&self, table: &mut Table) {
        let Self { direct, .. } = self;
        let fields = [
            "request_id",
            "provider_id",
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
        table.all_bad("ProposeAttestation", direct, &fields, |n| ProposeAttestationRequest {
            request_id: id(n),
            provider_id: id(n + 3),
            customer_id: id(n + 1),
            template_id: id(n + 2),
            contact: contact(n),
            agreed_at: required_time(n),
            details: details(n),
            validate_only: n % 2 == 0,
        });
        let fields = ["request_id", "proposal_id"];
        table.all_bad("ApproveProposal", direct, &fields, |n| ApproveProposalRequest {
            request_id: id(n),
            proposal_id: id(n + 1),
            validate_only: false,
        });
        table.all_bad("WithdrawProposal", direct, &fields, |n| WithdrawProposalRequest {
            request_id: id(n),
            proposal_id: id(n + 1),
            validate_only: false,
        });
        let fields = ["request_id", "proposal_id", "reason"];
        table.all_bad("RejectProposal", direct, &fields, |n| RejectProposalRequest {
            request_id: id(n),
            proposal_id: id(n + 1),
            reason: pick(&ENUMS, n),
            validate_only: false,
        });
        table.all_bad("GetProposal", direct, &["proposal_id"], |n| GetProposalRequest { proposal_id: id(n) });
        let fields = ["customer_id", "state", "page_size", "page_token"];
        table.all_bad("ListProposals", direct, &fields, |n| ListProposalsRequest {
            customer_id: given_id(n),
            state: pick(&ENUMS[1..], n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
    }

    pub(super) fn signatures(&self, table: &mut Table) {
        let Self { direct, admin, .. } = self;
        let fields = [
            "request_id",
            "template_id",
            "template_version",
            "shown_text.country",
            "shown_text.language",
            "shown_text.sha256",
        ];
        table.all_bad("SignAgreement", admin, &fields, |n| SignAgreementRequest {
            request_id: id(n),
            template_id: id(n + 1),
            template_version: 0,
            validate_only: false,
            shown_text: shown_text(n),
        });
        let fields = ["request_id", "signature_id", "reason"];
        table.all_bad("WithdrawSignature", admin, &fields, |n| WithdrawSignatureRequest {
            request_id: id(n),
            signature_id: id(n + 1),
            reason: pick(&ENUMS, n),
            validate_only: false,
        });
        table.all_bad("GetDirectSignStatus", direct, &["customer_id"], |n| GetDirectSignStatusRequest {
            customer_id: id(n),
        });
    }

    pub(super) fn gate(&self, table: &mut Table) {
        let Self { direct, operator, service, .. } = self;
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
            "assumed_attestation.attestation_id",
            "assumed_attestation.template_id",
            "assumed_attestation.template_version",
            "assumed_attestation.agreed_at",
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
            assumed_attestation: Some(AssumedAttestation {
                attestation_id: id(n),
                template_id: id(n + 1),
                template_version: 0,
                agreed_at: Some(pick(&TIMES, n)),
            }),
        };
        table.all_bad("CheckEligibility", service, &fields, question);
        // A partner user's identity says who acts and how, whatever the request claims.
        let fields: Vec<_> = fields.into_iter().filter(|field| !field.contains("roles[")).collect();
        let fields = [&fields[..], &["acting_roles", "assumed_attestation"]].concat();
        table.all_bad("CheckEligibility", direct, &fields, |n| CheckEligibilityRequest {
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
        table.bad("CheckEligibility", "101 demands", service, &["demands"], &many);
        // Items are answered one by one; that there are none, or too many, is the call's.
        for (about, count) in [("no item", 0), ("101 items", 101)] {
            let request = BatchCheckEligibilityRequest { items: vec![good.clone(); count] };
            table.bad("BatchCheckEligibility", about, service, &["items"], &request);
        }
        let fields = ["as_of", "page_size", "page_token", "partner_id"];
        table.all_bad("ListBlockedCustomers", &self.direct, &fields, |n| ListBlockedCustomersRequest {
            as_of: Some(pick(&TIMES, n)),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            partner_id: given_id(n),
        });
        let own = ListBlockedCustomersRequest { partner_id: DIRECT.to_string(), ..Default::default() };
        table.bad("ListBlockedCustomers", "a partner names one", direct, &["partner_id"], &own);
        let none = ListBlockedCustomersRequest::default();
        table.bad("ListBlockedCustomers", "an operator names none", operator, &["partner_id"], &none);
        let assumed = |template_id: &str, template_version| AssumedAttestation {
            attestation_id: fixtures::request_id(),
            template_id: template_id.into(),
            template_version,
            agreed_at: None,
        };
        let unknown = fixtures::request_id();
        for (about, by, field, assumed) in [
            ("no template", service, "assumed_attestation.template_id", assumed(&unknown, 1)),
            ("no version", service, "assumed_attestation.template_version", assumed(CUSTOMER_AGREEMENT, 9)),
            ("a partner assumes", direct, "assumed_attestation", assumed(CUSTOMER_AGREEMENT, 2)),
            ("an operator assumes", operator, "assumed_attestation", assumed(CUSTOMER_AGREEMENT, 2)),
        ] {
            let channel = if by == direct { 0 } else { good.channel };
            let assuming =
                CheckEligibilityRequest { assumed_attestation: Some(assumed), channel, ..good.clone() };
            table.bad("CheckEligibility", about, by, &[field], &assuming);
        }
        let as_of = Some(timestamp(Clock::system().now()));
        let then = CheckEligibilityRequest { as_of, ..good.clone() };
        table.bad("CheckEligibility", "a service at another time", service, &["as_of"], &then);
        let claims = CheckEligibilityRequest {
            acting_partner_id: DIRECT.to_string(),
            acting_roles: vec![1],
            ..good.clone()
        };
        let fields = ["acting_partner_id", "acting_roles"];
        table.bad("CheckEligibility", "an operator with a service's claims", operator, &fields, &claims);
        let channel = CheckEligibilityRequest { channel: 9, ..good };
        table.bad("CheckEligibility", "an operator on no channel", operator, &["channel"], &channel);
        let fields = ["channel", "acting_partner_id", "acting_roles"];
        table.bad("CheckEligibility", "a partner with a service's claims", direct, &fields, &claims);

        let fields = ["request_id", "customer_id", "payer_id", "purchased_at"];
        table.all_bad("ReportPurchase", service, &fields, |n| ReportPurchaseRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            payer_id: id(n + 2),
            purchased_at: required_time(n),
            validate_only: false,
        });
        table.all_bad("CheckWithdrawal", service, &["acceptance_id"], |n| CheckWithdrawalRequest {
            acceptance_id: id(n),
        });
    }
    pub(super) fn events(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let fields = ["customer_id", "page_size", "page_token"];
        table.all_bad("ListEvents", direct, &fields, |n| ListEventsRequest {
            customer_id: id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            newest_first: n % 2 == 0,
        });
        table.all_bad("WatchEvents", operator, &["after_revision"], |n| WatchEventsRequest {
            after_revision: pick(&[-1, i64::MIN], n),
            after_hash: String::new(),
        });
        table.all_bad("WatchEvents", operator, &["after_hash"], |_| WatchEventsRequest {
            after_revision: 0,
            after_hash: "0".repeat(64),
        });
    }
}
