//! Directories that somebody has been at.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

use cni::Plugin;
use ipam_host_local::{Host, HostLocal};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::util::{Dir, add, add_one, call, config, del, environment, finish, host, network, ours};

fn small(dir: &Dir) -> Value {
    config(dir, json!([[{ "subnet": "10.1.2.0/29" }]]))
}

#[test]
fn what_is_no_lease_is_left_alone() {
    let dir = Dir::new();
    let config = small(&dir);
    let outside = dir.0.join("outside");
    fs::write(&outside, "a\r\neth0").unwrap();
    fs::create_dir_all(dir.leases().join("10.1.2.2")).unwrap();
    symlink(&outside, dir.leases().join("10.1.2.3")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.leases().join("10.1.2.4")).status().unwrap().success());
    dir.write("fd00::1", "z\r\neth0");
    dir.write("010.1.2.5", "z\r\neth0");
    dir.write("junk", "a\r\neth0");
    fs::write(dir.leases().join("b\u{fc}ro"), [0xff, 0xfe]).unwrap();
    assert_eq!(add_one(host(), "a", &config).unwrap(), "10.1.2.5");
    del("a", &config);
    HostLocal { host: host() }.gc(&[], &network(&config)).unwrap();
    for name in ["10.1.2.2", "10.1.2.3", "10.1.2.4", "010.1.2.5", "junk"] {
        assert!(dir.leases().join(name).symlink_metadata().is_ok(), "{name} was removed");
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "a\r\neth0");
}

#[test]
fn our_own_files_are_not_followed_out_of_the_directory() {
    let outside = Dir::new();
    let target = outside.0.join("target");
    fs::write(&target, "precious").unwrap();
    for name in
        [".weft", "lock", "last_reserved_ip.0", ".weft/index", ".weft/index.new", ".weft/lease.new"]
    {
        let dir = Dir::new();
        let config = small(&dir);
        fs::create_dir_all(dir.leases()).unwrap();
        if name.starts_with(".weft/") {
            fs::create_dir(dir.leases().join(".weft")).unwrap();
        }
        let to = if name == ".weft" { &outside.0 } else { &target };
        symlink(to, dir.leases().join(name)).unwrap();
        if let Err(error) = add(host(), "a", &config) {
            assert!(
                error.code == 5 && error.msg.contains(name.split('/').next().unwrap()),
                "{name}: {error}"
            );
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious", "{name}");
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 1, "{name}");
    }
}

#[test]
fn a_directory_in_place_of_a_file_is_named() {
    let dir = Dir::new();
    let config = small(&dir);
    fs::create_dir_all(dir.leases().join("lock")).unwrap();
    let error = add(host(), "a", &config).unwrap_err();
    assert!(error.code == 5 && error.msg.contains("pods/lock"), "{error}");
    fs::remove_dir(dir.leases().join("lock")).unwrap();
    fs::create_dir(dir.leases().join("last_reserved_ip.0")).unwrap();
    assert_eq!(add_one(host(), "a", &config).unwrap(), "10.1.2.2");
    dir.leases().join(".weft/index").exists().then_some(()).unwrap();
    let file = Dir::new();
    fs::write(file.leases(), "").unwrap();
    let error = add(host(), "a", &small(&file)).unwrap_err();
    assert!(error.code == 5 && error.msg.contains("pods"), "{error}");
}

