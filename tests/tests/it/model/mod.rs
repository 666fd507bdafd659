//! Model tests: random calls against the services and against a model of what must happen.

pub(crate) mod acceptance;
mod orders;
