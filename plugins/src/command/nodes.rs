//! `weft nodes check` and `weft nodes import`: the node map by itself.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cluster::{Map, ProblemKind};

use super::conflist::RoutingNetwork;
use super::print::print;
use crate::node::Source;
use crate::state_dir;

pub(super) const HELP: &str = "\
Usage: weft nodes check [--conf FILE] [DIR]
       weft nodes import [--conf FILE] [DIR|-]

check reads the node map (that in DIR, else the one that the network's
configuration names), prints everything that is wrong with it, by file and item,
and how many nodes there are. Exit status 1 if anything is wrong. It changes
nothing and looks at no kernel.

import reads one JSON document from standard input - the output of
`kubectl get nodes -o json`, or a node map in any other form - and writes it as
one compact file, nodes.json, into the map's directory: whole or not at all, and
not at all if it says what the file says already. With - it prints it instead.
    kubectl get nodes -o json | weft nodes import
It refuses, with exit status 1, what is no map, a map in which no node has both a
pod range and an address, one with anything wrong in it, and one that contradicts
the directory's other files; the file then stays as it was. Nodes without a pod
range or address yet are taken along. What the old file said beyond the document,
such as a vtepMAC added by hand, is gone: put that into the document, or keep the
map by hand.
";

/// The file that an import writes.
const IMPORTED: &str = "nodes.json";

/// Checks the map in `dir`.
pub(super) fn check_directory(dir: &Path) -> Result<ExitCode> {
    report(&Map::read(dir)?)
}

/// Checks the map of one network.
pub(super) fn check_network(network: &RoutingNetwork) -> Result<ExitCode> {
    let source = &network.config.source;
    match &source.inline {
        Some(value) => report(&Map::from_value(value, "nodes")?),
        None => check_directory(&source.dir),
    }
}

fn report(map: &Map) -> Result<ExitCode> {
    print(&findings(map))?;
    Ok(if map.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What there is to say of the map: pure.
fn findings(map: &Map) -> String {
    let mut text = String::new();
    for problem in map.unreadable.iter().chain(&map.problems) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{problem}");
    }
    for node in &map.incomplete {
        let lacks = if node.pod_ranges.is_empty() { "pod range" } else { "address" };
        let _ = writeln!(text, "{}: {}: has no {lacks} yet and is left out", map.origin, node.name);
    }
    let _ = writeln!(
        text,
        "{}: {} node(s), {} without a pod range or address yet, {} quarantined, {} problem(s)",
        map.origin,
        map.nodes.len(),
        map.incomplete.len(),
        map.quarantined.len(),
        map.problems.len() + map.unreadable.len()
    );
    text
}

/// Where an import goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    StandardOutput,
    Directory(PathBuf),
    /// The directories that the networks' configurations name.
    Configured,
}