#[test]
fn a_held_lock_is_code_11() {
    let dir = Dir::new();
    let config = small(&dir);
    add(host(), "a", &config).unwrap();
    let lock = fs::File::open(dir.leases().join("lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    assert_eq!(host().lock_wait, Duration::from_secs(30), "as docs/host-local.md says");
    let hasty = || Host { lock_wait: Duration::from_millis(50), ..host() };
    let error = add(hasty(), "b", &config).unwrap_err();
    let pid = std::process::id().to_string();
    assert!(
        error.code == 11 && error.msg.contains("pods/lock") && error.msg.contains(&pid),
        "{error}"
    );
    HostLocal { host: hasty() }.status(&network(&config)).unwrap();
    // The late waiter must not keep what it gets.
    drop(lock);
    assert_eq!(add_one(host(), "b", &config).unwrap(), "10.1.2.3");
}

#[test]
fn a_stopped_holder_is_waited_for_no_longer_than_told() {
    let dir = Dir::new();
    let config = small(&dir);
    add(host(), "a", &config).unwrap();
    let lock = dir.leases().join("lock");
    let mut command = Command::new("flock");
    command.arg(&lock).args(["sh", "-c", "echo held; kill -STOP $$"]).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let hasty = Host { lock_wait: Duration::from_millis(50), ..host() };
    assert_eq!(add(hasty, "b", &config).unwrap_err().code, 11);
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    for child in fs::read_to_string(children).unwrap().split_whitespace() {
        assert!(Command::new("kill").args(["-KILL", child]).status().unwrap().success());
    }
    holder.wait().unwrap();
    add(host(), "b", &config).unwrap();
}

/// On a filesystem of `size` that takes the lease directory, in a mount namespace of its own.
fn on_tmpfs(options: &str, before: &str, id: &str, dir: &Dir, config: &Value) -> Value {
    let mut command = Command::new("unshare");
    environment(&mut command, "ADD", id, "eth0", "");
    let path = dir.0.display();
    let script = format!(
        "mount -t tmpfs -o {options} none {path} && mkdir {path}/pods && cd {path}/pods && {before}; \
         {} >/dev/shm/$$ ; head -c 500 /dev/shm/$$ > {path}.out; rm /dev/shm/$$; ls -A {path}/pods > {path}.ls",
        ours().display()
    );
    command.args(["-m", "sh", "-c", &script]);
    finish(command, config).unwrap();
    let read = |suffix: &str| {
        let path = format!("{path}.{suffix}");
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        text
    };
    let mut out: Value = serde_json::from_str(&read("out")).unwrap();
    out["files"] = json!(
        read("ls")
            .lines()
            .filter(|l| *l != "lock" && *l != ".weft" && *l != "fill")
            .collect::<Vec<_>>()
    );
    out
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    testing::need!(testing::privilege());
    // From no room for the first file to room for everything: pages of 4096 bytes.
    let outcomes: Vec<bool> = (0..18).map(|free| add_with_room_for("size=128k", free)).collect();
    assert!(!outcomes[0] && outcomes[17], "{outcomes:?}");
    // And inodes: two are the root and the lease directory.
    let with = |inodes| add_with_room_for(&format!("size=128k,nr_inodes={inodes}"), 32);
    let outcomes: Vec<bool> = (3..12).map(with).collect();
    assert!(!outcomes[0] && outcomes[8], "{outcomes:?}");
}

/// Whether ADD succeeds on a filesystem with `free` of its 32 pages free.
fn add_with_room_for(options: &str, free: u32) -> bool {
    let dir = Dir::new();
    let config = small(&dir);
    let fill = match 32 - free {
        0 => ":".to_owned(),
        pages => format!("dd if=/dev/zero of=fill bs=4096 count={pages} 2>/dev/null"),
    };
    let out = on_tmpfs(options, &fill, "a", &dir, &config);
    let files = out["files"].as_array().unwrap().len();
    let done = out["code"].is_null();
    if done {
        assert!(files >= 1, "{options}, {free}: {out}");
    } else {
        assert_eq!((out["code"].as_u64(), files), (Some(5), 0), "{options}, {free}: {out}");
        assert!(out["msg"].as_str().unwrap().contains("No space left"), "{options}, {free}: {out}");
    }
    done
}

#[test]
fn del_works_on_a_full_disk() {
    testing::need!(testing::privilege());
    let dir = Dir::new();
    let config = small(&dir);
    // A lease of the reference plugin, and no room for an index.
    let json = format!("{}.json", dir.0.display());
    fs::write(&json, config.to_string()).unwrap();
    let del = format!(
        "printf 'x\\r\\neth0' > 10.1.2.2; touch lock; dd if=/dev/zero of=fill bs=4096 2>/dev/null; \
         test -s 10.1.2.2 || exit 1; CNI_COMMAND=DEL CNI_CONTAINERID=x {} <{json} || exit 1; \
         test ! -e 10.1.2.2 || exit 1; dd if=/dev/zero of=fill bs=4096 conv=notrunc oflag=append 2>/dev/null",
        ours().display(),
    );
    let out = on_tmpfs("size=128k", &del, "a", &dir, &config);
    fs::remove_file(json).unwrap();
    assert_eq!((out["code"].as_u64(), &out["files"]), (Some(5), &json!([])), "{out}");
}

#[test]
fn a_read_only_directory_is_an_error_that_says_so() {
    testing::need!(testing::privilege());
    let dir = Dir::new();
    let config = small(&dir);
    let out = on_tmpfs(
        "size=128k",
        &format!("touch lock && mount -o remount,ro {}", dir.0.display()),
        "a",
        &dir,
        &config,
    );
    assert_eq!(out["code"], 5, "{out}");
    assert!(out["msg"].as_str().unwrap().contains("ead-only file system"), "{out}");
}

#[test]
fn a_directory_that_may_not_be_read_is_named() {
    testing::need!(testing::machine_root());
    let dir = Dir::new();
    let config = small(&dir);
    fs::create_dir_all(dir.leases()).unwrap();
    fs::set_permissions(dir.leases(), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(dir.leases(), Some(1234), Some(1234)).unwrap();
    for verb in ["ADD", "DEL", "CHECK"] {
        // Root without the right to pass over permissions, as in some containers.
        let mut command = Command::new("setpriv");
        environment(&mut command, verb, "a", "eth0", "");
        command.arg("--bounding-set=-dac_override,-dac_read_search").arg(ours());
        let error = finish(command, &config).unwrap_err();
        let msg = error["msg"].as_str().unwrap();
        assert!(error["code"] == 5 && msg.contains("/pods: EACCES"), "{verb}: {error}");
    }
}

#[test]
fn leases_of_another_owner_and_mode_count() {
    testing::need!(testing::machine_root());
    let dir = Dir::new();
    let config = small(&dir);
    dir.write("10.1.2.2", "x\r\neth0");
    let path = dir.leases().join("10.1.2.2");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    assert_eq!(add_one(host(), "a", &config).unwrap(), "10.1.2.3");
    call(&ours(), "DEL", "x", &config).unwrap();
    assert_eq!(dir.held().len(), 1);
}

#[test]
fn a_lease_removed_by_hand_under_the_seal_blocks_nothing() {
    let dir = Dir::new();
    let config = small(&dir);
    for id in ["h-a", "h-b", "h-c", "h-d", "h-e"] {
        add(host(), id, &config).unwrap();
    }
    // As a verb that ran at the same time would leave it: removed, and sealed all the same.
    let times = fs::metadata(dir.leases()).unwrap();
    fs::remove_file(dir.leases().join("10.1.2.4")).unwrap();
    let seal = format!("@{}", times.mtime());
    let mut touch = Command::new("touch");
    touch.args(["-m", "-d", &seal]).arg(dir.leases());
    assert!(touch.status().unwrap().success());
    assert_eq!(fs::metadata(dir.leases()).unwrap().mtime(), times.mtime());
    assert_eq!(add_one(host(), "h-f", &config).unwrap(), "10.1.2.4");
}

#[test]
fn a_holder_too_long_to_be_read_back_is_refused() {
    let dir = Dir::new();
    let config = small(&dir);
    let error = add(host(), &"x".repeat(5000), &config).unwrap_err();
    assert_eq!(error.code, 4, "{error}");
    assert!(dir.held().is_empty());
}
