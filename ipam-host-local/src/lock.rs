//! File locks (flock(2)) with a limit on the wait. The lock of a lease directory is the file
//! `lock` in it, as for the reference plugin.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::Duration;

use cni::{Code, Error};
use nix::errno::Errno;
use nix::fcntl::FlockArg;

/// A file that is locked until this is dropped: the lock ends with the descriptor. nix's own
/// guard unlocks first, and panics where that fails.
#[derive(Debug)]
pub struct Lock(File);

impl Deref for Lock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

/// How long to wait for a lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// This long, then fail.
    AtMost(Duration),
}

/// Locks `file`. Returns `None` if another process has the lock and `wait` is
/// [`Wait::No`]. Fails with code 11 when the time is over; `path` is for the message.
///
/// flock(2) has no time limit, so a second thread waits in it, and this one waits for
/// that thread or the end of the time. Without polling, the lock is taken the moment it is
/// free, and waiters keep the kernel's order. A thread that gets the lock too late drops it.
pub fn lock(file: File, path: &str, wait: Wait) -> Result<Option<Lock>, Error> {
    match flock(&file, FlockArg::LockExclusiveNonblock) {
        Ok(()) => return Ok(Some(Lock(file))),
        Err(Errno::EWOULDBLOCK) => {}
        Err(error) => return Err(cannot_lock(path, &error.into())),
    }
    let Wait::AtMost(time) = wait else { return Ok(None) };
    let inode = file.metadata().map(|meta| meta.ino()).ok();
    let (send, receive) = mpsc::channel();
    let waiter = move || {
        // Without a receiver the lock is dropped, and so released.
        let _ = send.send(lock_uninterrupted(file));
    };
    let started = std::thread::Builder::new().spawn(waiter);
    started.map_err(|error| cannot_lock(path, &error))?;
    match receive.recv_timeout(time) {
        Ok(Ok(lock)) => Ok(Some(lock)),
        Ok(Err(error)) => Err(cannot_lock(path, &error)),
        Err(_) => Err(held(path, time, inode.and_then(holder))),
    }
}

fn lock_uninterrupted(file: File) -> io::Result<Lock> {
    loop {
        match flock(&file, FlockArg::LockExclusive) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map(|()| Lock(file)).map_err(io::Error::from),
        }
    }
}

#[expect(deprecated, reason = "the guard that is to be used instead panics")]
fn flock(file: &File, how: FlockArg) -> nix::Result<()> {
    nix::fcntl::flock(file.as_raw_fd(), how)
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
