//! Invitations and direct signatures.

mod direct_sign;