/// Imports the document on standard input.
pub(super) fn import(
    target: &Target,
    networks: impl FnOnce() -> Result<Vec<RoutingNetwork>>,
) -> Result<ExitCode> {
    let mut document = Vec::new();
    std::io::stdin().read_to_end(&mut document).context("cannot read standard input")?;
    let map = Map::from_json(&document, "standard input")?;
    refuse_unusable(&map)?;
    let compact = format!("{}\n", map.to_compact_json());
    match target {
        Target::StandardOutput => print(&compact)?,
        Target::Directory(dir) => put(dir, &compact, &map)?,
        Target::Configured => {
            let sources = networks()?.into_iter().map(|network| network.config.source);
            for dir in directories(sources)? {
                put(&dir, &compact, &map)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn directories(sources: impl Iterator<Item = Source>) -> Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for source in sources {
        if source.inline.is_some() {
            bail!("the map is inline in the network's configuration; name a DIR, or -");
        }
        dirs.push(source.dir);
    }
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}

/// Fails on a map that nodes could not go by.
pub(super) fn refuse_unusable(map: &Map) -> Result<()> {
    let problems: Vec<String> = map.problems.iter().map(ToString::to_string).collect();
    if !problems.is_empty() {
        bail!("{}\nweft: not imported: {} problem(s)", problems.join("\n"), problems.len());
    }
    if map.nodes.is_empty() {
        bail!(
            "not imported: none of the {} node(s) has both a pod range (spec.podCIDRs) and an \
             address (InternalIP) yet",
            map.incomplete.len()
        );
    }
    Ok(())
}

fn put(dir: &Path, compact: &str, map: &Map) -> Result<()> {
    let file = dir.join(IMPORTED);
    let counts = format!(
        "{} node(s), {} without a pod range or address yet",
        map.nodes.len(),
        map.incomplete.len()
    );
    if fs::read(&file).is_ok_and(|there| there == compact.as_bytes()) {
        return print(&format!("{}: unchanged, {counts}\n", file.display()));
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Hidden: no reader takes it for part of the map.
    let temporary = dir.join(format!(".{IMPORTED}.{}", std::process::id()));
    let done = write_whole(&temporary, compact)
        .with_context(|| format!("cannot write {}", temporary.display()))
        .and_then(|()| refuse_contradiction(dir, IMPORTED, &temporary))
        .and_then(|()| {
            fs::rename(&temporary, &file)
                .with_context(|| format!("cannot write {}", file.display()))
        });
    if done.is_err() {
        // The error above tells what is wrong; a hidden file left over is harmless.
        let _ = fs::remove_file(&temporary);
    }
    done?;
    print(&format!("{}: written, {counts}\n", file.display()))
}

fn write_whole(path: &Path, content: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Judges the directory as it would be with the file `imported` called `name` there, in
/// a directory of links.
pub(super) fn refuse_contradiction(dir: &Path, name: &str, imported: &Path) -> Result<()> {
    let trial = state_dir::path(&format!("import.{}", std::process::id()));
    let judged = fs::create_dir_all(&trial)
        .and_then(|()| link_all(dir, name, imported, &trial))
        .with_context(|| format!("cannot prepare {}", trial.display()))
        .and_then(|()| Ok(Map::read(&trial)?));
    fs::remove_dir_all(&trial).with_context(|| format!("cannot remove {}", trial.display()))?;
    let map = judged?;
    let contradicts = |kind| matches!(kind, ProblemKind::Conflict);
    let conflicts = map.problems.iter().filter(|problem| contradicts(problem.kind));
    let (from, to) = (trial.display().to_string(), dir.display().to_string());
    let conflicts: Vec<String> =
        conflicts.map(|problem| problem.to_string().replace(&from, &to)).collect();
    match conflicts.len() {
        0 => Ok(()),
        count => bail!("{}\nweft: not imported: {count} conflict(s)", conflicts.join("\n")),
    }
}

fn link_all(dir: &Path, name: &str, imported: &Path, trial: &Path) -> std::io::Result<()> {
    let dir = fs::canonicalize(dir)?;
    for entry in fs::read_dir(&dir)? {
        let entry = entry?;
        if entry.file_name() != name {
            symlink(entry.path(), trial.join(entry.file_name()))?;
        }
    }
    symlink(fs::canonicalize(imported)?, trial.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_item_and_counts() {
        let map = br#"{ "nodes": [
            { "name": "a", "addresses": ["192.168.1.1"], "podCIDRs": ["10.0.1.0/24"] },
            { "name": "b", "addresses": ["192.168.1.2"], "podCIDRs": ["10.0.1.0/25"] },
            { "name": "c", "addresses": ["192.168.1.3"] },
            { "name": "d", "addresses": ["192.168.1.4"], "podCIDRs": ["10.0.4.0/24"] } ] }"#;
        let text = findings(&Map::from_json(map, "map").expect("a map"));
        assert!(text.contains("overlaps"), "{text}");
        assert!(text.contains("map: c: has no pod range yet"), "{text}");
        let last = text.lines().last().expect("a summary");
        assert!(last.contains("1 node(s), 1 without") && last.contains("2 quarantined"), "{last}");
    }
}
