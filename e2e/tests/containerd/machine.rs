//! What is left on the machine by a test that ends without removing its pods: nothing.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::conf;

use crate::control_group::ControlGroup;
use crate::stage::{Stage, prerequisites};

/// Where containerd, runc and libcni would write if they saw the machine's directories.
const DIRECTORIES: [&str; 6] = [
    "/run/containerd",
    "/run/netns",
    "/run/runc",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/etc/cni/net.d",
];

/// Everything with this word in it: processes by their command line, mounts, names of
/// files in [`DIRECTORIES`].
fn traces(word: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        let line = fs::read(&path).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) {
            found.push(line);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|line| line.contains(word)).map(str::to_owned));
    for directory in DIRECTORIES {
        names_with(Path::new(directory), word, &mut found);
    }
    Ok(found)
}

fn names_with(directory: &Path, word: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.to_string_lossy().contains(word) {
            found.push(path.display().to_string());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_with(&path, word, found);
        }
    }
}

#[test]
fn a_test_that_ends_early_leaves_nothing_on_the_machine() -> Result<()> {
    testing::need!(prerequisites());
    let stage = Stage::lesson(conf::TUNNEL)?;
    let pod = stage.daemons[0].client()?.run("forgotten")?;
    let group = stage.group.path().trim_start_matches('/').to_owned();
    let living = traces(&pod.id)?;
    ensure!(living.iter().any(|line| line.contains("containerd-shim")), "no shim: {living:?}");
    ensure!(!ControlGroup::directories(&group)?.is_empty(), "no control group");
    drop(stage);
    for word in [&pod.id, &pod.container] {
        let left = traces(word)?;
        ensure!(left.is_empty(), "{left:#?}");
    }
    let left = ControlGroup::directories(&group)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
