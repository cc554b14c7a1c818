//! From environment and standard input to a typed call. Pure: the environment is
//! a function and standard input a slice, so that any of either can be tried.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::args::parse_args;
use crate::{AddResult, Attachment, AttachmentKey, Code, Error, Network, Object, Version};

/// What a plugin can be asked to do: CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make or change an attachment.
    Add,
    /// Verify an attachment (from 0.4.0).
    Check,
    /// Remove an attachment.
    Del,
    /// Remove what no valid attachment owns (from 1.1.0).
    Gc,
    /// Say whether an ADD could be served (from 1.1.0).
    Status,
    /// List the versions spoken.
    Version,
}

impl Verb {
    const ALL: [Self; 6] =
        [Self::Add, Self::Check, Self::Del, Self::Gc, Self::Status, Self::Version];

    /// The verb as CNI_COMMAND writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The version that introduced the verb. VERSION is answered in any.
    const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// Variables that must be there. The reference implementation also wants
    /// CNI_PATH for every verb; the spec asks for it in GC alone.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The environment: what a variable is set to.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A valid call of a plugin.
#[derive(Clone, Debug)]
pub enum Call {
    /// ADD.
    Add(Attachment, Network),
    /// CHECK.
    Check(Attachment, Network),
    /// DEL.
    Del(Attachment, Network),
    /// GC, with the attachments that are still valid.
    Gc(Vec<AttachmentKey>, Network),
    /// STATUS.
    Status(Network),
    /// VERSION, with the `cniVersion` of the answer.
    Version(String),
}

impl Call {
    /// Reads and validates everything that the protocol defines: the environment,
    /// then the configuration and its name, then its version, in the order of the
    /// reference implementation.
    ///
    /// # Errors
    /// 1 version, 4 environment, 6 not a JSON object, 7 configuration.
    pub fn parse(env: Environment<'_>, stdin: &[u8]) -> Result<Self, Error> {
        Request::parse(env)?.with_config(stdin)
    }
}

/// The half of a call that stands in the environment, validated.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// CNI_COMMAND.
    pub(crate) verb: Verb,
    /// The attachment, for the verbs that concern one.
    attachment: Option<Attachment>,
    /// CNI_PATH.
    path: Vec<PathBuf>,
}

impl Request {
    /// Reads the environment. An empty variable is an unset one: libcni exports
    /// all of them for every verb.
    pub(crate) fn parse(env: Environment<'_>) -> Result<Self, Error> {
        let verb = parse_verb(env)?;
        let is_missing = |name: &&&str| env(name).is_none_or(|value| value.is_empty());
        let missing: Vec<_> = verb.required().iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            return Err(invalid_env(format!("{verb} needs {}", missing.join(", "))));
        }
        let attachment = match verb {
            Verb::Add | Verb::Check | Verb::Del => Some(parse_attachment(verb, env)?),
            Verb::Gc | Verb::Status | Verb::Version => None,
        };
        let path = env("CNI_PATH").unwrap_or_default();
        let path = std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect();
        Ok(Self { verb, attachment, path })
    }

    /// Completes the call with the network configuration.
    pub(crate) fn with_config(self, stdin: &[u8]) -> Result<Call, Error> {
        if self.verb == Verb::Version {
            return Ok(Call::Version(answer_version(stdin)));
        }
        let network = parse_network(self.verb, self.path, decode(stdin)?)?;
        match (self.verb, self.attachment) {
            (Verb::Add, Some(attachment)) => Ok(Call::Add(attachment, network)),
            (Verb::Check, Some(attachment)) => Ok(Call::Check(attachment, network)),
            (Verb::Del, Some(attachment)) => Ok(Call::Del(attachment, network)),
            (Verb::Gc, _) => Ok(Call::Gc(valid_attachments(&network.keys())?, network)),
            _ => Ok(Call::Status(network)),
        }
    }
}

fn parse_verb(env: Environment<'_>) -> Result<Verb, Error> {
    let text = variable(env, "CNI_COMMAND")?;
    Verb::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or_else(|| {
        let verbs = Verb::ALL.map(Verb::as_str).join(", ");
        invalid_env(format!("CNI_COMMAND is {text:?}, not one of {verbs}"))
    })
}

