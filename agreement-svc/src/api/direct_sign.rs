//! `DirectSignService`: invitations and signatures.

use chassis::auth;
use chassis::clock::new_id;
use chassis::database::Connection;
use chassis::database::row::at;
use chassis::form::{Form, timestamp};
use chassis::idempotency::IdempotencyKey;
use chassis::paging::Page;
use proto::agreement::direct_sign_service_server::DirectSignService;
use proto::agreement::{
    AcceptInvitationRequest, AcceptInvitationResponse, CreateInvitationRequest, CreateInvitationResponse,
    GetDirectSignStatusRequest, GetDirectSignStatusResponse, GetInvitationRequest, GetInvitationResponse,
    ListInvitationsRequest, ListInvitationsResponse, RevokeInvitationRequest, RevokeInvitationResponse,
    SignAgreementRequest, SignAgreementResponse, WithdrawSignatureRequest, WithdrawSignatureResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::customer::{named_relationship, store_customer, store_relationship};
use super::invitation::{Names, NewInvitation, read_lifetime, store_invitation, with_link};
use super::{Api, checked, convert, existing, existing_template, newest_live, status, viewer, visible};
use crate::rules::Refusal;
use crate::rules::eligibility::{reacceptances, satisfies};
use crate::rules::event::Event;
use crate::rules::invitation::{Invitation, InvitationKind};
use crate::rules::party::{Customer, Profile, Relationship};
use crate::rules::signature::{Facts, Signature, Signing, check_signable, may_sign_directly, sign};
use crate::rules::template::Template;
use crate::rules::withdrawal::{Covers, Withdrawal, WithdrawalReason, check_withdrawal, uncovered};
use crate::store::acceptance::{
    acceptance_supersede, acceptance_withdraw, acceptances_cover, first_signed_at, signature_find,
    signature_insert, signatures_current,
};
use crate::store::change::{Change, ChangeError};
use crate::store::customer::{
    Viewer, active_partners, customer_find, customer_set_acceptance_revision, relationship_active,
    relationship_find,
};
use crate::store::invitation::{Filter, invitation_find, invitation_list, invitation_settle};
use crate::store::partner::link_exists;
use crate::store::template::template_list;

#[tonic::async_trait]
impl DirectSignService for Api {
    async fn create_invitation(
        &self,
        request: Request<CreateInvitationRequest>,
    ) -> Result<Response<CreateInvitationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let kind = convert::read_invitation_kind(&mut form, "kind", message.kind);
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let template_id = form.id("template_id", &message.template_id);
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        let recipient = message.recipient.as_ref();
        let recipient = recipient.map(|contact| convert::read_contact(&mut form, "recipient", Some(contact)));
        let expires_at = read_lifetime(&mut form, "expires_at", message.expires_at.as_ref(), now);
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
        checked(form)?;
        let kind = kind.unwrap_or(InvitationKind::Agreement);

        let key = IdempotencyKey::new(&caller, "CreateInvitation", request_id, &message);
        let may_invite = self.links.is_some();
        let created = self.change(key, now, false, move |change| {
            let inviter = existing(change, caller.tenant_id)?;
            let (relationship, customer) = match customer_id {
                Some(id) => {
                    let customer = visible(change.connection, viewer(&caller), id)?;
                    let relationship = relationship_find(change.connection, inviter.id, id)?;
                    (relationship.ok_or(Refusal::NotFound { resource: "customer", id })?, Some(customer))
                }
                None => (named_relationship(change, &inviter, provider_id, reseller_id)?, None),
            };
            let of_customer = customer.as_ref().map(|customer| customer.primary_contact.clone());
            let recipient = recipient.or(of_customer).filter(|recipient| !recipient.email.is_empty());
            let by = caller.user_id;
            let new = NewInvitation { kind, relationship, template_id, recipient, expires_at, by };
            let invitation = store_invitation(change, may_invite, inviter.cloud, customer.as_ref(), new)?;
            let invitation = Some(convert::invitation(invitation, now));
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
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("invitation_id", &message.invitation_id);
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "RevokeInvitation", request_id, &message);
        self.change(key, now, false, move |change| {
            let mut invitation = invitation_of(change.connection, caller.tenant_id, id)?;
            if invitation.revoke(now)? {
                change.record(&Event::InvitationRevoked {
                    invitation_id: id,
                    partner_id: invitation.relationship.payer_id,
                    customer_id: invitation.customer_id,
                    by: caller.user_id,
                })?;
                invitation_settle(change.connection, &invitation)?;
            }
            let invitation = Some(convert::invitation(invitation, now));
            Ok(RevokeInvitationResponse { invitation, revision: change.revision() })
        })
        .await
    }

    async fn get_invitation(
        &self,
        request: Request<GetInvitationRequest>,
    ) -> Result<Response<GetInvitationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let id = form.id("invitation_id", &message.invitation_id);
        let is_customer = caller.tenant_kind == TenantKind::Customer;
        if is_customer && message.token.is_empty() {
            form.violation("token", "is required: it is in the link");
        } else if !is_customer && !message.token.is_empty() {
            form.violation("token", "is for customers");
        }
        checked(form)?;

        let now = self.clock.now();
        let links = self.links.clone();
        let read = move |connection: &mut Connection| {
            let unseen = || Refusal::NotFound { resource: "invitation", id };
            let invitation = if caller.tenant_kind == TenantKind::Partner {
                invitation_of(connection, caller.tenant_id, id)?
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
        };
        self.database.read(read).await.map(Response::new).map_err(status::of)
    }

    async fn list_invitations(
        &self,
        request: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let customer = form.optional_id("customer_id", &message.customer_id);
        let state = match message.state {
            0 => None,
            given => convert::read_invitation_state(&mut form, "state", given),
        };
        let filter = format!("{}/{}", message.customer_id, message.state);
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListInvitations", &filter);
        checked(form)?;

        let now = self.clock.now();
        let partner = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
        let links = self.links.clone().filter(|_| partner.is_some());
        let list = move |connection: &mut Connection| {
            let filter = Filter { partner, customer, state: state.map(|state| (state, now)) };
            let mut rows = invitation_list(connection, filter, page.after_number(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let mut names = Names::default();
            let mut invitations = vec![];
            for row in rows {
                invitations.push(with_link(connection, links.as_deref(), &mut names, row, now)?);
            }
            Ok(ListInvitationsResponse { invitations, next_page_token })
        };
        self.database.list(list).await.map(Response::new).map_err(status::of)
    }

    async fn accept_invitation(
        &self,
        request: Request<AcceptInvitationRequest>,
    ) -> Result<Response<AcceptInvitationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("invitation_id", &message.invitation_id);
        if message.token.is_empty() {
            form.violation("token", "is required: it is in the link");
        }
        let shown = read_version(&mut form, message.template_version);
        let company = message.company.as_ref().map(|company| {
            let texts = (company.company_name.as_str(), company.domain.as_str(), company.country.as_str());
            convert::read_profile(&mut form, "company.", texts, company.primary_contact.as_ref())
        });
        checked(form)?;

        let links = self.links.clone();
        let key = IdempotencyKey::new(&caller, "AcceptInvitation", request_id, &message);
        self.change(key, now, false, move |change| {
            let links = links.ok_or(Refusal::InvitationsOff)?;
            let unseen = Refusal::NotFound { resource: "invitation", id };
            let mut invitation = invitation_find(change.connection, id)?.ok_or_else(|| unseen.clone())?;
            if !links.is_token_of(id, &message.token) {
                return Err(unseen.into());
            }
            let is_new = invitation.accept(caller.tenant_id, now)?;
            let template = existing_template(change.connection, invitation.template_id)?;
            let signature = if is_new {
                let mut customer =
                    entered(change, &invitation, &template, caller.tenant_id, company, caller.user_id)?;
                let signed = store_signature(change, &mut customer, &template, shown, caller.user_id);
                let signature = match signed {
                    Ok(signature) => Some(signature),
                    // The relationship stands, so that the partner can attest (INV-3).
                    Err(ChangeError::Refused(Refusal::ContactPartner))
                        if invitation.kind == InvitationKind::RelationshipAndAgreement =>
                    {
                        None
                    }
                    Err(other) => return Err(other),
                };
                change.record(&Event::InvitationAccepted {
                    invitation_id: id,
                    partner_id: invitation.relationship.payer_id,
                    customer_id: caller.tenant_id,
                    by: caller.user_id,
                })?;
                invitation_settle(change.connection, &invitation)?;
                signature
            } else {
                let current = signatures_current(change.connection, caller.tenant_id)?;
                current.into_iter().find(|current| current.agreement_type == template.agreement_type)
            };
            let customer = visible(change.connection, viewer(&caller), caller.tenant_id)?;
            let first_signed_at = first_signed_at(change.connection, customer.id)?;
            let may_sign = may_sign_directly(customer.first_purchase_at, first_signed_at);
            let mut shown = convert::invitation(invitation, now);
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
        let caller = auth::caller(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let template_id = form.id("template_id", &message.template_id);
        let shown = read_version(&mut form, message.template_version);
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "SignAgreement", request_id, &message);
        self.change(key, self.clock.now(), false, move |change| {
            let mut customer = visible(change.connection, viewer(&caller), caller.tenant_id)?;
            let template = existing_template(change.connection, template_id)?;
            let signature = store_signature(change, &mut customer, &template, shown, caller.user_id)?;
            let signature = Some(convert::signature(&signature));
            Ok(SignAgreementResponse { signature, revision: change.revision() })
        })
        .await
    }

    async fn withdraw_signature(
        &self,
        request: Request<WithdrawSignatureRequest>,
    ) -> Result<Response<WithdrawSignatureResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("signature_id", &message.signature_id);
        let reason = convert::read_withdrawal_reason(&mut form, "reason", message.reason);
        checked(form)?;
        let reason = reason.unwrap_or(WithdrawalReason::Other);

        let key = IdempotencyKey::new(&caller, "WithdrawSignature", request_id, &message);
        self.change(key, now, false, move |change| {
            let customer_id = caller.tenant_id;
            let known = signature_find(change.connection, id)?;
            let own = known.filter(|signature| signature.customer_id == customer_id);
            let mut signature = own.ok_or(Refusal::NotFound { resource: "signature", id })?;
            let current = signatures_current(change.connection, customer_id)?;
            let current = current.iter().find(|current| current.agreement_type == signature.agreement_type);
            let current = current.map(|current| current.id);
            let is_new = check_withdrawal(id, signature.superseded_at, signature.withdrawn, current)?;
            if is_new {
                let withdrawal = Withdrawal { at: now, reason, by: caller.user_id };
                acceptance_withdraw(change.connection, id, withdrawal)?;
                signature.withdrawn = Some(withdrawal);
            }
            let remaining = acceptances_cover(change.connection, customer_id)?;
            let active = active_partners(change.connection, customer_id)?;
            let uncovered = uncovered(Covers::Everyone, &remaining, &active);
            let uncovered_partner_ids = uncovered.iter().map(ToString::to_string).collect();
            if is_new {
                let revision = change.record(&Event::SignatureWithdrawn {
                    signature_id: id,
                    customer_id,
                    reason,
                    uncovered_partner_ids: uncovered,
                    by: caller.user_id,
                })?;
                customer_set_acceptance_revision(change.connection, customer_id, revision)?;
            }
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
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let customer_id = form.id("customer_id", &request.get_ref().customer_id);
        checked(form)?;

        let now = self.clock.now();
        let (policy, channel) = (self.policy.clone(), convert::channel_of(&caller));
        let read = move |connection: &mut Connection| {
            visible(connection, viewer(&caller), customer_id)?;
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
        };
        self.database.read(read).await.map(Response::new).map_err(status::of)
    }
}

fn read_version(form: &mut Form, version: u32) -> u32 {
    if version == 0 {
        form.violation("template_version", "is required: the version that was shown, from 1");
    }
    version
}

/// An invitation of the partner's, as payer or as reseller.
fn invitation_of(connection: &mut Connection, partner: Uuid, id: Uuid) -> Result<Invitation, ChangeError> {
    let unseen = || Refusal::NotFound { resource: "invitation", id };
    let invitation = invitation_find(connection, id)?.ok_or_else(unseen)?;
    let Relationship { payer_id, reseller_id } = invitation.relationship;
    let mut is_own = payer_id == partner || reseller_id == Some(partner);
    if let Some(customer) = invitation.customer_id {
        is_own = is_own && relationship_find(connection, partner, customer)?.is_some();
    }
    if is_own { Ok(invitation) } else { Err(unseen().into()) }
}

/// The customer that accepts an invitation, in the relationship that the invitation offers.
fn entered(
    change: &mut Change<'_>,
    invitation: &Invitation,
    template: &Template,
    tenant_id: Uuid,
    company: Option<Profile>,
    by: Uuid,
) -> Result<Customer, ChangeError> {
    let known = customer_find(change.connection, Viewer::Everything, tenant_id)?;
    if invitation.kind == InvitationKind::Agreement {
        return Ok(known.ok_or(Refusal::NotFound { resource: "customer", id: tenant_id })?);
    }
    let relationship = invitation.relationship;
    let payer = existing(change, relationship.payer_id)?;
    if let Some(reseller_id) = relationship.reseller_id
        && !link_exists(change.connection, payer.id, reseller_id)?
    {
        return Err(Refusal::ResellerNotLinked { provider_id: payer.id, reseller_id }.into());
    }
    let cloud = known.as_ref().map_or(payer.cloud, |customer| customer.cloud);
    let live = newest_live(change, template)?;
    check_signable(cloud, template, live, change.now)?;
    let Some(mut customer) = known else {
        let missing = || Refusal::field("company", "is required: your tenant is not a customer yet");
        let company = company.ok_or_else(missing)?;
        return store_customer(change, tenant_id, company, cloud, relationship, by);
    };
    if relationship_active(change.connection, relationship, tenant_id)?.is_none() {
        store_relationship(change, &mut customer, relationship, by)?;
    }
    Ok(customer)
}

/// Decides on and stores a customer's signature; the current one where it is of that version.
fn store_signature(
    change: &mut Change<'_>,
    customer: &mut Customer,
    template: &Template,
    shown: u32,
    by: Uuid,
) -> Result<Signature, ChangeError> {
    let now = change.now;
    let current = signatures_current(change.connection, customer.id)?;
    let current = current.into_iter().find(|current| current.agreement_type == template.agreement_type);
    let facts = Facts {
        customer,
        template,
        live_template_id: newest_live(change, template)?,
        current: current.as_ref(),
        first_signed_at: first_signed_at(change.connection, customer.id)?,
    };
    let supersedes = match (sign(&facts, shown, now)?, current) {
        (Signing::Already, Some(current)) => return Ok(current),
        (Signing::Already, None) => None,
        (Signing::New { supersedes }, _) => supersedes,
    };
    let id = new_id(now);
    let revision = change.record(&Event::Signed {
        signature_id: id,
        customer_id: customer.id,
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: shown,
        supersedes,
        by,
    })?;
    if let Some(superseded) = supersedes {
        acceptance_supersede(change.connection, superseded, now)?;
    }
    let signature = Signature {
        id,
        customer_id: customer.id,
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: shown,
        signed_at: now,
        signed_by: by,
        superseded_at: None,
        withdrawn: None,
        revision,
    };
    signature_insert(change.connection, &signature)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(signature)
}
