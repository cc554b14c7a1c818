//! The node map: every node of the cluster, the same on each of them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use crate::compact;
use crate::conflict::{Clash, Conflict, conflicts};
use crate::node::Node;
use crate::record::{self, Record};

/// Files up to this size are read whole and parsed in place, larger ones as they
/// are read, so that memory is bounded by the nodes and not by the file: the
/// compact map of 10,000 nodes has 1.2 MB, their Kubernetes NodeList easily 150.
const WHOLE: u64 = 8 << 20;

/// How often the directory behind a link may be replaced while the link is followed:
/// kubelet does so once a minute at most, and following takes microseconds.
const REPLACED: usize = 4;

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

impl Map {
    /// Reads the map files of directory `dir` in the order of their names:
    /// regular files and links to them that are called `*.json` and not hidden.
    ///
    /// An error means that there is no map to go by at all. Files that cannot be
    /// read or parsed beside others that can are in [`Map::unreadable`].
    pub fn read(dir: &Path) -> Result<Self, MapError> {
        let origin = dir.display().to_string();
        let mut reading = Reading::default();
        let names =
            map_files(dir).map_err(|error| MapError::Unreadable { path: dir.to_owned(), error })?;
        for name in &names {
            reading.add_file(&dir.join(name));
        }
        if reading.files.is_empty() {
            return Err(MapError::Empty { origin, what: "has no file that is called *.json" });
        }
        reading.judge(origin)
    }

    /// The map in `value`, the configuration's inline `nodes` for one. `origin`
    /// names it in messages.
    pub fn from_value(value: &Value, origin: &str) -> Result<Self, MapError> {
        Self::from_records(record::parse(value), origin)
    }

    /// The map in one JSON document. `origin` names it in messages.
    pub fn from_json(json: &[u8], origin: &str) -> Result<Self, MapError> {
        Self::from_records(parse_slice(json), origin)
    }

    fn from_records(
        records: Result<Vec<Record>, serde_json::Error>,
        origin: &str,
    ) -> Result<Self, MapError> {
        let malformed = |error: serde_json::Error| MapError::Malformed {
            origin: origin.to_owned(),
            what: error.to_string(),
        };
        let records = records.map_err(malformed)?;
        let files = vec![Document { file: origin.to_owned(), records }];
        Reading { files, unreadable: Vec::new() }.judge(origin.to_owned())
    }

    /// The map as one compact JSON document, `{"nodes":[...]}`: applied nodes,
    /// then incomplete ones, then quarantined ones, each in the map's order.
    ///
    /// Read again it gives the same nodes in the same lists. What is wrong with
    /// a quarantined record is kept as the value of a key `quarantined`, and the
    /// rest of it as far as it could be read.
    pub fn to_compact_json(&self) -> String {
        let sound = self.nodes.iter().chain(&self.incomplete).map(|node| (node, None));
        let quarantined = self.quarantined.iter().map(|q| (&q.node, Some(q.why.as_str())));
        compact::document(sound.chain(quarantined))
    }

    /// Whether nothing at all is wrong with the map.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.unreadable.is_empty()
    }
}

/// The names of the map files in `dir`, sorted.
fn map_files(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A link to nothing is a file that cannot be read, not one to skip.
        let other = fs::metadata(entry.path()).is_ok_and(|metadata| !metadata.is_file());
        if is_map_file(&entry.file_name()) && !other {
            names.push(entry.file_name());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    files: Vec<Document>,
    unreadable: Vec<Problem>,
}

/// The records of one file.
struct Document {
    file: String,
    records: Vec<Record>,
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

/// The text tells the cause, so none is given beside it, to be told again.
impl std::error::Error for MapError {}

/// Whether a file of this name in the map's directory is part of the map:
/// `*.json`, but not hidden, as editors and mounts hide what is not ready.
pub(crate) fn is_map_file(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".json") && !name.starts_with(b".")
}

impl Reading {
    fn add_file(&mut self, path: &Path) {
        let file = path.display().to_string();
        let (records, what) = match parse_file(path) {
            Ok(records) => (records, None),
            Err(what) => (Vec::new(), Some(what)),
        };
        if let Some((what, remedy)) = what {
            let (kind, item) = (ProblemKind::Unreadable, String::new());
            self.unreadable.push(Problem { kind, file: file.clone(), item, what, remedy });
        }
        self.files.push(Document { file, records });
    }

    /// Sorts the records into the lists of a map.
    fn judge(self, origin: String) -> Result<Map, MapError> {
        let mut records = self.files.iter().flat_map(|file| &file.records);
        if self.unreadable.is_empty() && records.all(|record| record.stray) {
            return Err(MapError::Empty { origin, what: "names no node" });
        }
        let mut map = Map { origin, unreadable: self.unreadable, ..Map::default() };
        let mut entries = Vec::new();
        for document in self.files {
            let file: Rc<str> = document.file.into();
            entries.extend(document.records.into_iter().map(|r| Entry::new(r, &file)));
        }
        for entry in &entries {
            map.problems.extend(entry.own_problems());
        }
        map.problems.extend(quarantine_conflicts(&mut entries));
        for entry in entries.into_iter().filter(|entry| !entry.record.stray) {
            map.add(entry);
        }
        Ok(map)
    }
}

impl Map {
    fn add(&mut self, entry: Entry) {
        let complete = entry.record.is_complete();
        match entry.why {
            Some(why) => self.quarantined.push(Quarantined {
                item: entry.record.item(),
                node: entry.record.node,
                file: entry.file.to_string(),
                why,
            }),
            None if complete => self.nodes.push(entry.record.node),
            None => self.incomplete.push(entry.record.node),
        }
    }
}

/// A record, the file it is in, and why it is quarantined.
struct Entry {
    file: Rc<str>,
    record: Record,
    why: Option<String>,
}

impl Entry {
    fn new(record: Record, file: &Rc<str>) -> Self {
        let why = record.faults.first().cloned().or_else(|| misspelt(&record));
        Self { file: Rc::clone(file), record, why }
    }

    /// What is wrong with the record whatever the others are.
    fn own_problems(&self) -> Vec<Problem> {
        let bad = self.record.faults.iter().map(|what| {
            self.problem(ProblemKind::BadRecord, what.clone(), format!("correct it; {STAYS}"))
        });
        let unknown = self.record.unknown_keys.iter().map(|key| {
            let what = format!("the key {key:?} means nothing");
            let mut remedy = match record::meant(key) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("remove it, or correct it to one of {}", record::KEYS),
            };
            if misspelt(&self.record).is_some() {
                remedy = format!("{remedy} {STAYS}");
            }
            self.problem(ProblemKind::UnknownKey, what, remedy)
        });
        bad.chain(unknown).collect()
    }

    fn problem(&self, kind: ProblemKind, what: String, remedy: String) -> Problem {
        Problem { kind, file: self.file.to_string(), item: self.record.item(), what, remedy }
    }

    fn described(&self) -> String {
        format!("{} of {}", self.record.item(), self.file)
    }
}

