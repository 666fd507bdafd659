//! `DirectSignService`: invitations and signatures.

use chassis::database::row::at;
use chassis::form::{Form, timestamp};
use chassis::server::call;
use proto::agreement::direct_sign_service_server::DirectSignService;
use proto::agreement::{
    AcceptInvitationRequest, AcceptInvitationResponse, CreateInvitationRequest, CreateInvitationResponse,
    GetDirectSignStatusRequest, GetDirectSignStatusResponse, GetInvitationRequest, GetInvitationResponse,
    ListInvitationsRequest, ListInvitationsResponse, RevokeInvitationRequest, RevokeInvitationResponse,
    SignAgreementRequest, SignAgreementResponse, WithdrawSignatureRequest, WithdrawSignatureResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status};

use super::invitation::{Names, read_lifetime, with_link};
use super::{Api, Mutation, convert, viewer};
use crate::actions::customer::named_relationship;
use crate::actions::invite::{NewInvitation, invite};
use crate::actions::sign::{InvitationAcceptance, accept_invitation, sign};
use crate::actions::visibility::{
    require_customer, require_own_invitation, require_partner, require_relationship, require_template,
};
use crate::actions::withdraw::withdraw_signature;
use crate::rules::Refusal;
use crate::rules::eligibility::{reacceptances, satisfies};
use crate::rules::event::Event;
use crate::rules::invitation::InvitationKind;
use crate::rules::party::Relationship;
use crate::rules::signature::may_sign_directly;
use crate::rules::withdrawal::WithdrawalReason;
use crate::store::acceptance::{first_signed_at, signatures_current};
use crate::store::contact::contacts;
use crate::store::invitation::{Filter, invitation_find, invitation_list, invitation_settle};
use crate::store::template::template_list;

