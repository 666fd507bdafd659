//! Lists of acceptances: attestations, or signatures.

use chassis::database::{Connection, Error, Unkept};
use chassis::query;
use diesel::dsl::exists;
use diesel::prelude::*;
use uuid::Uuid;

use super::{NO_PARTNER, Row};
use crate::rules::Time;
use crate::rules::attestation::{AcceptanceState, Attestation};
use crate::rules::signature::Signature;
use crate::store::schema::{acceptance, relationship};

/// What a list is narrowed to. Rows are found by their customer, or by whose they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct AcceptanceFilter {
    /// Only of customers with an active relationship to this partner; looked at where no customer is named.
    pub seen_by: Option<Uuid>,
    pub customer: Option<Uuid>,
    pub state: Option<AcceptanceState>,
    pub template: Option<Uuid>,
    pub agreed_from: Option<Time>,
    pub agreed_before: Option<Time>,
    pub recorded_from: Option<Time>,
    pub recorded_before: Option<Time>,
    pub newest_first: bool,
    pub external_reference: Option<String>,
}

/// Whose acceptances.
#[derive(Clone, Copy)]
enum Of {
    /// What a partner attested.
    Partner(Uuid),
    /// What partners attested. A filter names their customer.
    Partners,
    /// What customers signed.
    Customers,
}

/// Attestations from a revision on, which is not included: up, or down where the newest comes first.
pub(crate) fn attestation_list(
    connection: &mut Connection,
    partner: Option<Uuid>,
    filter: &AcceptanceFilter,
    from: i64,
    limit: i64,
) -> Result<Vec<Attestation>, Error> {
    let of = partner.map_or(Of::Partners, Of::Partner);
    rows(connection, of, filter, from, limit)?.into_iter().map(Row::attestation).collect()
}

/// As [`attestation_list`], of signatures.
pub(crate) fn signature_list(
    connection: &mut Connection,
    filter: &AcceptanceFilter,
    from: i64,
    limit: i64,
) -> Result<Vec<Signature>, Error> {
    rows(connection, Of::Customers, filter, from, limit)?.into_iter().map(Row::signature).collect()
}

fn rows(
    connection: &mut Connection,
    of: Of,
    filter: &AcceptanceFilter,
    from: i64,
    limit: i64,
) -> Result<Vec<Row>, Error> {
    Ok(query!(connection, c => {
        let mut list = acceptance::table.limit(limit).select(Row::as_select()).into_boxed();
        list = match filter.newest_first {
            true => list.filter(acceptance::revision.lt(from)).order(acceptance::revision.desc()),
            false => list.filter(acceptance::revision.gt(from)).order(acceptance::revision),
        };
        list = match of {
            Of::Partner(partner) => list.filter(acceptance::partner_id.eq(partner.to_string())),
            Of::Partners => list.filter(acceptance::partner_id.ne(NO_PARTNER)),
            Of::Customers => list.filter(acceptance::partner_id.eq(NO_PARTNER)),
        };
        match (filter.customer.map(|id| id.to_string()), filter.seen_by.map(|id| id.to_string())) {
            (Some(customer), _) => list = list.filter(acceptance::customer_id.eq(customer)),
            (None, Some(partner)) => {
                let sees = relationship::table
                    .filter(relationship::customer_id.eq(acceptance::customer_id))
                    .filter(relationship::ended_at.is_null())
                    .filter(relationship::partner_id.eq(partner.clone()).or(relationship::reseller_id.eq(partner)));
                list = list.filter(exists(sees));
            }
            (None, None) => {}
        }
        list = match filter.state {
            None => list,
            Some(AcceptanceState::Withdrawn) => list.filter(acceptance::withdrawn_at.is_not_null()),
            Some(AcceptanceState::Superseded) => list
                .filter(acceptance::superseded_at.is_not_null())
                .filter(acceptance::withdrawn_at.is_null()),
            Some(AcceptanceState::Current) => list
                .filter(acceptance::superseded_at.is_null())
                .filter(acceptance::withdrawn_at.is_null()),
        };
        if let Some(template) = filter.template {
            list = list.filter(acceptance::template_id.eq(template.to_string()));
        }
        if let Some(from) = filter.agreed_from {
            list = list.filter(acceptance::agreed_at.ge(from.naive_utc()));
        }
        if let Some(before) = filter.agreed_before {
            list = list.filter(acceptance::agreed_at.lt(before.naive_utc()));
        }
        if let Some(from) = filter.recorded_from {
            list = list.filter(acceptance::recorded_at.ge(from.naive_utc()));
        }
        if let Some(before) = filter.recorded_before {
            list = list.filter(acceptance::recorded_at.lt(before.naive_utc()));
        }
        if let Some(reference) = &filter.external_reference {
            list = list.filter(acceptance::external_reference.eq(reference));
        }
        Unkept(list).load(c)
    })?)
}
