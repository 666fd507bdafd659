//! `DirectSignService`: invitations and signatures.

use std::mem::take;

use chassis::database::Connection;
use chassis::database::row::at;
use chassis::form::{Form, timestamp};
use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement::direct_sign_service_server::DirectSignService;
use proto::agreement::{
    AcceptInvitationRequest, AcceptInvitationResponse, CreateInvitationRequest, CreateInvitationResponse,
    DeclineInvitationRequest, DeclineInvitationResponse, GetDirectSignStatusRequest,
    GetDirectSignStatusResponse, GetInvitationRequest, GetInvitationResponse, GetSignatureRequest,
    GetSignatureResponse, ListInvitationsRequest, ListInvitationsResponse, ListSignaturesRequest,
    ListSignaturesResponse, RevokeInvitationRequest, RevokeInvitationResponse, SignAgreementRequest,
    SignAgreementResponse, WithdrawSignatureRequest, WithdrawSignatureResponse,
};
use proto::identity::TenantKind;
use proto::types;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::invitation::{Names, read_lifetime, with_link};
use super::link::Links;
use super::{Api, Mutation, convert, status, viewer};
use crate::actions::customer::named_relationship;
use crate::actions::invite::{NewInvitation, invite};
use crate::actions::sign::{
    InvitationAcceptance, Shown, accept_invitation, refusal_to_sign, refusal_to_sign_invited, sign,
};
use crate::actions::visibility::{
    require_customer, require_own_invitation, require_partner, require_relationship, require_signature,
    require_template,
};
use crate::actions::withdraw::withdraw_signature;
use crate::rules::Refusal;
use crate::rules::attestation::AcceptanceState;
use crate::rules::eligibility::{reacceptances, satisfies};
use crate::rules::event::Event;
use crate::rules::invitation::{DeclineReason, Invitation, InvitationKind};
use crate::rules::party::Relationship;
use crate::rules::signature::may_sign_directly;
use crate::rules::withdrawal::WithdrawalReason;
use crate::store::acceptance::{AcceptanceFilter, first_signed_at, signature_list, signatures_current};
use crate::store::change::ChangeError;
use crate::store::contact::contacts;
use crate::store::invitation::{Filter, invitation_find, invitation_list, invitation_settle};
use crate::store::template::template_list;

