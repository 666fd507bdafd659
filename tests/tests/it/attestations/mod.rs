//! Attestations and customers: bulk import, and the mail that announces each attestation.

mod customers;
mod evidence;
mod import;
mod import_customers;
pub(crate) mod mail;
mod moving_in;
mod proposals;
mod rate;
mod shown_text;
mod together;
mod uncovered;
