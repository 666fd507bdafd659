//! Reading a request's fields: every bad field is found, not only the first.
//!
//! A reader returns a placeholder for a bad field and remembers it; [`Form::finish`] must be asked
//! before any value is used.

use chrono::DateTime;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::clock::Time;

pub mod text;

/// One bad field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path in the request, as in `lines[2].quantity`.
    pub field: String,
    /// What is wrong and what would be right. Never the value itself: it may be personal.
    pub problem: String,
}

/// The bad fields found so far.
#[derive(Debug, Default)]
pub struct Form {
    violations: Vec<Violation>,
}

impl Form {
    /// Nothing found yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a bad field.
    pub fn violation(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.violations.push(Violation { field: field.into(), problem: problem.into() });
    }

    /// A required id: a UUID in lower case with hyphens.
    pub fn id(&mut self, field: &str, value: &str) -> Uuid {
        let parsed = Uuid::try_parse(value).ok().filter(|id| !id.is_nil() && id.to_string() == value);
        parsed.unwrap_or_else(|| {
            let problem = if value.is_empty() { "is required" } else { "must be a lower-case UUID" };
            self.violation(field, problem);
            Uuid::nil()
        })
    }

    /// An id that may be left empty.
    pub fn optional_id(&mut self, field: &str, value: &str) -> Option<Uuid> {
        (!value.is_empty()).then(|| self.id(field, value))
    }

    /// Text of `min` to `max` characters, as [`text::normalized`] leaves it: all of it can be seen, and something can
    /// where text is required.
    pub fn text(&mut self, field: &str, value: &str, min: usize, max: usize) -> String {
        let text = text::normalized(value);
        let length = text.chars().count();
        if length < min && length == 0 {
            self.violation(field, "is required");
        } else if length < min || length > max {
            self.violation(field, format!("must have {min} to {max} characters"));
        } else if let Some(problem) = text::unseen(&text) {
            self.violation(field, problem);
        } else if length > 0 && !text::is_visible(&text) {
            self.violation(field, "must have a letter, a digit or a sign");
        }
        text
    }

    /// A required time in whole microseconds, in the years 2010 to 9999.
    pub fn time(&mut self, field: &str, value: Option<&Timestamp>) -> Time {
        if value.is_none() {
            self.violation(field, "is required");
        }
        self.optional_time(field, value).unwrap_or(DateTime::UNIX_EPOCH)
    }

    /// A time that may be absent. One before 2010, which nothing here is, is no time: clients send the first second of 1970
    /// or the year 1 for a time that was not set.
    pub fn optional_time(&mut self, field: &str, value: Option<&Timestamp>) -> Option<Time> {
        const YEAR_2010: i64 = 1_262_304_000;
        const YEAR_10000: i64 = 253_402_300_800;
        let value = value?;
        let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        let time = nanos
            .filter(|_| (YEAR_2010..YEAR_10000).contains(&value.seconds))
            .and_then(|nanos| DateTime::from_timestamp(value.seconds, nanos));
        match time {
            None => self.violation(
                field,
                "must be a time in the years 2010 to 9999; an earlier one is taken for one that was not set",
            ),
            Some(time) if time.timestamp_subsec_nanos() % 1000 != 0 => {
                self.violation(field, "must be in whole microseconds: leave out what is finer");
            }
            Some(_) => return time,
        }
        None
    }

    /// Whether a field was found to be bad.
    #[must_use]
    pub fn has_violation(&self, field: &str) -> bool {
        self.violations.iter().any(|violation| violation.field == field)
    }

    /// Whether nothing was found so far.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.violations.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every bad field, in the order found.
    pub fn finish(self) -> Result<(), Vec<Violation>> {
        if self.violations.is_empty() { Ok(()) } else { Err(self.violations) }
    }
}

/// A time as the wire carries it.
#[must_use]
pub fn timestamp(time: Time) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(i32::MAX),
    }
}
