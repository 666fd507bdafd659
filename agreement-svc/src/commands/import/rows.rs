//! The rows of an import, with the request that each of them is.

use std::collections::HashMap;

use chassis::clock::Time;
use chassis::form::text::normalized;
use prost::Message;
use proto::types::Contact;
use uuid::Uuid;

use super::report::{RowOutcome, RowResult};
use crate::config::read_date;

/// The request ids of all rows are made in it.
const REQUEST_IDS: Uuid = Uuid::from_u128(0x7d0c_5f0e_39b1_4c55_9d1f_8a4e_6b2c_1e70);

/// A row of the file.
pub(super) struct Row<R> {
    pub(super) number: u64,
    /// Empty where the row has no valid id: what is no id could be anything, so it is not repeated.
    pub(super) customer_id: String,
    /// What the row asks for, or the result of a row that is not sent.
    pub(super) request: Result<R, RowResult>,
}

impl<R> Row<R> {
    pub(super) fn new(number: u64, customer_id: &str, request: Result<R, RowResult>) -> Self {
        let customer_id = Uuid::try_parse(customer_id).map(|id| id.to_string()).unwrap_or_default();
        Self { number, customer_id, request }
    }
}

/// Gives each row the request id that follows from what it sends and from how often the file had the same row before.
/// So a row that was sent is known again in another file, in another place, and beside rows that were corrected, and
/// one that sends something else, be it only another `--agreed-at`, is another request.
#[derive(Default)]
pub(super) struct RequestIds {
    sent: HashMap<Uuid, u32>,
}

impl RequestIds {
    /// The id of a request, whose own field for it is still empty.
    pub(super) fn give(&mut self, request: &impl Message) -> String {
        let content = Uuid::new_v5(&REQUEST_IDS, &request.encode_to_vec());
        let occurrence = self.sent.entry(content).or_default();
        *occurrence += 1;
        Uuid::new_v5(&content, &occurrence.to_be_bytes()).to_string()
    }
}

/// The result of a row whose cell cannot be sent.
pub(super) fn refused(cell: &str, problem: &str) -> RowResult {
    let message = format!("INVALID_FIELDS: {cell} {problem}");
    RowResult::locally(RowOutcome::Refused, "INVALID_FIELDS", &message)
}

/// A person, with text as the server keeps it, so that a row which another program saved anew is the same.
pub(super) fn contact(first_name: &str, last_name: &str, email: &str, phone: &str) -> Contact {
    Contact {
        first_name: normalized(first_name),
        last_name: normalized(last_name),
        email: normalized(email),
        phone: normalized(phone),
    }
}

/// The time in a cell; an empty cell has none.
pub(super) fn date(name: &str, cell: &str) -> Result<Option<Time>, RowResult> {
    if cell.is_empty() {
        return Ok(None);
    }
    read_date(cell).map(Some).map_err(|problem| refused(name, &problem))
}
