//! Model tests: random calls against the services and against a model of what must happen.

mod acceptance;
mod orders;
mod runner;
