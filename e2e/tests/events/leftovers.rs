//! Teardown, and networks whose configuration changed what they are known by.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};

use crate::stage::{Stage, TRIGGERS, Trigger, conflist};

const HIT: usize = 1;
const PODS: &str = "/etc/cni/net.d/10-pods.conflist";
const OTHER: &str = "/etc/cni/net.d/20-other.conflist";

/// A second network beside the first, with a tunnel and ranges of its own.
fn other(stage: &Stage) -> Result<()> {
    let node = |name: &str, address: &str, range: &str| json!({ "name": name, "addresses": [address], "podCIDRs": [range] });
    let nodes = [
        node("worker1", "192.168.211.128", "10.50.1.0/24"),
        node("worker2", "192.168.44.128", "10.50.2.0/24"),
    ];
    let mut whole = conflist(json!({ "vni": 2, "routeProtocol": 89, "nodes": nodes }));
    whole["name"] = json!("other");
    stage.node(HIT).write_file(OTHER, whole.to_string())?;
    stage.weft(HIT, &["sync"])?.ok().map(drop)
}

fn files(stage: &Stage) -> Result<String> {
    stage.node(HIT).sh("ls -A /run/weft 2>/dev/null || true")
}

#[test]
fn teardown_of_one_network_spares_the_other() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    other(&stage)?;
    let node = stage.node(HIT);
    let before = node.run_ok(&["ip", "route", "show", "proto", "89"])?;
    ensure!(before.contains("10.50.2.0/24"), "{before}");
    let output = stage.weft(HIT, &["teardown", "--conf", PODS])?.ok()?;
    ensure!(output.contains("stay, for network other"), "{output}");
    let left = files(&stage)?;
    ensure!(left.contains("other.stamp") && left.contains("other.last"), "{left}");
    ensure!(left.contains("sync.lock") && !left.contains("pods."), "{left}");
    let tables = node.run_ok(&["nft", "list", "tables"])?;
    ensure!(tables.contains("weft_spoof") && tables.contains("weft_89_tunnel"), "{tables}");
    ensure!(!tables.contains("weft_87"), "{tables}");
    ensure!(node.run_ok(&["ip", "route", "show", "proto", "89"])? == before);
    ensure!(!node.run(&["ip", "link", "show", "weft.1"])?.success());
    stage.weft(HIT, &["teardown"])?.ok()?;
    ensure!(!node.path("/run/weft").exists(), "{}", files(&stage)?);
    ensure!(node.run_ok(&["nft", "list", "tables"])?.is_empty());
    Ok(())
}

#[test]
fn teardown_leaves_a_lock_that_is_held() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let path = node.path("/run/weft/attachments.lock");
    let held = File::options().read(true).write(true).open(&path)?;
    let range = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 77,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(held.as_fd(), FcntlArg::F_OFD_SETLK(&range))?;
    stage.weft(HIT, &["teardown"])?.ok()?;
    let left = files(&stage)?;
    ensure!(left == "attachments.lock\n", "{left}");
    ensure!(path.metadata()?.ino() == held.metadata()?.ino(), "another file is in its place");
    drop(held);
    stage.weft(HIT, &["teardown"])?.ok()?;
    ensure!(!node.path("/run/weft").exists(), "{}", files(&stage)?);
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(stage.is_converged(HIT)?);
    Ok(())
}

