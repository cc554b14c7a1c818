//! SIGKILL at every system call of every verb, and a full disk at every call that may meet
//! one; then either binary goes on.
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

/// What befalls a system call.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    NoSpace,
}

impl Fault {
    fn befalls(self, call: &str) -> bool {
        let writes = ["write", "openat", "mkdir", "link", "rename", "truncate", "utimens"];
        self == Self::Kill || writes.iter().any(|name| call.contains(name))
    }

    /// For strace, at the `n`th of the calls named.
    fn inject(self, call: &str, n: usize) -> String {
        match self {
            Self::Kill => format!("inject={call}:signal=KILL:when={n}"),
            Self::NoSpace => format!("inject={call}:error=ENOSPC:when={n}"),
        }
    }

    /// Whether it came to that, by strace's log.
    fn happened(self, log: &Path) -> bool {
        let log = std::fs::read_to_string(log).unwrap();
        log.contains(if self == Self::Kill { "killed by SIGKILL" } else { "(INJECTED)" })
    }
}

/// The reference plugin, where all else that these tests need is there too.
fn prerequisites() -> Result<PathBuf, String> {
    testing::privilege()?;
    testing::program("strace")?;
    reference()
}

fn kill_everywhere(go: &Path, verb: &str, id: &str, start: &Dir, keep: &[&str]) {
    everywhere(Fault::Kill, go, verb, id, start, keep);
}

fn no_space_anywhere(go: &Path, verb: &str, id: &str, start: &Dir, keep: &[&str]) {
    everywhere(Fault::NoSpace, go, verb, id, start, keep);
}

/// `fault` at each system call of `verb` for container `id`, each time in a copy of `start`. `keep` are the
/// containers whose leases must stand after it; those of others may, except `id`'s after DEL.
/// Ours and the reference plugin `go` take over.
fn everywhere(fault: Fault, go: &Path, verb: &str, id: &str, start: &Dir, keep: &[&str]) {
    let scratch = Dir::new();
    let log = scratch.0.join("strace");
    let mut seen = HashSet::new();
    let (mut faults, mut tried) = (0, 0);
    for name in system_calls(verb, id, start, keep) {
        for n in (1..).take_while(|_| fault.befalls(&name)) {
            let dir = start.copy();
            let inject = fault.inject(&name, n);
            let options = ["-o", log.to_str().unwrap(), "-e", &inject];
            let outcome = trace(verb, id, &dir, keep, &options);
            if !fault.happened(&log) {
                assert!(n > 1, "{verb} survived {name}");
                break;
            }
            faults += 1;
            let what = format!("{verb}, {inject}");
            if fault == Fault::NoSpace {
                failed_cleanly(&dir, verb, id, &outcome, &what);
            }
            if seen.insert(dir.state()) {
                tried += 1;
                let go = || go.to_owned();
                for next in [[ours(), ours()], [go(), go()], [go(), ours()]] {
                    verify(&dir.copy(), id, keep, &next, &what);
                }
            }
        }
    }
    eprintln!("{verb}: {faults} faults, {tried} different states");
    assert!(tried > 4, "hardly anything happened");
}

/// An error is code 5 and ADD has left nothing; where even the error could not be printed, or the program
/// not be loaded, there is none.
fn failed_cleanly(dir: &Dir, verb: &str, id: &str, outcome: &Outcome, what: &str) {
    let Err(error) = outcome else { return };
    if error.is_null() {
        return;
    }
    assert_eq!(error["code"], 5, "{what}: {error}");
    let holds = |content: &String| content.starts_with(&format!("{id}\r\n"));
    assert!(verb != "ADD" || !dir.held().values().any(holds), "{what}: {:?}", dir.held());
}

/// Which system calls `verb` makes.
fn system_calls(verb: &str, id: &str, start: &Dir, keep: &[&str]) -> BTreeSet<String> {
    let dir = start.copy();
    let log = dir.0.join("strace");
    // An ADD may be one that fails, but it answers.
    let (Ok(answer) | Err(answer)) = trace(verb, id, &dir, keep, &["-o", log.to_str().unwrap()]);
    assert!(verb != "ADD" || !answer.is_null(), "{verb} crashed");
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
    let go = testing::need!(prerequisites());
    kill_everywhere(&go, "ADD", "x", &Dir::new(), &[]);
    no_space_anywhere(&go, "ADD", "x", &Dir::new(), &[]);
}

#[test]
fn add() {
    let go = testing::need!(prerequisites());
    let start = filled(&["a", "b"], &ours());
    kill_everywhere(&go, "ADD", "x", &start, &["a", "b"]);
    no_space_anywhere(&go, "ADD", "x", &start, &["a", "b"]);
}

/// A directory of ours where the reference plugin has been since.
fn after_the_reference(go: &Path) -> Dir {
    let dir = filled(&["a", "b"], &ours());
    call(go, "DEL", "a", &config(&dir, ranges())).unwrap();
    call(go, "ADD", "c", &config(&dir, ranges())).unwrap();
    dir
}

#[test]
fn add_after_the_reference() {
    let go = testing::need!(prerequisites());
    let dir = after_the_reference(&go);
    kill_everywhere(&go, "ADD", "x", &dir, &["b", "c"]);
    no_space_anywhere(&go, "ADD", "x", &dir, &["b", "c"]);
}

/// The second set has no address left, so what the first gave is given back.
#[test]
fn add_that_fails() {
    let go = testing::need!(prerequisites());
    let dir = filled(&["a", "b", "c", "d"], &ours());
    dir.write("fd00::6", "other");
    kill_everywhere(&go, "ADD", "x", &dir, &["a", "b", "c", "d"]);
}

#[test]
fn del() {
    let go = testing::need!(prerequisites());
    let start = filled(&["a", "x", "b"], &ours());
    kill_everywhere(&go, "DEL", "x", &start, &["a", "b"]);
    no_space_anywhere(&go, "DEL", "x", &start, &["a", "b"]);
}

#[test]
fn del_after_the_reference() {
    let go = testing::need!(prerequisites());
    let dir = after_the_reference(&go);
    kill_everywhere(&go, "DEL", "c", &dir, &["b"]);
    no_space_anywhere(&go, "DEL", "c", &dir, &["b"]);
}

#[test]
fn gc() {
    let go = testing::need!(prerequisites());
    let start = filled(&["a", "x", "b", "y"], &ours());
    kill_everywhere(&go, "GC", "x", &start, &["a", "b"]);
    no_space_anywhere(&go, "GC", "x", &start, &["a", "b"]);
}