#[tonic::async_trait]
impl DirectSignService for Api {
    async fn create_invitation(
        &self,
        request: Request<CreateInvitationRequest>,
    ) -> Result<Response<CreateInvitationResponse>, Status> {
        let mut call = self.mutation("CreateInvitation", request, |message| &mut message.request_id)?;
        let Mutation { form, message, timed, .. } = &mut call;
        let kind = convert::read_invitation_kind(form, "kind", message.kind);
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let template_id = form.id("template_id", &message.template_id);
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        let recipient = message.recipient.as_ref();
        let recipient = recipient.map(|contact| convert::read_contact(form, "recipient", Some(contact)));
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
            let new = NewInvitation { kind, relationship, template_id, recipient, expires_at, by };
            let invitation = invite(change, may_invite, inviter.cloud, customer.as_ref(), new)?;
            let invitation = Some(convert::invitation(invitation, change.now));
            Ok(CreateInvitationResponse { invitation, revision: change.revision() })
        });
        let mut created = created.await?;
        self.add_link(created.get_mut().invitation.as_mut()).await?;
        Ok(created)
    }

    async fn revoke_invitation(
        &self,
        request: Request<RevokeInvitationRequest>,
    ) -> Result<Response<RevokeInvitationResponse>, Status> {
        let mut call = self.mutation("RevokeInvitation", request, |message| &mut message.request_id)?;
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
        let links = self.links.clone();
        self.read(form, move |connection| {
            let unseen = || Refusal::NotFound { resource: "invitation", id };
            let invitation = if caller.tenant_kind == TenantKind::Partner {
                require_own_invitation(connection, caller.tenant_id, id)?
            } else {
                invitation_find(connection, id)?.ok_or_else(unseen)?
            };
            if is_customer {
                let links = links.as_ref().ok_or(Refusal::InvitationsOff)?;
                if !links.is_token_of(id, &message.token) || !invitation.is_for(caller.tenant_id) {
                    return Err(unseen().into());
                }
            }
            let mut names = Names::default();
            let Relationship { payer_id, reseller_id } = invitation.relationship;
            let partner_name = names.partner(connection, payer_id)?;
            let reseller_name = reseller_id.map(|id| names.partner(connection, id)).transpose()?;
            let links = links.as_deref().filter(|_| caller.tenant_kind == TenantKind::Partner);
            let mut shown = with_link(connection, links, &mut names, invitation, now)?;
            if is_customer {
                shown.recipient = None;
            }
            Ok(GetInvitationResponse {
                invitation: Some(shown),
                partner_name,
                reseller_name: reseller_name.unwrap_or_default(),
            })
        })
        .await
    }

    async fn list_invitations(
        &self,
        request: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let customer = form.optional_id("customer_id", &message.customer_id);
        let state = match message.state {
            0 => None,
            given => convert::read_invitation_state(&mut form, "state", given),
        };
        let filter = format!("{}/{}", message.customer_id, message.state);
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListInvitations", &filter);
        let now = self.clock.now();
        let partner = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
        let links = self.links.clone().filter(|_| partner.is_some());
        self.list(form, page, move |connection, page| {
            let filter = Filter { partner, customer, state: state.map(|state| (state, now)) };
            let mut rows = invitation_list(connection, filter, page.after_number(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let mut names = Names::default();
            let mut invitations = vec![];
            for row in rows {
                invitations.push(with_link(connection, links.as_deref(), &mut names, row, now)?);
            }
            Ok(ListInvitationsResponse { invitations, next_page_token })
        })
        .await
    }

    async fn accept_invitation(
        &self,
        request: Request<AcceptInvitationRequest>,
    ) -> Result<Response<AcceptInvitationResponse>, Status> {
        let mut call = self.mutation("AcceptInvitation", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("invitation_id", &message.invitation_id);
        if message.token.is_empty() {
            form.violation("token", "is required: it is in the link");
        }
        let token = message.token.clone();
        let shown = read_version(form, message.template_version);
        let company = message.company.as_ref().map(|company| {
            let texts = (company.company_name.as_str(), company.domain.as_str(), company.country.as_str());
            convert::read_profile(form, "company.", texts, company.primary_contact.as_ref())
        });

        let links = self.links.clone();
        self.change(call, move |change, caller| {
            let links = links.ok_or(Refusal::InvitationsOff)?;
            let unseen = Refusal::NotFound { resource: "invitation", id };
            let mut invitation = invitation_find(change.connection, id)?.ok_or_else(|| unseen.clone())?;
            if !links.is_token_of(id, &token) {
                return Err(unseen.into());
            }
            let new = InvitationAcceptance {
                tenant_id: caller.tenant_id,
                company,
                shown_version: shown,
                by: caller.user_id,
            };
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

    async fn sign_agreement(
        &self,
        request: Request<SignAgreementRequest>,
    ) -> Result<Response<SignAgreementResponse>, Status> {
        let mut call = self.mutation("SignAgreement", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let template_id = form.id("template_id", &message.template_id);
        let shown = read_version(form, message.template_version);

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
        let mut call = self.mutation("WithdrawSignature", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("signature_id", &message.signature_id);
        let reason = convert::read_withdrawal_reason(form, "reason", message.reason);
        let reason = reason.unwrap_or(WithdrawalReason::Other);

        self.change(call, move |change, caller| {
            let (signature, uncovered) =
                withdraw_signature(change, caller.tenant_id, id, reason, caller.user_id)?;
            let uncovered_partner_ids = uncovered.iter().map(ToString::to_string).collect();
            Ok(WithdrawSignatureResponse {
                signature: Some(convert::signature(&signature)),
                uncovered_partner_ids,
                revision: change.revision(),
            })
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
            require_customer(connection, viewer(&caller), customer_id)?;
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
            })
        })
        .await
    }
}

fn read_version(form: &mut Form, version: u32) -> u32 {
    if version == 0 {
        form.violation("template_version", "is required: the version that was shown, from 1");
    }
    version
}
