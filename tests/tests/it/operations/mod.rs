//! What operators rely on: settings, TLS and tokens, metrics, traces, logs, upgrades.

mod identity_providers;
mod kubernetes;
mod metrics;
mod no_secrets_in_logs;
mod settings;
mod tls_and_tokens;
pub(crate) mod traces;
mod upgrade;
