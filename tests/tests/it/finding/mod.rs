//! How people find things: lists with filters, on both databases.

mod acceptances;
mod customers;
mod dossier;
mod newest;
mod orders;
mod references;
mod timeline;
