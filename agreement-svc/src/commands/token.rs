//! The commands that make a key and sign tokens with it: for development, and for services where no identity provider
//! else issues any. The service itself holds public keys only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use chassis::auth::Caller;
use chassis::auth::jwt::signing::{SigningKey, claims};
use chassis::clock::Clock;
use chassis::reload;
use proto::identity::Role;

use crate::config::Token;

/// Makes a key that signs and the set of keys that verifies: `signing-key.pem`, which only its owner can
/// read, and `jwks.json`. Neither is overwritten.
///
/// # Errors
/// A file that is there already or cannot be written.
pub fn make_key(folder: &Path) -> anyhow::Result<()> {
    let (key, pem) = SigningKey::generate()?;
    let public = SigningKey::public_set(&[&key]);
    let (secret_file, public_file) = (folder.join("signing-key.pem"), folder.join("jwks.json"));
    let name = |file: &Path| file.display().to_string();
    fs::create_dir_all(folder).with_context(|| name(folder))?;
    // The public part first: a key that signs is of no use without it.
    let written = new_file(&public_file, 0o644).and_then(|mut file| file.write_all(public.as_bytes()));
    written.with_context(|| name(&public_file))?;
    let written = new_file(&secret_file, 0o600).and_then(|mut file| file.write_all(pem.as_bytes()));
    if written.is_err() {
        let _ = fs::remove_file(&public_file);
    }
    written.with_context(|| name(&secret_file))
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has such modes"))]
fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    options.open(path)
}

/// A signed token for whom the settings name.
///
/// # Errors
/// A key that cannot be read.
pub fn sign(settings: &Token, clock: &Clock) -> anyhow::Result<String> {
    let file = &settings.signing_key;
    let key = SigningKey::read(&reload::read(file)?).with_context(|| file.display().to_string())?;
    let caller = Caller {
        tenant_kind: settings.tenant_kind.into_str(),
        tenant_id: settings.tenant_id,
        user_id: settings.user_id,
        roles: settings.roles.iter().map(Role::into_str).collect(),
        channel: settings.channel,
        client: None,
    };
    let claims = claims(&caller, &settings.issuer, &settings.audience, clock.now(), settings.valid_for);
    key.sign(&claims)
}
