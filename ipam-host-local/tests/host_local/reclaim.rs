//! What is taken back, when, and what never.

use std::cell::Cell;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use cni::{AttachmentKey, Error, Plugin};
use ipam_host_local::{Host, HostLocal, Sight, Wait, lock};
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
    let look = || Sight { address_in_use: Box::new(used), ..nothing_in_use() };
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
    let look = || Sight {
        interface_lives: Some(Box::new(lives)),
        address_in_use: Box::new(used),
        ..nothing_in_use()
    };
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

/// As `fill`, for containers that no process of another test works on.
fn fill_quietly(config: &Value) {
    for id in ["o-a", "o-b", "o-c", "o-d", "o-e"] {
        add(host(), id, config).unwrap();
    }
}

/// Leases of six containers, of which the interfaces of three are gone: `o-a`, whose address is in
/// use, and `o-b` and `o-c`.
fn with_orphans(dir: &Dir) -> Value {
    let config = small(dir);
    fill_quietly(&config);
    // As old versions of the reference plugin wrote it, and as nobody does.
    dir.write("10.1.2.20", "o-b");
    dir.write("10.1.2.21", "reserved for o-b");
    config
}

fn free(dir: &Dir, config: &Value, wait: Wait, most: usize) -> Vec<String> {
    let lives = |key: &AttachmentKey| match key.container_id.as_str() {
        "o-a" | "o-b" | "o-c" => Ok(false),
        "o-d" => Err(Error::new(cni::Code::Kernel, "no answer")),
        _ => Ok(true),
    };
    let used = |address: std::net::IpAddr| address.to_string() == "10.1.2.2";
    let look = || Sight {
        interface_lives: Some(Box::new(lives)),
        address_in_use: Box::new(used),
        ..nothing_in_use()
    };
    let before = dir.held();
    let host = Host::new(&no_ranges, &look);
    let found = HostLocal { host }.free_orphans(&network(config), wait, most).unwrap();
    let mut freed: Vec<_> = found.orphans.iter().map(|lease| lease.address.to_string()).collect();
    freed.sort();
    let after = dir.held();
    let gone: Vec<_> = before.into_keys().filter(|name| !after.contains_key(name)).collect();
    assert_eq!(freed, gone, "not what it says");
    freed
}

#[test]
fn orphans_are_those_whose_interface_is_gone() {
    let dir = Dir::new();
    let config = with_orphans(&dir);
    assert_eq!(free(&dir, &config, Wait::No, 10), ["10.1.2.3", "10.1.2.4"]);
    assert_eq!(free(&dir, &config, Wait::No, 10), [""; 0]);
    // Who cannot ask for interfaces knows of no orphan.
    let standalone = HostLocal { host: Host::new(&no_ranges, &nothing_in_use) };
    let found = standalone.free_orphans(&network(&config), Wait::No, 10).unwrap();
    assert!(found.orphans.is_empty() && !found.proven, "{found:?}");
    assert_eq!(dir.held().len(), 5);
}

#[test]
fn an_orphan_of_the_reference_plugin_is_one_too() {
    let dir = Dir::new();
    let config = small(&dir);
    for (address, id) in [("10.1.2.2", "o-a"), ("10.1.2.3", "o-b"), ("10.1.2.5", "o-e")] {
        dir.write(address, &format!("{id}\r\neth0"));
    }
    assert_eq!(free(&dir, &config, Wait::No, 10), ["10.1.2.3"]);
}

#[test]
fn a_call_frees_no_more_orphans_than_it_may() {
    let dir = Dir::new();
    let config = with_orphans(&dir);
    assert_eq!(free(&dir, &config, Wait::No, 1).len(), 1);
    assert_eq!(free(&dir, &config, Wait::No, 1).len(), 1);
    assert_eq!(free(&dir, &config, Wait::No, 1), [""; 0]);
}

#[test]
fn orphans_wait_while_somebody_is_at_work() {
    let dir = Dir::new();
    let config = with_orphans(&dir);
    let path = dir.leases().join("lock");
    let held = lock(fs::File::open(&path).unwrap(), "lock", Wait::No).unwrap();
    assert!(held.is_some());
    assert_eq!(free(&dir, &config, Wait::No, 10), [""; 0]);
    let waited = std::thread::scope(|scope| {
        let free = scope.spawn(|| free(&dir, &config, Wait::AtMost(Duration::from_secs(60)), 10));
        drop(held);
        free.join().unwrap()
    });
    assert_eq!(waited, ["10.1.2.3", "10.1.2.4"]);
}