fn parse_attachment(verb: Verb, env: Environment<'_>) -> Result<Attachment, Error> {
    let container_id = variable(env, "CNI_CONTAINERID")?;
    if !is_identifier(&container_id) {
        return Err(invalid_env(format!("CNI_CONTAINERID is {container_id:?}: {IDENTIFIER_RULE}")));
    }
    let ifname = variable(env, "CNI_IFNAME")?;
    check_ifname(&ifname)?;
    let netns = env("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
    let args = variable(env, "CNI_ARGS").and_then(|text| parse_args(&text));
    let args = match (verb, args) {
        // A DEL follows the ADD that failed for these very arguments, and must succeed.
        (Verb::Del, Err(error)) => {
            log::warn!("{error}; ignored, as DEL does not depend on it");
            BTreeMap::new()
        }
        (_, args) => args?,
    };
    Ok(Attachment { key: AttachmentKey { container_id, ifname }, netns, args })
}

/// A variable's text, empty if unset.
fn variable(env: Environment<'_>, name: &str) -> Result<String, Error> {
    let value = env(name).unwrap_or_default();
    value.into_string().map_err(|raw| invalid_env(format!("{name} is {raw:?}, which is not UTF-8")))
}

const IDENTIFIER_RULE: &str =
    "it must begin with a letter or digit and hold only letters, digits, \"_\", \".\" and \"-\"";

/// Container ID and network name: spec 1.1.0, sections "Parameters" and
/// "Configuration format".
fn is_identifier(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(is_inner)
}

/// `dev_valid_name` of the kernel (net/core/dev.c), whose `isspace` is that of
/// Latin-1 and so refuses byte 0xa0 in any character; and no `%`, which the kernel
/// takes for a pattern to number (`__dev_alloc_name`).
fn check_ifname(name: &str) -> Result<(), Error> {
    let problem = if name.len() > 15 {
        "it is longer than the kernel's 15 bytes"
    } else if name == "." || name == ".." {
        "the kernel takes no such name"
    } else if name.contains(|c: char| "/:%".contains(c) || c.is_whitespace() || c == '\0')
        || name.bytes().any(|byte| byte == 0xa0)
    {
        "\"/\", \":\", \"%\" and white space are not allowed in it"
    } else {
        return Ok(());
    };
    Err(invalid_env(format!("CNI_IFNAME is {name:?}: {problem}")))
}

fn decode(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    let problem = match serde_json::from_slice(stdin) {
        Ok(Value::Object(config)) => return Ok(config),
        Ok(_) => "it is not an object".to_owned(),
        Err(error) => error.to_string(),
    };
    let msg = format!("the network configuration on standard input is not valid JSON: {problem}");
    Err(Error::new(Code::Decode, msg))
}

fn parse_network(
    verb: Verb,
    path: Vec<PathBuf>,
    config: Map<String, Value>,
) -> Result<Network, Error> {
    let keys = Object::root(&config);
    let name = keys.text("name")?.unwrap_or_default().to_owned();
    check_network_name(&name)?;
    let version = config_version(&keys)?;
    if version < verb.since() {
        let msg = format!("{verb} needs cniVersion {} or later, not {version}", verb.since());
        return Err(Error::new(Code::IncompatibleVersion, msg));
    }
    let prev_result = parse_prev_result(verb, &keys, version)?;
    Ok(Network { version, name, prev_result, path, config })
}

/// Fails with 7 if a network cannot be called so: names become file names.
pub fn check_network_name(name: &str) -> Result<(), Error> {
    let msg = if name.is_empty() {
        "name: missing; the network needs one".to_owned()
    } else if !is_identifier(name) {
        format!("name: {name:?} is not valid: {IDENTIFIER_RULE}")
    } else {
        return Ok(());
    };
    Err(Error::new(Code::InvalidConfig, msg))
}

/// `cniVersion`; without one, 0.1.0.
fn config_version(keys: &Object<'_>) -> Result<Version, Error> {
    keys.text("cniVersion")?.map_or(Ok(Version::V0_1_0), str::parse)
}

fn parse_prev_result(
    verb: Verb,
    keys: &Object<'_>,
    version: Version,
) -> Result<Option<AddResult>, Error> {
    let read = || {
        let result = keys.object("prevResult")?;
        result.map(|result| AddResult::from_object(&result, version)).transpose()
    };
    match verb {
        Verb::Add | Verb::Check => {
            read().map_err(|error| Error { code: Code::InvalidConfig as u32, ..error })
        }
        // A broken cache of the caller's must not keep anything from being removed.
        Verb::Del => Ok(read().unwrap_or_else(|error| {
            log::warn!("prevResult cannot be read, cleaning up without it: {error}");
            None
        })),
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

/// The attachments that GC must spare. The spec's tag says `cni.dev/attachments`,
/// its text and libcni `cni.dev/valid-attachments`; newer libcni sends both. What
/// stands in either is spared. `null` (a nil slice of a Go caller) is an empty list.
fn valid_attachments(keys: &Object<'_>) -> Result<Vec<AttachmentKey>, Error> {
    const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    if KEYS.iter().all(|key| keys.get_or_null(key).is_none()) {
        // Without the key every attachment would be stale: refuse to guess.
        let msg = format!("{}: missing; GC removes nothing without the list", KEYS[0]);
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    let mut valid = Vec::new();
    for key in KEYS {
        valid.extend(keys.list(key, parse_key)?);
    }
    valid.sort_unstable();
    valid.dedup();
    Ok(valid)
}

fn parse_key(value: &Value, path: String) -> Result<AttachmentKey, Error> {
    let object = Object::of(value, path)?;
    let text = |key| match object.text(key)? {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::new(Code::InvalidConfig, format!("{}: missing", object.path_of(key)))),
    };
    Ok(AttachmentKey { container_id: text("containerID")?, ifname: text("ifname")? })
}

/// The `cniVersion` of the answer to VERSION: that of the input, whatever it is,
/// else the newest. VERSION is how a caller finds out what we speak, so nothing
/// in the input may make it fail.
fn answer_version(stdin: &[u8]) -> String {
    let config = decode(stdin).unwrap_or_default();
    let given = Object::root(&config).text("cniVersion").ok().flatten();
    given.unwrap_or(Version::LATEST.as_str()).to_owned()
}

/// The version in which to report an error about `stdin`: its own if we speak it.
pub(crate) fn error_version(stdin: &[u8]) -> Version {
    decode(stdin)
        .and_then(|config| config_version(&Object::root(&config)))
        .unwrap_or(Version::LATEST)
}

fn invalid_env(msg: String) -> Error {
    Error::new(Code::InvalidEnvironment, msg)
}
