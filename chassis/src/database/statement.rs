//! Statements that a connection prepares once, although Diesel would prepare them anew at each call: it keeps none that is
//! written as text, updates rows, or inserts several.

use diesel::backend::Backend;
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error as DieselError;
use diesel::row::NamedRow;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel::{PgConnection, QueryResult, RunQueryDsl, sql_query};
use serde::Serialize;
use serde_json::Value;

/// A statement that a connection prepares once. It keeps each text, so there may be a few of them only: none with a list of
/// parameters of any length. It has to be run as a query that returns rows: where a statement is only executed, Diesel does not
/// ask what is safe to keep.
#[derive(Clone, Copy, Debug)]
pub struct Kept<Q>(pub Q);

impl<Q: Query> Query for Kept<Q> {
    type SqlType = Q::SqlType;
}

impl<Q, C> RunQueryDsl<C> for Kept<Q> {}

impl<Q: QueryId> QueryId for Kept<Q> {
    type QueryId = Q::QueryId;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for Kept<Q> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

/// A list, whose statement PostgreSQL plans at each call for the values in it. For a statement that a connection keeps, it soon makes
/// one plan for all values; where one partner has all rows, that plan reads all of them for a partner that has none. SQLite,
/// which has no such plans, prepares it once.
#[derive(Clone, Copy, Debug)]
pub struct Unkept<Q>(pub Q);

impl<Q: Query> Query for Unkept<Q> {
    type SqlType = Q::SqlType;
}

impl<Q, C> RunQueryDsl<C> for Unkept<Q> {}

impl<Q> QueryId for Unkept<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: QueryFragment<Pg>> QueryFragment<Pg> for Unkept<Q> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }

    fn is_safe_to_cache_prepared(&self, _: &Pg) -> QueryResult<bool> {
        Ok(false)
    }
}

impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for Unkept<Q> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.0.walk_ast(out)
    }
}

/// A statement whose text is the same for all values, which the connection finds by its type. It would have to write the text of
/// any other at each call, to find it by that. Such a statement does not compile here, but what is added to it later is not seen.
pub fn static_id<Q: QueryId>(statement: Q) -> Q {
    const { assert!(Q::HAS_STATIC_QUERY_ID, "the row needs `treat_none_as_default_value = false`") };
    statement
}

/// Inserts rows into a table of PostgreSQL, whose columns are the fields that they have in JSON. They are one parameter: with one
/// for each value the statement would have another text for each number of rows, and PostgreSQL takes twice as long to read it.
///
/// # Errors
/// The database's.
pub fn insert_as_json<R: Serialize>(
    c: &mut PgConnection,
    table: &str,
    rows: &[R],
    may_be_there: bool,
) -> QueryResult<()> {
    let unwritable = |error| DieselError::SerializationError(Box::new(error));
    let Some(first) = rows.first() else { return Ok(()) };
    let Value::Object(columns) = serde_json::to_value(first).map_err(unwritable)? else {
        return Err(DieselError::SerializationError("a row has no names of columns".into()));
    };
    let columns = columns.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let or = if may_be_there { " ON CONFLICT DO NOTHING" } else { "" };
    let insert = sql_query(format!(
        "INSERT INTO {table} ({columns}) \
         SELECT {columns} FROM json_populate_recordset(NULL::{table}, $1::json){or}"
    ));
    let insert = insert.bind::<Text, _>(serde_json::to_string(rows).map_err(unwritable)?);
    Kept(insert).load::<NoRow>(c).map(drop)
}

/// What a statement returns that returns no rows.
struct NoRow;

impl QueryableByName<Pg> for NoRow {
    fn build<'a>(_: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        Ok(Self)
    }
}
