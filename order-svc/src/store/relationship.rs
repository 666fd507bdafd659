//! The relationships of payers, customers and resellers, as far as agreement-svc's history was applied.

use chassis::database::row::{at, id_or_empty};
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::relationship;
use crate::rules::history::Restore;
use crate::rules::relationship::{ActiveRelationships, Relationship};

/// Stores what an event of a revision says of a relationship, unless a later one is known: when the history is followed
/// again, what happened last stays.
pub(super) fn relationship_write(
    connection: &mut Connection,
    of: Relationship,
    is_active: bool,
    revision: i64,
) -> Result<(), Error> {
    use diesel::query_dsl::methods::FilterDsl;
    query!(connection, c => {
        FilterDsl::filter(
            diesel::insert_into(relationship::table)
                .values((
                    relationship::customer_id.eq(of.customer_id.to_string()),
                    relationship::payer_id.eq(of.payer_id.to_string()),
                    relationship::reseller_id.eq(id_or_empty(of.reseller_id)),
                    relationship::is_active.eq(is_active),
                    relationship::revision.eq(revision),
                ))
                .on_conflict((relationship::customer_id, relationship::payer_id, relationship::reseller_id))
                .do_update()
                .set((relationship::is_active.eq(is_active), relationship::revision.eq(revision))),
            relationship::revision.lt(revision),
        )
        .execute(c)
    })?;
    Ok(())
}

/// Forgets relationships whose establishment a restore lost; what is left of the history says whether they are active.
/// Lost ends stay ends.
pub(crate) fn relationships_forget(connection: &mut Connection, lost: Restore) -> Result<(), Error> {
    query!(connection, c => {
        diesel::delete(
            relationship::table
                .filter(relationship::is_active.eq(true))
                .filter(relationship::revision.gt(lost.last_revision))
                .filter(relationship::revision.lt(lost.revision)),
        )
        .execute(c)
    })?;
    Ok(())
}

/// The active relationships of a payer and a customer.
pub(crate) fn relationships_active(
    connection: &mut Connection,
    customer: Uuid,
    payer: Uuid,
) -> Result<ActiveRelationships, Error> {
    let key = customer.to_string();
    let resellers: Vec<String> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(&key))
            .filter(relationship::payer_id.eq(payer.to_string()))
            .filter(relationship::is_active.eq(true))
            .select(relationship::reseller_id)
            .load(c)
    })?;
    let read = |reseller: String| at("relationship", &key).optional_id("reseller_id", &reseller);
    Ok(ActiveRelationships(resellers.into_iter().map(read).collect::<Result<_, _>>()?))
}
