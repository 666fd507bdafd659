//! One request of a browser: who asks, in which language the answer is, and the calls in its name.

use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::response::Response;
use chassis::auth::{Auth, Caller};
use chassis::server::call::CallService;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::agreement::direct_sign_service_client::DirectSignServiceClient;
use proto::agreement::template_service_client::TemplateServiceClient;
use proto::agreement::{
    Customer, GetCustomerRequest, GetTemplateDocumentRequest, GetTemplateRequest, Template,
};
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::problem::{self, has_reason};
use super::texts::Texts;
use super::view::{self, Agreement};
use super::{Pages, sign_in};
use crate::api::access::CUSTOMER_ADMIN;

/// How long one call of a page may take.
const CALL_MAX: Duration = Duration::from_secs(5);

/// How long all calls of a page may take together: less than the server gives a request, so that the page says so.
const VISIT_MAX: Duration = Duration::from_secs(12);

/// Who asks, and what the pages need for the answer.
pub(super) struct Visit {
    pub pages: Pages,
    pub texts: &'static Texts,
    /// The company of the caller, if it is a customer.
    pub customer: Option<Customer>,
    credentials: HeaderMap,
    deadline: Instant,
}

impl FromRequestParts<Pages> for Visit {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Response> {
        let texts = Texts::accepted(&parts.headers);
        let deadline = Instant::now() + VISIT_MAX;
        let credentials = match pages.auth {
            // What else the request says of an identity counts for nothing.
            Auth::Jwt => {
                let tokens = parts.headers.get_all(AUTHORIZATION).iter();
                tokens.map(|token| (AUTHORIZATION, token.clone())).collect()
            }
            Auth::Insecure => sign_in::credentials(&parts.headers),
        };
        let identified = timeout(VISIT_MAX, pages.calls.identify(&credentials)).await;
        let caller = match identified.unwrap_or_else(|late| Err(Status::unavailable(late.to_string()))) {
            Ok(caller) => caller,
            Err(_) if pages.auth == Auth::Insecure => return Err(sign_in::form(texts, parts)),
            Err(status) => return Err(problem::refused(texts, &status)),
        };
        if !CUSTOMER_ADMIN.contains(&caller) {
            return Err(problem::page(
                texts,
                StatusCode::FORBIDDEN,
                texts.not_allowed,
                texts.not_allowed_text,
            ));
        }
        let mut visit = Self { pages: pages.clone(), texts, customer: None, credentials, deadline };
        match visit.find_customer(&caller).await {
            Ok(customer) => visit.customer = customer,
            Err(status) => return Err(problem::refused(texts, &status)),
        }
        // The person at the browser may not read the language of the company (CUS-5).
        if let Some(customer) = visit.customer.as_ref().filter(|_| Texts::preferred(&parts.headers).is_none())
        {
            visit.texts = Texts::of(&customer.language);
        }
        Ok(visit)
    }
}

impl Visit {
    /// A call in the name of the caller, in the time that the visit has left.
    pub(super) fn call<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.credentials.clone());
        request.set_timeout(CALL_MAX.min(self.deadline.saturating_duration_since(Instant::now())));
        request
    }

    pub(super) fn customers(&self) -> CustomerServiceClient<CallService> {
        CustomerServiceClient::new(self.pages.calls.clone())
    }

    pub(super) fn signatures(&self) -> DirectSignServiceClient<CallService> {
        DirectSignServiceClient::new(self.pages.calls.clone())
    }

    pub(super) fn templates(&self) -> TemplateServiceClient<CallService> {
        TemplateServiceClient::new(self.pages.calls.clone())
    }

    /// A refusal as a page.
    pub(super) fn refused(&self, status: &Status) -> Response {
        problem::refused(self.texts, status)
    }

    pub(super) async fn template(&self, template_id: &str) -> Result<Template, Status> {
        let request = GetTemplateRequest { template_id: template_id.into() };
        let found = self.templates().get_template(self.call(request)).await?;
        Ok(found.into_inner().template.unwrap_or_default())
    }

    /// The name of an agreement, for a page that says what is stored already; empty if it cannot be read.
    pub(super) async fn agreement_name(&self, template_id: &str) -> String {
        self.template(template_id).await.map(|template| template.name).unwrap_or_default()
    }

    /// The version in force of an agreement, with its text for a country and language.
    pub(super) async fn agreement(
        &self,
        template: Template,
        country: &str,
        language: &str,
    ) -> Result<Agreement, Status> {
        let request = GetTemplateDocumentRequest {
            template_id: template.template_id.clone(),
            version: template.version_in_force,
            country: country.into(),
            language: language.into(),
        };
        let found = self.templates().get_template_document(self.call(request)).await?.into_inner();
        let document = found.document.unwrap_or_default();
        Ok(Agreement {
            name: template.name,
            template_id: template.template_id,
            version: found.version,
            fallback: match found.is_fallback {
                true => view::fallback(self.texts, (country, language), &document),
                false => String::new(),
            },
            document,
        })
    }

    async fn find_customer(&self, caller: &Caller) -> Result<Option<Customer>, Status> {
        let request = GetCustomerRequest { customer_id: caller.tenant_id.to_string() };
        match self.customers().get_customer(self.call(request)).await {
            Ok(found) => Ok(found.into_inner().customer),
            Err(status) if has_reason(&status, proto::types::ErrorReason::ResourceNotFound) => Ok(None),
            Err(status) => Err(status),
        }
    }
}
