//! The list of customers, by what people know of them.

use chassis::database::{Connection, Error, Unkept};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use super::{Row, Viewer};
use crate::rules::party::{Customer, folded};
use crate::store::schema::{customer, customer_reference, relationship};

/// What a list of customers is narrowed to.
#[derive(Clone, Debug)]
pub(crate) struct CustomerFilter {
    pub viewer: Viewer,
    /// In lower case.
    pub domain: Option<String>,
    /// The beginning of the name in any case; the list is then in the order of `name_key`.
    pub name_prefix: Option<String>,
    /// The reseller of an active relationship that the viewer may see.
    pub reseller: Option<Uuid>,
    /// A partner's external reference for the customer (CUS-6); other viewers have none.
    pub external_reference: Option<String>,
}

/// Customers after a key: their id, or with a prefix of the name their `name_key`.
pub(crate) fn customer_list(
    connection: &mut Connection,
    filter: &CustomerFilter,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Customer>, Error> {
    let partner = match filter.viewer {
        Viewer::Partner(partner) => Some(partner.to_string()),
        Viewer::Customer(_) | Viewer::Everything => None,
    };
    let reseller = filter.reseller.map(|id| id.to_string());
    let after_id = after.filter(|_| filter.name_prefix.is_none()).unwrap_or_default();
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = customer::table.limit(limit).select(Row::as_select()).into_boxed();
        list = match &filter.name_prefix {
            None => list.filter(customer::id.gt(after_id)).order(customer::id),
            Some(prefix) => {
                let prefix = folded(prefix).into_bytes();
                let end = after_all_with(&prefix);
                list = match after {
                    Some(after) => list.filter(customer::name_key.gt(after.as_bytes().to_vec())),
                    None => list.filter(customer::name_key.ge(prefix)),
                };
                list.filter(customer::name_key.lt(end)).order(customer::name_key)
            }
        };
        if let Viewer::Customer(own) = filter.viewer {
            list = list.filter(customer::id.eq(own.to_string()));
        }
        if let Some(domain) = &filter.domain {
            list = list.filter(customer::domain.eq(domain));
        }
        if let (Some(partner), Some(reference)) = (&partner, &filter.external_reference) {
            let numbered = customer_reference::table
                .filter(customer_reference::partner_id.eq(partner))
                .filter(customer_reference::external_reference.eq(reference))
                .filter(customer_reference::customer_id.gt(after_id))
                .select(customer_reference::customer_id);
            list = list.filter(customer::id.eq_any(numbered));
        }
        if partner.is_some() || reseller.is_some() {
            let mut related = relationship::table
                .filter(relationship::ended_at.is_null())
                .filter(relationship::customer_id.gt(after_id))
                .select(relationship::customer_id)
                .into_boxed();
            if let Some(partner) = &partner {
                let is_of = relationship::partner_id.eq(partner).or(relationship::reseller_id.eq(partner));
                related = related.filter(is_of);
            }
            if let Some(reseller) = &reseller {
                related = related.filter(relationship::reseller_id.eq(reseller));
            }
            list = list.filter(customer::id.eq_any(related));
        }
        Unkept(list).load(c)
    })?;
    rows.into_iter().map(Row::read).collect()
}

/// The first key after all that begin with a prefix: no byte of UTF-8 is the highest.
fn after_all_with(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(u8::MAX),
    }
    end
}
