//! What a call does, below the wire: an effect or answer that calls share, or that is more than a screen of its call,
//! one function each.
//!
//! Invariant: nothing here knows messages, statuses or SQL. An action takes a connection or a change, asks the
//! rules, and gives a value or a refusal back.

pub(crate) mod attest;
pub(crate) mod blocked;
pub(crate) mod customer;
pub(crate) mod gate;
pub(crate) mod impact;
pub(crate) mod invite;
pub(crate) mod propose;
mod rate;
pub(crate) mod sign;
pub(crate) mod template;
pub(crate) mod visibility;
pub(crate) mod withdraw;
