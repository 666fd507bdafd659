//! `AttestationService`.

use std::pin::Pin;

use chassis::auth;
use chassis::clock::{new_id, new_salt};
use chassis::database::Connection;
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::paging::Page;
use futures_util::Stream;
use proto::agreement::attestation_service_server::AttestationService;
use proto::agreement::{
    CreateAttestationRequest, CreateAttestationResponse, GetAttestationRequest, GetAttestationResponse,
    ImportAttestationsRequest, ImportAttestationsResponse, ListAttestationsRequest, ListAttestationsResponse,
    RetryNotificationRequest, RetryNotificationResponse, WithdrawAttestationRequest,
    WithdrawAttestationResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{Api, checked, convert, existing, newest_live, status, viewer, visible};
use crate::rules::attestation::{Attestation, Claim, Facts, attest, check_attester, check_not_in_the_future};
use crate::rules::event::Event;
use crate::rules::party::{Customer, Partner};
use crate::rules::withdrawal::{Covers, Withdrawal, WithdrawalReason, check_withdrawal, uncovered};
use crate::rules::{Refusal, Time};
use crate::store::acceptance::{
    acceptance_supersede, acceptance_withdraw, acceptances_cover, attestation_current, attestation_find,
    attestation_insert, attestation_list,
};
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::customer::{Viewer, active_partners, customer_set_acceptance_revision, relationship_find};
use crate::store::notification::{notification_insert, notification_requeue, notifications_of};
use crate::store::template::template_find;

#[tonic::async_trait]
impl AttestationService for Api {
    async fn create_attestation(
        &self,
        request: Request<CreateAttestationRequest>,
    ) -> Result<Response<CreateAttestationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let validate_only = std::mem::take(&mut message.validate_only);
        let (customer_id, new) = read_new(&mut form, &message, caller.user_id, now);
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "CreateAttestation", request_id, &message);
        self.change(key, now, validate_only, move |change| {
            let attestation = attest_for_itself(change, caller.tenant_id, customer_id, new)?;
            let attestation = Some(convert::attestation(attestation, None));
            Ok(CreateAttestationResponse { attestation, revision: change.revision() })
        })
        .await
    }

    async fn get_attestation(
        &self,
        request: Request<GetAttestationRequest>,
    ) -> Result<Response<GetAttestationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let id = form.id("attestation_id", &request.get_ref().attestation_id);
        checked(form)?;

        let read = move |connection: &mut Connection| {
            let unseen = Refusal::NotFound { resource: "attestation", id };
            let attestation = attestation_find(connection, id)?.ok_or_else(|| unseen.clone())?;
            let is_of_another =
                caller.tenant_kind == TenantKind::Partner && caller.tenant_id != attestation.partner_id;
            let customer = visible(connection, viewer(&caller), attestation.customer_id);
            if is_of_another || matches!(customer, Err(ChangeError::Refused(_))) {
                return Err(unseen.into());
            }
            customer?;
            let announced = notifications_of(connection, &[id])?;
            let attestation = Some(convert::attestation(attestation, announced.get(&id)));
            Ok(Response::new(GetAttestationResponse { attestation }))
        };
        self.database.read(read).await.map_err(status::of)
    }

    async fn list_attestations(
        &self,
        request: Request<ListAttestationsRequest>,
    ) -> Result<Response<ListAttestationsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let customer_id = form.id("customer_id", &message.customer_id);
        let filter = format!("{customer_id}/{}", message.include_history);
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListAttestations", &filter);
        checked(form)?;

        let list = move |connection: &mut Connection| {
            visible(connection, viewer(&caller), customer_id)?;
            let own = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
            let after = page.after_number();
            let mut rows =
                attestation_list(connection, customer_id, own, message.include_history, after, page.fetch())?;
            let next_page_token = page.cut(&mut rows, |attestation| attestation.revision.to_string());
            let ids: Vec<Uuid> = rows.iter().map(|attestation| attestation.id).collect();
            let announced = notifications_of(connection, &ids)?;
            let known = |id| announced.get(&id);
            let attestations = rows.into_iter().map(|row| (known(row.id), row));
            let attestations = attestations.map(|(known, row)| convert::attestation(row, known)).collect();
            Ok(ListAttestationsResponse { attestations, next_page_token })
        };
        self.database.list(list).await.map(Response::new).map_err(status::of)
    }

    async fn withdraw_attestation(
        &self,
        request: Request<WithdrawAttestationRequest>,
    ) -> Result<Response<WithdrawAttestationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("attestation_id", &message.attestation_id);
        let reason = convert::read_withdrawal_reason(&mut form, "reason", message.reason);
        checked(form)?;
        let reason = reason.unwrap_or(WithdrawalReason::Other);

        let key = IdempotencyKey::new(&caller, "WithdrawAttestation", request_id, &message);
        self.change(key, now, false, move |change| {
            let mut attestation = own_attestation(change, caller.tenant_id, id)?;
            let (partner_id, customer_id) = (attestation.partner_id, attestation.customer_id);
            let current =
                attestation_current(change.connection, partner_id, customer_id, attestation.agreement_type)?;
            let current = current.map(|(current, _)| current.id);
            let (superseded_at, withdrawn) = (attestation.superseded_at, attestation.withdrawn);
            let is_new = check_withdrawal(id, superseded_at, withdrawn, current)?;
            if is_new {
                let withdrawal = Withdrawal { at: now, reason, by: caller.user_id };
                acceptance_withdraw(change.connection, id, withdrawal)?;
                attestation.withdrawn = Some(withdrawal);
            }
            let remaining = acceptances_cover(change.connection, customer_id)?;
            let active = active_partners(change.connection, customer_id)?;
            let uncovered = uncovered(Covers::Partner(partner_id), &remaining, &active);
            let is_uncovered = !uncovered.is_empty();
            if is_new {
                let revision = change.record(&Event::AttestationWithdrawn {
                    attestation_id: id,
                    partner_id,
                    customer_id,
                    reason,
                    uncovered_partner_ids: uncovered,
                    by: caller.user_id,
                })?;
                customer_set_acceptance_revision(change.connection, customer_id, revision)?;
            }
            let announced = notifications_of(change.connection, &[id])?;
            Ok(WithdrawAttestationResponse {
                attestation: Some(convert::attestation(attestation, announced.get(&id))),
                uncovered: is_uncovered,
                revision: change.revision(),
            })
        })
        .await
    }

    type ImportAttestationsStream =
        Pin<Box<dyn Stream<Item = Result<ImportAttestationsResponse, Status>> + Send>>;

    async fn import_attestations(
        &self,
        request: Request<Streaming<ImportAttestationsRequest>>,
    ) -> Result<Response<Self::ImportAttestationsStream>, Status> {
        self.import(request)
    }

    async fn retry_notification(
        &self,
        request: Request<RetryNotificationRequest>,
    ) -> Result<Response<RetryNotificationResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("attestation_id", &message.attestation_id);
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "RetryNotification", request_id, &message);
        self.change(key, now, false, move |change| {
            own_attestation(change, caller.tenant_id, id)?;
            // What was attested before there were announcements has none.
            let announced = notifications_of(change.connection, &[id])?.remove(&id);
            let announced = announced.ok_or(Refusal::NotFound { resource: "notification", id })?;
            let requeued = announced.retry(now)?;
            notification_requeue(change.connection, &requeued)?;
            Ok(RetryNotificationResponse { notification: Some(convert::notification(&requeued)) })
        })
        .await
    }
}

