//! What a place's kernel and files hold, in a form that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::place::Place;

/// One kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Links, with what is particular to their kind.
    Links,
    /// Addresses.
    Addresses,
    /// Routes of every table and both families.
    Routes,
    /// Policy rules of both families.
    Rules,
    /// Nexthop objects.
    Nexthops,
    /// Permanent neighbours and proxies.
    Neighbours,
    /// Permanent forwarding entries of bridges and VXLAN devices.
    Fdb,
    /// The nf_tables ruleset, without counters.
    Nftables,
    /// `/proc/sys/net`: forwarding, and `conf` of both families.
    Sysctls,
    /// Files under the private directories: name, and content.
    Files,
}

/// How each section is read; the command prints JSON.
const COMMANDS: [(Section, &str); 11] = [
    (Section::Links, "ip -j -d link show"),
    (Section::Addresses, "ip -j address show"),
    (Section::Routes, "ip -j -d -4 route show table all"),
    (Section::Routes, "ip -j -d -6 route show table all"),
    (Section::Rules, "ip -j -4 rule show"),
    (Section::Rules, "ip -j -6 rule show"),
    (Section::Nexthops, "ip -j -d nexthop show"),
    (Section::Neighbours, "ip -j neighbour show nud permanent"),
    (Section::Neighbours, "ip -j neighbour show proxy"),
    (Section::Fdb, "bridge -j fdb show"),
    (Section::Nftables, "nft -j list ruleset"),
];

/// Asked for a link by name, and not in a list, the kernel takes note of its carrier at once
/// instead of within a second (`linkwatch_sync_dev`): whether it runs, its link-local
/// address and the routes that come with that are then as they stay.
const SETTLE: &str = "sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev | while read -r link
do ip -j link show dev \"$link\" >/dev/null 2>&1 || true; done
";

const SYSCTLS: &str =
    "grep -rs '' /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf";

/// Directories of [`Section::Files`].
const DIRECTORIES: [&str; 5] = ["/run/weft", "/run/netns", "/var/lib/cni", "/etc/weft", "/etc/cni"];

/// Keys whose values change by themselves, or tell the order of things made since gone.
const VOLATILE: [&str; 17] = [
    // Set by the kernel some time after the flags, which tell the same (net/core/link_watch.c).
    "operstate",
    "gc_timer",
    "forward_delay_timer",
    "handle",
    "ifindex",
    "metainfo",
    "bytes",
    "packets",
    "used",
    "confirmed",
    "updated",
    "probes",
    "refcnt",
    "expires",
    "tentative",
    "valid_life_time",
    "preferred_life_time",
];

/// The state of one place at one moment, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<Section, BTreeSet<String>>,
}

impl Place {
    /// Reads everything that [`Section`] names.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut sections: BTreeMap<Section, BTreeSet<String>> = BTreeMap::new();
        let script: String =
            COMMANDS.iter().map(|(_, command)| format!("{command}; echo; echo ====\n")).collect();
        let text = self.sh(&format!("{SETTLE}{script}{SYSCTLS} || true\n"))?;
        let mut parts = text.split("====\n");
        for (section, command) in COMMANDS {
            let part = parts.next().unwrap_or_default();
            let lines = sections.entry(section).or_default();
            lines.extend(json_lines(section, part).context(command)?);
        }
        let sysctls = parts.next().unwrap_or_default().lines();
        sections.insert(Section::Sysctls, sysctls.map(sysctl_line).collect());
        let mut files = BTreeSet::new();
        for directory in DIRECTORIES {
            list_files(&self.path("/"), &self.path(directory), &mut files);
        }
        sections.insert(Section::Files, files);
        Ok(Snapshot { sections })
    }
}

impl Snapshot {
    /// Without some sections.
    pub fn without(mut self, sections: &[Section]) -> Snapshot {
        self.sections.retain(|section, _| !sections.contains(section));
        self
    }

    /// The lines of one section.
    pub fn section(&self, section: Section) -> impl Iterator<Item = &str> {
        self.sections.get(&section).into_iter().flatten().map(String::as_str)
    }

    /// What has to be taken from (`-`) and added to (`+`) this one to get `other`,
    /// empty if they are equal; sections that only one of the two has are left out.
    pub fn diff(&self, other: &Snapshot) -> String {
        let mut text = String::new();
        for (section, before) in &self.sections {
            let Some(after) = other.sections.get(section) else { continue };
            let gone = before.difference(after).map(|line| ('-', line));
            let new = after.difference(before).map(|line| ('+', line));
            for (sign, line) in gone.chain(new) {
                let _ = writeln!(text, "{sign} {section:?}: {line}");
            }
        }
        text
    }

    /// Panics with the difference if `now` is not equal to this one.
    #[track_caller]
    pub fn assert_same(&self, now: &Snapshot) {
        let diff = self.diff(now);
        assert!(diff.is_empty(), "the state is not as before:\n{diff}");
    }
}

/// A line for each object of a JSON list.
fn json_lines(section: Section, text: &str) -> Result<Vec<String>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut value: Value = serde_json::from_str(text)?;
    if let Some(ruleset) = value.get_mut("nftables") {
        value = ruleset.take();
    }
    let list = value.as_array().cloned().unwrap_or_default();
    let kept = list.into_iter().filter(|entry| keep(section, entry));
    Ok(kept
        .map(|mut entry| {
            strip(&mut entry);
            entry.to_string()
        })
        .collect())
}

/// Whether an entry was put there by someone, and is not the kernel's own passing knowledge.
fn keep(section: Section, entry: &Value) -> bool {
    let is_empty = entry.as_object().is_none_or(serde_json::Map::is_empty);
    match section {
        Section::Fdb => !is_empty && entry["state"] == "permanent" && !is_multicast(entry),
        Section::Nftables => entry.get("metainfo").is_none(),
        // Routes that the kernel learned from elsewhere and will forget, and those of
        // link-local addresses, which appear when duplicate address detection is over.
        Section::Routes => {
            let link_local = entry["table"] == "local"
                && entry["dst"].as_str().is_some_and(|dst| dst.starts_with("fe80:"));
            !is_empty && entry.get("expires").is_none() && !link_local
        }
        _ => !is_empty,
    }
}

/// Groups that the kernel listens to come and go with addresses, some time after them.
fn is_multicast(entry: &Value) -> bool {
    let mac = entry["mac"].as_str().unwrap_or_default();
    mac.starts_with("33:33:") || mac.starts_with("01:00:5e:")
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !VOLATILE.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

fn sysctl_line(line: &str) -> String {
    line.trim_start_matches("/proc/sys/").to_string()
}

/// Whether only the name of a file counts: a namespace's, and the record of a network's last
/// sync, which tells the time.
fn is_name_alone(root: &Path, path: &Path) -> bool {
    let is_record = path.extension().is_some_and(|extension| extension == "last");
    path.starts_with(root.join("run/netns")) || is_record && path.starts_with(root.join("run/weft"))
}

/// Adds a line for each file, directory and link under `path`.
fn list_files(root: &Path, path: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let (path, shown) = (entry.path(), entry.path());
        let shown = shown.strip_prefix(root).unwrap_or(&shown).display();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                lines.insert(format!("/{shown}/"));
                list_files(root, &path, lines);
            }
            Ok(kind) if kind.is_file() && !is_name_alone(root, &path) => {
                let content = fs::read(&path).unwrap_or_default();
                lines.insert(format!("/{shown}: {:?}", String::from_utf8_lossy(&content)));
            }
            _ => {
                lines.insert(format!("/{shown}"));
            }
        }
    }
}
