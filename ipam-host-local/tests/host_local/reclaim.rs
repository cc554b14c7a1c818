//! What is taken back, when, and what never.

use std::fs;
use std::process::{Command, Stdio};

use cni::{AttachmentKey, Error, Plugin};
use ipam_host_local::{Host, HostLocal, Sight};
use serde_json::{Value, json};

use crate::util::{
    Dir, add, add_one, call, config, del, environment, finish, host, key, network, no_ranges,
    nothing_in_use, ours, reference,
};

fn small(dir: &Dir) -> Value {
    config(dir, json!([[{ "subnet": "10.1.2.0/29" }]]))
}

/// A host in another boot.
fn next_boot(dir: &Dir) -> Host<'static> {
    let boot_id = dir.0.join("boot_id");
    fs::write(&boot_id, "b84a3a0e-3f21-4c25-a4dc-f6d1f3a3c5f7\n").unwrap();
    Host { boot_id, ..host() }
}

fn fill(config: &Value) {
    for id in ["r-a", "r-b", "r-c", "r-d", "r-e"] {
        add(host(), id, config).unwrap();
    }
}

#[test]
fn leases_end_with_their_boot() {
    let dir = Dir::new();
    let config = small(&dir);
    fill(&config);
    add(next_boot(&dir), "new", &config).unwrap();
    assert_eq!(dir.held().into_values().collect::<Vec<_>>(), ["new\r\neth0"]);
}

#[test]
fn leases_of_the_reference_end_with_the_boot_in_which_they_were_seen() {
    let go = testing::need!(reference());
    let dir = Dir::new();
    let config = small(&dir);
    call(&go, "ADD", "r-a", &config).unwrap();
    add(host(), "r-b", &config).unwrap();
    // The reference plugin comes first in the next boot, and takes an address that was free.
    let next = next_boot(&dir);
    call(&go, "DEL", "r-b", &config).unwrap();
    call(&go, "ADD", "r-b", &config).unwrap();
    add(next, "r-c", &config).unwrap();
    let holders: Vec<_> = dir.held().into_values().collect();
    assert_eq!(holders, ["r-b\r\neth0", "r-c\r\neth0"]);
}

#[test]
fn torn_notes_do_not_keep_a_lease_over_a_boot() {
    for damage in ["gone", "empty", "half", "zeros"] {
        let dir = Dir::new();
        let config = small(&dir);
        fill(&config);
        let index = dir.leases().join(".weft/index");
        let bytes = fs::read(&index).unwrap();
        match damage {
            "gone" => fs::remove_dir_all(dir.leases().join(".weft")).unwrap(),
            "empty" => fs::write(&index, "").unwrap(),
            "half" => fs::write(&index, &bytes[..bytes.len() / 2]).unwrap(),
            _ => fs::write(&index, vec![0; bytes.len()]).unwrap(),
        }
        HostLocal { host: next_boot(&dir) }
            .gc(&[key("r-a"), key("r-b")], &network(&config))
            .unwrap();
        assert!(dir.held().is_empty(), "{damage}: {:?}", dir.held());
    }
}

#[test]
fn torn_notes_lose_nothing_in_this_boot() {
    for damage in [0, 100, 4096, 9000] {
        let dir = Dir::new();
        let config = small(&dir);
        fill(&config);
        let index = dir.leases().join(".weft/index");
        fs::OpenOptions::new().write(true).open(&index).unwrap().set_len(damage).unwrap();
        // The directory's seal is still there: this is no crash, it is bit rot.
        assert_eq!(add(host(), "r-f", &config).unwrap_err().code, 11, "{damage}");
        fs::OpenOptions::new().write(true).open(&index).unwrap().set_len(damage).unwrap();
        del("r-c", &config);
        assert_eq!(add_one(host(), "r-f", &config).unwrap(), "10.1.2.4", "{damage}");
    }
}

#[test]
fn empty_files_are_free() {
    let dir = Dir::new();
    let config = small(&dir);
    dir.write("10.1.2.2", "");
    dir.write("10.1.2.3", "\0\0\0\0");
    let got: Vec<_> = ["r-a", "r-b"].map(|id| add_one(host(), id, &config).unwrap()).into();
    assert_eq!(got, ["10.1.2.2", "10.1.2.3"]);
}

