//! From the kernel's errors to the protocol's.

use cni::{Code, Error};

/// An error of the kernel, with its own words.
pub(crate) fn refused(error: kernel::Error) -> Error {
    Error::new(Code::Kernel, error.to_string())
}

/// CHECK: something of the attachment is missing or different.
pub(crate) fn check_failed(msg: impl Into<String>) -> Error {
    Error::new(Code::CheckFailed, msg)
}

/// The configuration is wrong.
pub(crate) fn invalid_config(msg: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, msg)
}