#[test]
fn an_orphan_that_is_being_made_is_none() {
    let dir = Dir::new();
    let config = small(&dir);
    dir.write("10.1.2.3", "orphan3\r\neth0");
    dir.write("10.1.2.4", "orphan4\r\neth0");
    let mut work = Command::new("cat");
    environment(&mut work, "ADD", "orphan4", "eth0", "");
    let mut work = work.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let look = || Sight { interface_lives: Some(Box::new(|_| Ok(false))), ..nothing_in_use() };
    let free = || {
        let host = Host::new(&no_ranges, &look);
        HostLocal { host }.free_orphans(&network(&config), Wait::No, 10).unwrap()
    };
    assert_eq!(free().orphans.len(), 1);
    assert_eq!(dir.held().into_keys().collect::<Vec<_>>(), ["10.1.2.4"]);
    drop(work.stdin.take());
    work.wait().unwrap();
    assert_eq!(free().orphans.len(), 1);
    assert!(dir.held().is_empty());
}

/// Between the look around, which is without the lock, and the release.
#[test]
fn a_lease_that_was_made_anew_meanwhile_is_kept() {
    let dir = Dir::new();
    let config = small(&dir);
    add(host(), "o-a", &config).unwrap();
    add(host(), "o-b", &config).unwrap();
    let made_anew = Cell::new(false);
    let in_use = |_: std::net::IpAddr| {
        if !made_anew.replace(true) {
            del("o-a", &config);
            let mut same = config.clone();
            same["runtimeConfig"] = json!({ "ips": ["10.1.2.2"] });
            assert_eq!(add_one(host(), "o-a", &same).unwrap(), "10.1.2.2");
        }
        false
    };
    let look = || Sight {
        interface_lives: Some(Box::new(|_| Ok(false))),
        address_in_use: Box::new(in_use),
        ..nothing_in_use()
    };
    let veth = HostLocal { host: Host::new(&no_ranges, &look) };
    veth.free_orphans(&network(&config), Wait::No, 10).unwrap();
    assert_eq!(dir.held().into_keys().collect::<Vec<_>>(), ["10.1.2.2"]);
    veth.free_orphans(&network(&config), Wait::No, 10).unwrap();
    assert!(dir.held().is_empty());
}

/// A pod's route is enough, and spares the look at everything else.
#[test]
fn leases_with_a_route_are_not_looked_into() {
    let dir = Dir::new();
    let config = small(&dir);
    fill_quietly(&config);
    let routed = |address: std::net::IpAddr| address.to_string() != "10.1.2.4";
    let all = |_: std::net::IpAddr| true;
    let asked = Cell::new(0);
    let in_use = |_: std::net::IpAddr| {
        asked.set(asked.get() + 1);
        false
    };
    let free = |has_pod_route: &dyn Fn(std::net::IpAddr) -> bool| {
        let look = || Sight {
            interface_lives: Some(Box::new(|_| Ok(false))),
            has_pod_route: Box::new(has_pod_route),
            address_in_use: Box::new(in_use),
        };
        let host = Host::new(&no_ranges, &look);
        HostLocal { host }.free_orphans(&network(&config), Wait::No, 10).unwrap()
    };
    let found = free(&all);
    assert!(found.proven && found.leases == 5 && asked.get() == 0, "{found:?}");
    let found = free(&routed);
    assert!(!found.proven && found.orphans.len() == 1, "{found:?}");
    assert_eq!(asked.get(), 1, "of one lease");
    assert!(!dir.held().contains_key("10.1.2.4"), "{:?}", dir.held());
    assert!(free(&routed).proven);
}

/// A lease removed by hand while a verb ran, whose seal covers that up.
#[test]
fn what_the_index_has_and_the_directory_has_not_is_forgotten() {
    let dir = Dir::new();
    let config = with_orphans(&dir);
    let taken = || HostLocal { host: host() }.usage(&network(&config)).unwrap().remove(0).taken;
    // The gateway, and five containers.
    assert_eq!(taken(), 6);
    let sealed = fs::metadata(dir.leases()).unwrap().modified().unwrap();
    fs::remove_file(dir.leases().join("10.1.2.3")).unwrap();
    fs::File::open(dir.leases()).unwrap().set_modified(sealed).unwrap();
    assert_eq!(taken(), 6, "the index is not believed");
    assert_eq!(free(&dir, &config, Wait::No, 10), ["10.1.2.4"]);
    assert_eq!(taken(), 4);
}

#[test]
fn gc_keeps_what_has_an_interface() {
    let dir = Dir::new();
    let config = small(&dir);
    fill_quietly(&config);
    let lives = |key: &AttachmentKey| Ok(key.container_id == "o-c");
    let look = || Sight { interface_lives: Some(Box::new(lives)), ..nothing_in_use() };
    let veth = HostLocal { host: Host::new(&no_ranges, &look) };
    veth.gc(&[key("o-a")], &network(&config)).unwrap();
    assert_eq!(dir.held().into_values().collect::<Vec<_>>(), ["o-a\r\neth0", "o-c\r\neth0"]);
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