#[test]
fn unnoted_leases_live_until_space_runs_out() {
    let dir = Dir::new();
    let config = small(&dir);
    dir.write("10.1.2.3", "r-x\r\neth0");
    dir.write("10.1.2.4", "r-y");
    let used = |address: std::net::IpAddr| address.to_string() == "10.1.2.4";
    let look = || Sight { interface_lives: None, address_in_use: Box::new(used) };
    let idle = || Host::new(&no_ranges, &look);
    for id in ["r-a", "r-b", "r-c"] {
        add(idle(), id, &config).unwrap();
        assert!(dir.held().contains_key("10.1.2.3"), "taken with addresses left");
    }
    assert_eq!(add(host(), "r-d", &config).unwrap_err().code, 11, "taken though in use");
    assert_eq!(add_one(idle(), "r-d", &config).unwrap(), "10.1.2.3");
    assert_eq!(add(idle(), "r-e", &config).unwrap_err().code, 11);
    assert_eq!(dir.held()["10.1.2.4"], "r-y");
}

#[test]
fn leases_without_interface_are_taken_back() {
    let dir = Dir::new();
    let config = small(&dir);
    fill(&config);
    let lives = |key: &AttachmentKey| match key.container_id.as_str() {
        "r-b" | "r-c" => Ok(false),
        "r-d" => Err(Error::new(cni::Code::Kernel, "no answer")),
        _ => Ok(true),
    };
    let used = |address: std::net::IpAddr| address.to_string() == "10.1.2.3";
    let look = || Sight { interface_lives: Some(Box::new(lives)), address_in_use: Box::new(used) };
    let veth = || Host::new(&no_ranges, &look);
    HostLocal { host: veth() }.status(&network(&config)).unwrap();
    assert_eq!(add_one(veth(), "r-f", &config).unwrap(), "10.1.2.4");
    assert_eq!(add(veth(), "r-g", &config).unwrap_err().code, 11);
    let mut wanted = config.clone();
    wanted["runtimeConfig"] = json!({ "ips": ["10.1.2.3"] });
    assert_eq!(add(veth(), "r-g", &wanted).unwrap_err().code, 11);
}

#[test]
fn a_pod_that_is_being_made_keeps_its_lease() {
    let dir = Dir::new();
    let config = small(&dir);
    for n in 2..=6 {
        dir.write(&format!("10.1.2.{n}"), &format!("made{n}\r\neth0"));
    }
    // An interface plugin at work, which waits for its standard input.
    let mut work = Command::new("cat");
    environment(&mut work, "ADD", "made4", "eth0", "");
    let mut work = work.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let idle = || Host::new(&no_ranges, &nothing_in_use);
    add(idle(), "r-a", &config).unwrap();
    assert_eq!(dir.held()["10.1.2.4"], "made4\r\neth0");
    HostLocal { host: idle() }.gc(&[], &network(&config)).unwrap();
    assert_eq!(dir.held().into_keys().collect::<Vec<_>>(), ["10.1.2.4"]);
    drop(work.stdin.take());
    work.wait().unwrap();
    HostLocal { host: idle() }.gc(&[], &network(&config)).unwrap();
    assert!(dir.held().is_empty());
}

#[test]
fn the_next_boot_is_seen_by_the_process_too() {
    testing::need!(testing::privilege());
    let dir = Dir::new();
    let config = small(&dir);
    fill(&config);
    let boot_id = dir.0.join("boot_id");
    fs::write(&boot_id, "b84a3a0e-3f21-4c25-a4dc-f6d1f3a3c5f7\n").unwrap();
    let mut command = Command::new("unshare");
    environment(&mut command, "ADD", "new", "eth0", "");
    let bind = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec {}",
        boot_id.display(),
        ours().display()
    );
    command.args(["-m", "sh", "-c", &bind]);
    let result = finish(command, &config).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.1.2.2/29");
    assert_eq!(dir.held().len(), 1);
}
