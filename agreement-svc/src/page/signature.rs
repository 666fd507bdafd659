//! The pages by which a customer signs an agreement of itself, and withdraws a signature.

use askama::Template;
use axum::Form;
use axum::extract::Query;
use axum::response::Response;
use http::StatusCode;
use proto::agreement::{
    GetDirectSignStatusRequest, GetSignatureRequest, SignAgreementRequest, Signature, UncoveredPartner,
    WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::{ErrorReason, ShownText};
use serde::Deserialize;
use tonic::Status;

use super::answered::{Answered, receipt};
use super::partners::names;
use super::problem::{self, bad_fields, has_reason};
use super::texts::Texts;
use super::view::{self, Agreement, rendered};
use super::visit::Visit;

/// What the form of a signature carries, and the query of its page.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Sign {
    template: String,
    request_id: String,
    template_version: String,
    country: String,
    language: String,
    sha256: String,
    accepted: String,
}

/// What the form of a withdrawal carries, and the query of its page.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Withdraw {
    signature: String,
    request_id: String,
    reason: String,
}

#[derive(Template)]
#[template(path = "sign.html")]
struct SignPage<'a> {
    texts: &'static Texts,
    notice: &'a str,
    company: String,
    agreement: Agreement,
    effect: &'a str,
    is_box_missing: bool,
    request_id: String,
}

#[derive(Template)]
#[template(path = "withdraw.html")]
struct WithdrawPage {
    texts: &'static Texts,
    company: String,
    signature: Signature,
    agreement: String,
    signed_at: String,
    /// The names of the partners that the withdrawal leaves without acceptance.
    uncovered: Vec<String>,
    is_reason_missing: bool,
    request_id: String,
}

pub(super) async fn show(visit: Visit, Query(asked): Query<Sign>) -> Response {
    let page = sign_page(&visit, &asked.template, StatusCode::OK).await;
    page.unwrap_or_else(|status| visit.refused(&status))
}

pub(super) async fn sign(visit: Visit, Form(form): Form<Sign>) -> Response {
    if form.accepted != "yes" {
        let page = sign_page(&visit, &form.template, StatusCode::UNPROCESSABLE_ENTITY).await;
        return page.unwrap_or_else(|status| visit.refused(&status));
    }
    let Sign { template, request_id, template_version, country, language, sha256, .. } = form;
    let request = SignAgreementRequest {
        request_id,
        template_id: template.clone(),
        template_version: template_version.parse().unwrap_or_default(),
        validate_only: false,
        shown_text: Some(ShownText { country, language, sha256 }),
    };
    let texts = visit.texts;
    match visit.signatures().sign_agreement(visit.call(request)).await {
        Ok(signed) => {
            let signature = signed.into_inner().signature.unwrap_or_default();
            let agreement = visit.agreement_name(&signature.template_id).await;
            let texts = (texts.accepted, texts.signed_text);
            result(&visit, texts, (agreement, signature), String::new())
        }
        Err(status) => {
            let is_of_the_text = bad_fields(&status).iter().any(|field| field.starts_with("shown_text"));
            if !is_of_the_text && !has_reason(&status, ErrorReason::VersionChanged) {
                return visit.refused(&status);
            }
            let page = sign_page(&visit, &template, StatusCode::CONFLICT).await;
            page.unwrap_or_else(|status| visit.refused(&status))
        }
    }
}

/// The page that asks for a signature; `code` says how the answer before fared.
async fn sign_page(visit: &Visit, template_id: &str, code: StatusCode) -> Result<Response, Status> {
    let Visit { texts, customer, pages, .. } = visit;
    let Some(customer) = customer else {
        return Ok(problem::page(texts, StatusCode::OK, texts.sign_link, texts.no_partners));
    };
    let template = visit.template(template_id).await?;
    let page = SignPage {
        texts,
        notice: if code == StatusCode::CONFLICT { texts.changed_text } else { "" },
        company: view::company(&customer.company_name, &customer.domain),
        agreement: visit.agreement(template, &customer.country, &customer.language).await?,
        effect: texts.sign_effect,
        is_box_missing: code == StatusCode::UNPROCESSABLE_ENTITY,
        request_id: pages.request_id(),
    };
    Ok(rendered(code, &page))
}

