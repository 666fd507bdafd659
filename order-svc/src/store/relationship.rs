//! The relationships of payers, customers and resellers, as far as agreement-svc's history was applied.

use chassis::database::row::{at, id_or_empty};
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::dsl::exists;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{follower, relationship};
use crate::rules::history::Restore;
use crate::rules::relationship::{Relationship, Relationships};

/// Stores what an event of a revision says of a relationship, unless a later one is known: when the history is followed
/// again, what happened last stays, and is confirmed once its event is there again.
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
                    relationship::is_confirmed.eq(true),
                ))
                .on_conflict((relationship::customer_id, relationship::payer_id, relationship::reseller_id))
                .do_update()
                .set((
                    relationship::is_active.eq(is_active),
                    relationship::revision.eq(revision),
                    relationship::is_confirmed.eq(true),
                )),
            relationship::revision.le(revision),
        )
        .execute(c)
    })?;
    Ok(())
}

/// Forgets every active relationship from before a restore: it is not known from which event on the history differs, and
/// following it again brings back what is active. Lost ends stay ends, and are not confirmed again.
pub(crate) fn relationships_forget(connection: &mut Connection, lost: Restore) -> Result<(), Error> {
    let of_before = relationship::table
        .filter(relationship::is_active.eq(true))
        .filter(relationship::revision.lt(lost.revision));
    query!(&mut *connection, c => diesel::delete(of_before).execute(c))?;
    let ends = relationship::table.filter(relationship::revision.lt(lost.revision));
    query!(&mut *connection, c => diesel::update(ends).set(relationship::is_confirmed.eq(false)).execute(c))?;
    query!(connection, c => {
        diesel::update(follower::table)
            .set(follower::relationships_complete_at.eq(lost.revision))
            .execute(c)
    })?;
    Ok(())
}

/// The relationships of a payer and a customer; `None` while the history is followed again and they are not all known.
pub(crate) fn relationships_of(
    connection: &mut Connection,
    customer: Uuid,
    payer: Uuid,
) -> Result<Option<Relationships>, Error> {
    let complete = follower::table
        .filter(follower::relationships_revision.ge(follower::revision))
        .filter(follower::relationships_revision.ge(follower::relationships_complete_at));
    if !query!(&mut *connection, c => diesel::select(exists(complete)).get_result(c))? {
        return Ok(None);
    }
    let key = customer.to_string();
    let rows: Vec<(String, bool)> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(&key))
            .filter(relationship::payer_id.eq(payer.to_string()))
            .filter(relationship::is_active.eq(true).or(relationship::is_confirmed.eq(false)))
            .select((relationship::reseller_id, relationship::is_active))
            .load(c)
    })?;
    let mut found = Relationships::default();
    for (reseller, is_active) in rows {
        let reseller = at("relationship", &key).optional_id("reseller_id", &reseller)?;
        match is_active {
            true => found.active.push(reseller),
            false => found.lost_ends.push(reseller),
        }
    }
    Ok(Some(found))
}
