//! Both services together: what they promise, over real gRPC, on both databases.

mod access;
mod bad_input;
mod concurrency;
mod fail_closed;
mod gate;
mod samples;
mod stories;
mod tidy;
