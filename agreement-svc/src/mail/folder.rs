//! The mail folder: mails are written as files when there is no mail server, and found again to erase a person.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use uuid::Uuid;

use crate::store::erase::Person;

/// How much of a mail is searched for its header, which is a few lines.
const MAIL_HEADER_BYTES_MAX: u64 = 64 * 1024;

/// The folder of written mails: the mail of an attestation is `ATTESTATION_ID.eml`, that of several has the id of the
/// first. A mail that is being written, or whose writer was cut off, is `.ATTESTATION_ID.unfinished`.
#[derive(Clone)]
pub(crate) struct MailFolder(pub PathBuf);

impl MailFolder {
    fn finished(&self, id: Uuid) -> PathBuf {
        self.0.join(format!("{id}.eml"))
    }

    fn unfinished(&self, id: Uuid) -> PathBuf {
        self.0.join(format!(".{id}.unfinished"))
    }

    /// Writes a mail in one step, so that a reader of the folder sees all of it or nothing.
    pub(super) fn write(&self, id: Uuid, mail: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let unfinished = self.unfinished(id);
        private(&unfinished)?.write_all(mail)?;
        fs::rename(unfinished, self.finished(id))
    }

    /// The mails with these ids, whether they were written or not.
    pub(crate) fn of(&self, ids: &[Uuid]) -> Vec<PathBuf> {
        ids.iter().flat_map(|id| [self.finished(*id), self.unfinished(*id)]).collect()
    }

    /// The mails that a person is the addressee of, or that of their replies, whatever its customer's contact is now.
    pub(crate) fn addressed_to(&self, person: &Person) -> anyhow::Result<Vec<PathBuf>> {
        let failed = "the mail folder cannot be searched";
        let mut found = vec![];
        for entry in fs::read_dir(&self.0).context(failed)? {
            let entry = entry.context(failed)?;
            let path = entry.path();
            let is_mail = path.extension().is_some_and(|suffix| suffix == "eml" || suffix == "unfinished")
                && entry.file_type().context(failed)?.is_file();
            if is_mail && is_to(&path, person).context(failed)? {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Deletes files and answers which of them there were. The folder is flushed: a file must not come
    /// back after a power failure that the commit survived.
    pub(crate) fn delete(&self, paths: Vec<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
        let failed = "a mail cannot be deleted";
        let mut deleted = vec![];
        for path in paths {
            match fs::remove_file(&path) {
                Ok(()) => deleted.push(path),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(failed),
            }
        }
        if !deleted.is_empty() {
            File::open(&self.0).and_then(|folder| folder.sync_all()).context(failed)?;
        }
        Ok(deleted)
    }
}

/// An empty file that only its owner may read and write, whatever the umask and whatever was left behind there.
fn private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

/// Whether a mail is addressed to a person, or its replies are: the address is a word of the field `To` or `Reply-To`.
fn is_to(path: &Path, person: &Person) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Deleted in the meantime.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut is_in_to = false;
    for line in BufReader::new(file.take(MAIL_HEADER_BYTES_MAX)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            break;
        }
        if !line.starts_with([' ', '\t']) {
            let begins =
                |field: &str| line.get(..field.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(field));
            is_in_to = begins("to:") || begins("reply-to:");
        }
        let mut words = line.split(|c: char| c.is_whitespace() || ":,;<>()\"".contains(c));
        if is_in_to && words.any(|word| person.has(word)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_its_owner_reads_a_mail() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, id) = (MailFolder(folder.path().to_owned()), Uuid::from_u128(1));
        // Left behind by a writer that was cut off.
        fs::write(folder.unfinished(id), "half").unwrap();
        fs::set_permissions(folder.unfinished(id), fs::Permissions::from_mode(0o644)).unwrap();
        folder.write(id, b"mail").unwrap();
        let mode = fs::metadata(folder.finished(id)).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, fs::read(folder.finished(id)).unwrap()), (0o600, b"mail".to_vec()));
    }
}
