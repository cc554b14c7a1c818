//! `/run/weft`: locks and caches, which may vanish at any time.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{Code, Error};
use ipam_host_local::{Lock, Wait};

const DIRECTORY: &str = "/run/weft";

/// The path of `name` in the directory.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Opens the file `name` for locking; makes directory and file where missing.
pub(crate) fn open_lock(name: &Path) -> Result<File, Error> {
    let path = Path::new(DIRECTORY).join(name);
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
    };
    let file = match open() {
        Err(e) if e.kind() == ErrorKind::NotFound => make().and_then(|()| open()),
        other => other,
    };
    file.map_err(|e| Error::new(Code::Io, format!("cannot open {}: {e}", path.display())))
}

/// Takes the lock `name`. Returns `None` if another process has it and `wait` is
/// [`Wait::No`].
///
/// # Errors
/// Code 11: it was not to be had in the time given.
pub(crate) fn lock(name: &str, wait: Wait) -> Result<Option<Lock>, Error> {
    loop {
        let file = open_lock(Path::new(name))?;
        let path = path(name).display().to_string();
        let Some(file) = ipam_host_local::lock(file, &path, wait)? else { return Ok(None) };
        if is_in_place(&file, name) {
            return Ok(Some(file));
        }
    }
}

/// Whether `file`, now locked, is still the one called `name`: whoever took the lock
/// before may have removed it, and others have made a new one.
pub(crate) fn is_in_place(file: &File, name: &str) -> bool {
    match (file.metadata(), fs::metadata(path(name))) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Writes the file `name` whole or not at all. Writers of one file hold a lock
/// against each other; what a killed one leaves, the next writes over.
pub(crate) fn write(name: &str, content: &[u8]) -> Result<(), Error> {
    let path = path(name);
    let temporary = Path::new(DIRECTORY).join(format!("{name}.tmp"));
    let put = || -> std::io::Result<()> {
        make()?;
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, &path)
    };
    put().map_err(|e| {
        // What is half written is of no use; if it cannot go, /run is in trouble
        // that the error above already tells.
        let _ = fs::remove_file(&temporary);
        Error::new(Code::Io, format!("cannot write {}: {e}", path.display()))
    })
}

/// The content of the file `name`; `None` where it is not there or not readable,
/// since everything in here may vanish.
pub(crate) fn read(name: &str) -> Option<Vec<u8>> {
    fs::read(path(name)).ok()
}

/// The names of the files in the directory; none where it is not there.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes the file `name`; it may be gone already.
pub(crate) fn remove(name: &str) -> Result<(), Error> {
    let path = path(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::new(Code::Io, format!("cannot remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Removes every file but locks, which somebody may hold.
pub(crate) fn remove_caches() -> Result<(), Error> {
    let caches = names().into_iter().filter(|name| !name.ends_with(".lock"));
    caches.filter(|name| path(name).is_file()).try_for_each(|name| remove(&name))
}

/// Removes the directory if nothing is in it any more.
pub(crate) fn remove_if_empty() -> Result<(), Error> {
    match fs::remove_dir(DIRECTORY) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(Error::new(Code::Io, format!("cannot remove {DIRECTORY}: {e}")))
        }
        _ => Ok(()),
    }
}

fn make() -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)
}
