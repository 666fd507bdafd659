//! The dossier of a customer: its records at both services, the texts that it accepted, and its histories.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use chassis::clock::Clock;
use prost_reflect::{DynamicMessage, SerializeOptions, Value};
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::calls::{Calls, part, text};

/// How often a customer may change while it is read.
const ATTEMPTS: usize = 3;

/// A list of a customer's records: what the dossier calls it, the call, and what it is asked besides.
type List = (&'static str, &'static str, &'static [&'static str]);

const OF_AGREEMENTS: [List; 5] = [
    ("relationships", "csp.agreement.v1.CustomerService.ListRelationships", &["include_ended"]),
    ("attestations", "csp.agreement.v1.AttestationService.ListAttestations", &["include_history"]),
    ("signatures", "csp.agreement.v1.DirectSignService.ListSignatures", &["include_history"]),
    ("invitations", "csp.agreement.v1.DirectSignService.ListInvitations", &[]),
    ("proposals", "csp.agreement.v1.ProposalService.ListProposals", &[]),
];
const OF_ORDERS: [List; 3] = [
    ("orders", "csp.order.v1.OrderService.ListOrders", &[]),
    ("subscriptions", "csp.order.v1.SubscriptionService.ListSubscriptions", &[]),
    ("withdrawal_reports", "csp.order.v1.WithdrawalService.ListWithdrawalReports", &[]),
];
const EVENTS: &str = "csp.agreement.v1.EventService.ListEvents";
const EVENTS_OF_ORDERS: &str = "csp.order.v1.EventService.ListEvents";
const CHANGES: &str = "csp.order.v1.SubscriptionService.ListSubscriptionChanges";
const TEMPLATE: &str = "csp.agreement.v1.TemplateService.GetTemplate";
const DOCUMENTS: &str = "csp.agreement.v1.TemplateService.ListTemplateDocuments";

/// What makes an acceptance link work. An auditor need not be able to accept.
const SECRETS: [&str; 2] = ["acceptance_url", "mail_text"];

/// Reads the dossier. No event comes between its first call and its last, so that it shows one state of each service.
///
/// # Errors
/// The first refusal, or that the customer kept changing.
pub(super) async fn read(agreements: &Calls, orders: &Calls, customer: Uuid) -> anyhow::Result<Json> {
    for _ in 0..ATTEMPTS {
        let histories = histories(agreements, orders, customer).await?;
        let records = (of_agreements(agreements, customer).await?, of_orders(orders, customer).await?);
        if histories != self::histories(agreements, orders, customer).await? {
            continue;
        }
        let ((mut of_agreements, mut of_orders), [events, events_of_orders]) = (records, histories);
        of_agreements.insert("head".into(), head(&events));
        of_agreements.insert("events".into(), shown(&events)?);
        of_orders.insert("head".into(), head(&events_of_orders));
        of_orders.insert("events".into(), shown(&events_of_orders)?);
        return Ok(json!({
            "customer_id": customer,
            "read_at": Clock::system().now(),
            "agreements": of_agreements,
            "orders": of_orders,
        }));
    }
    bail!("the customer changed each time it was read; run the command again")
}

async fn histories(
    agreements: &Calls,
    orders: &Calls,
    customer: Uuid,
) -> anyhow::Result<[Vec<DynamicMessage>; 2]> {
    let customer = [("customer_id", Value::String(customer.to_string()))];
    Ok([agreements.list(EVENTS, &customer).await?, orders.list(EVENTS_OF_ORDERS, &customer).await?])
}

