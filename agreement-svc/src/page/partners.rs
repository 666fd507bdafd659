//! The page of a customer's partners and of its acceptances.

use std::collections::HashMap;

use askama::Template;
use axum::extract::Query;
use axum::response::Response;
use http::StatusCode;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::{
    Attestation, GetDirectSignStatusRequest, ListAttestationsRequest, ListCustomerPartnersRequest,
    ListSignaturesRequest, ListTemplatesRequest, Relationship, Template as AgreementTemplate,
};
use proto::types::AgreementType;
use serde::Deserialize;
use tonic::Status;

use super::texts::Texts;
use super::view::{self, Partner, rendered};
use super::visit::Visit;

/// Rows of each list on one page.
const ROWS: i32 = 100;

/// Relationships whose names the pages know; they name other partners by id.
const NAMES: i32 = 500;

/// Which page of the partners.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Paging {
    after: String,
}

#[derive(Template)]
#[template(path = "partners.html")]
struct Page<'a> {
    texts: &'static Texts,
    company: &'a str,
    relationships: Vec<Row>,
    /// Where the next partners are.
    next: String,
    signatures: Vec<Signed>,
    attestations: Vec<Attested>,
    has_more_attestations: bool,
    /// Agreements that the customer can sign now.
    to_sign: Vec<AgreementTemplate>,
    /// Why the customer cannot sign, and what it can do; empty if it can.
    refusal: &'a str,
}

/// A relationship.
struct Row {
    partners: Vec<Partner>,
    since: String,
}

/// A signature of the customer.
struct Signed {
    id: String,
    agreement: String,
    version: u32,
    at: String,
}

/// An attestation by a partner.
struct Attested {
    partner: String,
    agreement: String,
    version: u32,
    person: String,
    at: String,
}

pub(super) async fn show(visit: Visit, Query(paging): Query<Paging>) -> Response {
    page(&visit, paging).await.unwrap_or_else(|status| visit.refused(&status))
}

async fn page(visit: &Visit, paging: Paging) -> Result<Response, Status> {
    let Visit { texts, customer, .. } = visit;
    let Some(customer) = customer else {
        let page = Page {
            texts,
            company: "",
            relationships: vec![],
            next: String::new(),
            signatures: vec![],
            attestations: vec![],
            has_more_attestations: false,
            to_sign: vec![],
            refusal: "",
        };
        return Ok(rendered(StatusCode::OK, &page));
    };
    let customer_id = customer.customer_id.clone();
    let request =
        ListCustomerPartnersRequest { include_ended: false, page_size: ROWS, page_token: paging.after };
    let listed = visit.customers().list_customer_partners(visit.call(request)).await?.into_inner();
    let names = names(visit).await?;
    let agreements = templates(visit).await?;
    let agreement = |id: &str| {
        let template = agreements.iter().find(|template| template.template_id == id);
        template.map_or_else(|| id.to_owned(), |template| template.name.clone())
    };

    let request = ListSignaturesRequest {
        customer_id: customer_id.clone(),
        page_size: ROWS,
        newest_first: true,
        ..ListSignaturesRequest::default()
    };
    let signed = visit.signatures().list_signatures(visit.call(request)).await?.into_inner().signatures;
    let request = ListAttestationsRequest {
        customer_id: customer_id.clone(),
        page_size: ROWS,
        newest_first: true,
        ..ListAttestationsRequest::default()
    };
    let mut attestations = AttestationServiceClient::new(visit.pages.calls.clone());
    let attested = attestations.list_attestations(visit.call(request)).await?.into_inner();
    let request = GetDirectSignStatusRequest { customer_id };
    let status = visit.signatures().get_direct_sign_status(visit.call(request)).await?.into_inner();
    let refusal = status.sign_refusal.as_ref().map_or("", |refusal| view::sign_refusal(texts, refusal));
    let is_signed = |template: &AgreementTemplate| {
        let version = template.version_in_force;
        signed.iter().any(|one| one.template_id == template.template_id && one.template_version == version)
    };
    let can_sign = |template: &&AgreementTemplate| template.version_in_force > 0 && !is_signed(template);
    let to_sign = agreements.iter().filter(|_| refusal.is_empty()).filter(can_sign).cloned().collect();
    let signatures = signed.iter().map(|one| Signed {
        id: one.signature_id.clone(),
        agreement: agreement(&one.template_id),
        version: one.template_version,
        at: view::time(texts, one.signed_at.as_ref()),
    });
    let attested_by = |one: &Attestation| {
        let contact = one.contact.clone().unwrap_or_default();
        Attested {
            partner: names.get(&one.partner_id).unwrap_or(&one.partner_id).clone(),
            agreement: agreement(&one.template_id),
            version: one.template_version,
            person: format!("{} {}", contact.first_name, contact.last_name),
            at: view::time(texts, one.agreed_at.as_ref()),
        }
    };
    let page = Page {
        texts,
        company: &customer.company_name,
        signatures: signatures.collect(),
        attestations: attested.attestations.iter().map(attested_by).collect(),
        has_more_attestations: !attested.next_page_token.is_empty(),
        relationships: listed.relationships.into_iter().map(|one| row(texts, one)).collect(),
        next: listed.next_page_token,
        to_sign,
        refusal,
    };
    Ok(rendered(StatusCode::OK, &page))
}

fn row(texts: &Texts, one: Relationship) -> Row {
    let since = view::time(texts, one.established_at.as_ref());
    let reseller = (one.reseller_name, one.reseller_support);
    Row { partners: view::partners(texts, (one.partner_name, one.partner_support), reseller), since }
}

/// The names of the partners and resellers that the customer has, or had, by id.
pub(super) async fn names(visit: &Visit) -> Result<HashMap<String, String>, Status> {
    let request = ListCustomerPartnersRequest {
        include_ended: true,
        page_size: NAMES,
        ..ListCustomerPartnersRequest::default()
    };
    let listed = visit.customers().list_customer_partners(visit.call(request)).await?.into_inner();
    let both = listed
        .relationships
        .into_iter()
        .flat_map(|one| [(one.partner_id, one.partner_name), (one.reseller_id, one.reseller_name)]);
    Ok(both.collect())
}

async fn templates(visit: &Visit) -> Result<Vec<AgreementTemplate>, Status> {
    let types = [AgreementType::MicrosoftCloudAgreement, AgreementType::MicrosoftCustomerAgreement];
    let request = ListTemplatesRequest { agreement_types: types.map(Into::into).into() };
    Ok(visit.templates().list_templates(visit.call(request)).await?.into_inner().templates)
}
