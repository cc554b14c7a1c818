//! What the kernel refused, and what it said about it.

use std::fmt;

use nix::errno::Errno;

/// Outcome of a kernel call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused kernel call: what was asked, the error number, and the text of the
/// extended ACK where the kernel sent one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    what: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The kernel's own words (NLMSGERR_ATTR_MSG).
    pub extack: Option<String>,
}

impl Error {
    /// `what` was refused with `errno`.
    pub fn new(what: impl Into<String>, errno: Errno) -> Self {
        Self { what: what.into(), errno, extack: None }
    }

    /// `what` failed in a call of the standard library.
    pub fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(what, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// The same error, about `what`.
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.what = what.to_string();
        self
    }

    /// Whether the object is simply not there: gone links answer ENODEV, gone
    /// routes ESRCH, gone entries ENOENT.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, Errno::ENODEV | Errno::ESRCH | Errno::ENOENT | Errno::EADDRNOTAVAIL)
    }

    /// Whether something of that name or key is there already.
    pub fn is_exists(&self) -> bool {
        self.errno == Errno::EEXIST
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.errno.desc())?;
        if let Some(text) = &self.extack {
            write!(f, " ({text})")?;
        }
        if self.errno == Errno::EPERM {
            write!(f, "; CAP_NET_ADMIN is needed")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
