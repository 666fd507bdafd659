//! The fences of customers. Each holds a fencing token: the revision of the last withdrawal or end of a relationship that was
//! applied for the customer. What the gate allowed is stored only behind the fence, on an answer that is not older than that
//! revision (WD-3), and that rests on no acceptance whose withdrawal was applied (WD-3a): after a restore agreement-svc may
//! count such an acceptance again.

use std::collections::{BTreeMap, BTreeSet};

use chassis::database::row::at;
use chassis::database::{Connection, Error, asking};
use chassis::query;
use diesel::prelude::*;
use diesel::query_dsl::methods::FilterDsl;
use uuid::Uuid;

use super::schema::fence;
use super::withdrawal::withdrawn_of;
use crate::rules::gate::Approval;

/// Why an answer of the gate does not count, however young it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Void {
    /// A withdrawal or end of a relationship newer than the answer was applied, of this revision: ask the gate again.
    Outdated { fence: i64 },
    /// It rests on an acceptance whose withdrawal was applied here (WD-3a).
    EvidenceWithdrawn { acceptance_id: Uuid },
}

/// Takes the fences of several customers, and gives the revision of each. `waits` says whether for another transaction that has
/// one of them: only a transaction that takes a single fence may, or some could wait for each other in a circle. Fences that
/// another transaction has are left out otherwise.
pub(super) fn fences_take(
    connection: &mut Connection,
    customers: &BTreeSet<Uuid>,
    waits: bool,
) -> Result<BTreeMap<Uuid, i64>, Error> {
    let ids: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    let known = || QueryDsl::filter(fence::table, fence::customer_id.eq_any(&ids)).order(fence::customer_id);
    asking(connection);
    let mut taken: Vec<(String, i64)> = match connection {
        // The transaction has the only lock there is.
        Connection::Sqlite(c) => {
            let mut taken = vec![];
            for id in ids.iter() {
                let known = fence::table.find(id).select((fence::customer_id, fence::fence_revision));
                taken.push(match known.get_result(c).optional()? {
                    Some(row) => row,
                    None => {
                        let row = (fence::customer_id.eq(id), fence::fence_revision.eq(0));
                        diesel::insert_into(fence::table).values(row).execute(c)?;
                        (id.clone(), 0)
                    }
                });
            }
            taken
        }
        Connection::Postgres(c) => match waits {
            true => known().for_update().load(c)?,
            false => known().for_update().skip_locked().load(c)?,
        },
    };
    if taken.len() < customers.len() {
        let insert = |connection: &mut Connection| fences_insert(connection, customers);
        let new = if waits { Some(insert(connection)?) } else { connection.without_waiting(insert)? };
        taken.extend(new.unwrap_or_default());
    }
    if waits
        && taken.len() < customers.len()
        && let Connection::Postgres(c) = connection
    {
        // Another transaction has just made the row.
        taken = known().for_update().load(c)?;
    }
    let read = |(id, revision): &(String, i64)| Ok((at("fence", id).parse("customer_id", id)?, *revision));
    taken.iter().map(read).collect()
}

/// Makes the fences that are not there, and gives them. One that another transaction has just made is not among them.
fn fences_insert(
    connection: &mut Connection,
    customers: &BTreeSet<Uuid>,
) -> Result<Vec<(String, i64)>, Error> {
    asking(connection);
    let Connection::Postgres(c) = connection else { return Ok(vec![]) };
    let ids: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    // To insert a row that is there would wait for the transaction that has it.
    let there = QueryDsl::filter(fence::table, fence::customer_id.eq_any(&ids));
    let there: Vec<String> = QueryDsl::select(there, fence::customer_id).load(c)?;
    let new = ids.iter().filter(|id| !there.contains(id));
    let rows: Vec<_> = new.map(|id| (fence::customer_id.eq(id), fence::fence_revision.eq(0))).collect();
    let insert = diesel::insert_into(fence::table).values(rows).on_conflict_do_nothing();
    Ok(insert.returning((fence::customer_id, fence::fence_revision)).load(c)?)
}

/// Why an answer of the gate, given at a revision, does not count behind a fence. `withdrawn`: the acceptances whose withdrawal was
/// applied.
pub(super) fn void(
    fence: i64,
    revision: i64,
    approval: &Approval,
    withdrawn: &BTreeSet<Uuid>,
) -> Option<Void> {
    if fence > revision {
        return Some(Void::Outdated { fence });
    }
    let accepted_on = approval.evidence.as_ref().map(|evidence| evidence.acceptance_id);
    let revived = accepted_on.filter(|id| withdrawn.contains(id));
    revived.map(|acceptance_id| Void::EvidenceWithdrawn { acceptance_id })
}

/// Why nothing would be stored on the gate's answer about a customer, given at a revision; for what is only validated (ORD-5).
pub(crate) fn answer_void(
    connection: &mut Connection,
    customer: Uuid,
    revision: i64,
    approval: &Approval,
) -> Result<Option<Void>, Error> {
    let fence: Option<i64> = query!(&mut *connection, c => {
        fence::table.find(customer.to_string()).select(fence::fence_revision).first(c).optional()
    })?;
    let evidence: Vec<Uuid> = approval.evidence.iter().map(|evidence| evidence.acceptance_id).collect();
    let withdrawn = withdrawn_of(connection, &evidence)?;
    Ok(void(fence.unwrap_or(0), revision, approval, &withdrawn))
}

/// Raises a customer's fence to the revision of an event, past which no older answer comes. It never falls,
/// also when an event is applied again.
pub(super) fn fence_raise(connection: &mut Connection, customer: Uuid, revision: i64) -> Result<(), Error> {
    query!(connection, c => {
        FilterDsl::filter(
            diesel::insert_into(fence::table)
                .values((fence::customer_id.eq(customer.to_string()), fence::fence_revision.eq(revision)))
                .on_conflict(fence::customer_id)
                .do_update()
                .set(fence::fence_revision.eq(revision)),
            fence::fence_revision.lt(revision),
        )
        .execute(c)
    })?;
    Ok(())
}
