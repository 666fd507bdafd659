//! Attestations: bulk import, and the mail that announces each.

mod import;
pub(crate) mod mail;
mod rate;
