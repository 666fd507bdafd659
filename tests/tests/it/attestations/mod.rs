//! Attestations: bulk import, and the mail that announces each.

mod customers;
mod import;
mod import_customers;
pub(crate) mod mail;
mod rate;
mod together;
