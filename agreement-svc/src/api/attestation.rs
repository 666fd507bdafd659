//! `AttestationService`.

use chassis::auth::Caller;
use chassis::form::Form;
use chassis::server::call;
use prost_types::Timestamp;
use proto::agreement::attestation_service_server::AttestationService;
use proto::agreement::{
    CreateAttestationRequest, CreateAttestationResponse, GetAttestationRequest, GetAttestationResponse,
    ImportAttestationsRequest, ImportAttestationsResponse, ListAttestationsRequest, ListAttestationsResponse,
    RetryNotificationRequest, RetryNotificationResponse, WithdrawAttestationRequest,
    WithdrawAttestationResponse,
};
use proto::identity::TenantKind;
use proto::types;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::import::Answers;
use super::import::attestations::ATTESTATIONS;
use super::{Api, Mutation, Timed, convert, viewer};
use crate::actions::attest::{NewAttestation, attest_as_partner};
use crate::actions::visibility::{require_customer, require_own_attestation};
use crate::actions::withdraw::{Replacement, withdraw_attestation};
use crate::rules::Refusal;
use crate::rules::attestation::{Claim, check_not_in_the_future};
use crate::rules::withdrawal::WithdrawalReason;
use crate::store::acceptance::{attestation_find, attestation_list};
use crate::store::change::ChangeError;
use crate::store::notification::{notification_requeue, notifications_of};

#[tonic::async_trait]
impl AttestationService for Api {
    async fn create_attestation(
        &self,
        request: Request<CreateAttestationRequest>,
    ) -> Result<Response<CreateAttestationResponse>, Status> {
        let mut call = self.mutation("CreateAttestation", request, |message| &mut message.request_id)?;
        call.validate_only = std::mem::take(&mut call.message.validate_only);
        let Mutation { caller, form, message, timed, .. } = &mut call;
        let CreateAttestationRequest { customer_id, template_id, contact, agreed_at, .. } = message;
        let ids = (customer_id.as_str(), template_id.as_str());
        let (customer_id, new) = read_new(form, timed, caller, ids, contact.as_ref(), agreed_at.as_ref());

        self.change(call, move |change, caller| {
            let attestation = attest_as_partner(change, caller.tenant_id, customer_id, new)?;
            let attestation = Some(convert::attestation(attestation, None));
            Ok(CreateAttestationResponse { attestation, revision: change.revision() })
        })
        .await
    }

