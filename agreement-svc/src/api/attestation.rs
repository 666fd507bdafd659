//! `AttestationService`.

use std::mem::take;

use chassis::auth::Caller;
use chassis::form::Form;
use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement::attestation_service_server::AttestationService;
use proto::agreement::{
    AttestationNotification, CreateAttestationRequest, CreateAttestationResponse, GetAttestationRequest,
    GetAttestationResponse, ImportAttestationsRequest, ImportAttestationsResponse, ListAttestationsRequest,
    ListAttestationsResponse, ListNotificationsRequest, ListNotificationsResponse, RetryNotificationRequest,
    RetryNotificationResponse, WithdrawAttestationRequest, WithdrawAttestationResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::import::Answers;
use super::import::attestations::ATTESTATIONS;
use super::statement::read_statement;
use super::{Api, Mutation, convert, viewer};
use crate::actions::attest::attest_as_partner;
use crate::actions::visibility::{require_customer, require_own_attestation};
use crate::actions::withdraw::{Replacement, withdraw_attestation};
use crate::rules::Refusal;
use crate::rules::attestation::{AcceptanceState, check_not_in_the_future};
use crate::rules::notification::NotificationState;
use crate::rules::withdrawal::WithdrawalReason;
use crate::store::acceptance::{AcceptanceFilter, attestation_find, attestation_list};
use crate::store::change::ChangeError;
use crate::store::notification::{Unsent, notification_requeue, notifications_of, notifications_unsent};

#[tonic::async_trait]
impl AttestationService for Api {
    async fn create_attestation(
        &self,
        request: Request<CreateAttestationRequest>,
    ) -> Result<Response<CreateAttestationResponse>, Status> {
        let mut call = self.mutation("CreateAttestation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { caller, form, message, timed, .. } = &mut call;
        let CreateAttestationRequest { customer_id, template_id, contact, agreed_at, details, .. } = message;
        let ids = (customer_id.as_str(), template_id.as_str());
        let stated = (contact.as_ref(), agreed_at.as_ref(), details.as_ref());
        let (customer_id, new) = read_statement(form, timed, caller, ids, stated);

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
            let attestation = convert::attestation(attestation, notifications.get(&id));
            let attestation = Some(convert::attestation_for(&caller, attestation));
            Ok(GetAttestationResponse { attestation })
        })
        .await
    }

    async fn list_attestations(
        &self,
        request: Request<ListAttestationsRequest>,
    ) -> Result<Response<ListAttestationsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let (partner, filter) = read_filter(&mut form, &caller, &message);
        let page = self.pages.read(&mut form, asked, &caller, "ListAttestations", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            if let Some(customer_id) = filter.customer {
                require_customer(connection, viewer(&caller), customer_id)?;
            }
            let from = if filter.newest_first { page.before_number() } else { page.after_number() };
            let mut rows = attestation_list(connection, partner, &filter, from, page.fetch())?;
            let next_page_token = page.cut(&mut rows, |attestation| attestation.revision.to_string());
            let ids: Vec<Uuid> = rows.iter().map(|attestation| attestation.id).collect();
            let notifications = notifications_of(connection, &ids)?;
            let known = |id| notifications.get(&id);
            let attestations = rows.into_iter().map(|row| (known(row.id), row));
            let attestations = attestations.map(|(known, row)| convert::attestation(row, known));
            let attestations = attestations.map(|shown| convert::attestation_for(&caller, shown)).collect();
            Ok(ListAttestationsResponse { attestations, next_page_token })
        })
        .await
    }

    async fn withdraw_attestation(
        &self,
        request: Request<WithdrawAttestationRequest>,
    ) -> Result<Response<WithdrawAttestationResponse>, Status> {
        let mut call = self.mutation("WithdrawAttestation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
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
            let details = replacement.details.as_ref();
            let details =
                details.map(|details| convert::read_details(form, "replacement.details", Some(details)));
            Replacement { template_id, contact, agreed_at, details }
        });

        self.change(call, move |change, caller| {
            let (partner_id, by) = (caller.tenant_id, (caller.user_id, caller.client.clone()));
            let withdrawn = withdraw_attestation(change, partner_id, id, reason, replacement, by)?;
            let notifications = notifications_of(change.connection, &[id])?;
            Ok(WithdrawAttestationResponse {
                attestation: Some(convert::attestation(withdrawn.attestation, notifications.get(&id))),
                uncovered: !withdrawn.uncovered.partners.is_empty(),
                revision: change.revision(),
                replacement: withdrawn.replacement.map(|made| convert::attestation(made, None)),
                uncovered_partners: convert::uncovered_partners(&withdrawn.uncovered.relationships),
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
        let mut call = self.mutation("RetryNotification", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("attestation_id", &message.attestation_id);

        self.change(call, move |change, caller| {
            if caller.tenant_kind == TenantKind::Partner {
                require_own_attestation(change.connection, caller.tenant_id, id)?;
            }
            // Attestations older than the table of notifications have no row.
            let notification = notifications_of(change.connection, &[id])?.remove(&id);
            let notification = notification.ok_or(Refusal::NotFound { resource: "notification", id })?;
            let requeued = notification.retry(change.now)?;
            notification_requeue(change.connection, &requeued)?;
            Ok(RetryNotificationResponse { notification: Some(convert::notification(&requeued)) })
        })
        .await
    }

    async fn list_notifications(
        &self,
        request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let state = convert::read_notification_state(&mut form, "state", message.state);
        if state == Some(NotificationState::Sent) {
            let problem =
                "must be QUEUED or DEAD_LETTER; the attestation has the state of a mail that was sent";
            form.violation("state", problem);
        }
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListNotifications", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            let state = state.unwrap_or(NotificationState::DeadLetter);
            let mut rows = notifications_unsent(connection, state, page.after.as_deref(), page.fetch())?;
            let next_page_token =
                page.cut(&mut rows, |unsent| unsent.notification.attestation_id.to_string());
            let row = |unsent: Unsent| AttestationNotification {
                attestation_id: unsent.notification.attestation_id.to_string(),
                partner_id: unsent.partner_id.to_string(),
                customer_id: unsent.customer_id.to_string(),
                notification: Some(convert::notification(&unsent.notification)),
            };
            let notifications = rows.into_iter().map(row).collect();
            Ok(ListNotificationsResponse { notifications, next_page_token })
        })
        .await
    }
}

/// Reads which partner's attestations a list has and what it is narrowed to. A partner lists its own, a customer those of
/// itself.
fn read_filter(
    form: &mut Form,
    caller: &Caller,
    message: &ListAttestationsRequest,
) -> (Option<Uuid>, AcceptanceFilter) {
    let is_partner = caller.tenant_kind == TenantKind::Partner;
    let is_customer = caller.tenant_kind == TenantKind::Customer;
    let customer = form.optional_id("customer_id", &message.customer_id);
    let partner = form.optional_id("partner_id", &message.partner_id);
    if is_partner && partner.is_some() {
        form.violation("partner_id", "must be empty: you see the attestations of your own tenant");
    }
    if !is_partner && !is_customer && message.customer_id.is_empty() && message.partner_id.is_empty() {
        form.violation("customer_id", "is required, unless partner_id is given");
    }
    let external_reference = form.text("external_reference", &message.external_reference, 0, 80);
    let external_reference = Some(external_reference).filter(|text| !text.is_empty());
    if is_customer && external_reference.is_some() {
        form.violation(
            "external_reference",
            "must be empty: only the attesting partner and the operator see it",
        );
    }
    let state = match message.state {
        0 => None,
        given => convert::read_attestation_state(form, "state", given),
    };
    let filter = AcceptanceFilter {
        seen_by: is_partner.then_some(caller.tenant_id),
        customer: customer.or_else(|| is_customer.then_some(caller.tenant_id)),
        state: state.or_else(|| (!message.include_history).then_some(AcceptanceState::Current)),
        template: form.optional_id("template_id", &message.template_id),
        agreed_from: form.optional_time("agreed_from", message.agreed_from.as_ref()),
        agreed_before: form.optional_time("agreed_before", message.agreed_before.as_ref()),
        recorded_from: form.optional_time("recorded_from", message.recorded_from.as_ref()),
        recorded_before: form.optional_time("recorded_before", message.recorded_before.as_ref()),
        newest_first: message.newest_first,
        external_reference,
    };
    (if is_partner { Some(caller.tenant_id) } else { partner }, filter)
}
