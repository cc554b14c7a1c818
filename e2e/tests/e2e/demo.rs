//! `lab demo`: that it runs, prints what the lesson says, and fails where it does not hold.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use e2e::{Output, run_within, weft_bin_dir};

/// How long the lesson may take.
const LIMIT: Duration = Duration::from_secs(600);

fn demo(words: &[&str]) -> Result<Output> {
    demo_with(weft_bin_dir()?, words)
}

fn demo_with(weft: PathBuf, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    run_within(LIMIT, command.arg("demo").args(words).env("WEFT_BIN_DIR", weft))
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// That `text` has all these parts in this order.
#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("no {part:?} in the rest:\n{rest}") };
        rest = &rest[at + part.len()..];
    }
}

const TUNNEL: &[&str] = &[
    "Step 1: ",
    "\"routingMode\": \"tunnel\"",
    "10.0.1.2/24",
    "10.0.2.2/24",
    "10.0.0.2/24",
    "2 packets transmitted, 2 received",
    "148 bytes on the wire",
    "192.168.211.128 > 192.168.44.128 ttl 64",
    " > 8472",
    "VNI 1",
    "0a:58:0a:00:01:00 > 0a:58:0a:00:02:00",
    "10.0.1.2 > 10.0.2.2 ttl 63",
    "control-plane/pod-c# ping",
    "2 packets transmitted, 2 received",
    "pods: nothing to do",
];

const NATIVE: &[&str] = &[
    "Step 2: ",
    "\"routingMode\": \"native\"",
    "ip link del weft.1",
    "mtu 1500",
    "2 packets transmitted, 0 received",
    "98 bytes on the wire",
];

const ROUTES: &[&str] = &[
    "Step 3: ",
    "worker1# weft export router",
    "ip route add 10.0.2.0/24 via 192.168.44.128",
    "2 packets transmitted, 2 received",
    "98 bytes on the wire",
    "pods: nothing to do",
    "router# ip route del 10.0.2.0/24 via 192.168.44.128",
    "2 packets transmitted, 0 received",
    "worker1# weft export bird\n",
    "worker1# weft export bird --router",
    "10.0.2.0/24 via 192.168.44.128 dev net44 proto bird",
    "2 packets transmitted, 2 received",
    "2 packets transmitted, 2 received",
    "worker1# weft export frr\n",
    "worker1# weft export frr --router",
    "via 192.168.44.128 dev net44 proto bgp",
    "2 packets transmitted, 2 received",
    "2 packets transmitted, 2 received",
];

const MIXED: &[&str] = &[
    "Step 4: ",
    "\"routingMode\": \"hybrid\"",
    "10.0.0.2 via 192.168.211.129 dev eth0",
    "10.0.2.2 via 10.0.2.0 dev weft.1",
    "10.0.1.2 > 10.0.0.2 ttl 63                20  IPv4      10.0.1.2 > 10.0.2.2 ttl 63",
    "  98  bytes on the wire                                  148  bytes on the wire",
    "  98  bytes on the wire                                  148  bytes on the wire",
    "control-plane/pod-c# ping",
    "worker2/pod-b# ping",
];

const FIGURES: &[&str] = &[
    "Step 5: ",
    "tunnel        native",
    "bytes on the wire                    148            98",
    "pod MTU, bytes                                    1450          1500",
    "round trip, median of 200, ms",
    "TCP, one connection, 2 s, Gbit/s",
];

#[test]
fn the_whole_lesson() -> Result<()> {
    e2e::needs_lab!("bird", "vtysh", "/usr/lib/frr/bgpd", "iperf3");
    let output = demo(&[])?;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert_in_order(&text, &[TUNNEL, NATIVE, ROUTES, MIXED, FIGURES].concat());
    Ok(())
}

#[test]
fn each_step_alone_and_none_that_is_not_there() -> Result<()> {
    e2e::needs_lab!("bird", "vtysh", "/usr/lib/frr/bgpd", "iperf3");
    for (number, parts) in (1..).zip([TUNNEL, NATIVE, ROUTES, MIXED, FIGURES]) {
        let output = demo(&[&number.to_string()])?;
        let text = said(&output);
        assert!(output.status.success(), "{text}");
        assert_in_order(&text, parts);
        assert_eq!(text.matches("\nStep ").count(), 1, "{text}");
    }
    for wrong in ["0", "6", "two"] {
        let output = demo(&[wrong])?;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
    Ok(())
}

#[test]
fn a_step_that_does_not_hold_is_an_error() -> Result<()> {
    e2e::needs_lab!();
    // A `weft` that says it has done what it was told, once a pod of each node is there.
    let (real, dir) = (weft_bin_dir()?, TempDir::new()?);
    for name in ["veth", "host-local", "routing", "loopback"] {
        std::os::unix::fs::symlink(real.join(name), dir.0.join(name))?;
    }
    let weft = dir.0.join("weft");
    let script = format!("#!/bin/sh\n[ $1 = sync ] || exec {}/weft \"$@\"\n", real.display());
    std::fs::write(&weft, script)?;
    std::fs::set_permissions(&weft, std::fs::Permissions::from_mode(0o755))?;
    let output = demo_with(dir.0.clone(), &["2"])?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let error = &output.stderr;
    assert!(error.contains("Step 2: ") && error.contains("still is a VXLAN device"), "{error}");
    Ok(())
}

/// A directory that is gone with this value.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<TempDir> {
        let dir = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
        std::fs::create_dir(&dir)?;
        Ok(TempDir(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
