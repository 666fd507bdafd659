//! The relationships of payers, customers and resellers, as far as agreement-svc's history was applied.

use std::collections::{BTreeMap, BTreeSet};

use chassis::database::row::{at, id_or_empty};
use chassis::database::{Connection, Error};
use chassis::{find_rows, query};
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{follower, relationship};
use crate::rules::history::Restore;
use crate::rules::relationship::{Relationship, Relationships};

/// Stores what an event of a revision says of a relationship, unless a later one is known: when the history is followed
/// again, what happened last stays. After a restore a later end counts, and a later beginning does not: it may be lost.
pub(super) fn relationship_write(
    connection: &mut Connection,
    of: Relationship,
    is_active: bool,
    revision: i64,
) -> Result<(), Error> {
    use diesel::query_dsl::methods::FilterDsl;
    let restores = restores(connection)?;
    query!(connection, c => {
        FilterDsl::filter(
            diesel::insert_into(relationship::table)
                .values((
                    relationship::customer_id.eq(of.customer_id.to_string()),
                    relationship::payer_id.eq(of.payer_id.to_string()),
                    relationship::reseller_id.eq(id_or_empty(of.reseller_id)),
                    relationship::is_active.eq(is_active),
                    relationship::revision.eq(revision),
                    relationship::restores.eq(restores),
                ))
                .on_conflict((relationship::customer_id, relationship::payer_id, relationship::reseller_id))
                .do_update()
                .set((
                    relationship::is_active.eq(is_active),
                    relationship::revision.eq(revision),
                    relationship::restores.eq(restores),
                )),
            relationship::revision
                .le(revision)
                .or(relationship::is_active.eq(true).and(relationship::restores.ne(restores))),
        )
        .execute(c)
    })?;
    Ok(())
}

/// Notes a restore: it is not known from which event on the history differs, so no relationship counts as active until the
/// history has been followed again. Lost ends stay ends.
pub(crate) fn relationships_forget(connection: &mut Connection, lost: Restore) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(follower::table)
            .set((
                follower::relationships_complete_at.eq(lost.revision),
                follower::restores.eq(follower::restores + 1),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Notes a restore after which a version without relationships took the cursor back, so that they are known up to `known`,
/// beyond it. False, and nothing done, where that is not so any more.
pub(crate) fn relationships_restart(connection: &mut Connection, known: i64) -> Result<bool, Error> {
    let ahead = follower::table
        .filter(follower::relationships_revision.eq(known))
        .filter(follower::revision.lt(known));
    let restarted = query!(connection, c => {
        diesel::update(ahead)
            .set((
                follower::relationships_revision.eq(0),
                follower::relationships_complete_at.eq(known),
                follower::restores.eq(follower::restores + 1),
            ))
            .execute(c)
    })?;
    Ok(restarted > 0)
}

fn restores(connection: &mut Connection) -> Result<i32, Error> {
    Ok(query!(connection, c => follower::table.select(follower::restores).first(c))?)
}

/// The relationships of a payer and a customer; `None` while the history is followed again and they are not all known.
pub(crate) fn relationships_of(
    connection: &mut Connection,
    customer: Uuid,
    payer: Uuid,
) -> Result<Option<Relationships>, Error> {
    let key = (customer, payer);
    Ok(relationships_of_all(connection, &BTreeSet::from([key]))?.remove(&key))
}

/// The relationships of some customers, each with a payer; none of them while they are not all known.
pub(super) fn relationships_of_all(
    connection: &mut Connection,
    keys: &BTreeSet<(Uuid, Uuid)>,
) -> Result<BTreeMap<(Uuid, Uuid), Relationships>, Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let complete = follower::table
        .filter(follower::relationships_revision.eq(follower::revision))
        .filter(follower::relationships_revision.ge(follower::relationships_complete_at))
        .select((follower::restores, follower::revision));
    let here: Option<(i32, i64)> = query!(&mut *connection, c => complete.first(c).optional())?;
    let Some((restores, applied)) = here else { return Ok(BTreeMap::new()) };
    let none = || Relationships { applied, ..Relationships::default() };
    let mut found: BTreeMap<_, _> = keys.iter().map(|key| (*key, none())).collect();
    let customers: BTreeSet<Uuid> = keys.iter().map(|(customer, _)| *customer).collect();
    let customers: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    let rows: Vec<(String, String, String, bool, i32)> = find_rows!(connection, relationship::customer_id,
    &customers, has_customer => relationship::table
        .filter(has_customer)
        .filter(relationship::is_active.eq(true).or(relationship::restores.ne(restores)))
        .select((
            relationship::customer_id,
            relationship::payer_id,
            relationship::reseller_id,
            relationship::is_active,
            relationship::restores,
        )))?;
    for (customer, payer, reseller, is_active, seen) in rows {
        let row = at("relationship", &customer);
        let key = (row.parse("customer_id", &customer)?, row.parse("payer_id", &payer)?);
        let Some(found) = found.get_mut(&key) else { continue };
        let reseller = row.optional_id("reseller_id", &reseller)?;
        match is_active {
            true if seen == restores => found.active.push(reseller),
            // Its beginning was lost.
            true => {}
            false => found.lost_ends.push(reseller),
        }
    }
    Ok(found)
}
