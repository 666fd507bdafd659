//! Asks agreement-svc whether a tenant is a registered partner, for issuers whose tokens do not say so.

use chassis::auth::RegistrationUnknown;
use chassis::clock::new_id;
use chassis::telemetry::trace::Traced;
use proto::agreement::GetPartnerRequest;
use proto::agreement::partner_service_client::PartnerServiceClient;
use proto::types::ErrorReason;
use tonic::Code;
use uuid::Uuid;

use super::{AgreementClient, log_if_unauthenticated, reason_of};

impl AgreementClient {
    /// Whether a tenant is registered as a partner.
    ///
    /// # Errors
    /// agreement-svc gave no answer.
    pub(crate) async fn is_registered_partner(&self, tenant_id: Uuid) -> Result<bool, RegistrationUnknown> {
        let call_id = new_id(self.clock.now()).to_string();
        let options = self.own_options(&call_id, self.deadline, self.deadline);
        let message = GetPartnerRequest { partner_id: tenant_id.to_string() };
        let call = |channel, request| {
            let mut partners = PartnerServiceClient::new(Traced(channel));
            async move { partners.get_partner(request).await }
        };
        let asked = self.client.call(options, message, call).await;
        match asked.inspect_err(log_if_unauthenticated) {
            Ok(_) => Ok(true),
            Err(status) => match (reason_of(&status), status.code()) {
                (Some(ErrorReason::ResourceNotFound), Code::NotFound) => Ok(false),
                _ => {
                    tracing::warn!(why = %status, "agreement-svc does not say whether the tenant of a token is a partner");
                    Err(RegistrationUnknown)
                }
            },
        }
    }
}
