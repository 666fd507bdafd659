//! The page of an invitation: what a customer is asked, by which partner, and its answer.

use askama::Template;
use axum::Form;
use axum::extract::Query;
use axum::response::Response;
use http::StatusCode;
use proto::agreement::{
    AcceptInvitationRequest, DeclineInvitationRequest, DeclineReason, GetDirectSignStatusRequest,
    GetInvitationRequest, GetInvitationResponse, Invitation, InvitationKind, InvitationState, Signature,
};
use proto::types::{ErrorReason, ShownText};
use serde::Deserialize;
use tonic::Status;

use super::answered::{Answered, receipt};
use super::company::{Company, Field, Wrong};
use super::problem::{self, bad_fields, has_reason};
use super::texts::Texts;
use super::view::{self, Agreement, Partner, rendered};
use super::visit::Visit;

/// The query of an acceptance link.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Link {
    invitation: String,
    token: String,
}

/// What the forms of the page carry.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    invitation: String,
    token: String,
    request_id: String,
    /// The button.
    action: String,
    template_version: String,
    country: String,
    language: String,
    sha256: String,
    /// The check box.
    accepted: String,
    reason: String,
    #[serde(flatten)]
    company: Company,
}

/// The page of a pending invitation.
#[derive(Template)]
#[template(path = "invitation.html")]
struct Page<'a> {
    texts: &'static Texts,
    link: &'a Link,
    partners: Vec<Partner>,
    expires_at: String,
    /// What changed since the page was shown before.
    notice: &'a str,
    /// Why the customer cannot sign.
    refusal: &'a str,
    /// Whether the answer can be yes.
    can_accept: bool,
    /// The name of what the customer is asked to accept.
    agreement_name: String,
    /// That a yes also makes the company a customer of the partners (INV-3); empty if it does not.
    relate_effect: String,
    /// What follows from a signature, for the partners that ask for it.
    effect: String,
    /// The company that answers, once it is known.
    company: String,
    /// What is known of it: labels and values.
    particulars: Vec<(&'static str, String)>,
    /// Absent while the company is not known, or if there is nothing to sign.
    agreement: Option<Agreement>,
    /// The form of a company that is no customer yet.
    fields: Vec<Field>,
    is_box_missing: bool,
    is_reason_missing: bool,
    /// The particulars are asked for first.
    asks_for_company: bool,
    is_any_field_wrong: bool,
    template_version: u32,
    request_ids: [String; 2],
}

/// What the page has to say of the answer before.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Remark {
    #[default]
    None,
    BoxMissing,
    ReasonMissing,
    Changed,
}

pub(super) async fn show(visit: Visit, Query(link): Query<Link>) -> Response {
    let empty = (Company::default(), false);
    page(&visit, &link, empty, Remark::None).await.unwrap_or_else(|status| visit.refused(&status))
}

pub(super) async fn answer(visit: Visit, Form(answer): Form<Answer>) -> Response {
    let link = Link { invitation: answer.invitation.clone(), token: answer.token.clone() };
    let company = answer.company.clone().normalized();
    let answered = match answer.action.as_str() {
        "accept" if answer.accepted == "yes" => accept(&visit, &link, company, answer).await,
        "accept" => page(&visit, &link, (company, true), Remark::BoxMissing).await,
        "decline" => decline(&visit, &link, answer).await,
        "company" => page(&visit, &link, (company, true), Remark::None).await,
        _ => page(&visit, &link, (company, false), Remark::None).await,
    };
    answered.unwrap_or_else(|status| visit.refused(&status))
}