/// Why a record that lacks something is no record of a node that is not ready: it has
/// what it lacks under a misspelt key, and so is wrong.
fn misspelt(record: &Record) -> Option<String> {
    if record.stray || record.is_complete() {
        return None;
    }
    let mut meant = record.unknown_keys.iter().filter_map(|key| Some((key, record::meant(key)?)));
    meant.next().map(|(key, meant)| format!("it has the key {key:?} where {meant} is meant"))
}

const STAYS: &str = "until then nothing new is made for it, and what is there stays";

/// Quarantines the sound and complete entries that conflict, and says why.
fn quarantine_conflicts(entries: &mut [Entry]) -> Vec<Problem> {
    let is_candidate = |entry: &Entry| entry.why.is_none() && entry.record.is_complete();
    let candidates: Vec<usize> =
        (0..entries.len()).filter(|&index| is_candidate(&entries[index])).collect();
    let nodes: Vec<&Node> = candidates.iter().map(|&index| &entries[index].record.node).collect();
    let found = conflicts(&nodes);
    let mut problems = Vec::new();
    for Conflict { first, second, clash } in found {
        let (first, second) = (candidates[first], candidates[second]);
        let what = clash_text(clash, &entries[second]);
        let remedy = format!("correct one of the two; {STAYS}");
        problems.push(entries[first].problem(ProblemKind::Conflict, what.clone(), remedy));
        entries[first].why.get_or_insert(what);
        if !matches!(clash, Clash::AddressInRange(..)) {
            let what = clash_text(clash.seen_from_second(), &entries[first]);
            entries[second].why.get_or_insert(what);
        }
    }
    problems
}

fn clash_text(clash: Clash, other: &Entry) -> String {
    let other = other.described();
    match clash {
        Clash::Name => format!("has the same name as {other}"),
        Clash::Ranges(own, its) => format!("its pod range {own} overlaps {its} of {other}"),
        Clash::TunnelEnd(ip) => format!("its address {ip} is also that of {other}"),
        Clash::Mac(mac) => format!(
            "its VTEP MAC address {mac} is also that of {other}, so that one of the two needs a \
             vtepMAC of its own"
        ),
        Clash::AddressInRange(range, ip) => format!(
            "its pod range {range} holds the address {ip} of {other}, which a route for the range \
             would make unreachable"
        ),
    }
}

/// The records of a file, or what is wrong with it and what to do.
fn parse_file(path: &Path) -> Result<Vec<Record>, (String, String)> {
    let cannot_read = |error: io::Error| {
        (format!("cannot be read: {error}"), "make it readable, or remove it".to_owned())
    };
    let no_map = |error: serde_json::Error| match error.is_io() {
        true => cannot_read(error.into()),
        false => (
            format!("is no node map: {error}"),
            "correct the file; replace it by renaming a complete one, never by writing in place"
                .to_owned(),
        ),
    };
    let mut file = open(path).map_err(cannot_read)?;
    let size = file.metadata().map_err(cannot_read)?.len();
    if size > WHOLE {
        return parse_reader(BufReader::with_capacity(1 << 16, file)).map_err(no_map);
    }
    let mut json = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.read_to_end(&mut json).map_err(cannot_read)?;
    parse_slice(&json).map_err(no_map)
}

/// Opens a file of the map. The links of a mounted ConfigMap lead through a directory
/// that kubelet replaces and then removes: where it was the old one that they led to,
/// which is gone by now, they lead to the new one. A link to nothing stays one.
fn open(path: &Path) -> io::Result<File> {
    let mut opened = File::open(path);
    for _ in 0..REPLACED {
        match &opened {
            Err(error) if error.kind() == ErrorKind::NotFound => opened = File::open(path),
            _ => break,
        }
    }
    opened
}

fn parse_slice(json: &[u8]) -> Result<Vec<Record>, serde_json::Error> {
    let mut document = serde_json::Deserializer::from_slice(json);
    let records = record::parse(&mut document)?;
    document.end()?;
    Ok(records)
}

fn parse_reader(json: impl Read) -> Result<Vec<Record>, serde_json::Error> {
    let mut document = serde_json::Deserializer::from_reader(json);
    let records = record::parse(&mut document)?;
    document.end()?;
    Ok(records)
}
