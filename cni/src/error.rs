//! Errors as the protocol carries them: a code, a message, details.

use std::fmt;

/// Error codes of CNI spec 1.1.0, section "Error", and our own above 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration asks for a protocol version that we do not speak.
    IncompatibleVersion = 1,
    /// A field has a value that we cannot honour; the message names both.
    UnsupportedField = 2,
    /// An environment variable is missing or invalid; the message names it.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// Standard input or a file is not the JSON that it should be.
    Decode = 6,
    /// The network configuration is invalid.
    InvalidConfig = 7,
    /// Something passing is in the way; the caller should try again later.
    TryAgain = 11,
    /// STATUS: the plugin cannot serve an ADD now.
    Unavailable = 50,
    /// STATUS: as 50, and pods that exist may have lost connectivity.
    UnavailableLimited = 51,
    /// The kernel refused a change or a query.
    Kernel = 100,
    /// CHECK found something of the attachment missing or different.
    CheckFailed = 101,
    /// A delegated plugin failed without an error object of its own.
    Delegate = 102,
}

/// What a plugin answers when a verb fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Number that callers act on. A delegate's own code is passed on as it came.
    pub code: u32,
    /// What failed, on what object, and what to do about it, on one line.
    pub msg: String,
    /// More for whoever reads the log; may be empty.
    pub details: String,
}

impl Error {
    /// An error with one of our codes and no details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// The same error with `details`.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error, its message preceded by `context` and a colon.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.msg = format!("{context}: {}", self.msg);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
