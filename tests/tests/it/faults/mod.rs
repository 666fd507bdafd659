//! Fault injection: races, crashes, cut connections and overload.

mod crashes;
mod databases;
mod discovery;
mod dns;
mod overload;
mod races;
pub(crate) mod relay;
pub(crate) mod tcp_proxy;
mod trouble;