/// The page as the invitation is now. A company that is no customer is asked for its particulars first, until they are given
/// and right.
async fn page(
    visit: &Visit,
    link: &Link,
    (company, is_given): (Company, bool),
    remark: Remark,
) -> Result<Response, Status> {
    let Visit { texts, customer, pages, .. } = visit;
    let request = GetInvitationRequest { invitation_id: link.invitation.clone(), token: link.token.clone() };
    let found = match visit.signatures().get_invitation(visit.call(request)).await {
        Ok(found) => found.into_inner(),
        // An id or a token that cannot be read is one that is not known.
        Err(status)
            if has_reason(&status, ErrorReason::InvalidFields)
                || has_reason(&status, ErrorReason::ResourceNotFound) =>
        {
            return Ok(unknown(texts));
        }
        Err(status) => return Err(status),
    };
    let partners = partners_of(texts, &found);
    let refused = found.sign_refusal.as_ref();
    let refusal = refused.map(|refusal| view::sign_refusal(texts, refusal)).unwrap_or_default();
    let invitation = found.invitation.unwrap_or_default();
    match invitation.state() {
        InvitationState::Pending => {}
        InvitationState::Accepted => return accepted_before(visit, invitation, refusal, partners).await,
        _ => return Ok(settled(texts, &invitation, partners)),
    }
    let relates = invitation.kind() == InvitationKind::RelationshipAndAgreement;
    let needs_partner = refused.is_some_and(|refusal| refusal.reason() == ErrorReason::ContactPartner);
    let template = visit.template(&invitation.template_id).await?;
    let names: Vec<&str> = partners.iter().map(|partner| partner.name.as_str()).collect();
    let effect = texts.about(&texts.accept_effect, &names);
    let relate_effect = if relates { texts.about(&texts.relate_effect, &names) } else { String::new() };
    let mut page = Page {
        texts,
        link,
        effect,
        partners,
        expires_at: view::time(texts, invitation.expires_at.as_ref()),
        notice: if remark == Remark::Changed { texts.changed_text } else { "" },
        can_accept: refusal.is_empty() || (relates && needs_partner),
        agreement_name: template.name.clone(),
        relate_effect,
        company: String::new(),
        particulars: vec![],
        refusal,
        agreement: None,
        fields: vec![],
        is_box_missing: remark == Remark::BoxMissing,
        is_reason_missing: remark == Remark::ReasonMissing,
        asks_for_company: false,
        is_any_field_wrong: false,
        template_version: template.version_in_force,
        request_ids: [pages.request_id(), pages.request_id()],
    };
    // The country and language for which a text is looked up.
    let mut shown = None;
    if let Some(customer) = customer {
        shown = Some((customer.country.clone(), customer.language.clone()));
        page.company = view::company(&customer.company_name, &customer.domain);
        page.particulars = vec![(texts.company, page.company.clone())];
    } else if page.can_accept {
        let mut wrong = Wrong::default();
        if is_given {
            match try_to_accept(visit, link, &company, template.version_in_force).await {
                Ok(()) => {
                    let profile = company.profile(texts);
                    shown = Some((profile.country, profile.language));
                }
                Err(status) => {
                    wrong = Wrong::read(&status);
                    if wrong.is_empty() {
                        return Err(status);
                    }
                }
            }
        }
        page.asks_for_company = shown.is_none();
        page.is_any_field_wrong = !wrong.is_empty();
        page.company = view::company(company.company_name.trim(), company.domain.trim());
        page.fields = company.fields(texts, &wrong);
        let given = page.fields.iter().filter(|field| !field.value.is_empty());
        page.particulars = given.map(|field| (field.label, field.value.clone())).collect();
    }
    if let Some((country, language)) = shown.filter(|_| page.refusal.is_empty()) {
        page.agreement = Some(visit.agreement(template, &country, &language).await?);
    }
    let is_wrong = page.is_box_missing || page.is_reason_missing || page.is_any_field_wrong;
    let code = match remark {
        Remark::Changed => StatusCode::CONFLICT,
        _ if is_wrong => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::OK,
    };
    Ok(rendered(code, &page))
}

/// Checks the particulars of a company as its acceptance would.
async fn try_to_accept(visit: &Visit, link: &Link, company: &Company, version: u32) -> Result<(), Status> {
    let request = AcceptInvitationRequest {
        request_id: visit.pages.request_id(),
        invitation_id: link.invitation.clone(),
        token: link.token.clone(),
        template_version: version,
        company: Some(company.profile(visit.texts)),
        validate_only: true,
        shown_text: None,
    };
    visit.signatures().accept_invitation(visit.call(request)).await?;
    Ok(())
}

async fn accept(visit: &Visit, link: &Link, company: Company, answer: Answer) -> Result<Response, Status> {
    let Answer { request_id, template_version, country, language, sha256, .. } = answer;
    let request = AcceptInvitationRequest {
        request_id,
        invitation_id: link.invitation.clone(),
        token: link.token.clone(),
        template_version: template_version.parse().unwrap_or_default(),
        company: (company != Company::default()).then(|| company.profile(visit.texts)),
        validate_only: false,
        shown_text: (!country.is_empty()).then_some(ShownText { country, language, sha256 }),
    };
    match visit.signatures().accept_invitation(visit.call(request)).await {
        Ok(accepted) => {
            let accepted = accepted.into_inner();
            match accepted.signature {
                // It was accepted before, and no signature is left of it.
                None if !accepted.contact_partner => page(visit, link, (company, true), Remark::None).await,
                signature => Ok(welcome(visit, link, &company, signature).await),
            }
        }
        Err(status) if has_reason(&status, ErrorReason::ResourceNotFound) => Ok(unknown(visit.texts)),
        // The page says what the invitation, the version or the form has become.
        Err(status) if is_outdated(&status) => page(visit, link, (company, true), Remark::Changed).await,
        Err(status) if !Wrong::read(&status).is_empty() => {
            page(visit, link, (company, true), Remark::None).await
        }
        Err(status) => Err(status),
    }
}

