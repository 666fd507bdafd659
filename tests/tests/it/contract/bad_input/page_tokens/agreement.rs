//! The lists of agreement-svc, each asked for its second page in many ways.

use chassis::form::timestamp;
use proto::agreement::{
    InvitationState, ListAttestationsRequest, ListCustomerPartnersRequest, ListCustomersRequest,
    ListEventsRequest, ListInvitationsRequest, ListPartnersRequest, ListProposalsRequest,
    ListRelationshipsRequest, ListSignaturesRequest, ListTemplateDocumentsRequest, PartnerKind,
    ProposalState,
};
use tests::actions;
use tests::fixtures::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};

use super::{Answers, Callers, Existing};

/// The texts of a version, which every caller sees.
pub(super) async fn documents(by: &Callers) -> Answers {
    let Callers { direct, provider, operator, .. } = by;
    let mut answers = vec![];
    let documents = |page_token: &str| ListTemplateDocumentsRequest {
        template_id: CUSTOMER_AGREEMENT.into(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListTemplateDocumentsRequest::default()
    };
    let mut calls = direct.templates();
    let token = calls.list_template_documents(documents("")).await.unwrap().into_inner().next_page_token;
    let same = documents(&token);
    for (about, other) in [
        ("ListTemplateDocuments, same", same.clone()),
        ("ListTemplateDocuments, version", ListTemplateDocumentsRequest { version: 1, ..same.clone() }),
        ("ListTemplateDocuments, country", {
            ListTemplateDocumentsRequest { country: "FR".into(), ..same.clone() }
        }),
        ("ListTemplateDocuments, template", {
            ListTemplateDocumentsRequest { template_id: CLOUD_AGREEMENT.into(), ..same.clone() }
        }),
    ] {
        answers.push((about, calls.list_template_documents(other).await.map(drop)));
    }
    for (about, caller) in
        [("ListTemplateDocuments, provider", provider), ("ListTemplateDocuments, operator", operator)]
    {
        answers.push((about, caller.templates().list_template_documents(same.clone()).await.map(drop)));
    }
    answers
}

/// The partners, the customers, and the partners of a customer.
pub(super) async fn partners_and_customers(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, provider, operator, other } = by;
    let mut answers = vec![];
    let partners = |page_token: &str| ListPartnersRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListPartnersRequest::default()
    };
    let token = operator.partners().list_partners(partners("")).await.unwrap().into_inner().next_page_token;
    answers.push(("ListPartners, same", operator.partners().list_partners(partners(&token)).await.map(drop)));
    let providers = ListPartnersRequest { kind: PartnerKind::IndirectProvider.into(), ..partners(&token) };
    answers.push(("ListPartners, kind", operator.partners().list_partners(providers).await.map(drop)));
    answers.push(("ListPartners, other", other.partners().list_partners(partners(&token)).await.map(drop)));

    let customers = |page_token: &str| ListCustomersRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListCustomersRequest::default()
    };
    answers.push(("ListCustomers, partners'", {
        operator.customers().list_customers(customers(&token)).await.map(drop)
    }));
    let token = direct.customers().list_customers(customers("")).await.unwrap().into_inner().next_page_token;
    answers
        .push(("ListCustomers, same", direct.customers().list_customers(customers(&token)).await.map(drop)));
    let same = customers(&token);
    for (about, other) in [
        ("ListCustomers, domain", ListCustomersRequest { domain: "contoso.example".into(), ..same.clone() }),
        ("ListCustomers, name", ListCustomersRequest { company_name_prefix: "c".into(), ..same.clone() }),
        (
            "ListCustomers, reseller",
            ListCustomersRequest { reseller_id: RESELLER.to_string(), ..same.clone() },
        ),
        ("ListCustomers, number", ListCustomersRequest { external_reference: "7".into(), ..same.clone() }),
    ] {
        answers.push((about, direct.customers().list_customers(other).await.map(drop)));
    }
    for (about, caller) in [("ListCustomers, provider", provider), ("ListCustomers, operator", operator)] {
        answers.push((about, caller.customers().list_customers(customers(&token)).await.map(drop)));
    }

    let admin = existing.cluster.as_caller(existing.admin.clone());
    let other_admin = existing.cluster.as_caller(fixtures::admin(existing.other_customer.parse().unwrap()));
    let partners = |page_token: &str| ListCustomerPartnersRequest {
        include_ended: true,
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = admin.customers();
    let token = calls.list_customer_partners(partners("")).await.unwrap().into_inner().next_page_token;
    let active = ListCustomerPartnersRequest { include_ended: false, ..partners(&token) };
    answers
        .push(("ListCustomerPartners, same", calls.list_customer_partners(partners(&token)).await.map(drop)));
    answers.push(("ListCustomerPartners, active", calls.list_customer_partners(active).await.map(drop)));
    answers.push(("ListCustomerPartners, customer", {
        other_admin.customers().list_customer_partners(partners(&token)).await.map(drop)
    }));
    answers
}

