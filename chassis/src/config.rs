//! Settings that both services share.

/// Lets a setting be given by environment variable, too: `PREFIX_` and its flag in upper case. For settings that both
/// services share, each with its own prefix.
#[must_use]
pub fn with_env(prefix: &str, setting: clap::Arg) -> clap::Arg {
    match (setting.get_long(), setting.get_env()) {
        (Some(flag), None) => {
            let variable = format!("{prefix}_{}", flag.to_uppercase().replace('-', "_"));
            setting.env(variable)
        }
        _ => setting,
    }
}
