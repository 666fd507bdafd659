//! Attestations: bulk import, and the mail that announces each.

mod customers;
mod import;
pub(crate) mod mail;
mod rate;
mod together;
