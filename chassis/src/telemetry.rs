//! What the process says about itself: log lines here, traces in [`trace`]. Numbers are in
//! [`metrics`](crate::metrics).

pub mod trace;

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line, for machines.
    Json,
}

/// What libraries may say at most, whatever `RUST_LOG` asks for. Below it those that carry calls and mails
/// write out what passes through them, which is other people's names, addresses and tokens.
const LIBRARIES_MAX: Level = Level::DEBUG;

/// Starts logging to standard error. `RUST_LOG` filters; without it `info` and above are shown. Only the
/// crates `own` and this one are heard below `debug`.
/// A second call in the same process has no effect.
pub fn start(format: LogFormat, own: &'static [&'static str]) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let is_own = move |target: &str| {
        let name = target.split("::").next().unwrap_or_default();
        own.contains(&name) || name == env!("CARGO_CRATE_NAME")
    };
    let discreet = filter_fn(move |metadata| *metadata.level() <= LIBRARIES_MAX || is_own(metadata.target()));
    let started = tracing_subscriber::registry().with(lines).with(discreet).with(filter).try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
