//! Waiting for a lock no longer than told. That of a lease directory is flock(2) on its
//! file `lock`, which the reference plugin takes too.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::Duration;

use cni::{Code, Error};

/// How long to wait for a lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// This long, then fail.
    AtMost(Duration),
}

/// Locks `file`; the lock goes with the file returned. `None` if it is held and
/// `wait` is [`Wait::No`]. Fails with 11 when the time is over; `path` is for the message.
///
/// flock(2) can be waited for without end or not at all. A second thread waits in
/// it while this one waits for that thread or the end of the time, whichever is
/// first: no polling, so the lock is had the moment it is free, and waiters keep
/// the kernel's order. A thread that comes too late drops the file and with it the lock.
pub fn lock(file: File, path: &str, wait: Wait) -> Result<Option<File>, Error> {
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(cannot_lock(path, &error)),
    }
    let Wait::AtMost(time) = wait else { return Ok(None) };
    let inode = file.metadata().map(|meta| meta.ino()).ok();
    let (send, receive) = mpsc::channel();
    let waiter = move || {
        let outcome = lock_uninterrupted(&file).map(|()| file);
        // Where nobody listens any more, the file and the lock go.
        let _ = send.send(outcome);
    };
    let started = std::thread::Builder::new().spawn(waiter);
    started.map_err(|error| cannot_lock(path, &error))?;
    match receive.recv_timeout(time) {
        Ok(Ok(file)) => Ok(Some(file)),
        Ok(Err(error)) => Err(cannot_lock(path, &error)),
        Err(_) => Err(held(path, time, inode.and_then(holder))),
    }
}

fn lock_uninterrupted(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn cannot_lock(path: &str, error: &io::Error) -> Error {
    Error::new(Code::Io, format!("cannot lock {path}: {error}"))
}

fn held(path: &str, time: Duration, holder: Option<String>) -> Error {
    let seconds = time.as_secs_f32();
    let by = holder.unwrap_or_else(|| "another process".into());
    Error::new(
        Code::TryAgain,
        format!(
            "{path} has been locked by {by} for {seconds} s: see whether it hangs or is stopped"
        ),
    )
}

/// Process that holds a flock on `inode`, by /proc/locks, where the line reads
/// `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF` (fs/locks.c). Only for
/// a message: files of two filesystems may share the number.
fn holder(inode: u64) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let end = format!(":{inode}");
    let pid = locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, file, ..] if file.ends_with(&end) => Some((*pid).to_owned()),
            _ => None,
        }
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim()))
}
