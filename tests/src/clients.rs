//! Clients with an identity, and what they read from refusals.

use std::collections::HashMap;

use chassis::auth::{Caller, Channel, Credentials, Role, TenantKind};
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::agreement::direct_sign_service_client::DirectSignServiceClient;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::partner_service_client::PartnerServiceClient;
use proto::agreement::template_service_client::TemplateServiceClient;
use proto::order::offer_service_client::OfferServiceClient;
use proto::order::order_service_client::OrderServiceClient;
use proto::order::subscription_service_client::SubscriptionServiceClient;
use proto::order::withdrawal_service_client::WithdrawalServiceClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel as Wire;
use tonic::{Request, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

/// Adds an identity to every call.
#[derive(Clone)]
pub struct Identity(Option<Credentials>);

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(credentials) = &self.0 {
            credentials.present(request.metadata_mut());
        }
        Ok(request)
    }
}

type Identified = InterceptedService<Wire, Identity>;

/// Somebody who calls both services.
#[derive(Clone)]
pub struct As {
    pub agreements: Wire,
    pub orders: Wire,
    pub identity: Identity,
}

impl As {
    #[must_use]
    pub fn templates(&self) -> TemplateServiceClient<Identified> {
        TemplateServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn partners(&self) -> PartnerServiceClient<Identified> {
        PartnerServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn customers(&self) -> CustomerServiceClient<Identified> {
        CustomerServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn attestations(&self) -> AttestationServiceClient<Identified> {
        AttestationServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn signatures(&self) -> DirectSignServiceClient<Identified> {
        DirectSignServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn events(&self) -> EventServiceClient<Identified> {
        EventServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn gate(&self) -> EligibilityServiceClient<Identified> {
        EligibilityServiceClient::with_interceptor(self.agreements.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn offers(&self) -> OfferServiceClient<Identified> {
        OfferServiceClient::with_interceptor(self.orders.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn orders(&self) -> OrderServiceClient<Identified> {
        OrderServiceClient::with_interceptor(self.orders.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn subscriptions(&self) -> SubscriptionServiceClient<Identified> {
        SubscriptionServiceClient::with_interceptor(self.orders.clone(), self.identity.clone())
    }

    #[must_use]
    pub fn withdrawals(&self) -> WithdrawalServiceClient<Identified> {
        WithdrawalServiceClient::with_interceptor(self.orders.clone(), self.identity.clone())
    }
}

impl Identity {
    /// Nobody: no metadata at all.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Somebody by its word.
    #[must_use]
    pub fn of(caller: Caller) -> Self {
        Self(Some(Credentials::Word(caller)))
    }

    /// Whoever presents these.
    #[must_use]
    pub fn by(credentials: Credentials) -> Self {
        Self(Some(credentials))
    }
}

/// A caller of a tenant with some roles, at the dashboard. The user's id follows from the tenant's.
#[must_use]
pub fn caller(tenant_kind: TenantKind, tenant_id: Uuid, roles: &[Role]) -> Caller {
    Caller {
        tenant_kind,
        tenant_id,
        user_id: Uuid::new_v5(&tenant_id, b"user"),
        roles: roles.to_vec(),
        channel: Channel::Dashboard,
    }
}

/// The reason in a refusal's details, or nothing.
#[must_use]
pub fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The metadata in a refusal's details.
#[must_use]
pub fn metadata_of(status: &Status) -> HashMap<String, String> {
    status.get_details_error_info().map(|info| info.metadata).unwrap_or_default()
}

/// The paths of the bad fields that a refusal names.
#[must_use]
pub fn bad_fields_of(status: &Status) -> Vec<String> {
    let request = status.get_details_bad_request();
    request.map(|r| r.field_violations.into_iter().map(|v| v.field).collect()).unwrap_or_default()
}