#[tonic::async_trait]
impl DirectSignService for Api {
    async fn create_invitation(
        &self,
        request: Request<CreateInvitationRequest>,
    ) -> Result<Response<CreateInvitationResponse>, Status> {
        let mut call = self.mutation("CreateInvitation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, timed, .. } = &mut call;
        let kind = convert::read_invitation_kind(form, "kind", message.kind);
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let template_id = form.id("template_id", &message.template_id);
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        let recipient = message.recipient.as_ref();
        let recipient = recipient.map(|contact| convert::read_contact(form, "recipient", Some(contact)));
        let language = convert::read_text_language(form, "language", &message.language);
        let expires_at = read_lifetime(form, timed, "expires_at", message.expires_at.as_ref());
        match kind {
            Some(InvitationKind::Agreement) => {
                if message.customer_id.is_empty() {
                    form.violation("customer_id", "is required");
                }
                for (field, given) in [("provider_id", provider_id), ("reseller_id", reseller_id)] {
                    if given.is_some() {
                        form.violation(field, "must be empty: the relationship with the customer says it");
                    }
                }
            }
            Some(InvitationKind::RelationshipAndAgreement) if customer_id.is_some() => {
                form.violation("customer_id", "must be empty: the company that accepts becomes the customer");
            }
            _ if provider_id.is_some() && reseller_id.is_some() => {
                form.violation("reseller_id", "must be empty when provider_id is given");
            }
            _ => {}
        }
        let kind = kind.unwrap_or(InvitationKind::Agreement);

        let may_invite = self.links.is_some();
        let validate_only = call.validate_only;
        let created = self.change(call, move |change, caller| {
            let inviter = require_partner(change.connection, caller.tenant_id)?;
            let (relationship, customer) = match customer_id {
                Some(id) => {
                    let customer = require_customer(change.connection, viewer(caller), id)?;
                    (require_relationship(change.connection, inviter.id, id)?, Some(customer))
                }
                None => (named_relationship(change, &inviter, provider_id, reseller_id)?, None),
            };
            let of_customer = match &customer {
                Some(customer) => contacts(change.connection, customer.id)?.of(inviter.id).cloned(),
                None => None,
            };
            let recipient = recipient.or(of_customer);
            let by = caller.user_id;
            let new = NewInvitation { kind, relationship, template_id, language, recipient, expires_at, by };
            let invitation = invite(change, may_invite, inviter.cloud, customer.as_ref(), new)?;
            let invitation = Some(convert::invitation(invitation, change.now));
            Ok(CreateInvitationResponse { invitation, revision: change.revision() })
        });
        let mut created = created.await?;
        if !validate_only {
            self.add_link(created.get_mut().invitation.as_mut()).await?;
        }
        Ok(created)
    }

    async fn revoke_invitation(
        &self,
        request: Request<RevokeInvitationRequest>,
    ) -> Result<Response<RevokeInvitationResponse>, Status> {
        let mut call = self.mutation("RevokeInvitation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("invitation_id", &message.invitation_id);

        self.change(call, move |change, caller| {
            let mut invitation = require_own_invitation(change.connection, caller.tenant_id, id)?;
            if invitation.revoke(change.now)? {
                change.record(&Event::InvitationRevoked {
                    invitation_id: id,
                    partner_id: invitation.relationship.payer_id,
                    customer_id: invitation.customer_id,
                    by: caller.user_id,
                })?;
                invitation_settle(change.connection, &invitation)?;
            }
            let invitation = Some(convert::invitation(invitation, change.now));
            Ok(RevokeInvitationResponse { invitation, revision: change.revision() })
        })
        .await
    }

    async fn get_invitation(
        &self,
        request: Request<GetInvitationRequest>,
    ) -> Result<Response<GetInvitationResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("invitation_id", &message.invitation_id);
        let is_customer = caller.tenant_kind == TenantKind::Customer;
        if is_customer && message.token.is_empty() {
            form.violation("token", "is required: it is in the link");
        } else if !is_customer && !message.token.is_empty() {
            form.violation("token", "is for customers");
        }
        let now = self.clock.now();
        let (links, texts) = (self.links.clone(), self.texts.clone());
        self.read(form, move |connection| {
            let unseen = || Refusal::NotFound { resource: "invitation", id };
            let invitation = if caller.tenant_kind == TenantKind::Partner {
                require_own_invitation(connection, caller.tenant_id, id)?
            } else if is_customer {
                let found = require_with_token(connection, links.as_deref(), id, &message.token)?;
                Some(found).filter(|found| found.is_for(caller.tenant_id)).ok_or_else(unseen)?
            } else {
                invitation_find(connection, id)?.ok_or_else(unseen)?
            };
            let sign_refusal = match is_customer {
                true => refusal_to_sign_invited(connection, &invitation, caller.tenant_id, now)?,
                false => None,
            };
            let mut names = Names::default();
            let Relationship { payer_id, reseller_id } = invitation.relationship;
            let (partner_name, partner_support) = names.partner(connection, payer_id)?;
            let reseller = reseller_id.map(|id| names.partner(connection, id)).transpose()?;
            let (reseller_name, reseller_support) = reseller.unwrap_or_default();
            let links = links.as_deref().filter(|_| caller.tenant_kind == TenantKind::Partner);
            let mut shown = with_link(connection, (links, &texts), &mut names, invitation, now)?;
            if is_customer {
                shown.recipient = None;
            }
            Ok(GetInvitationResponse {
                invitation: Some(shown),
                partner_name,
                reseller_name,
                sign_refusal: sign_refusal.map(|refusal| status::item(&status::refused(&refusal))),
                partner_support: convert::support(partner_support),
                reseller_support: convert::support(reseller_support),
            })
        })
        .await
    }

    async fn list_invitations(
        &self,
        request: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let customer = form.optional_id("customer_id", &message.customer_id);
        let state = match message.state {
            0 => None,
            given => convert::read_invitation_state(&mut form, "state", given),
        };
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListInvitations", &filter_of(&message));
        let newest_first = message.newest_first;
        let now = self.clock.now();
        let partner = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
        let (links, texts) = (self.links.clone().filter(|_| partner.is_some()), self.texts.clone());
        self.list(form, page, move |connection, page| {
            let filter = Filter { partner, customer, state: state.map(|state| (state, now)), newest_first };
            let from = if newest_first { page.before_number() } else { page.after_number() };
            let mut rows = invitation_list(connection, filter, from, page.fetch())?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let mut names = Names::default();
            let mut invitations = vec![];
            for row in rows {
                invitations.push(with_link(connection, (links.as_deref(), &texts), &mut names, row, now)?);
            }
            Ok(ListInvitationsResponse { invitations, next_page_token })
        })
        .await
    }

    async fn accept_invitation(
        &self,
        request: Request<AcceptInvitationRequest>,
    ) -> Result<Response<AcceptInvitationResponse>, Status> {
        let mut call = self.mutation("AcceptInvitation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("invitation_id", &message.invitation_id);
        let token = read_token(form, &message.token);
        let shown = read_shown(form, message.template_version, message.shown_text.as_ref());
        let company = message.company.as_ref().map(|company| {
            let texts = (&*company.company_name, &*company.domain, &*company.country, &*company.language);
            convert::read_profile(form, "company.", texts, company.primary_contact.as_ref())
        });

        let links = self.links.clone();
        self.change(call, move |change, caller| {
            let mut invitation = require_with_token(change.connection, links.as_deref(), id, &token)?;
            let new =
                InvitationAcceptance { tenant_id: caller.tenant_id, company, shown, by: caller.user_id };
            let signature = accept_invitation(change, &mut invitation, new)?;
            let customer = require_customer(change.connection, viewer(caller), caller.tenant_id)?;
            let first_signed_at = first_signed_at(change.connection, customer.id)?;
            let may_sign = may_sign_directly(customer.first_purchase_at, first_signed_at);
            let mut shown = convert::invitation(invitation, change.now);
            shown.recipient = None;
            Ok(AcceptInvitationResponse {
                invitation: Some(shown),
                contact_partner: signature.is_none() && !may_sign,
                signature: signature.as_ref().map(convert::signature),
                revision: change.revision(),
            })
        })
        .await
    }

    async fn decline_invitation(
        &self,
        request: Request<DeclineInvitationRequest>,
    ) -> Result<Response<DeclineInvitationResponse>, Status> {
        let mut call = self.mutation("DeclineInvitation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("invitation_id", &message.invitation_id);
        let token = read_token(form, &message.token);
        let reason = convert::read_decline_reason(form, "reason", message.reason);
        let reason = reason.unwrap_or(DeclineReason::Other);

        let links = self.links.clone();
        self.change(call, move |change, caller| {
            let mut invitation = require_with_token(change.connection, links.as_deref(), id, &token)?;
            if invitation.decline(caller.tenant_id, reason, change.now)? {
                change.record(&Event::InvitationDeclined {
                    invitation_id: id,
                    partner_id: invitation.relationship.payer_id,
                    customer_id: invitation.customer_id,
                    reason,
                    by: caller.user_id,
                })?;
                invitation_settle(change.connection, &invitation)?;
            }
            let mut shown = convert::invitation(invitation, change.now);
            shown.recipient = None;
            Ok(DeclineInvitationResponse { invitation: Some(shown), revision: change.revision() })
        })
        .await
    }

    async fn sign_agreement(
        &self,
        request: Request<SignAgreementRequest>,
    ) -> Result<Response<SignAgreementResponse>, Status> {
        let mut call = self.mutation("SignAgreement", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let template_id = form.id("template_id", &message.template_id);
        let shown = read_shown(form, message.template_version, message.shown_text.as_ref());

        self.change(call, move |change, caller| {
            let mut customer = require_customer(change.connection, viewer(caller), caller.tenant_id)?;
            let template = require_template(change.connection, template_id)?;
            let signature = sign(change, &mut customer, &template, shown, caller.user_id)?;
            let signature = Some(convert::signature(&signature));
            Ok(SignAgreementResponse { signature, revision: change.revision() })
        })
        .await
    }

    async fn withdraw_signature(
        &self,
        request: Request<WithdrawSignatureRequest>,
    ) -> Result<Response<WithdrawSignatureResponse>, Status> {
        let mut call = self.mutation("WithdrawSignature", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("signature_id", &message.signature_id);
        let reason = convert::read_withdrawal_reason(form, "reason", message.reason);
        let reason = reason.unwrap_or(WithdrawalReason::Other);

        self.change(call, move |change, caller| {
            let (signature, uncovered) =
                withdraw_signature(change, caller.tenant_id, id, reason, caller.user_id)?;
            Ok(WithdrawSignatureResponse {
                signature: Some(convert::signature(&signature)),
                uncovered_partner_ids: uncovered.partners.iter().map(ToString::to_string).collect(),
                revision: change.revision(),
                uncovered_partners: convert::uncovered_partners(&uncovered.relationships),
            })
        })
        .await
    }

    async fn get_signature(
        &self,
        request: Request<GetSignatureRequest>,
    ) -> Result<Response<GetSignatureResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("signature_id", &message.signature_id);
        self.read(form, move |connection| {
            let signature = require_signature(connection, viewer(&caller), id)?;
            Ok(GetSignatureResponse { signature: Some(convert::signature(&signature)) })
        })
        .await
    }

    async fn list_signatures(
        &self,
        request: Request<ListSignaturesRequest>,
    ) -> Result<Response<ListSignaturesResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let is_partner = caller.tenant_kind == TenantKind::Partner;
        let is_customer = caller.tenant_kind == TenantKind::Customer;
        let customer = match is_partner {
            true => Some(form.id("customer_id", &message.customer_id)),
            false => form.optional_id("customer_id", &message.customer_id),
        };
        if is_partner && message.include_history {
            form.violation("include_history", "must be false: partners see current signatures");
        }
        let filter = AcceptanceFilter {
            customer: customer.or_else(|| is_customer.then_some(caller.tenant_id)),
            state: (!message.include_history).then_some(AcceptanceState::Current),
            newest_first: message.newest_first,
            ..AcceptanceFilter::default()
        };
        let page = self.pages.read(&mut form, asked, &caller, "ListSignatures", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            if let Some(customer_id) = customer {
                require_customer(connection, viewer(&caller), customer_id)?;
            }
            let from = if filter.newest_first { page.before_number() } else { page.after_number() };
            let mut rows = signature_list(connection, &filter, from, page.fetch())?;
            let next_page_token = page.cut(&mut rows, |signature| signature.revision.to_string());
            let signatures = rows.iter().map(convert::signature).collect();
            Ok(ListSignaturesResponse { signatures, next_page_token })
        })
        .await
    }

    async fn get_direct_sign_status(
        &self,
        request: Request<GetDirectSignStatusRequest>,
    ) -> Result<Response<GetDirectSignStatusResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let customer_id = form.id("customer_id", &message.customer_id);
        let now = self.clock.now();
        let (policy, channel) = (self.policy.clone(), convert::channel_of(&caller));
        self.read(form, move |connection| {
            let customer = require_customer(connection, viewer(&caller), customer_id)?;
            let sign_refusal = refusal_to_sign(connection, &customer)?;
            let current = signatures_current(connection, customer_id)?;
            let newest = current.into_iter().max_by_key(|signature| signature.agreement_type);
            let mut is_satisfying = false;
            if let Some(signature) = &newest {
                let templates = template_list(connection, &[signature.agreement_type])?;
                let signed = templates.iter().find(|template| template.id == signature.template_id);
                let signed = signed.and_then(|template| template.version(signature.template_version));
                let key = signature.id.to_string();
                let signed = signed.ok_or_else(|| at("acceptance", &key).corrupt("template_version"))?;
                let later = reacceptances(&templates, signed.effective_from);
                is_satisfying = satisfies(&policy, channel, signature, signed.effective_from, later, now);
            }
            Ok(GetDirectSignStatusResponse {
                is_signed: newest.is_some(),
                signature: newest.as_ref().map(convert::signature),
                satisfies: is_satisfying,
                evaluated_at: Some(timestamp(now)),
                sign_refusal: sign_refusal.map(|refusal| status::item(&status::refused(&refusal))),
            })
        })
        .await
    }
}

/// The token from the link.
fn read_token(form: &mut Form, token: &str) -> String {
    if token.is_empty() {
        form.violation("token", "is required: it is in the link");
    }
    token.to_owned()
}

/// The invitation that a link leads to.
fn require_with_token(
    connection: &mut Connection,
    links: Option<&Links>,
    id: Uuid,
    token: &str,
) -> Result<Invitation, ChangeError> {
    let links = links.ok_or(Refusal::InvitationsOff)?;
    let found = invitation_find(connection, id)?.filter(|_| links.is_token_of(id, token));
    Ok(found.ok_or(Refusal::NotFound { resource: "invitation", id })?)
}

fn read_shown(form: &mut Form, version: u32, text: Option<&types::ShownText>) -> Shown {
    if version == 0 {
        form.violation("template_version", "is required: the version that was shown, from 1");
    }
    Shown { version, text: convert::read_shown_text(form, "shown_text", text) }
}
