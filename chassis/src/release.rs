//! Which release and which source a program is built of.

/// The version of the release, which all crates of the workspace share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of the source, as the build was given it in the environment variable `GIT_COMMIT`. Builds for development are
/// given none, so that a commit does not cause everything to be compiled again.
pub const COMMIT: &str = match option_env!("GIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Both, for `--version`.
#[must_use]
pub fn version() -> String {
    format!("{VERSION} (commit {COMMIT})")
}