/// The relationships of a partner, as the operator lists them.
pub(super) async fn relationships(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, operator, other, .. } = by;
    let mut answers = vec![];
    let relationships = |page_token: &str| ListRelationshipsRequest {
        partner_id: DIRECT.to_string(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListRelationshipsRequest::default()
    };
    let mut calls = operator.customers();
    let token = calls.list_relationships(relationships("")).await.unwrap().into_inner().next_page_token;
    let same = relationships(&token);
    for (about, asked) in [
        ("ListRelationships, same", same.clone()),
        ("ListRelationships, customer", {
            ListRelationshipsRequest { customer_id: existing.other_customer.clone(), ..same.clone() }
        }),
        ("ListRelationships, partner", {
            ListRelationshipsRequest { partner_id: PROVIDER.to_string(), ..same.clone() }
        }),
        ("ListRelationships, reseller", {
            ListRelationshipsRequest { reseller_id: RESELLER.to_string(), ..same.clone() }
        }),
        ("ListRelationships, ended", ListRelationshipsRequest { include_ended: true, ..same.clone() }),
    ] {
        answers.push((about, calls.list_relationships(asked).await.map(drop)));
    }
    answers.push(("ListRelationships, other operator", {
        other.customers().list_relationships(same.clone()).await.map(drop)
    }));
    // Partners name none: they have the relationships of their own tenant.
    let own = ListRelationshipsRequest { partner_id: String::new(), ..same };
    answers.push(("ListRelationships, direct", direct.customers().list_relationships(own).await.map(drop)));
    answers
}

/// The attestations of a customer.
pub(super) async fn attestations(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let time = Some(timestamp(fixtures::now()));
    let mut answers = vec![];
    let attestations = |page_token: &str| ListAttestationsRequest {
        customer_id: customer.clone(),
        include_history: true,
        page_size: 1,
        page_token: page_token.into(),
        ..ListAttestationsRequest::default()
    };
    let mut calls = direct.attestations();
    let token = calls.list_attestations(attestations("")).await.unwrap().into_inner().next_page_token;
    let same = attestations(&token);
    let current = ListAttestationsRequest { include_history: false, ..same.clone() };
    let elsewhere = ListAttestationsRequest { customer_id: existing.other_customer.clone(), ..same.clone() };
    for (about, other) in [
        ("ListAttestations, all", ListAttestationsRequest { customer_id: String::new(), ..same.clone() }),
        ("ListAttestations, newest first", ListAttestationsRequest { newest_first: true, ..same.clone() }),
        ("ListAttestations, state", ListAttestationsRequest { state: 1, ..same.clone() }),
        ("ListAttestations, agreed from", ListAttestationsRequest { agreed_from: time, ..same.clone() }),
        ("ListAttestations, agreed", ListAttestationsRequest { agreed_before: time, ..same.clone() }),
        ("ListAttestations, recorded from", ListAttestationsRequest { recorded_from: time, ..same.clone() }),
        ("ListAttestations, recorded", ListAttestationsRequest { recorded_before: time, ..same.clone() }),
        ("ListAttestations, reference", {
            ListAttestationsRequest { external_reference: "7".into(), ..same.clone() }
        }),
        ("ListAttestations, template", {
            ListAttestationsRequest { template_id: CUSTOMER_AGREEMENT.into(), ..same.clone() }
        }),
    ] {
        answers.push((about, calls.list_attestations(other).await.map(drop)));
    }
    answers.push(("ListAttestations, same", calls.list_attestations(same.clone()).await.map(drop)));
    answers.push(("ListAttestations, current", calls.list_attestations(current).await.map(drop)));
    answers.push(("ListAttestations, customer", calls.list_attestations(elsewhere).await.map(drop)));
    answers.push(("ListAttestations, operator", {
        operator.attestations().list_attestations(same).await.map(drop)
    }));

    // Only operators and customers name the partner.
    let mut calls = operator.attestations();
    let token = calls.list_attestations(attestations("")).await.unwrap().into_inner().next_page_token;
    let same = attestations(&token);
    let of_partner = ListAttestationsRequest { partner_id: DIRECT.to_string(), ..same.clone() };
    answers.push(("ListAttestations, same", calls.list_attestations(same).await.map(drop)));
    answers.push(("ListAttestations, partner", calls.list_attestations(of_partner).await.map(drop)));
    answers
}

/// The invitations of a partner.
pub(super) async fn invitations(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, provider, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let mut answers = vec![];
    let invitations = |page_token: &str| ListInvitationsRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListInvitationsRequest::default()
    };
    let mut calls = direct.signatures();
    let token = calls.list_invitations(invitations("")).await.unwrap().into_inner().next_page_token;
    let pending = ListInvitationsRequest { state: InvitationState::Pending.into(), ..invitations(&token) };
    let named = ListInvitationsRequest { customer_id: customer.clone(), ..invitations(&token) };
    let down = ListInvitationsRequest { newest_first: true, ..invitations(&token) };
    answers.push(("ListInvitations, newest first", calls.list_invitations(down).await.map(drop)));
    answers.push(("ListInvitations, same", calls.list_invitations(invitations(&token)).await.map(drop)));
    answers.push(("ListInvitations, pending", calls.list_invitations(pending).await.map(drop)));
    answers.push(("ListInvitations, customer", calls.list_invitations(named).await.map(drop)));
    for (about, caller) in [("ListInvitations, provider", provider), ("ListInvitations, operator", operator)]
    {
        answers.push((about, caller.signatures().list_invitations(invitations(&token)).await.map(drop)));
    }
    answers
}