/// What was marked with the old number goes, and nobody else's.
#[test]
fn another_route_protocol() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    // With 93, which is 87 ^ 10, the nexthop of 10.0.0.0 would be object 0.
    for (trigger, protocol) in TRIGGERS.into_iter().zip([90, 91, 92, 93]) {
        stage.node(HIT).sh("ip route add 203.0.113.0/24 via 192.168.211.129 proto 99")?;
        stage.configure(HIT, json!({ "routeProtocol": protocol }))?;
        ensure!(stage.weft(HIT, &["plan"])?.stdout.contains("nft delete table inet weft_"));
        stage.trigger(HIT, trigger)?;
        let node = stage.node(HIT);
        let others = [87, 90, 91, 92, 93].into_iter().filter(|other| *other != protocol);
        for other in others {
            let left = node.sh(&format!(
                "ip -4 route show table all proto {other}; ip -6 route show table all proto {other}
                 ip nexthop show proto {other}; nft list tables | grep weft_{other}_ || true"
            ))?;
            ensure!(left.is_empty(), "{trigger:?}: {left}");
        }
        node.run_ok(&["ip", "route", "del", "203.0.113.0/24", "proto", "99"])?;
        let plan = stage.weft(HIT, &["plan"])?;
        ensure!(plan.success(), "{trigger:?}: {plan}");
        traffic.wait_all(std::time::Instant::now(), crate::stage::DEADLINE)?;
    }
    Ok(())
}

#[test]
fn another_name() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let mut renamed = conflist(json!({}));
    renamed["name"] = json!("renamed");
    node.write_file(PODS, renamed.to_string())?;
    for words in [&["sync"][..], &["status"]] {
        let output = stage.weft(HIT, words)?;
        ensure!(output.status.code() == Some(1), "{output}");
        ensure!(output.stderr.contains("note: network pods is on this node"), "{output}");
        ensure!(output.stderr.contains("run `weft teardown`, then `weft sync`"), "{output}");
    }
    let output = stage.weft(HIT, &["teardown"])?.ok()?;
    ensure!(output.contains("pods: ") && output.contains("ip link del weft.1"), "{output}");
    let output = stage.weft(HIT, &["sync"])?;
    ensure!(output.success() && output.stderr.is_empty(), "{output}");
    let text = stage.weft(HIT, &["status", "-o", "json"])?.ok()?;
    let status: Value = serde_json::from_str(&text).context(text)?;
    ensure!(status["leftovers"] == json!([]) && status["networks"][0]["network"] == "renamed");
    Ok(())
}

/// The device of a network is told from another program's.
#[test]
fn a_clash_with_another_network_names_it() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let mut second = conflist(json!({ "device": "weft.b", "routeProtocol": 89 }));
    second["name"] = json!("second");
    stage.node(HIT).write_file("/run/second.conflist", second.to_string())?;
    let output = stage.weft(HIT, &["sync", "--conf", "/run/second.conflist"])?;
    ensure!(output.stderr.contains("VXLAN device weft.1 of network pods"), "{output}");
    ensure!(
        output.stderr.contains("`weft teardown`") && output.status.code() == Some(1),
        "{output}"
    );
    Ok(())
}

/// No device takes packets before its guard is there: a sync that is killed at any message
/// to the kernel leaves none that does.
#[test]
fn no_device_is_up_without_its_guard() -> Result<()> {
    e2e::needs_lab!("strace");
    let stage = Stage::without_pods(
        e2e::Topology::lesson(e2e::Families::V4, e2e::Families::Both),
        json!({}),
    )?;
    let node = stage.node(HIT);
    let weft = stage.bin.join("weft").display().to_string();
    let mut seen_up = 0;
    for number in 1.. {
        stage.weft(HIT, &["teardown"])?.ok()?;
        let inject = format!("inject=sendto:signal=KILL:when={number}");
        let run = node.run(&["strace", "-o", "/dev/null", "-e", &inject, &weft, "sync"])?;
        let up = !node.run_ok(&["ip", "-o", "link", "show", "up", "type", "vxlan"])?.is_empty();
        seen_up += usize::from(up);
        let guarded = node.run(&["nft", "list", "table", "inet", "weft_87_tunnel"])?.success();
        ensure!(guarded || !up, "killed at message {number}: up, and not guarded");
        if run.success() {
            break;
        }
    }
    ensure!(seen_up > 2, "never killed while the device was up");
    Ok(())
}
