//! A network namespace for a test, and witnesses in it.

use std::process::Command;
use std::thread;

use kernel::Rtnetlink;
use kernel::netns::Netns;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Runs `test` in a new network namespace, where that is permitted; else it is skipped.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    testing::need!(testing::kernel());
    in_another(test);
}

/// Does `work` in a new network namespace; the thread's end is its end.
fn in_another<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        work()
    };
    match thread::scope(|scope| scope.spawn(enter).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Another network namespace, which lives as long as the value.
pub(crate) fn another() -> Netns {
    in_another(|| Netns::current().expect("the thread has one"))
}

/// In a new namespace with `lan`, a link that is up, has 192.0.2.1/24 and
/// 2001:db8::1/64 and reaches 192.0.2.2; `test` gets a socket and its number.
pub(crate) fn with_lan(test: impl FnOnce(&mut Rtnetlink, u32) + Send) {
    in_namespace(|| {
        sh("ip link set lo up
            ip link add lan type veth peer name far
            ip link set lan up; ip link set far up
            ip address add 192.0.2.1/24 dev lan
            ip address add 2001:db8::1/64 dev lan nodad");
        let mut socket = Rtnetlink::open().unwrap();
        let lan = socket.link_by_name("lan").unwrap().unwrap().index;
        test(&mut socket, lan);
    });
}

/// Runs a shell script in the thread's namespace; it has to succeed.
pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The list that a command prints as JSON, objects without content left out.
pub(crate) fn json(command: &str) -> Vec<Value> {
    let text = sh(command);
    if text.trim().is_empty() {
        return Vec::new();
    }
    let value: Value = serde_json::from_str(&text).unwrap();
    let list = value.as_array().unwrap().iter();
    list.filter(|entry| entry.as_object().is_some_and(|map| !map.is_empty())).cloned().collect()
}

/// The one object that a command prints as a list.
pub(crate) fn one(command: &str) -> Value {
    let list = json(command);
    assert_eq!(list.len(), 1, "{command}: {list:?}");
    list.into_iter().next().unwrap()
}