/// An attestation of the caller's own tenant, on a customer that it may see.
fn own_attestation(change: &mut Change<'_>, partner: Uuid, id: Uuid) -> Result<Attestation, ChangeError> {
    let unseen = Refusal::NotFound { resource: "attestation", id };
    let known = attestation_find(change.connection, id)?;
    let own = known.filter(|attestation| attestation.partner_id == partner).ok_or_else(|| unseen.clone())?;
    relationship_find(change.connection, partner, own.customer_id)?.ok_or(unseen)?;
    Ok(own)
}

/// An attestation to be stored.
pub(super) struct NewAttestation {
    pub template_id: Uuid,
    pub claim: Claim,
    /// The partner's user who attests (ROLE-7).
    pub by: Uuid,
}

/// Reads the customer and what is to be stored, for both calls that attest.
pub(super) fn read_new(
    form: &mut Form,
    message: &CreateAttestationRequest,
    by: Uuid,
    now: Time,
) -> (Uuid, NewAttestation) {
    let customer_id = form.id("customer_id", &message.customer_id);
    let template_id = form.id("template_id", &message.template_id);
    let contact = convert::read_contact(form, "contact", message.contact.as_ref());
    let agreed_at = form.time("agreed_at", message.agreed_at.as_ref());
    if let Err(problem) = check_not_in_the_future(agreed_at, now) {
        form.violation("agreed_at", problem);
    }
    (customer_id, NewAttestation { template_id, claim: Claim { contact, agreed_at }, by })
}

/// Decides whether the partner may attest for the customer (ROLE-6, ATT-1), and then as
/// [`store_attestation`].
pub(super) fn attest_for_itself(
    change: &mut Change<'_>,
    partner_id: Uuid,
    customer_id: Uuid,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let relationship = relationship_find(change.connection, partner_id, customer_id)?;
    let relationship = relationship.ok_or(Refusal::NotFound { resource: "customer", id: customer_id })?;
    let mut customer = visible(change.connection, Viewer::Everything, customer_id)?;
    let attester = existing(change, partner_id)?;
    check_attester(&attester, relationship)?;
    store_attestation(change, &attester, &mut customer, new)
}

/// Decides on and stores an attestation of a partner that may attest for the customer.
pub(super) fn store_attestation(
    change: &mut Change<'_>,
    attester: &Partner,
    customer: &mut Customer,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let NewAttestation { template_id, claim, by } = new;
    let now = change.now;
    let template = template_find(change.connection, template_id)?;
    let template = template.ok_or(Refusal::NotFound { resource: "template", id: template_id })?;
    let current = attestation_current(change.connection, attester.id, customer.id, template.agreement_type)?;
    let facts = Facts {
        customer,
        template: &template,
        live_template_id: newest_live(change, &template)?,
        current: current.as_ref().map(|(attestation, effective_from)| (attestation, *effective_from)),
    };
    let accepted = attest(&facts, &claim, now)?;

    let contact_salt = new_salt();
    let id = new_id(now);
    let revision = change.record(&Event::Attested {
        attestation_id: id,
        partner_id: attester.id,
        customer_id: customer.id,
        agreement_type: accepted.agreement_type,
        template_id,
        template_version: accepted.template_version,
        contact_commitment: commitment(&contact_salt, &claim.contact),
        agreed_at: claim.agreed_at,
        supersedes: accepted.supersedes,
        by,
    })?;
    if let Some(superseded) = accepted.supersedes {
        acceptance_supersede(change.connection, superseded, now)?;
    }
    let attestation = Attestation {
        id,
        partner_id: attester.id,
        customer_id: customer.id,
        agreement_type: accepted.agreement_type,
        template_id,
        template_version: accepted.template_version,
        contact: claim.contact,
        contact_salt,
        agreed_at: claim.agreed_at,
        recorded_at: now,
        recorded_by: by,
        superseded_at: None,
        withdrawn: None,
        revision,
    };
    attestation_insert(change.connection, &attestation)?;
    notification_insert(change.connection, id, now)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(attestation)
}
