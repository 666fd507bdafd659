//! Files that may change while they are used: keys, tokens, certificates. They are read again each
//! second, and what they say is swapped in at once, without a restart.
//!
//! Contents are compared and not times, so that a mounted folder whose links are switched counts as
//! changed. Files that make no sense are never used: at the start they are refused, later what was read
//! last goes on.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How often the files are looked at. Reading a few kilobytes that often costs nothing, and whoever
/// replaces a key does not wait for longer.
const INTERVAL: Duration = Duration::from_secs(1);

/// The largest file: a key set or a list of certificate authorities has a hundredth of that. What is
/// larger was named by mistake.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What some files say now. Clones share it; the files are looked at until the last of them is dropped.
pub struct Watched<T>(watch::Receiver<Snapshot<T>>);

struct Snapshot<T> {
    has_files: bool,
    /// What they said when they last made sense.
    value: Arc<T>,
    /// Whether they still did when they were last looked at.
    is_valid: bool,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files, which have to make sense together, and goes on doing so on the current runtime.
    /// `parse` is given their contents in the order of the files.
    ///
    /// # Errors
    /// The file that cannot be read, or what `parse` says of their contents.
    pub fn open(
        files: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, String> {
        let mut seen = read_all(&files);
        let first = parse_read(&files, &seen, &parse)?;
        let has_files = !files.is_empty();
        let (sender, receiver) =
            watch::channel(Snapshot { has_files, value: Arc::new(first), is_valid: true });
        if !has_files {
            return Ok(Self(receiver));
        }
        let look = async move {
            let files = Arc::new(files);
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
                let these = files.clone();
                // A folder on the network may be slow to answer, and calls must not wait for it.
                let Ok(contents) = tokio::task::spawn_blocking(move || read_all(&these)).await else {
                    continue;
                };
                if contents == seen {
                    continue;
                }
                match parse_read(&files, &contents, &parse) {
                    Ok(value) => {
                        sender.send_replace(Snapshot { has_files, value: Arc::new(value), is_valid: true });
                        tracing::info!(files = names(&files), "read again after a change");
                    }
                    Err(why) => {
                        sender.send_modify(|said| said.is_valid = false);
                        tracing::error!(why, "what was read before goes on; put the file right");
                    }
                }
                seen = contents;
            }
        };
        tokio::spawn(look);
        Ok(Self(receiver))
    }

    /// What they said when they last made sense.
    #[must_use]
    pub fn now(&self) -> Arc<T> {
        self.0.borrow().value.clone()
    }

    /// Whether there are any.
    pub(crate) fn has_files(&self) -> bool {
        self.0.borrow().has_files
    }

    /// Whether they make sense now. If not, what they said before goes on, and nothing could start with them.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.0.borrow().is_valid
    }
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Watched<T> {
    /// Says nothing of the contents, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

/// Reads a file once, within the same bounds.
///
/// # Errors
/// Why it cannot be read, naming it.
pub fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut contents = vec![];
    let opened = File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut contents));
    match opened {
        Err(error) => Err(format!("{}: {error}", file.display())),
        Ok(read) if read as u64 > FILE_BYTES_MAX => {
            Err(format!("{}: larger than {FILE_BYTES_MAX} bytes", file.display()))
        }
        Ok(_) => Ok(contents),
    }
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    files.iter().map(|file| read(file)).collect()
}

fn parse_read<T>(
    files: &[PathBuf],
    contents: &Result<Vec<Vec<u8>>, String>,
    parse: &impl Fn(&[Vec<u8>]) -> Result<T, String>,
) -> Result<T, String> {
    let contents = contents.as_ref().map_err(Clone::clone)?;
    parse(contents).map_err(|why| format!("{}: {why}", names(files)))
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, String> {
        let text = String::from_utf8_lossy(&contents[0]).into_owned();
        text.parse().map_err(|_| "no number".to_owned())
    }

    async fn becomes(reread: &Watched<u32>, value: u32) {
        let mut receiver = reread.0.clone();
        let waiting = receiver.wait_for(|now| *now.value == value && now.is_valid);
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        std::fs::write(&file, "1").unwrap();
        let reread = Watched::open(vec![file.clone()], number).unwrap();
        assert_eq!(*reread.now(), 1);
        std::fs::write(&file, "2").unwrap();
        becomes(&reread, 2).await;
        for bad in ["three", ""] {
            std::fs::write(&file, bad).unwrap();
            tokio::time::sleep(2 * INTERVAL).await;
            assert_eq!((*reread.now(), reread.is_valid()), (2, false));
        }
        // Also as it was before.
        std::fs::write(&file, "2").unwrap();
        becomes(&reread, 2).await;
        std::fs::remove_file(&file).unwrap();
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!((*reread.now(), reread.is_valid()), (2, false));
        std::fs::write(&file, "4").unwrap();
        becomes(&reread, 4).await;
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_that_is_switched_to_another_folder_counts_as_a_change() {
        let folder = tempfile::tempdir().unwrap();
        for (version, number) in [("one", "1"), ("two", "2")] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
            std::fs::write(folder.path().join(version).join("number"), number).unwrap();
        }
        let link = |to: &str| {
            let fresh = folder.path().join("fresh");
            std::os::unix::fs::symlink(folder.path().join(to), &fresh).unwrap();
            std::fs::rename(fresh, folder.path().join("current")).unwrap();
        };
        link("one");
        let reread = Watched::open(vec![folder.path().join("current/number")], number).unwrap();
        link("two");
        becomes(&reread, 2).await;
    }

    #[tokio::test]
    async fn a_file_that_is_bad_or_missing_at_the_start_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        assert!(Watched::open(vec![file.clone()], number).unwrap_err().contains("number"));
        std::fs::write(&file, "one").unwrap();
        assert!(Watched::open(vec![file.clone()], number).unwrap_err().contains("no number"));
        std::fs::write(&file, vec![b'1'; 5 << 20]).unwrap();
        assert!(Watched::open(vec![file], number).unwrap_err().contains("larger"));
    }
}
