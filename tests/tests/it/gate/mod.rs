//! The gate: what a check answers, and who will be blocked.

mod blocked;
mod checks;
mod considered;
