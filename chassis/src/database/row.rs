//! From stored columns to values. An impossible value makes the row corrupt: another program wrote to the database.

use std::str::FromStr;

use chrono::NaiveDateTime;
use uuid::Uuid;

use super::Error;
use crate::clock::Time;

/// The place of a value, for the error that it is corrupt.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    table: &'static str,
    key: &'a str,
}

/// The row of a table with a key.
#[must_use]
pub fn at<'a>(table: &'static str, key: &'a str) -> At<'a> {
    At { table, key }
}

impl At<'_> {
    /// A column with an impossible value.
    #[must_use]
    pub fn corrupt(self, column: &'static str) -> Error {
        Error::Corrupt { table: self.table, key: self.key.to_owned(), column }
    }

    /// Text that must parse.
    ///
    /// # Errors
    /// It does not.
    pub fn parse<T: FromStr>(self, column: &'static str, value: &str) -> Result<T, Error> {
        value.parse().map_err(|_| self.corrupt(column))
    }

    /// A name that must be one of an enum's.
    ///
    /// # Errors
    /// It is not.
    pub fn named<T>(self, column: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.corrupt(column))
    }

    /// A number that must be neither negative nor too large.
    ///
    /// # Errors
    /// It is.
    pub fn count<N>(self, column: &'static str, value: N) -> Result<u32, Error>
    where
        u32: TryFrom<N>,
    {
        u32::try_from(value).map_err(|_| self.corrupt(column))
    }

    /// An id that is stored as `''` where there is none.
    ///
    /// # Errors
    /// It is neither.
    pub fn optional_id(self, column: &'static str, value: &str) -> Result<Option<Uuid>, Error> {
        (!value.is_empty()).then(|| self.parse(column, value)).transpose()
    }
}

/// A stored time.
#[must_use]
pub fn utc(time: NaiveDateTime) -> Time {
    time.and_utc()
}

/// An optional id as it is stored: `''` where there is none, so that unique indexes see it.
#[must_use]
pub fn id_or_empty(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
