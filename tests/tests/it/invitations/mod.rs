//! Invitations and direct signatures.

mod answers;
mod direct_sign;
