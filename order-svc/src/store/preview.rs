//! The subscriptions that a preview is about (WD-6): those of a customer that have not ended, of one payer or of all.

use chassis::database::row::at;
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::dsl::count_star;
use diesel::prelude::*;
use uuid::Uuid;

use super::Viewer;
use super::open::{OPEN, Open, is_open, read_open};
use super::schema::subscription;
use crate::rules::preview::Group;
use crate::rules::withdrawal::SubscriptionFacts;

/// Which subscriptions a preview is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Previewed {
    pub customer_id: Uuid,
    pub payer_id: Option<Uuid>,
}

/// How many there are, by what the rules look at, but for revisions: what would happen now is later than all of them.
pub(crate) fn open_groups(connection: &mut Connection, of: Previewed) -> Result<Vec<Group>, Error> {
    let rows: Vec<(String, String, String, bool, String, i64)> = query!(connection, c => {
        let columns = (
            subscription::payer_id,
            subscription::reseller_id,
            subscription::state,
            subscription::auto_renew,
            subscription::term,
        );
        let mut groups = subscription::table
            .filter(subscription::customer_id.eq(of.customer_id.to_string()))
            .filter(is_open())
            .group_by(columns)
            .select((
                subscription::payer_id,
                subscription::reseller_id,
                subscription::state,
                subscription::auto_renew,
                subscription::term,
                count_star(),
            ))
            .into_boxed();
        if let Some(payer) = of.payer_id {
            groups = groups.filter(subscription::payer_id.eq(payer.to_string()));
        }
        groups.load(c)
    })?;
    let read = |(payer, reseller, state, auto_renew, term, count)| {
        let id = Uuid::nil().to_string();
        let (_, facts) = read_open((id, payer, reseller, state, auto_renew, term, 0, 0))?;
        let payer = facts.payer_id.to_string();
        Ok((facts, at("subscription", &payer).count("count", count)?))
    };
    rows.into_iter().map(read).collect()
}

/// Those that the viewer may see, after an id, in the order of their ids.
pub(crate) fn open_list(
    connection: &mut Connection,
    viewer: Viewer,
    of: Previewed,
    after: &str,
    limit: i64,
) -> Result<Vec<(Uuid, SubscriptionFacts)>, Error> {
    let rows: Vec<Open> = query!(connection, c => {
        let mut list = subscription::table
            .filter(subscription::customer_id.eq(of.customer_id.to_string()))
            .filter(is_open())
            .filter(subscription::id.gt(after))
            .order(subscription::id)
            .limit(limit)
            .select(OPEN)
            .into_boxed();
        if let Some(payer) = of.payer_id {
            list = list.filter(subscription::payer_id.eq(payer.to_string()));
        }
        if let Viewer::Partner(partner) = viewer {
            let partner = partner.to_string();
            let is_payer = subscription::payer_id.eq(partner.clone());
            list = list.filter(is_payer.or(subscription::reseller_id.eq(partner)));
        }
        list.load(c)
    })?;
    rows.into_iter().map(read_open).collect()
}
