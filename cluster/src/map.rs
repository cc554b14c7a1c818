//! The node map: every node of the cluster, the same on each of them.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::node::Node;

/// The node map, judged: what of it is applied, what is not yet, and what is not
/// because something is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Where the map is from, for messages: the directory, or `nodes`.
    pub origin: String,
    /// The valid nodes, in the map's order. Each has a name, MAC address, tunnel
    /// ends and pod ranges of its own, at least one pod range and one address.
    pub nodes: Vec<Node>,
    /// Valid records that have no pod range, or no address, yet; in the map's
    /// order. They conflict with nothing and are applied nowhere.
    pub incomplete: Vec<Node>,
    /// Records that are wrong in themselves or conflict with others; in the
    /// map's order. Nothing new is made for them, and what is there stays.
    pub quarantined: Vec<Quarantined>,
    /// Files that could not be read or parsed. While there is one, the map is
    /// not whole: nodes may be missing that are there, so that the last good
    /// copy is to be used in its place.
    pub unreadable: Vec<Problem>,
    /// Everything wrong with single records, in the map's order, conflicts last.
    pub problems: Vec<Problem>,
}

/// A record that is not applied because something is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The record as far as it could be read; its name may be empty.
    pub node: Node,
    /// The file it is in.
    pub file: String,
    /// What it is called in messages: name and place in the file.
    pub item: String,
    /// What is wrong with it: that of the first problem.
    pub why: String,
}

/// What sort of a problem one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// A file could not be read or parsed.
    Unreadable,
    /// A record is wrong in itself and quarantined.
    BadRecord,
    /// Two records contradict each other; both are quarantined.
    Conflict,
    /// A record has a key that means nothing. It is applied without it.
    UnknownKey,
}

/// Something wrong with the map. Its `Display` names file and item, says what
/// is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What sort.
    pub kind: ProblemKind,
    /// The file.
    pub file: String,
    /// The record, by name and place; empty where it is the whole file.
    pub item: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, item, what, remedy, .. } = self;
        let gap = if item.is_empty() { "" } else { ": " };
        write!(f, "{file}{gap}{item}: {what}; {remedy}")
    }
}

/// Why there is no map at all. The caller goes on with its last good copy.
#[derive(Debug)]
pub enum MapError {
    /// A directory or file that cannot be read.
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// The map names no node at all, which is never right: this one must be in it.
    Empty {
        /// Where from.
        origin: String,
        /// What there is instead.
        what: &'static str,
    },
    /// What was given is not JSON, or not a node map.
    Malformed {
        /// Where from.
        origin: String,
        /// What is wrong with it.
        what: String,
    },
}

impl MapError {
    pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let error = match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        Self::Unreadable { path: path.to_owned(), error }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, error } => write!(
                f,
                "cannot read the node map {}: {error}; put the map there as *.json files that \
                 root can read, or name its directory in nodesDir",
                path.display()
            ),
            Self::Empty { origin, what } => write!(
                f,
                "the node map {origin} {what}; put the map there as *.json files, one record a \
                 node, this one among them"
            ),
            Self::Malformed { origin, what } => write!(
                f,
                "the node map {origin} cannot be used: {what}; give one node, a list of nodes, \
                 {{\"nodes\": [...]}}, or a Kubernetes Node or NodeList"
            ),
        }
    }
}

impl std::error::Error for MapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { error, .. } => Some(error),
            Self::Empty { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// Whether a file of this name in the map's directory is part of the map:
/// `*.json`, but not hidden, as editors and mounts hide what is not ready.
pub(crate) fn is_map_file(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".json") && !name.starts_with(b".")
}
