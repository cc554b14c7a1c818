//! SIGKILL at every system call of every verb; then either binary goes on.
//!
//! strace delivers the signal on entry to a call, which is then not made: so the states seen
//! are those after each call that was. A state that has been seen already is not tried again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::util::{Dir, Outcome, addresses, call, config, environment, finish, ours, reference};

/// Addresses of each set, less the gateway.
const SPACE: usize = 5;

fn ranges() -> Value {
    json!([[{ "subnet": "10.1.2.0/29" }], [{ "subnet": "fd00::/125", "rangeEnd": "fd00::6" }]])
}

/// Kills `verb` for container `id`, in a copy of `start`, at each of its system calls. `keep` are the
/// containers whose leases must stand after it; those of others may, except `id`'s after DEL.
fn kill_everywhere(verb: &str, id: &str, start: &Dir, keep: &[&str]) {
    if !Path::new("/usr/bin/strace").exists() {
        return eprintln!("SKIPPED: no strace: apt-get install strace");
    }
    let mut seen = HashSet::new();
    let (mut kills, mut tried) = (0, 0);
    for name in system_calls(verb, id, start, keep) {
        for n in 1.. {
            let dir = start.copy();
            let inject = format!("inject={name}:signal=KILL:when={n}");
            let outcome = trace(verb, id, &dir, keep, &["-o", "/dev/null", "-e", &inject]);
            if outcome.is_ok() {
                assert!(n > 1, "{verb} survived {name}");
                break;
            }
            kills += 1;
            if seen.insert(dir.state()) {
                tried += 1;
                let what = format!("{verb} killed at {name} {n}");
                let go = reference().unwrap_or_else(ours);
                for next in [[ours(), ours()], [go.clone(), go.clone()], [go, ours()]] {
                    verify(&dir.copy(), id, keep, &next, &what);
                }
            }
        }
    }
    eprintln!("{verb}: killed at each of {kills} calls, {tried} different states");
    assert!(tried > 4, "hardly anything happened");
}

/// Which system calls `verb` makes.
fn system_calls(verb: &str, id: &str, start: &Dir, keep: &[&str]) -> BTreeSet<String> {
    let dir = start.copy();
    let log = dir.0.join("strace");
    trace(verb, id, &dir, keep, &["-o", log.to_str().unwrap()]).unwrap();
    let mut calls = BTreeSet::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        // "1234  openat(…": of a process; "+++ exited" is none.
        let name = line.split_whitespace().nth(1).and_then(|call| call.split_once('('));
        // The first execve is strace's own, of the program.
        if let Some((name, _)) = name.filter(|(name, _)| *name != "execve") {
            calls.insert(name.to_owned());
        }
    }
    calls
}

/// Runs `verb` under strace, in a process namespace where there is nothing else for GC to look at.
fn trace(verb: &str, id: &str, dir: &Dir, keep: &[&str], options: &[&str]) -> Outcome {
    let mut config = config(dir, ranges());
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] =
        keep.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
    let mut command = Command::new("unshare");
    environment(&mut command, verb, id, "eth0", "");
    command.args(["-p", "-f", "--mount-proc", "strace", "-f", "-qq"]).args(options).arg(ours());
    finish(command, &config)
}

/// After a DEL of `id`, as every runtime sends one, exactly the addresses of those that
/// live are taken, one of each set by each. The two programs of `next` take turns.
fn verify(dir: &Dir, id: &str, keep: &[&str], next: &[PathBuf; 2], what: &str) {
    let what = format!("{what}, then {next:?}");
    let mut turns = next.iter().cycle();
    let mut next = || turns.next().unwrap();
    let config = config(dir, ranges());
    call(next(), "DEL", id, &config).unwrap_or_else(|error| panic!("{what}: {error}"));
    let before = dir.held();
    let holders = |leases: &BTreeMap<String, String>| -> Vec<String> {
        leases.values().map(|content| content.replace("\r\neth0", "")).collect()
    };
    let held = holders(&before);
    assert!(!held.iter().any(|holder| holder == id), "{what}: {before:?}");
    for id in keep {
        assert_eq!(held.iter().filter(|holder| holder == id).count(), 2, "{what}: {before:?}");
    }
    let mut given: HashSet<String> = before.keys().cloned().collect();
    // A container that GC was about to free may have one address left.
    let v6 = before.keys().filter(|name| name.contains(':')).count();
    for n in 0..SPACE - v6.max(before.len() - v6) {
        let result = call(next(), "ADD", &format!("more{n}"), &config);
        let result = result.unwrap_or_else(|error| panic!("{what}: {before:?}: {error}"));
        for address in addresses(&result) {
            assert!(given.insert(address.clone()), "{what}: {address} twice");
        }
    }
    call(next(), "ADD", "toomuch", &config).expect_err(&what);
    let after = dir.held();
    assert!(
        before.iter().all(|(name, content)| after.get(name) == Some(content)),
        "{what}: {after:?}"
    );
}

fn filled(ids: &[&str], program: &Path) -> Dir {
    let dir = Dir::new();
    for id in ids {
        call(program, "ADD", id, &config(&dir, ranges())).unwrap();
    }
    dir
}

#[test]
fn first_add() {
    kill_everywhere("ADD", "x", &Dir::new(), &[]);
}

#[test]
fn add() {
    kill_everywhere("ADD", "x", &filled(&["a", "b"], &ours()), &["a", "b"]);
}

#[test]
fn add_after_the_reference() {
    let Some(go) = reference() else { return };
    let dir = filled(&["a", "b"], &ours());
    call(&go, "DEL", "a", &config(&dir, ranges())).unwrap();
    call(&go, "ADD", "c", &config(&dir, ranges())).unwrap();
    kill_everywhere("ADD", "x", &dir, &["b", "c"]);
}

#[test]
fn del() {
    kill_everywhere("DEL", "x", &filled(&["a", "x", "b"], &ours()), &["a", "b"]);
}

#[test]
fn gc() {
    kill_everywhere("GC", "x", &filled(&["a", "x", "b", "y"], &ours()), &["a", "b"]);
}
