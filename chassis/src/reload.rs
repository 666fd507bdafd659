//! Hot reload of files: keys, tokens, certificates. The files are read each second, and a changed one takes effect at
//! once, without a restart.
//!
//! Contents are compared and not times, so a mounted folder whose links are switched counts as changed. Invalid files are
//! never used: at the start they are refused, and later the previous contents stay in force.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use tokio::sync::watch;

/// How often the files are read. Reading a few kilobytes that often costs nothing, and a replaced key takes effect within
/// a second.
const INTERVAL: Duration = Duration::from_secs(1);

/// The largest file: a key set or a list of CA certificates has a hundredth of that. A larger file was named by
/// mistake.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The parsed contents of some files. Clones share them; the files are watched until the last clone is dropped.
pub struct Watched<T>(watch::Receiver<Snapshot<T>>);

struct Snapshot<T> {
    has_files: bool,
    /// The last valid contents.
    value: Arc<T>,
    /// Whether the current contents are valid.
    is_valid: bool,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files, which must be valid together, and reloads them on this runtime from then on. `parse` gets their
    /// contents in the order of the files.
    ///
    /// # Errors
    /// A file that cannot be read, or the error of `parse`.
    pub fn open(
        files: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut seen = read_all(&files);
        let first = parse_read(&files, &seen, &parse)?;
        let has_files = !files.is_empty();
        let (sender, receiver) =
            watch::channel(Snapshot { has_files, value: Arc::new(first), is_valid: true });
        if !has_files {
            return Ok(Self(receiver));
        }
        let watch = async move {
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
                        tracing::info!(files = names(&files), "the files were reloaded");
                    }
                    Err(why) => {
                        sender.send_modify(|snapshot| snapshot.is_valid = false);
                        tracing::error!(
                            why = format!("{why:#}"),
                            "a changed file is invalid; the previous contents stay in force"
                        );
                    }
                }
                seen = contents;
            }
        };
        tokio::spawn(watch);
        Ok(Self(receiver))
    }

    /// The last valid contents.
    #[must_use]
    pub fn now(&self) -> Arc<T> {
        self.0.borrow().value.clone()
    }

    /// Whether any files are watched.
    pub(crate) fn has_files(&self) -> bool {
        self.0.borrow().has_files
    }

    /// Whether the current contents are valid. If not, the previous ones stay in force, and a restart would fail.
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
    /// Shows nothing of the contents, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

/// The mark that editors on Windows put before UTF-8. None of the formats knows it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a file once, within the same bounds. A byte order mark before the text is left out.
///
/// # Errors
/// The file cannot be read; the message names it.
pub fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let name = file.display();
    let mut contents = vec![];
    let opened = File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut contents));
    let read = opened.with_context(|| name.to_string())?;
    ensure!(read as u64 <= FILE_BYTES_MAX, "{name}: larger than {FILE_BYTES_MAX} bytes");
    if contents.starts_with(BYTE_ORDER_MARK) {
        contents.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(contents)
}

/// The contents of all files, or the text of an error: an error itself cannot be compared with the one before.
fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    files.iter().map(|file| read(file).map_err(|error| format!("{error:#}"))).collect()
}

fn parse_read<T>(
    files: &[PathBuf],
    contents: &Result<Vec<Vec<u8>>, String>,
    parse: &impl Fn(&[Vec<u8>]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let contents = contents.as_ref().map_err(|why| anyhow!("{why}"))?;
    parse(contents).with_context(|| names(files))
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> anyhow::Result<u32> {
        String::from_utf8_lossy(&contents[0]).parse().context("no number")
    }

    async fn becomes(watched: &Watched<u32>, value: u32) {
        let mut receiver = watched.0.clone();
        let waiting = receiver.wait_for(|now| *now.value == value && now.is_valid);
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_changed_file_is_reloaded_and_an_invalid_one_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        std::fs::write(&file, "1").unwrap();
        let watched = Watched::open(vec![file.clone()], number).unwrap();
        assert_eq!(*watched.now(), 1);
        std::fs::write(&file, "2").unwrap();
        becomes(&watched, 2).await;
        for bad in ["three", ""] {
            std::fs::write(&file, bad).unwrap();
            tokio::time::sleep(2 * INTERVAL).await;
            assert_eq!((*watched.now(), watched.is_valid()), (2, false));
        }
        // The previous contents are valid again.
        std::fs::write(&file, "2").unwrap();
        becomes(&watched, 2).await;
        std::fs::remove_file(&file).unwrap();
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!((*watched.now(), watched.is_valid()), (2, false));
        std::fs::write(&file, "4").unwrap();
        becomes(&watched, 4).await;
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_link_switched_to_another_folder_is_a_change() {
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
        let watched = Watched::open(vec![folder.path().join("current/number")], number).unwrap();
        link("two");
        becomes(&watched, 2).await;
    }

    #[tokio::test]
    async fn an_invalid_or_missing_file_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        let refused = || format!("{:#}", Watched::open(vec![file.clone()], number).unwrap_err());
        let name = file.display().to_string();
        assert!(refused().starts_with(&format!("{name}: No such file")), "{}", refused());
        std::fs::write(&file, "one").unwrap();
        assert!(refused().starts_with(&format!("{name}: no number")), "{}", refused());
        std::fs::write(&file, vec![b'1'; 5 << 20]).unwrap();
        assert!(refused().starts_with(&format!("{name}: larger")), "{}", refused());
    }
}
