//! Partners' external references for customers (CUS-6).

use std::collections::BTreeMap;

use chassis::database::row::at;
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use crate::store::schema::customer_reference;

/// A partner's numbers for some customers, by customer, where it has one.
pub(crate) fn references_of(
    connection: &mut Connection,
    partner: Uuid,
    customers: &[Uuid],
) -> Result<BTreeMap<Uuid, String>, Error> {
    let ids = customers.iter().map(Uuid::to_string);
    let rows: Vec<(String, String)> = query!(connection, c => {
        customer_reference::table
            .filter(customer_reference::partner_id.eq(partner.to_string()))
            .filter(customer_reference::customer_id.eq_any(ids))
            .select((customer_reference::customer_id, customer_reference::external_reference))
            .load(c)
    })?;
    let read = |(id, reference): (String, String)| {
        Ok((at("customer_reference", &id).parse("customer_id", &id)?, reference))
    };
    rows.into_iter().map(read).collect()
}

/// Stores a partner's number for a customer in the place of the one before; an empty one removes it.
pub(crate) fn reference_set(
    connection: &mut Connection,
    partner: Uuid,
    customer: Uuid,
    reference: &str,
) -> Result<(), Error> {
    let (partner, customer) = (partner.to_string(), customer.to_string());
    let new = customer_reference::external_reference.eq(reference);
    query!(connection, c => match reference.is_empty() {
        true => diesel::delete(customer_reference::table.find((&partner, &customer))).execute(c),
        false => diesel::insert_into(customer_reference::table)
            .values((
                customer_reference::partner_id.eq(&partner),
                customer_reference::customer_id.eq(&customer),
                new,
            ))
            .on_conflict((customer_reference::partner_id, customer_reference::customer_id))
            .do_update()
            .set(new)
            .execute(c),
    })?;
    Ok(())
}
