//! `ImportCustomers`: a row is a customer, with the id of its tenant and its first purchase (CUS-4).

use proto::agreement::{ImportCustomersRequest, ImportCustomersResponse, ImportOutcome};

use super::{Import, Settled};
use crate::actions::customer::{ImportedCustomer, import};
use crate::api::{Mutation, convert};
use crate::rules::Refusal;
use crate::rules::attestation::check_not_in_the_future;
use crate::rules::party::Partner;
use crate::store::partner::partner_find;

/// The partner that creates the customers; absent where it is not registered.
type Creator = (uuid::Uuid, Option<Partner>);

pub(in crate::api) const CUSTOMERS: Import<ImportCustomersRequest, ImportedCustomer, Creator> = Import {
    name: "ImportCustomers",
    request_id: |row| &mut row.request_id,
    read,
    prepare: |change, partner_id, _| Ok((partner_id, partner_find(change.connection, partner_id)?)),
    decide: |(partner_id, creator), change, row| {
        let unseen = Refusal::NotFound { resource: "partner", id: *partner_id };
        let creator = creator.as_ref().ok_or(unseen)?;
        let tenant_id = row.tenant_id;
        let outcome = match import(change, creator, row)? {
            true => ImportOutcome::Stored,
            false => ImportOutcome::Duplicate,
        };
        Ok((outcome, tenant_id))
    },
    // Each row is stored when it is decided, because the next one may be about the same customer.
    store: |_, _| Ok(()),
};

fn read(row: &mut Mutation<ImportCustomersRequest>) -> ImportedCustomer {
    let Mutation { caller, form, message, timed, .. } = row;
    let tenant_id = form.id("customer_id", &message.customer_id);
    let profile = convert::read_profile(
        form,
        "",
        (&message.company_name, &message.domain, &message.country, &message.language),
        message.primary_contact.as_ref(),
    );
    let (provider_id, reseller_id) = convert::read_named(form, &message.provider_id, &message.reseller_id);
    let first_purchase_at = form.optional_time("first_purchase_at", message.first_purchase_at.as_ref());
    timed.extend(first_purchase_at.map(|at| ("first_purchase_at".into(), at, check_not_in_the_future as _)));
    let external_reference = convert::read_reference(form, &message.external_reference);
    let by = caller.user_id;
    ImportedCustomer {
        tenant_id,
        profile,
        provider_id,
        reseller_id,
        first_purchase_at,
        external_reference,
        by,
    }
}

impl From<Settled> for ImportCustomersResponse {
    fn from(settled: Settled) -> Self {
        let Settled { row, request_id, outcome, id, refusal } = settled;
        Self { row, request_id, outcome: outcome.into(), customer_id: id, refusal }
    }
}

impl From<ImportCustomersResponse> for Settled {
    fn from(answer: ImportCustomersResponse) -> Self {
        let outcome = answer.outcome();
        let ImportCustomersResponse { row, request_id, customer_id: id, refusal, .. } = answer;
        Self { row, request_id, outcome, id, refusal }
    }
}
