//! The commands that export: clients of running servers, which read what their caller may read.

mod calls;
mod dossier;
mod table;

use anyhow::bail;
use chassis::auth::{Caller, Channel, Credentials};
use chassis::tls;
use proto::identity::TenantKind;

use super::client::{connect, token};
use crate::config::{Export, ExportClient};
use calls::Calls;

/// Reads what is to be exported, and writes it as text.
///
/// # Errors
/// A server that cannot be reached or refuses, or a customer that keeps changing meanwhile.
pub async fn export(settings: &Export) -> anyhow::Result<Vec<u8>> {
    match settings {
        Export::Dossier(settings) => {
            let agreements = calls(&settings.client, &settings.client.address).await?;
            let orders = calls(&settings.client, &settings.orders_address).await?;
            let dossier = dossier::read(&agreements, &orders, settings.customer_id).await?;
            let mut text = serde_json::to_vec_pretty(&dossier)?;
            text.push(b'\n');
            Ok(text)
        }
        Export::Attestations(settings) => {
            let agreements = calls(&settings.client, &settings.client.address).await?;
            table::attestations(&agreements, settings.partner_id).await
        }
    }
}

async fn calls(settings: &ExportClient, address: &tls::Address) -> anyhow::Result<Calls> {
    let credentials = match (&settings.token, settings.operator_id, settings.user_id) {
        (Some(file), ..) => token(file)?,
        (None, Some(tenant_id), Some(user_id)) => Credentials::Metadata(Caller {
            tenant_kind: TenantKind::Operator.into_str(),
            tenant_id,
            user_id,
            roles: vec![],
            channel: Channel::Api,
            client: None,
        }),
        (None, ..) => bail!("say who exports: --token, or --operator-id and --user-id"),
    };
    let channel = connect(address, &settings.tls, settings.token.is_some()).await?;
    Calls::new(channel, credentials)
}