    async fn get_attestation(
        &self,
        request: Request<GetAttestationRequest>,
    ) -> Result<Response<GetAttestationResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("attestation_id", &message.attestation_id);
        self.read(form, move |connection| {
            let unseen = Refusal::NotFound { resource: "attestation", id };
            let attestation = attestation_find(connection, id)?.ok_or_else(|| unseen.clone())?;
            let is_of_another =
                caller.tenant_kind == TenantKind::Partner && caller.tenant_id != attestation.partner_id;
            let customer = require_customer(connection, viewer(&caller), attestation.customer_id);
            if is_of_another || matches!(customer, Err(ChangeError::Refused(_))) {
                return Err(unseen.into());
            }
            // A failure of the database stays one.
            customer?;
            let notifications = notifications_of(connection, &[id])?;
            let attestation = Some(convert::attestation(attestation, notifications.get(&id)));
            Ok(GetAttestationResponse { attestation })
        })
        .await
    }

    async fn list_attestations(
        &self,
        request: Request<ListAttestationsRequest>,
    ) -> Result<Response<ListAttestationsResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let customer_id = form.id("customer_id", &message.customer_id);
        let filter = format!("{customer_id}/{}", message.include_history);
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListAttestations", &filter);
        self.list(form, page, move |connection, page| {
            require_customer(connection, viewer(&caller), customer_id)?;
            let own = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
            let after = page.after_number();
            let mut rows =
                attestation_list(connection, customer_id, own, message.include_history, after, page.fetch())?;
            let next_page_token = page.cut(&mut rows, |attestation| attestation.revision.to_string());
            let ids: Vec<Uuid> = rows.iter().map(|attestation| attestation.id).collect();
            let notifications = notifications_of(connection, &ids)?;
            let known = |id| notifications.get(&id);
            let attestations = rows.into_iter().map(|row| (known(row.id), row));
            let attestations = attestations.map(|(known, row)| convert::attestation(row, known)).collect();
            Ok(ListAttestationsResponse { attestations, next_page_token })
        })
        .await
    }

    async fn withdraw_attestation(
        &self,
        request: Request<WithdrawAttestationRequest>,
    ) -> Result<Response<WithdrawAttestationResponse>, Status> {
        let mut call = self.mutation("WithdrawAttestation", request, |message| &mut message.request_id)?;
        call.validate_only = std::mem::take(&mut call.message.validate_only);
        let Mutation { form, message, timed, .. } = &mut call;
        let id = form.id("attestation_id", &message.attestation_id);
        let reason = convert::read_withdrawal_reason(form, "reason", message.reason);
        let reason = reason.unwrap_or(WithdrawalReason::Other);
        let replacement = message.replacement.as_ref().map(|replacement| {
            if reason != WithdrawalReason::RecordedInError {
                form.violation("replacement", "must be absent, unless the reason is RECORDED_IN_ERROR");
            }
            let template_id = form.optional_id("replacement.template_id", &replacement.template_id);
            let contact = replacement.contact.as_ref();
            let contact =
                contact.map(|contact| convert::read_contact(form, "replacement.contact", Some(contact)));
            let agreed_at = form.time("replacement.agreed_at", replacement.agreed_at.as_ref());
            timed.push(("replacement.agreed_at".into(), agreed_at, check_not_in_the_future));
            Replacement { template_id, contact, agreed_at }
        });

        self.change(call, move |change, caller| {
            let (partner_id, by) = (caller.tenant_id, caller.user_id);
            let withdrawn = withdraw_attestation(change, partner_id, id, reason, replacement, by)?;
            let notifications = notifications_of(change.connection, &[id])?;
            Ok(WithdrawAttestationResponse {
                attestation: Some(convert::attestation(withdrawn.attestation, notifications.get(&id))),
                uncovered: withdrawn.is_uncovered,
                revision: change.revision(),
                replacement: withdrawn.replacement.map(|made| convert::attestation(made, None)),
            })
        })
        .await
    }

    type ImportAttestationsStream = Answers<ImportAttestationsResponse>;

    async fn import_attestations(
        &self,
        request: Request<Streaming<ImportAttestationsRequest>>,
    ) -> Result<Response<Self::ImportAttestationsStream>, Status> {
        self.import(request, ATTESTATIONS)
    }

    async fn retry_notification(
        &self,
        request: Request<RetryNotificationRequest>,
    ) -> Result<Response<RetryNotificationResponse>, Status> {
        let mut call = self.mutation("RetryNotification", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("attestation_id", &message.attestation_id);

        self.change(call, move |change, caller| {
            require_own_attestation(change.connection, caller.tenant_id, id)?;
            // Attestations older than the table of notifications have no row.
            let notification = notifications_of(change.connection, &[id])?.remove(&id);
            let notification = notification.ok_or(Refusal::NotFound { resource: "notification", id })?;
            let requeued = notification.retry(change.now)?;
            notification_requeue(change.connection, &requeued)?;
            Ok(RetryNotificationResponse { notification: Some(convert::notification(&requeued)) })
        })
        .await
    }
}

/// Reads the customer and what is to be stored, for both calls that attest.
pub(super) fn read_new(
    form: &mut Form,
    timed: &mut Vec<Timed>,
    caller: &Caller,
    (customer_id, template_id): (&str, &str),
    contact: Option<&types::Contact>,
    agreed_at: Option<&Timestamp>,
) -> (Uuid, NewAttestation) {
    let customer_id = form.id("customer_id", customer_id);
    let template_id = form.id("template_id", template_id);
    let contact = convert::read_contact(form, "contact", contact);
    let agreed_at = form.time("agreed_at", agreed_at);
    timed.push(("agreed_at".into(), agreed_at, check_not_in_the_future));
    (customer_id, NewAttestation { template_id, claim: Claim { contact, agreed_at }, by: caller.user_id })
}