async fn of_agreements(calls: &Calls, customer: Uuid) -> anyhow::Result<Map<String, Json>> {
    let mut records = Map::new();
    let id = ("customer_id", Value::String(customer.to_string()));
    let found = calls.call("csp.agreement.v1.CustomerService.GetCustomer", &[id]).await?;
    let found = part(&found, "customer").context("the answer has no customer")?;
    let country = text(&found, "country");
    records.insert("customer".into(), json_of(&found)?);
    let mut accepted = BTreeSet::new();
    for list in OF_AGREEMENTS {
        let rows = listed(calls, customer, list).await?;
        for row in &rows {
            let version = row.get_field_by_name("template_version").and_then(|version| version.as_u32());
            let shown = part(row, "details").as_ref().unwrap_or(row).clone();
            let shown = part(&shown, "shown_text").map(|shown| text(&shown, "country"));
            let country = shown.unwrap_or_else(|| country.clone());
            accepted.extend(version.map(|version| (text(row, "template_id"), version, country)));
        }
        records.insert(list.0.into(), shown(&rows)?);
    }
    // The texts that were accepted: of the country that was shown, else of the customer's.
    let (mut templates, mut documents) = (vec![], vec![]);
    for (template, version, country) in &accepted {
        let id = ("template_id", Value::String(template.clone()));
        if templates.last().is_none_or(|last| text(last, "template_id") != *template) {
            let found = calls.call(TEMPLATE, std::slice::from_ref(&id)).await?;
            templates.extend(part(&found, "template"));
        }
        let of = [id, ("version", Value::U32(*version)), ("country", Value::String(country.clone()))];
        documents.push(json!({
            "template_id": template,
            "version": version,
            "documents": shown(&calls.list(DOCUMENTS, &of).await?)?,
        }));
    }
    records.insert("templates".into(), shown(&templates)?);
    records.insert("documents".into(), documents.into());
    Ok(records)
}

async fn of_orders(calls: &Calls, customer: Uuid) -> anyhow::Result<Map<String, Json>> {
    let mut records = Map::new();
    let mut changes = vec![];
    for list in OF_ORDERS {
        let rows = listed(calls, customer, list).await?;
        for id in rows.iter().map(|row| text(row, "subscription_id")).filter(|id| !id.is_empty()) {
            let of = [("subscription_id", Value::String(id.clone()))];
            changes.push(json!({
                "subscription_id": id,
                "changes": shown(&calls.list(CHANGES, &of).await?)?,
            }));
        }
        records.insert(list.0.into(), shown(&rows)?);
    }
    records.insert("subscription_changes".into(), changes.into());
    Ok(records)
}

async fn listed(
    calls: &Calls,
    customer: Uuid,
    (_, name, flags): List,
) -> anyhow::Result<Vec<DynamicMessage>> {
    let mut fields = vec![("customer_id", Value::String(customer.to_string()))];
    fields.extend(flags.iter().map(|flag| (*flag, Value::Bool(true))));
    Ok(calls.list(name, &fields).await?.into_iter().map(without_secrets).collect())
}

/// A partner's user reads the links of its invitations; the dossier goes to others.
fn without_secrets(mut row: DynamicMessage) -> DynamicMessage {
    SECRETS.iter().for_each(|secret| row.clear_field_by_name(secret));
    row
}

/// The last event of a history that the customer is in, which `verify --head` takes; its hash is for operators.
fn head(events: &[DynamicMessage]) -> Json {
    let Some(last) = events.last() else { return Json::Null };
    let revision = last.get_field_by_name("revision").and_then(|revision| revision.as_i64());
    match text(last, "hash").as_str() {
        "" => json!({ "revision": revision }),
        hash => json!({ "revision": revision, "hash": hash }),
    }
}

fn shown(rows: &[DynamicMessage]) -> anyhow::Result<Json> {
    rows.iter().map(json_of).collect()
}

/// A message in its form in JSON, with the names of the contract.
fn json_of(message: &DynamicMessage) -> anyhow::Result<Json> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::DescriptorPool;
    use proto::agreement::Invitation;

    use super::*;

    #[test]
    fn a_dossier_has_no_acceptance_link() {
        let contract = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let link = "https://portal.example/accept?token=secret".to_owned();
        let invitation = Invitation {
            invitation_id: "id".into(),
            mail_text: format!("Please accept at {link}"),
            acceptance_url: link,
            ..Invitation::default()
        };
        let descriptor = contract.get_message_by_name("csp.agreement.v1.Invitation").unwrap();
        let row = DynamicMessage::decode(descriptor, invitation.encode_to_vec().as_slice()).unwrap();
        let shown = json_of(&without_secrets(row)).unwrap();
        assert_eq!(shown, json!({ "invitation_id": "id" }));
    }
}
