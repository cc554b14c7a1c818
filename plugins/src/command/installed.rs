//! Files that `weft install` puts into a runtime's directories: which are ours, and
//! how one takes the place of another.

use std::fs::{self, File, Metadata};
use std::hint::black_box;
use std::io::{self, BufRead, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cluster::Map;
use cni::delegate::is_own_executable;
use nix::fcntl::{Flock, FlockArg};

use super::conflist;

/// Where runtimes look for plugins.
pub(super) const BIN_DIRECTORY: &str = "/opt/cni/bin";

/// What every executable of weft contains, of whatever version and under whatever
/// name, and no other file: that is how ours are known.
const MARK: &[u8] = b"\x1fweft: CNI plugins in one executable\x1f";

/// Ends the name that a foreign file is kept under: no runtime takes it for a plugin
/// (the name would have to be a `type`), for a configuration or for a map.
const SAVED: &str = ".before-weft";

/// Ends the name of a file that is about to take its place; likewise nobody's.
const NEW: &str = ".weft-new";

/// What kind of file is to be somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Executable,
    Map,
    Conflist,
}

/// A file that is, or is to be, in a runtime's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What is there under a target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A file of ours, of whatever version.
    Ours,
    /// Something else, a symbolic link too, wherever it leads: someone has made it.
    Foreign,
}

impl Target {
    /// The directory and this one's name.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Where a foreign file of this name is kept.
    pub(super) fn saved(&self) -> PathBuf {
        self.dir.join(format!("{}{SAVED}", self.name))
    }

    /// Where the new file waits for its turn; hidden.
    pub(super) fn waiting(&self) -> PathBuf {
        self.dir.join(format!(".{}{NEW}", self.name))
    }

    /// Looks at what is there; a directory, which could not be kept, is an error.
    pub(super) fn look(&self) -> Result<Found> {
        let path = self.path();
        let about = || path.display().to_string();
        let Some(metadata) = present(&path)? else { return Ok(Found::Nothing) };
        if metadata.is_dir() {
            bail!("{}: is a directory; remove it", about());
        }
        if !metadata.is_file() {
            return Ok(Found::Foreign);
        }
        let content = fs::read(&path).with_context(about)?;
        let ours = match self.kind {
            Kind::Executable => is_weft(&content),
            Kind::Map => Map::from_json(&content, "").is_ok(),
            Kind::Conflist => conflist::is_ours(&content),
        };
        Ok(if ours { Found::Ours } else { Found::Foreign })
    }

    /// Writes the new file, to the disk.
    pub(super) fn write_waiting(&self, content: &[u8], mode: u32) -> Result<()> {
        let path = self.waiting();
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            // In one call: ext4 and others then keep the executable in folios so large that its code
            // is mapped at one stroke at every start (docs/performance.md, "Where a start goes").
            file.write_all(content)?;
            file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts the new file into its place. The name is never without a file: a foreign one
    /// gets its second name first.
    pub(super) fn replace(&self, found: Found) -> Result<()> {
        if found == Found::Foreign {
            // What was saved before is the older one.
            remove(&self.saved())?;
            fs::hard_link(self.path(), self.saved())
                .with_context(|| format!("cannot save {}", self.path().display()))?;
        }
        fs::rename(self.waiting(), self.path())
            .with_context(|| format!("cannot write {}", self.path().display()))
    }

    /// Removes what an interrupted install left beside the file.
    pub(super) fn sweep(&self) -> Result<()> {
        remove(&self.waiting())
    }

    /// Whether the saved file is the one that is in place: an install was interrupted
    /// between saving and replacing it.
    pub(super) fn saved_is_in_place(&self) -> Result<bool> {
        let inode = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let saved = present(&self.saved())?.map(inode);
        Ok(saved.is_some() && saved == present(&self.path())?.map(inode))
    }
}

/// What is at `path` itself, if anything is.
pub(super) fn present(path: &Path) -> Result<Option<Metadata>> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Removes a file; it may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Opens directories and waits until no other install is at work in one of them; held
/// until the files are dropped. In the order of inodes, each once: nobody waits in a circle.
pub(super) fn lock(dirs: &[&Path]) -> Result<Vec<Flock<File>>> {
    let mut open = Vec::new();
    for dir in dirs {
        let about = || format!("cannot open {}", dir.display());
        let file = File::open(dir).with_context(about)?;
        let metadata = file.metadata().with_context(about)?;
        open.push(((metadata.dev(), metadata.ino()), file));
    }
    open.sort_by_key(|(inode, _)| *inode);
    open.dedup_by_key(|(inode, _)| *inode);
    let locked = open
        .into_iter()
        .map(|(_, file)| Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error));
    locked.collect::<Result<_, _>>().context("cannot lock a directory")
}

/// Whether `file` is an executable of weft, of whatever version.
pub(super) fn is_weft_file(file: &Path) -> bool {
    is_own_executable(file) || fs::read(file).is_ok_and(|content| is_weft(&content))
}

/// Whether this is the content of an executable of weft.
pub(super) fn is_weft(content: &[u8]) -> bool {
    // Comparing with a constant would be compiled to numbers, and the mark be nowhere.
    let (first, mark) = (MARK[0], &black_box(MARK)[1..]);
    let mut rest = if content.starts_with(b"\x7fELF") { content } else { &[] };
    // `skip_until` searches with memchr(3).
    while rest.skip_until(first).is_ok_and(|skipped| skipped > 0) {
        if rest.starts_with(mark) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_of_ours_is_known_by_its_mark() {
        let file =
            |before: &[u8], mark: &[u8], after: &[u8]| [b"\x7fELF", before, mark, after].concat();
        assert!(is_weft(&file(b"code", MARK, b"data")));
        assert!(is_weft(&file(b"\x1f\x1f", MARK, b"")));
        assert!(!is_weft(&file(b"code", &MARK[..MARK.len() - 1], b"")));
        assert!(!is_weft(&file(b"", b"", b"")));
        assert!(!is_weft(&[b"#!/bin/sh\n", MARK].concat()));
    }
}
