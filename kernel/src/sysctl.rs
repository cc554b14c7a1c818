//! Kernel settings under `/proc/sys`, of the thread's network namespace.
//!
//! Paths are given with slashes, as interface names may hold dots
//! (`net/ipv4/conf/eth0.100/rp_filter`).

use std::fs::{self, File};
use std::io::{ErrorKind, Read};

use crate::error::{Error, Result};

/// Longest value that is read; those that are numbers are far shorter.
const LONGEST: usize = 256;

/// The value of `key`; `None` where the kernel has no such setting (no IPv6, an
/// interface that is gone).
pub fn get(key: &str) -> Result<Option<String>> {
    // The kernel gives a whole value to one read at its start.
    let read = || -> std::io::Result<String> {
        let mut value = [0; LONGEST];
        let length = File::open(file(key))?.read(&mut value)?;
        Ok(String::from_utf8_lossy(value.get(..length).unwrap_or_default()).trim_end().to_owned())
    };
    match read() {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read /proc/sys/{key}"), &e)),
    }
}

/// Sets `key` to `value` where it differs, and says whether it did: /proc/sys
/// may be read-only, and writing some settings has effects even when they
/// stay the same.
pub fn set(key: &str, value: &str) -> Result<bool> {
    match get(key)? {
        Some(found) if found == value => Ok(false),
        _ => write(key, value).map(|()| true),
    }
}

/// As [`set`], but nothing where the kernel has no such setting.
pub fn set_if_there(key: &str, value: &str) -> Result<bool> {
    match get(key)? {
        Some(found) if found != value => write(key, value).map(|()| true),
        _ => Ok(false),
    }
}

fn write(key: &str, value: &str) -> Result<()> {
    fs::write(file(key), value).map_err(|e| {
        // The files are root's, those of a user namespace too (`net_ctl_permissions`).
        let denied = e.kind() == ErrorKind::PermissionDenied;
        let need = if denied { ", which needs CAP_NET_ADMIN" } else { "" };
        Error::io(format!("cannot set /proc/sys/{key} to {value}{need}"), &e)
    })
}

fn file(key: &str) -> String {
    format!("/proc/sys/{key}")
}