/// The events of a customer.
pub(super) async fn events(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, provider, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let mut answers = vec![];
    let events = |customer_id: &str, page_token: &str| ListEventsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        newest_first: false,
    };
    let mut calls = direct.events();
    let token = calls.list_events(events(&customer, "")).await.unwrap().into_inner().next_page_token;
    let elsewhere = events(&existing.other_customer, &token);
    answers.push((
        "csp.agreement.v1.EventService/ListEvents, same",
        calls.list_events(events(&customer, &token)).await.map(drop),
    ));
    answers.push((
        "csp.agreement.v1.EventService/ListEvents, customer",
        calls.list_events(elsewhere).await.map(drop),
    ));
    let down = ListEventsRequest { newest_first: true, ..events(&customer, &token) };
    answers.push((
        "csp.agreement.v1.EventService/ListEvents, newest first",
        calls.list_events(down).await.map(drop),
    ));
    for (about, caller) in [
        ("csp.agreement.v1.EventService/ListEvents, provider", provider),
        ("csp.agreement.v1.EventService/ListEvents, operator", operator),
    ] {
        answers.push((about, caller.events().list_events(events(&customer, &token)).await.map(drop)));
    }
    answers
}

/// The signatures of a customer, as its administrator lists them.
pub(super) async fn signatures(existing: &Existing, by: &Callers) -> Answers {
    let Callers { operator, .. } = by;
    let mut answers = vec![];
    // It has bought nothing, so that it signs; and it signs twice, with a withdrawal between.
    let customer = existing.other_customer.clone();
    let admin = existing.cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    actions::sign(&admin, 2).await.unwrap();
    actions::withdraw_signature(&admin, &customer).await.unwrap();
    actions::sign(&admin, 2).await.unwrap();
    let signatures = |page_token: &str| ListSignaturesRequest {
        include_history: true,
        page_size: 1,
        page_token: page_token.into(),
        ..ListSignaturesRequest::default()
    };
    let mut calls = admin.signatures();
    let token = calls.list_signatures(signatures("")).await.unwrap().into_inner().next_page_token;
    let same = signatures(&token);
    for (about, asked) in [
        ("ListSignatures, same", same.clone()),
        ("ListSignatures, current", ListSignaturesRequest { include_history: false, ..same.clone() }),
        ("ListSignatures, newest first", ListSignaturesRequest { newest_first: true, ..same.clone() }),
        ("ListSignatures, customer", ListSignaturesRequest { customer_id: customer.clone(), ..same.clone() }),
    ] {
        answers.push((about, calls.list_signatures(asked).await.map(drop)));
    }
    let other_admin = existing.cluster.as_caller(existing.admin.clone());
    for (about, caller) in
        [("ListSignatures, other customer", &other_admin), ("ListSignatures, operator", operator)]
    {
        answers.push((about, caller.signatures().list_signatures(same.clone()).await.map(drop)));
    }
    answers
}

/// What a reseller proposes.
pub(super) async fn proposals(existing: &Existing, by: &Callers) -> Answers {
    let Callers { provider, operator, .. } = by;
    let mut answers = vec![];
    let reseller = existing.cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&reseller, "Tailspin", "FR", Some(PROVIDER)).await.unwrap();
    for _ in 0..2 {
        let proposed = fixtures::new_proposal(PROVIDER, &customer);
        reseller.proposals().propose_attestation(proposed).await.unwrap();
    }
    let proposals = |page_token: &str| ListProposalsRequest {
        customer_id: customer.clone(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListProposalsRequest::default()
    };
    let mut calls = reseller.proposals();
    let token = calls.list_proposals(proposals("")).await.unwrap().into_inner().next_page_token;
    let same = proposals(&token);
    for (about, asked) in [
        ("ListProposals, same", same.clone()),
        ("ListProposals, all", ListProposalsRequest { customer_id: String::new(), ..same.clone() }),
        ("ListProposals, customer", {
            ListProposalsRequest { customer_id: existing.other_customer.clone(), ..same.clone() }
        }),
        ("ListProposals, state", {
            ListProposalsRequest { state: ProposalState::Pending.into(), ..same.clone() }
        }),
    ] {
        answers.push((about, calls.list_proposals(asked).await.map(drop)));
    }
    for (about, caller) in [("ListProposals, provider", provider), ("ListProposals, operator", operator)] {
        answers.push((about, caller.proposals().list_proposals(same.clone()).await.map(drop)));
    }
    answers
}
