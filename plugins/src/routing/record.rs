//! The record of a network's last sync, for people: when, what set it off, what it did. And
//! by what marks the network's work is known, should its configuration be gone by then.
//!
//! A file in /run/weft, one a network, written at the end of every sync, under its lock.
//! An ADD that the stamp spares a sync writes none.

use std::time::{SystemTime, UNIX_EPOCH};

use cni::{Error, Object};
use kernel::netns::Netns;
use serde_json::{Map, Value, json};

use super::config::Config;
use super::sync::Outcome;
use crate::failure::refused;
use crate::state_dir;

/// What the file's name has after that of the network.
const SUFFIX: &str = ".last";
/// Who runs `weft sync`, for the record: the systemd unit sets it, and cron may.
const VARIABLE: &str = "WEFT_TRIGGER";
/// How much of that is kept, in characters.
const LONGEST: usize = 64;
/// How many failures are kept in full: one a peer would make a long file.
const FAILURES: usize = 8;

/// What set a sync off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// An ADD that the stamp did not spare it.
    Add,
    /// STATUS, a runtime's tick.
    Status,
    /// GC.
    Gc,
    /// `weft sync`.
    Command,
}

impl Trigger {
    /// As it is told: the verb, or who ran the command.
    fn word(self) -> String {
        match self {
            Self::Add => "ADD".to_owned(),
            Self::Status => "STATUS".to_owned(),
            Self::Gc => "GC".to_owned(),
            Self::Command => named(&std::env::var(VARIABLE).unwrap_or_default()),
        }
    }
}

fn named(by: &str) -> String {
    let text = by.chars().filter(|c| !c.is_control()).take(LONGEST).collect::<String>();
    match text.trim() {
        "" => "weft sync".to_owned(),
        text => text.to_owned(),
    }
}

/// One sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// When it ended, seconds since 1970.
    pub(crate) at: u64,
    /// What set it off.
    pub(crate) trigger: String,
    /// How many changes it made.
    pub(crate) changes: u64,
    /// How many things failed.
    pub(crate) failed: u64,
    /// The first of them.
    pub(crate) failures: Vec<String>,
}

impl Run {
    fn of(trigger: Trigger, outcome: &Outcome, error: Option<&Error>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let failures = outcome.problems.iter().chain(&outcome.failures).cloned();
        let mut failures: Vec<String> =
            error.map(Error::to_string).into_iter().chain(failures).collect();
        let failed = failures.len() as u64;
        failures.truncate(FAILURES);
        Self { at, trigger: trigger.word(), changes: outcome.count as u64, failed, failures }
    }

    /// As JSON, which [`Self::read`] reads.
    fn to_json(&self) -> Value {
        json!({
            "at": self.at, "trigger": self.trigger, "changes": self.changes,
            "failed": self.failed, "failures": self.failures,
        })
    }

