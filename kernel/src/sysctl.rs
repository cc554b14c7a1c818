//! Kernel settings under `/proc/sys`, of the thread's network namespace.
//!
//! Paths are given with slashes, as interface names may hold dots
//! (`net/ipv4/conf/eth0.100/rp_filter`).

use std::fs;
use std::io::ErrorKind;

use crate::error::{Error, Result};

/// The value of `key`; `None` where the kernel has no such setting (no IPv6, an
/// interface that is gone).
pub fn get(key: &str) -> Result<Option<String>> {
    match fs::read_to_string(file(key)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read /proc/sys/{key}"), &e)),
    }
}

/// Sets `key` to `value` where it differs, and says whether it did: /proc/sys
/// may be read-only, and writing some settings has effects even when they
/// stay the same.
pub fn set(key: &str, value: &str) -> Result<bool> {
    if get(key)?.as_deref() == Some(value) {
        return Ok(false);
    }
    fs::write(file(key), value).map_err(|e| {
        // The files are root's, those of a user namespace too (`net_ctl_permissions`).
        let denied = e.kind() == ErrorKind::PermissionDenied;
        let need = if denied { ", which needs CAP_NET_ADMIN" } else { "" };
        Error::io(format!("cannot set /proc/sys/{key} to {value}{need}"), &e)
    })?;
    Ok(true)
}

fn file(key: &str) -> String {
    format!("/proc/sys/{key}")
}
