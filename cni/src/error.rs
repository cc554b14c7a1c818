//! Errors as the protocol carries them: a code, a message, details.

use std::fmt;

use serde_json::{Map, Value};

use crate::{Object, Version};

/// Error codes of CNI spec 1.1.0, section "Error", two that the reference
/// implementation added (8, 999), and our own above 99.
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
    /// CNI_NETNS is the namespace that the plugin itself runs in.
    InvalidNetns = 8,
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
    /// A bug of ours.
    Internal = 999,
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

impl Error {
    /// The error object of the spec, as it goes to standard output.
    ///
    /// containerd takes a failed DEL for a success if "not found" stands anywhere
    /// in its error (go-cni, cni.go), which leaks addresses for good. The words may
    /// come from the kernel or a delegate, so they are replaced here, at the edge.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.as_str().into());
        object.insert("code".into(), self.code.into());
        object.insert("msg".into(), self.msg.replace("not found", "missing").into());
        if !self.details.is_empty() {
            let details = self.details.replace("not found", "missing");
            object.insert("details".into(), details.into());
        }
        Value::Object(object)
    }

    /// Reads another plugin's error object. `None` if `value` is none: an object
    /// with a code other than 0 is one.
    pub fn from_json(value: &Value) -> Option<Self> {
        let Value::Object(map) = value else { return None };
        let keys = Object::root(map);
        let code = keys.integer("code", 1, u32::MAX.into()).ok()??;
        let text = |key| keys.string(key).ok().flatten().unwrap_or_default().to_owned();
        Some(Self { code: u32::try_from(code).ok()?, msg: text("msg"), details: text("details") })
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
