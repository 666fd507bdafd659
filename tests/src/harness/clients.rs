//! Clients with an identity, and what they read from refusals.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use chassis::auth::{Caller, Channel, Credentials};
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::agreement::direct_sign_service_client::DirectSignServiceClient;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::partner_service_client::PartnerServiceClient;
use proto::agreement::proposal_service_client::ProposalServiceClient;
use proto::agreement::template_service_client::TemplateServiceClient;
use proto::identity::{Role, TenantKind};
use proto::order::event_service_client::EventServiceClient as OrderEventServiceClient;
use proto::order::offer_service_client::OfferServiceClient;
use proto::order::order_service_client::OrderServiceClient;
use proto::order::subscription_service_client::SubscriptionServiceClient;
use proto::order::withdrawal_service_client::WithdrawalServiceClient;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::transport::Channel as Wire;
use tonic::{Request, Status};
use tonic_types::StatusExt;
use tower::Service;
use uuid::Uuid;

use super::stack::{Alias, Stack};

/// What is presented with every call.
#[derive(Clone)]
pub struct Identity {
    credentials: Option<Credentials>,
    alias: Option<Alias>,
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(credentials) = &self.credentials {
            credentials.present(request.metadata_mut());
        }
        Ok(request)
    }
}

/// A connection on which every call presents an identity.
#[derive(Clone)]
pub struct Identified {
    wire: Wire,
    identity: Identity,
}

impl Service<http::Request<Body>> for Identified {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.wire.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(credentials) = &self.identity.credentials {
            let mut metadata = MetadataMap::from_headers(std::mem::take(request.headers_mut()));
            credentials.present(&mut metadata);
            *request.headers_mut() = metadata.into_headers();
        }
        match self.identity.alias {
            None => Box::pin(self.wire.call(request)),
            Some(alias) => {
                let answered = self.wire.call(alias.put_into(request));
                Box::pin(async move { answered.await.map(|response| alias.take_out_of(response)) })
            }
        }
    }
}

/// A caller of both services.
#[derive(Clone)]
pub struct As {
    pub agreements: Wire,
    pub orders: Wire,
    pub identity: Identity,
}

impl As {
    /// One of its connections, on which it calls.
    #[must_use]
    pub fn identified(&self, wire: &Wire) -> Identified {
        Identified { wire: wire.clone(), identity: self.identity.clone() }
    }

    #[must_use]
    pub fn templates(&self) -> TemplateServiceClient<Identified> {
        TemplateServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn partners(&self) -> PartnerServiceClient<Identified> {
        PartnerServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn customers(&self) -> CustomerServiceClient<Identified> {
        CustomerServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn attestations(&self) -> AttestationServiceClient<Identified> {
        AttestationServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn proposals(&self) -> ProposalServiceClient<Identified> {
        ProposalServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn signatures(&self) -> DirectSignServiceClient<Identified> {
        DirectSignServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn events(&self) -> EventServiceClient<Identified> {
        EventServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn gate(&self) -> EligibilityServiceClient<Identified> {
        EligibilityServiceClient::new(self.identified(&self.agreements))
    }

    #[must_use]
    pub fn offers(&self) -> OfferServiceClient<Identified> {
        OfferServiceClient::new(self.identified(&self.orders))
    }

    #[must_use]
    pub fn orders(&self) -> OrderServiceClient<Identified> {
        OrderServiceClient::new(self.identified(&self.orders))
    }

    #[must_use]
    pub fn subscriptions(&self) -> SubscriptionServiceClient<Identified> {
        SubscriptionServiceClient::new(self.identified(&self.orders))
    }

    /// order-svc's history.
    #[must_use]
    pub fn order_events(&self) -> OrderEventServiceClient<Identified> {
        OrderEventServiceClient::new(self.identified(&self.orders))
    }

    #[must_use]
    pub fn withdrawals(&self) -> WithdrawalServiceClient<Identified> {
        WithdrawalServiceClient::new(self.identified(&self.orders))
    }
}

impl Identity {
    /// No identity: no metadata at all.
    #[must_use]
    pub fn none() -> Self {
        Self { credentials: None, alias: None }
    }

    /// A caller, by a token where tests run against a stack, else by unverified metadata.
    #[must_use]
    pub fn of(caller: Caller) -> Self {
        let credentials = match Stack::named() {
            Some(stack) => stack.credentials(&caller),
            None => Credentials::Metadata(caller),
        };
        Self { credentials: Some(credentials), alias: None }
    }

    /// The caller with these credentials.
    #[must_use]
    pub fn by(credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), alias: None }
    }

    /// The same one, in a world that has another name where the services are.
    #[must_use]
    pub fn under(self, alias: Alias) -> Self {
        Self { alias: Some(alias), ..self }
    }
}

/// A caller of a tenant with some roles, at the dashboard. The user's id follows from the tenant's.
#[must_use]
pub fn caller(tenant_kind: TenantKind, tenant_id: Uuid, roles: &[Role]) -> Caller {
    Caller {
        tenant_kind: tenant_kind.into_str(),
        tenant_id,
        user_id: Uuid::new_v5(&tenant_id, b"user"),
        roles: roles.iter().map(Role::into_str).collect(),
        channel: Channel::Dashboard,
        client: None,
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
