//! The service identity: how order-svc identifies itself to agreement-svc. Its token is a file that is reloaded
//! while it runs.

use std::path::Path;

use anyhow::{Context, bail};
use chassis::auth::{Auth, Bearer, Caller, Channel, Credentials};
use chassis::metrics::Metrics;
use chassis::reload::Watched;
use proto::identity::TenantKind;
use uuid::Uuid;

/// order-svc's tenant and user id where identities are metadata that is trusted.
const SERVICE_ID: Uuid = uuid::uuid!("0de05dc0-0000-7000-8000-000000000001");

/// How this service identifies itself to agreement-svc.
#[derive(Clone)]
pub(crate) enum ServiceIdentity {
    /// By metadata, where that is trusted (`--auth insecure`).
    Metadata,
    /// By a token of its own.
    Token(Watched<Bearer>),
}

impl ServiceIdentity {
    /// Reads the token, and reloads it on this runtime from then on.
    ///
    /// # Errors
    /// A token that is missing, not allowed with `--auth insecure`, invalid, or cannot be read.
    pub(crate) fn open(auth: Auth, token: Option<&Path>) -> anyhow::Result<Self> {
        match (auth, token) {
            (Auth::Insecure, None) => Ok(Self::Metadata),
            (Auth::Insecure, Some(_)) => {
                bail!("--auth insecure presents no token; leave --service-token out, or use --auth jwt")
            }
            (Auth::Jwt, None) => bail!("--auth jwt needs --service-token"),
            (Auth::Jwt, Some(file)) => {
                let token = Watched::open(vec![file.to_owned()], |contents| Bearer::read(&contents[0]));
                token.map(Self::Token).context("--service-token")
            }
        }
    }

    /// Registers the metrics of the token, where there is one.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Self::Token(token) = self {
            metrics.register_files("service-token", token, |token| {
                token.validity("service-token").into_iter().collect()
            });
        }
    }

    pub(super) fn credentials(&self) -> Credentials {
        match self {
            Self::Metadata => Credentials::Metadata(service()),
            Self::Token(token) => Credentials::Token(Bearer::clone(&token.now())),
        }
    }
}

/// order-svc as a caller.
fn service() -> Caller {
    Caller {
        tenant_kind: TenantKind::Service.into_str(),
        tenant_id: SERVICE_ID,
        user_id: SERVICE_ID,
        roles: vec![],
        channel: Channel::Api,
        client: None,
    }
}
