//! `/run/weft`: locks and caches, which may vanish at any time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{Code, Error};

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

/// Takes the lock `name`, waiting for whoever has it; held until the file is
/// dropped.
pub(crate) fn lock(name: &str) -> Result<File, Error> {
    let file = open_lock(Path::new(name))?;
    let locked = file.lock();
    locked
        .map_err(|e| Error::new(Code::Io, format!("cannot lock {}: {e}", path(name).display())))?;
    Ok(file)
}

/// Takes the lock `name` if nobody has it.
pub(crate) fn try_lock(name: &str) -> Result<Option<File>, Error> {
    let file = open_lock(Path::new(name))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(lock_error(name, &e)),
    }
}

fn lock_error(name: &str, error: &std::io::Error) -> Error {
    Error::new(Code::Io, format!("cannot lock {}: {error}", path(name).display()))
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

/// Removes the directory with all that is in it.
pub(crate) fn remove_all() -> Result<(), Error> {
    match fs::remove_dir_all(DIRECTORY) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Error::new(Code::Io, format!("cannot remove {DIRECTORY}: {e}")))
        }
        _ => Ok(()),
    }
}

fn make() -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)
}
