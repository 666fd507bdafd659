//! The commands that make a key and sign tokens with it: for development, and for services where no identity provider
//! else issues any. The service itself holds public keys only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use chassis::auth::Caller;
use chassis::auth::jwt::signing::{SigningKey, claims};
use chassis::clock::Clock;
use chassis::reload;
use proto::identity::Role;

use super::Failure;
use crate::config::Token;

/// Makes a key that signs and the set of keys that verifies: `signing-key.pem`, which only its owner can
/// read, and `jwks.json`. Neither is overwritten.
///
/// # Errors
/// A file that is there already or cannot be written.
pub fn make_key(folder: &Path) -> Result<(), Failure> {
    let (key, pem) = SigningKey::generate()?;
    let public = SigningKey::public_set(&[&key]);
    let (secret_file, public_file) = (folder.join("signing-key.pem"), folder.join("jwks.json"));
    let failed = |file: &Path, error: io::Error| format!("{}: {error}", file.display());
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    // The public part first: a key that signs is of no use without it.
    let written = new_file(&public_file, 0o644).and_then(|mut file| file.write_all(public.as_bytes()));
    written.map_err(|error| failed(&public_file, error))?;
    let written = new_file(&secret_file, 0o600).and_then(|mut file| file.write_all(pem.as_bytes()));
    written.map_err(|error| {
        let _ = fs::remove_file(&public_file);
        failed(&secret_file, error).into()
    })
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
pub fn sign(settings: &Token, clock: &Clock) -> Result<String, Failure> {
    let file = &settings.signing_key;
    let key = SigningKey::read(&reload::read(file)?).map_err(|why| format!("{}: {why}", file.display()))?;
    let caller = Caller {
        tenant_kind: settings.tenant_kind.into_str(),
        tenant_id: settings.tenant_id,
        user_id: settings.user_id,
        roles: settings.roles.iter().map(Role::into_str).collect(),
        channel: settings.channel,
    };
    let claims = claims(&caller, &settings.issuer, &settings.audience, clock.now(), settings.valid_for);
    Ok(key.sign(&claims)?)
}