async fn decline(visit: &Visit, link: &Link, answer: Answer) -> Result<Response, Status> {
    let reason = DeclineReason::from_str_name(&answer.reason).unwrap_or_default();
    if reason == DeclineReason::Unspecified {
        return page(visit, link, (answer.company, false), Remark::ReasonMissing).await;
    }
    let request = DeclineInvitationRequest {
        request_id: answer.request_id,
        invitation_id: link.invitation.clone(),
        token: link.token.clone(),
        reason: reason.into(),
        validate_only: false,
    };
    match visit.signatures().decline_invitation(visit.call(request)).await {
        Ok(declined) => {
            let partners = partners_after(visit, link).await;
            let invitation = declined.into_inner().invitation.unwrap_or_default();
            Ok(settled(visit.texts, &invitation, partners))
        }
        Err(status) if has_reason(&status, ErrorReason::ResourceNotFound) => Ok(unknown(visit.texts)),
        Err(status) if is_outdated(&status) => {
            page(visit, link, (answer.company, false), Remark::Changed).await
        }
        Err(status) => Err(status),
    }
}

/// Whether the page has to be shown again, because what it showed is no longer so.
fn is_outdated(status: &Status) -> bool {
    let is_of_the_text = bad_fields(status).iter().any(|field| field.starts_with("shown_text"));
    let reasons =
        [ErrorReason::InvitationNotPending, ErrorReason::VersionChanged, ErrorReason::RequestIdReused];
    is_of_the_text || reasons.into_iter().any(|reason| has_reason(status, reason))
}

/// The partners of an invitation that has been answered. The answer is stored: without them its page still says so.
async fn partners_after(visit: &Visit, link: &Link) -> Vec<Partner> {
    let request = GetInvitationRequest { invitation_id: link.invitation.clone(), token: link.token.clone() };
    let found = visit.signatures().get_invitation(visit.call(request)).await;
    found.map(|found| partners_of(visit.texts, &found.into_inner())).unwrap_or_default()
}

fn partners_of(texts: &Texts, found: &GetInvitationResponse) -> Vec<Partner> {
    let partner = (found.partner_name.clone(), found.partner_support.clone());
    view::partners(texts, partner, (found.reseller_name.clone(), found.reseller_support.clone()))
}

/// Another company's invitation is unknown, too: the answer says nothing of it.
fn unknown(texts: &'static Texts) -> Response {
    problem::page(texts, StatusCode::NOT_FOUND, texts.unknown_link, texts.unknown_link_text)
}

/// The page after an acceptance: without a signature it is only that of the relationship (INV-3).
async fn welcome(visit: &Visit, link: &Link, given: &Company, signature: Option<Signature>) -> Response {
    let (texts, partners) = (visit.texts, partners_after(visit, link).await);
    let company = visit.customer.as_ref().map_or_else(
        || view::company(given.company_name.trim(), given.domain.trim()),
        |customer| view::company(&customer.company_name, &customer.domain),
    );
    let (text, facts) = match signature {
        None => (texts.related_text, vec![(texts.company, company)]),
        Some(signature) => {
            let name = visit.agreement_name(&signature.template_id).await;
            (texts.accepted_text, receipt(texts, name, company, signature))
        }
    };
    let template_to_sign = String::new();
    let page =
        Answered { texts, title: texts.accepted, sentences: vec![text], partners, facts, template_to_sign };
    rendered(StatusCode::OK, &page)
}

/// The page of an invitation that the customer accepted before, which says whether there is anything left to do.
async fn accepted_before(
    visit: &Visit,
    invitation: Invitation,
    refusal: &str,
    partners: Vec<Partner>,
) -> Result<Response, Status> {
    let texts = visit.texts;
    let request = GetDirectSignStatusRequest { customer_id: invitation.customer_id };
    let status = visit.signatures().get_direct_sign_status(visit.call(request)).await?.into_inner();
    let left_to_do = match refusal {
        _ if status.satisfies => texts.nothing_to_do,
        "" => texts.unsigned_text,
        refusal => refusal,
    };
    let sentences = vec![texts.already_accepted_text, left_to_do];
    let customer = visit.customer.clone().unwrap_or_default();
    let facts = vec![
        (texts.agreement, visit.template(&invitation.template_id).await?.name),
        (texts.company, view::company(&customer.company_name, &customer.domain)),
        (texts.accepted_at, view::time(texts, invitation.accepted_at.as_ref())),
    ];
    let title = texts.already_accepted;
    let page = Answered { texts, title, sentences, partners, facts, template_to_sign: String::new() };
    Ok(rendered(StatusCode::OK, &page))
}

/// The page of an invitation that can no longer be accepted.
fn settled(texts: &'static Texts, invitation: &Invitation, partners: Vec<Partner>) -> Response {
    let (title, text, label, at) = match invitation.state() {
        InvitationState::Declined => {
            (texts.declined, texts.declined_text, texts.declined_at, invitation.declined_at.as_ref())
        }
        InvitationState::Revoked => {
            (texts.revoked, texts.revoked_text, texts.revoked_at, invitation.revoked_at.as_ref())
        }
        _ => (texts.expired, texts.expired_text, texts.expired_at, invitation.expires_at.as_ref()),
    };
    let facts = vec![(label, view::time(texts, at))];
    let code =
        if invitation.state() == InvitationState::Declined { StatusCode::OK } else { StatusCode::GONE };
    let (sentences, template_to_sign) = (vec![text], String::new());
    rendered(code, &Answered { texts, title, sentences, partners, facts, template_to_sign })
}