pub(super) async fn preview(visit: Visit, Query(asked): Query<Withdraw>) -> Response {
    let page = withdraw_page(&visit, &asked.signature, false).await;
    page.unwrap_or_else(|status| visit.refused(&status))
}

pub(super) async fn withdraw(visit: Visit, Form(form): Form<Withdraw>) -> Response {
    let reason = WithdrawalReason::from_str_name(&form.reason).unwrap_or_default();
    if reason == WithdrawalReason::Unspecified {
        let page = withdraw_page(&visit, &form.signature, true).await;
        return page.unwrap_or_else(|status| visit.refused(&status));
    }
    let request = WithdrawSignatureRequest {
        request_id: form.request_id,
        signature_id: form.signature,
        reason: reason.into(),
        validate_only: false,
    };
    match visit.signatures().withdraw_signature(visit.call(request)).await {
        Ok(withdrawn) => withdrawn_page(&visit, withdrawn.into_inner().signature.unwrap_or_default()).await,
        Err(status) => visit.refused(&status),
    }
}

/// The page after a withdrawal. It leads to a new signature where one is possible and missing.
async fn withdrawn_page(visit: &Visit, signature: Signature) -> Response {
    let template = visit.template(&signature.template_id).await.unwrap_or_default();
    let request = GetDirectSignStatusRequest { customer_id: signature.customer_id.clone() };
    let status = visit.signatures().get_direct_sign_status(visit.call(request)).await;
    let may_sign = status.is_ok_and(|status| {
        let status = status.into_inner();
        template.version_in_force > 0 && status.sign_refusal.is_none() && !status.satisfies
    });
    let template_to_sign = if may_sign { template.template_id } else { String::new() };
    let texts = (visit.texts.withdrawn, visit.texts.withdrawn_text);
    result(visit, texts, (template.name, signature), template_to_sign)
}

/// The page that says what was done to a signature.
fn result(
    visit: &Visit,
    (title, text): (&str, &str),
    (agreement, signature): (String, Signature),
    template_to_sign: String,
) -> Response {
    let texts = visit.texts;
    let customer = visit.customer.clone().unwrap_or_default();
    let company = view::company(&customer.company_name, &customer.domain);
    let facts = receipt(texts, agreement, company, signature);
    let page = Answered { texts, title, sentences: vec![text], partners: vec![], facts, template_to_sign };
    rendered(StatusCode::OK, &page)
}

/// The page that says what a withdrawal would do. It tries the withdrawal, without storing it.
async fn withdraw_page(
    visit: &Visit,
    signature_id: &str,
    is_reason_missing: bool,
) -> Result<Response, Status> {
    let Visit { texts, customer, pages, .. } = visit;
    let request = GetSignatureRequest { signature_id: signature_id.into() };
    let found = visit.signatures().get_signature(visit.call(request)).await?.into_inner();
    let signature = found.signature.unwrap_or_default();
    if signature.withdrawn_at.is_some() {
        return Ok(withdrawn_page(visit, signature).await);
    }
    let request = WithdrawSignatureRequest {
        request_id: pages.request_id(),
        signature_id: signature_id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
        validate_only: true,
    };
    let tried = visit.signatures().withdraw_signature(visit.call(request)).await?.into_inner();
    let names = names(visit).await?;
    let name = |id: &String| names.get(id).unwrap_or(id).clone();
    let named = |one: &UncoveredPartner| match one.reseller_id.as_str() {
        "" => name(&one.partner_id),
        _ => format!(
            "{} ({}), {} ({})",
            name(&one.partner_id),
            texts.provider,
            name(&one.reseller_id),
            texts.reseller
        ),
    };
    let customer = customer.clone().unwrap_or_default();
    let page = WithdrawPage {
        texts,
        company: view::company(&customer.company_name, &customer.domain),
        agreement: visit.template(&signature.template_id).await?.name,
        signed_at: view::time(texts, signature.signed_at.as_ref()),
        signature,
        uncovered: tried.uncovered_partners.iter().map(named).collect(),
        is_reason_missing,
        request_id: pages.request_id(),
    };
    let code = if is_reason_missing { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    Ok(rendered(code, &page))
}