    fn read(keys: &Object) -> Option<Self> {
        let number = |key| keys.integer(key, 0, u64::MAX).ok().flatten();
        Some(Self {
            at: number("at")?,
            trigger: keys.text("trigger").ok()??.to_owned(),
            changes: number("changes")?,
            failed: number("failed")?,
            failures: keys.strings("failures").ok()?.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// What is known of a network's syncs since the node started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Number that its routes and tables are marked with.
    pub(crate) protocol: u8,
    /// Name of its VXLAN device.
    pub(crate) device: String,
    /// The last sync.
    pub(crate) last: Run,
    /// The last that changed something.
    pub(crate) last_change: Option<Run>,
}

impl Record {
    /// The record of a network, if it is of this network namespace. Everything in /run/weft
    /// may vanish, so one that cannot be read is none.
    pub(crate) fn read(network: &str) -> Option<Self> {
        Self::parse(&state_dir::read(&file_name(network))?, &netns().ok()?)
    }

    fn parse(text: &[u8], netns: &str) -> Option<Self> {
        let map: Map<String, Value> = serde_json::from_slice(text).ok()?;
        let keys = Object::root(&map);
        if keys.text("netns").ok()?? != netns {
            return None;
        }
        Some(Self {
            protocol: keys.integer("protocol", 0, u8::MAX.into()).ok()?? as u8,
            device: keys.text("device").ok()??.to_owned(),
            last: Run::read(&keys.object("last").ok()??)?,
            last_change: keys.object("lastChange").ok()?.as_ref().and_then(Run::read),
        })
    }

    fn to_json(&self, netns: &str) -> Value {
        json!({
            "netns": netns, "protocol": self.protocol, "device": self.device,
            "last": self.last.to_json(), "lastChange": self.last_change.as_ref().map(Run::to_json),
        })
    }
}

/// The networks that have a record in this network namespace, each with it.
pub(crate) fn all() -> Vec<(String, Record)> {
    let names = state_dir::names();
    let networks = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
    let mut all: Vec<(String, Record)> =
        networks.filter_map(|name| Some((name.to_owned(), Record::read(name)?))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Puts a sync on record: what it did, and the error that ended it.
pub(super) fn write(config: &Config, trigger: Trigger, outcome: &Outcome, error: Option<&Error>) {
    let before = Record::read(&config.network);
    let last = Run::of(trigger, outcome, error);
    let (protocol, device) = match &before {
        // What there is may still be marked as before.
        Some(before) if error.is_some() => (before.protocol, before.device.clone()),
        _ => (config.protocol, config.device.clone()),
    };
    let changed = (last.changes > 0).then(|| last.clone());
    let last_change = changed.or(before.and_then(|before| before.last_change));
    let record = Record { protocol, device, last, last_change };
    let written = netns().and_then(|netns| {
        state_dir::write(&file_name(&config.network), record.to_json(&netns).to_string().as_bytes())
    });
    if let Err(error) = written {
        log::warn!("this sync is not on record: {error}");
    }
}

/// The number by which the network's work was marked until now, if that is another than
/// `config` says and no other network's.
pub(super) fn former_protocol(config: &Config) -> Option<u8> {
    let former = Record::read(&config.network)?.protocol;
    if former == config.protocol {
        return None;
    }
    let mut others = all().into_iter().filter(|(network, _)| *network != config.network);
    let is_others = others.any(|(_, record)| record.protocol == former);
    (!is_others).then_some(former)
}

/// Removes the record of the network.
pub(super) fn remove(network: &str) -> Result<(), Error> {
    state_dir::remove(&file_name(network))
}

/// The network namespace, by device and inode.
fn netns() -> Result<String, Error> {
    let (device, inode) = Netns::current().and_then(|netns| netns.identity()).map_err(refused)?;
    Ok(format!("{device}:{inode}"))
}

fn file_name(network: &str) -> String {
    format!("{network}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(at: u64, changes: u64) -> Run {
        let failures = vec!["`ip route add 10.0.2.0/24` failed".to_owned()];
        Run { at, trigger: "STATUS".to_owned(), changes, failed: 1, failures }
    }

    #[test]
    fn a_record_survives_and_a_torn_or_foreign_one_is_none() {
        let (protocol, device) = (87, "weft.1".to_owned());
        let record = Record { protocol, device, last: run(2, 0), last_change: Some(run(1, 7)) };
        let text = record.to_json("4:1").to_string();
        assert_eq!(Record::parse(text.as_bytes(), "4:1"), Some(record));
        assert_eq!(Record::parse(text.as_bytes(), "4:2"), None);
        for length in 0..text.len() {
            assert_eq!(Record::parse(&text.as_bytes()[..length], "4:1"), None);
        }
    }

    #[test]
    fn whoever_ran_the_command_is_told_on_one_short_line() {
        assert_eq!(named(""), "weft sync");
        assert_eq!(named(" \n"), "weft sync");
        assert_eq!(named("cron\nx"), "cronx");
        assert_eq!(named(&"x".repeat(1000)).len(), LONGEST);
    }

    #[test]
    fn of_many_failures_the_first_are_kept() {
        let failures = (0..1000).map(|n| n.to_string()).collect();
        let outcome = Outcome { failures, count: 3, ..Outcome::default() };
        let error = Error::new(cni::Code::Kernel, "no memory");
        let run = Run::of(Trigger::Gc, &outcome, Some(&error));
        assert_eq!((run.changes, run.failed, run.failures.len()), (3, 1001, FAILURES));
        assert_eq!((run.trigger.as_str(), run.failures[0].as_str()), ("GC", "no memory"));
    }
}
