//! The lab itself: that it is the network it claims to be, that labs do not touch each
//! other or the machine, that nothing outlives them, and that the helpers see what is there.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Chain, CniError, Families, Family, Frame, Lab, NODE_MAP, PingOptions, Place, RESULTS, Runtime,
    Section, Spread, Topology, VXLAN_PORTS, ping, run, run_within, spawn, tcp_bulk, weft_bin_dir,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// What a test waits at most for something that takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn nodes_reach_each_other_through_a_router_that_knows_no_pods() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    for from in lab.nodes() {
        for to in lab.nodes().iter().filter(|to| to.name() != from.name()) {
            for family in [Family::V4, Family::V6] {
                let result = ping(from, to.address(family)?, &PingOptions::default())?;
                assert!(result.all(), "{}", result.output);
                let hops = result.output.stdout.matches("ttl=63").count();
                assert_eq!(hops, 1, "exactly one router in between: {}", result.output);
            }
        }
    }
    let routes = lab.router().snapshot()?;
    let routes: Vec<&str> = routes.section(Section::Routes).collect();
    assert!(routes.iter().any(|route| route.contains("192.168.44.0/24")), "{routes:?}");
    assert!(!routes.iter().any(|route| route.contains("\"10.") || route.contains("fd10")));
    let map = lab.topology().node_map();
    assert_eq!(map["nodes"][1]["addresses"], json!(["192.168.211.128", "fd00:211::128"]));
    assert_eq!(lab.node("worker1")?.json(&["cat", NODE_MAP])?, map);
    Ok(())
}

#[test]
fn twenty_nodes_on_shared_links_with_an_outside_host_and_small_mtu() -> Result<()> {
    e2e::needs_lab!();
    let topology = Topology::nodes(20, Spread::Shared(10), Families::V6, Families::Both);
    let lab = Lab::start(topology.with_outside(Families::Both).with_mtu(1400))?;
    let options = PingOptions::default();
    let from = lab.node("node1")?;
    for (to, ttl) in [("node10", "ttl=64"), ("node11", "ttl=63"), ("outside", "ttl=63")] {
        let address = lab.node(to)?.address(Family::V6)?;
        let result = ping(from, address, &options)?;
        assert!(result.all() && result.output.stdout.contains(ttl), "{to}: {}", result.output);
        assert!(ping(from, address, &PingOptions::exact(1400, address))?.all());
        assert!(ping(from, address, &PingOptions::exact(1401, address))?.too_big());
    }
    let map = lab.topology().node_map();
    assert_eq!(map["nodes"].as_array().map(Vec::len), Some(20), "outside is no node");
    let host_name = lab.node("node20")?.run_ok(&["cat", "/proc/sys/kernel/hostname"])?;
    assert_eq!(host_name.trim(), "node20");
    Ok(())
}

#[test]
fn labs_at_the_same_time_do_not_see_each_other() -> Result<()> {
    e2e::needs_lab!();
    let (one, two) = (Lab::lesson()?, Lab::lesson()?);
    let before = two.node("worker1")?.snapshot()?;
    let first = one.node("worker1")?;
    first.write_file("/run/weft/mine", "1")?;
    first.pod("pod-a")?;
    first.ip_batch("route add unreachable 10.0.1.0/24\nlink add w type bridge\n")?;
    one.router().ip_batch("link set net44 down\n")?;
    before.assert_same(&two.node("worker1")?.snapshot()?);
    let far = two.node("worker2")?.address(Family::V4)?;
    assert!(ping(two.node("worker1")?, far, &PingOptions::default())?.all());
    assert!(!ping(first, far, &PingOptions { wait: 0.1, ..PingOptions::default() })?.all());
    drop(one);
    assert!(ping(two.node("worker1")?, far, &PingOptions::default())?.all());
    Ok(())
}

#[test]
fn nodes_share_no_files_and_the_machine_keeps_its_own() -> Result<()> {
    e2e::needs_lab!();
    let machine = machine_state();
    let lab = Lab::lesson()?;
    let (one, two) = (lab.node("worker1")?, lab.node("worker2")?);
    for dir in ["/run/weft", "/run/netns", "/var/lib/cni", "/etc/weft", "/etc/cni/net.d"] {
        let file = format!("{dir}/lab-test");
        one.sh(&format!("mkdir -p {dir}; echo {} >{file}", one.name()))?;
        assert_eq!(one.read_file(&file)?, "worker1\n");
        assert!(!two.path(&file).exists(), "{file} is seen on another node");
        assert!(!Path::new(&file).exists(), "{file} is seen on the machine");
        two.write_file(&file, "worker2\n")?;
        assert_eq!(one.run_ok(&["cat", &file])?, "worker1\n");
    }
    let size = fs::metadata("/etc/passwd")?.size().to_string();
    assert_eq!(one.run_ok(&["stat", "-L", "-c", "%s", "/etc/passwd"])?.trim(), size);
    drop(lab);
    assert_eq!(machine_state(), machine);
    Ok(())
}

#[test]
fn a_pod_is_a_namespace_at_a_path_with_lo_down() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let pod = node.pod("pod-a")?;
    assert_eq!(pod.netns(), "/run/netns/pod-a");
    let links = pod.json(&["ip", "-j", "link"])?;
    assert_eq!(links.as_array().map(Vec::len), Some(1), "{links}");
    assert_eq!(links[0]["operstate"], "DOWN");
    let inode = node.run_ok(&["stat", "-L", "-c", "%i", pod.netns()])?;
    assert_eq!(inode.trim(), pod.netns_inode()?.to_string());
    assert_ne!(pod.netns_inode()?, node.netns_inode()?);
    assert!(node.pod("pod-a").is_err(), "a name is taken once");
    pod.set_sysctls(&[("net/ipv4/ip_forward", "1")])?;
    assert_eq!(pod.sysctl("net/ipv4/ip_forward")?, "1");
    assert_eq!(node.sysctl("net/ipv4/ip_forward")?, "0");
    pod.ip_batch("address add 10.0.1.9/24 dev lo\n")?;
    assert_eq!(pod.addr(Family::V4)?, "10.0.1.9".parse::<IpAddr>()?);
    assert!(pod.addr(Family::V6).is_err());
    pod.delete()?;
    assert!(!node.path("/run/netns/pod-a").exists());
    node.pod("pod-a").map(drop)
}

#[test]
fn a_snapshot_tells_what_changed() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let before = node.snapshot()?;
    // What the kernel learns by itself is no change.
    let far = lab.node("worker2")?;
    assert!(ping(node, far.address(Family::V6)?, &PingOptions::default())?.all());
    before.assert_same(&node.snapshot()?);
    let changes = [
        (Section::Routes, "ip route add unreachable 10.9.0.0/16 table 7", "10.9.0.0/16"),
        (Section::Routes, "ip route add unreachable fd99::/64", "fd99::/64"),
        (Section::Rules, "ip rule add from 10.8.0.1 table 7", "10.8.0.1"),
        (Section::Addresses, "ip address add 10.7.0.1/32 dev lo", "10.7.0.1"),
        (Section::Neighbours, "ip neigh add 10.6.0.1 lladdr 02:0:0:0:0:9 dev eth0", "10.6.0.1"),
        (Section::Nexthops, "ip nexthop add id 77 blackhole", "\"id\":77"),
        (Section::Nftables, "nft add table inet lab_test", "lab_test"),
        (Section::Sysctls, "echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp", "eth0/proxy_arp:1"),
        (Section::Files, "mkdir /run/weft; echo x >/run/weft/stamp", "/run/weft/stamp"),
    ];
    for (section, command, text) in changes {
        node.sh(command)?;
        let diff = before.diff(&node.snapshot()?);
        let told = diff
            .lines()
            .any(|line| line.starts_with(&format!("+ {section:?}: ")) && line.contains(text));
        assert!(told, "{command} is not told: {diff}");
    }
    node.sh("ip route del unreachable 10.9.0.0/16 table 7; ip route del unreachable fd99::/64
        ip rule del from 10.8.0.1 table 7; ip address del 10.7.0.1/32 dev lo
        ip neigh del 10.6.0.1 dev eth0; ip nexthop del id 77; nft delete table inet lab_test
        echo 0 >/proc/sys/net/ipv4/conf/eth0/proxy_arp; rm /run/weft/stamp")?;
    before.assert_same(&node.snapshot()?);
    let only_files = before.without(&[Section::Links, Section::Routes, Section::Nftables]);
    node.sh("nft add table inet other")?;
    only_files.assert_same(&node.snapshot()?);
    Ok(())
}

/// A VXLAN device made with iproute2, of the form that weft gives its own.
fn add_tunnel(node: &Place, local: IpAddr, own: u8, peers: &[(IpAddr, u8)]) -> Result<()> {
    let mac = |pods: u8| format!("0a:58:0a:00:{pods:02x}:00");
    let mut batch = format!(
        "link add weft.7 address {} type vxlan id 7 dstport 8472 local {local} nolearning dev eth0\n\
         link set weft.7 up\naddress add 10.0.{own}.0/32 dev weft.7\naddress add 10.0.{own}.1/32 dev lo\n",
        mac(own)
    );
    let mut fdb = String::new();
    for (address, pods) in peers {
        batch += &format!(
            "neighbour add 10.0.{pods}.0 lladdr {mac} dev weft.7 nud permanent\n\
             route add 10.0.{pods}.0/24 via 10.0.{pods}.0 dev weft.7 onlink src 10.0.{own}.1\n",
            mac = mac(*pods)
        );
        fdb += &format!("fdb add {} dev weft.7 dst {address} self permanent\n", mac(*pods));
    }
    node.ip_batch(&batch)?;
    node.command(&["bridge", "-batch", "-"]).stdin(fdb).ok().map(drop)
}

#[test]
fn a_capture_on_the_router_decodes_a_tunnelled_ping_to_the_last_field() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let (one, two) = (lab.node("worker1")?, lab.node("worker2")?);
    let (from, to) = (one.address(Family::V4)?, two.address(Family::V4)?);
    add_tunnel(one, from, 1, &[(to, 2)])?;
    add_tunnel(two, to, 2, &[(from, 1)])?;
    let capture = lab.router().capture("net44", "udp port 8472")?;
    let inner = lab.node("worker2")?.capture("weft.7", "icmp")?;
    let pings = PingOptions { count: 3, ..PingOptions::default() };
    let result = ping(one, "10.0.2.1".parse()?, &pings)?;
    assert!(result.all(), "{}", result.output);
    let seen = capture.wait_for(DEADLINE, |packet| {
        packet.frame().is_ok_and(|frame| frame.innermost().ip().is_some())
    })?;
    let packets = capture.stop()?;
    assert_eq!(packets.len(), 6, "three requests and three replies");
    assert_eq!(packets[0].bytes, seen.bytes);
    assert_eq!(inner.stop()?.len(), 6);

    let frame = packets[0].frame()?;
    assert_eq!((frame.length, frame.ethertype), (148, 0x0800));
    assert_eq!(frame.source.to_string(), "02:00:00:02:00:02", "the router's end of net44");
    assert_eq!(frame.destination.to_string(), "02:00:00:01:00:02", "worker2's eth0");
    let outer = frame.ip().context("outer IP")?;
    assert_eq!((outer.source, outer.destination), (from, to));
    assert_eq!((outer.ttl, outer.protocol, outer.header, outer.length), (63, 17, 20, 134));
    assert!(!outer.is_fragment());
    let udp = outer.udp().context("UDP")?;
    assert_eq!((udp.destination, udp.payload.len()), (8472, 106));
    assert!(udp.source >= 32768, "source port {}", udp.source);
    let vxlan = frame.vxlan().context("VXLAN")?;
    assert_eq!((vxlan.flags, vxlan.vni, vxlan.inner.length), (8, 7, 98));
    assert_eq!(vxlan.inner.source.to_string(), "0a:58:0a:00:01:00");
    assert_eq!(vxlan.inner.destination.to_string(), "0a:58:0a:00:02:00");
    let packet = vxlan.inner.ip().context("inner IP")?;
    assert_eq!(packet.source, "10.0.1.1".parse::<IpAddr>()?);
    assert_eq!(packet.destination, "10.0.2.1".parse::<IpAddr>()?);
    assert_eq!((packet.ttl, packet.protocol, packet.length), (64, 1, 84));
    assert!(packet.dont_fragment);
    let icmp = packet.icmp().context("ICMP")?;
    assert!(icmp.is_request() && !icmp.is_reply());
    assert_eq!((icmp.code, icmp.word & 0xffff, icmp.length), (0, 1, 64));
    let reply = packets[1].frame()?;
    assert!(reply.innermost().ip().and_then(|ip| ip.icmp()).context("reply")?.is_reply());

    // However much of it is cut off, it is an error or a shorter packet, no panic.
    for end in 0..packets[0].bytes.len() {
        let cut = Frame::decode(&packets[0].bytes[..end], &VXLAN_PORTS);
        assert!(cut.is_err() || end >= 34, "a whole IP packet out of {end} bytes: {cut:?}");
    }

    let text = frame.to_string();
    let bytes: Vec<usize> = text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0))
        .collect();
    assert_eq!(bytes, [14, 20, 8, 8, 14, 20, 64], "{text}");
    assert!(text.starts_with("148 bytes") && text.contains("VNI 7"), "{text}");
    Ok(())
}

#[test]
fn fragments_and_too_big_are_told_apart() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let (one, two) = (lab.node("worker1")?, lab.node("worker2")?);
    for family in [Family::V4, Family::V6] {
        let to = two.address(family)?;
        let filter = format!("dst host {to} and not (icmp6 and ip6[40] > 129)");
        let capture = lab.router().capture("net211", &filter)?;
        assert!(ping(one, to, &PingOptions { size: 2000, ..PingOptions::default() })?.all());
        let packets = capture.stop()?;
        let frames = packets.iter().map(|packet| packet.frame()).collect::<Result<Vec<_>>>()?;
        let [first, second] = &frames[..] else { panic!("two fragments, not {frames:?}") };
        let (first, second) = (first.ip().context("IP")?, second.ip().context("IP")?);
        assert!(first.more_fragments && first.fragment_offset == 0 && first.icmp().is_some());
        assert!(!second.more_fragments && second.fragment_offset > 1400);
        assert!(second.icmp().is_none(), "a later fragment has no header to decode");
    }
    lab.router().ip_batch("link set net44 mtu 1400\n")?;
    two.ip_batch("link set eth0 mtu 1400\n")?;
    let to = two.address(Family::V4)?;
    let capture = one.capture("eth0", "icmp[icmptype] == icmp-unreach")?;
    assert!(ping(one, to, &PingOptions::exact(1400, to))?.all());
    assert!(ping(one, to, &PingOptions::exact(1401, to))?.too_big());
    let packets = capture.stop()?;
    let frame = packets.first().context("no ICMP error")?.frame()?;
    let icmp = frame.ip().and_then(|ip| ip.icmp()).context("ICMP")?;
    assert_eq!((icmp.too_big(), packets.len()), (Some(1400), 1));
    assert_eq!(icmp.quoted.as_ref().map(|ip| (ip.destination, ip.length)), Some((to, 1401)));
    Ok(())
}

#[test]
fn bulk_data_arrives_over_tcp() -> Result<()> {
    e2e::needs_lab!("iperf3");
    let lab = Lab::lesson()?;
    let (one, two) = (lab.node("worker1")?, lab.node("worker2")?);
    let bulk = tcp_bulk(one, two, two.address(Family::V4)?, 10_000_000)?;
    assert!(bulk.sent >= 10_000_000 && bulk.received > 1_000_000, "{bulk:?}");
    Ok(())
}

#[test]
fn waiting_ends_with_the_event_or_at_the_deadline() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let mut asked = 0;
    node.wait_until("the route is gone", DEADLINE, || {
        asked += 1;
        // The second time is when it listens: what happens then is an event.
        if asked == 2 {
            node.run_ok(&["ip", "link", "set", "eth0", "down"])?;
            return Ok(None);
        }
        Ok(node.run_ok(&["ip", "route"])?.is_empty().then_some(()))
    })?;
    let short = Duration::from_millis(50);
    let error = node.wait_until("never", short, || Ok(None::<()>)).map(drop).unwrap_err();
    assert!(error.to_string().contains("never"), "{error:#}");
    Ok(())
}

#[test]
fn a_dropped_command_is_dead() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let mut running = node.spawn(&["sh", "-c", "sleep 1000 & echo $$ $!; wait"])?;
    let line = running.lines()?.next_line()?.context("it printed nothing")?;
    let alive = |pid: &&str| node.path(&format!("/proc/{pid}/exe")).exists();
    let pids: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(pids.iter().copied().filter(|pid| alive(pid)).count(), 2, "{line}");
    drop(running);
    assert!(!alive(&pids[0]));
    Ok(())
}

#[test]
fn a_lab_that_is_dropped_before_its_commands_ends_with_the_last_of_them() -> Result<()> {
    let lab = Lab::lesson()?;
    let running = lab.node("worker1")?.spawn(&["sleep", "1000"])?;
    let namespace = [lab.node("worker1")?.netns_inode()?];
    let started = Instant::now();
    drop(lab);
    assert!(!processes_in(&namespace).is_empty(), "a command is killed only when it is dropped");
    drop(running);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    assert!(processes_in(&namespace).is_empty());
    Ok(())
}

/// The limit of commands that do not end.
const SHORT: Duration = Duration::from_millis(500);

#[test]
fn a_command_ends_with_its_process_though_a_daemon_keeps_its_output_open() -> Result<()> {
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    // It keeps all three streams, and most of the input is never read.
    let script = "sleep 1000 <&0 & echo $!; echo oops >&2; exit 3\n";
    let input = format!("{script}{}", "#".repeat(1 << 20));
    let output = node.command(&["sh"]).stdin(&input).output()?;
    assert_eq!((output.status.code(), &*output.stderr), (Some(3), "oops\n"), "{output}");
    assert!(output.wall < DEADLINE, "{:?}", output.wall);
    let daemon = node.path(&format!("/proc/{}/exe", output.stdout.trim()));
    assert!(daemon.exists(), "what a command leaves behind is not killed");
    Ok(())
}

#[test]
fn all_that_a_command_printed_is_its_output() -> Result<()> {
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    for length in [0, 1, 1 << 16, (1 << 20) + 1] {
        let input = "x".repeat(length);
        assert!(node.command(&["cat"]).stdin(&input).ok()? == input, "{length}");
        let output = node.command(&["sh", "-c", "cat >&2; sleep 1000 &"]).stdin(&input).output()?;
        assert!(output.stderr == input, "{length}");
    }
    Ok(())
}

#[test]
fn a_command_that_does_not_end_is_killed_at_its_limit() -> Result<()> {
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let script = "sleep 1000 & echo $$ $!; echo why >&2; wait";
    let error = node.command(&["sh"]).stdin(script).limit(SHORT).output().unwrap_err().to_string();
    for part in ["worker1: sh: still running after 500ms; killed", script, "stderr: why"] {
        assert!(error.contains(part), "{error}");
    }
    let pids = error.lines().find_map(|line| line.strip_prefix("stdout: "));
    let pids: Vec<&str> = pids.with_context(|| error.clone())?.split(' ').collect();
    assert_eq!(pids.len(), 2, "{error}");
    let end = Instant::now() + DEADLINE;
    while pids.iter().any(|pid| node.path(&format!("/proc/{pid}/exe")).exists()) {
        ensure!(Instant::now() < end, "{pids:?} live on");
        std::thread::yield_now();
    }

    let mut running = node.command(&["sleep", "1000"]).limit(SHORT).spawn()?;
    let error = running.wait().unwrap_err().to_string();
    assert_eq!(error, "worker1: sleep 1000: still running after 500ms; killed");
    let error = run_within(SHORT, Command::new("sleep").arg("1000")).unwrap_err().to_string();
    assert!(error.starts_with("sleep 1000: still running after 500ms; killed"), "{error}");
    Ok(())
}

#[test]
fn a_line_that_does_not_come_is_an_error_that_names_the_command() -> Result<()> {
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let script = "echo one; echo two; echo three; printf four; sleep 1000";
    let mut running = node.command(&["sh", "-c", script]).limit(SHORT).spawn()?;
    let mut lines = running.lines()?;
    assert_eq!(lines.until("wo")?, "two");
    assert_eq!(lines.next_line()?.as_deref(), Some("three"));
    let error = format!("{:#}", lines.until("five").unwrap_err());
    for part in ["worker1: sh -c", "\"five\"", "500ms", "four"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut running = node.spawn(&["printf", "a\nb"])?;
    let mut lines = running.lines()?;
    let error = lines.until("c").unwrap_err().to_string();
    assert!(error.contains("worker1: printf") && error.contains("a\nb"), "{error}");
    assert_eq!(lines.next_line()?, None);
    Ok(())
}

/// A plugin that records what it is given and answers from a file: for its Nth run of
/// a verb `VERB.N`, else `VERB`, of the directory that the node sees as /run/plugins/TYPE.
const RECORDER: &str = r#"#!/bin/sh
dir=/run/plugins/$(basename "$0")
mkdir -p "$dir"
n=$(ls "$dir" | grep -c "^$CNI_COMMAND.*.stdin$")
cat >"$dir/$CNI_COMMAND.$n.stdin"
env | grep ^CNI_ | sort >"$dir/$CNI_COMMAND.$n.env"
echo "$(basename "$0") $CNI_COMMAND" >>/run/plugins/order
echo noise >&2
if [ -f "$dir/fail.$CNI_COMMAND" ]; then cat "$dir/fail.$CNI_COMMAND"; exit 1; fi
cat "$dir/$CNI_COMMAND" 2>/dev/null || true
"#;

/// A directory of recorder plugins, gone with the value.
struct Plugins(PathBuf);

impl Plugins {
    fn new(name: &str) -> Result<Plugins> {
        let dir = std::env::temp_dir().join(format!("lab-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        for kind in ["first", "second"] {
            fs::write(dir.join(kind), RECORDER)?;
            fs::set_permissions(dir.join(kind), fs::Permissions::from_mode(0o755))?;
        }
        Ok(Plugins(dir))
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stdin_of(node: &Place, plugin: &str, run: &str) -> Result<Value> {
    Ok(node.read_file(&format!("/run/plugins/{plugin}/{run}.stdin"))?.parse()?)
}

#[test]
fn the_chain_driver_does_what_libcni_does() -> Result<()> {
    e2e::needs_lab!();
    let plugins = Plugins::new("chain")?;
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let conflist = json!({
        "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0", "9.0.0"], "name": "pods",
        "plugins": [
            { "type": "first", "capabilities": { "mac": true, "ips": false }, "key": [1] },
            { "type": "second" } ] });
    let nowhere = Path::new("/nonexistent");
    let chain = Chain::new(node, conflist.clone(), &[nowhere, &plugins.0])
        .arg("IgnoreUnknown", "1")
        .arg("K8S_POD_NAME", "p")
        .capability("mac", json!("02:00:00:00:00:01"))
        .capability("ips", json!(["10.0.0.9/24"]));
    assert_eq!(chain.version()?, "1.1.0");
    let one = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.0.1.2/24" }] });
    let two = json!({ "ips": [], "dns": {} });
    node.write_file("/run/plugins/first/ADD", one.to_string())?;
    node.write_file("/run/plugins/second/ADD", two.to_string())?;
    let pod = node.pod("pod-a")?;
    let last = json!({ "cniVersion": "1.1.0", "ips": [], "dns": {} });
    assert_eq!(chain.add(&pod, "eth0")?, last, "a result without version is of the conflist's");

    assert_eq!(
        stdin_of(node, "first", "ADD.0")?,
        json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "first", "key": [1],
        "capabilities": { "mac": true, "ips": false },
        "runtimeConfig": { "mac": "02:00:00:00:00:01" } })
    );
    assert_eq!(
        stdin_of(node, "second", "ADD.0")?,
        json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "second", "prevResult": one })
    );
    let env = format!(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p\nCNI_COMMAND=ADD\nCNI_CONTAINERID=pod-a\n\
         CNI_IFNAME=eth0\nCNI_NETNS=/run/netns/pod-a\nCNI_PATH=/nonexistent:{}\n",
        plugins.0.display()
    );
    assert_eq!(node.read_file("/run/plugins/first/ADD.0.env")?, env);
    let cache = format!("{RESULTS}/pods-pod-a-eth0");
    let cached: Value = node.read_file(&cache)?.parse()?;
    assert_eq!((&cached["kind"], &cached["result"]), (&json!("cniCacheV1"), &last));

    chain.check(&pod, "eth0")?;
    chain.status()?;
    assert_eq!(stdin_of(node, "first", "CHECK.0")?["prevResult"], last);
    assert_eq!(stdin_of(node, "first", "STATUS.0")?.get("prevResult"), None);
    let env = node.read_file("/run/plugins/second/STATUS.0.env")?;
    assert!(env.contains("CNI_NETNS=\n") && env.contains("CNI_CONTAINERID=\n"), "{env}");

    // GC keeps a valid attachment, and first deletes the cached ones that are none.
    chain.add_with(Runtime { container: "gone", netns: "", ifname: "net1" })?;
    chain.gc(&[("pod-a", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let valid = json!([{ "containerID": "pod-a", "ifname": "eth0" }]);
    let stdin = stdin_of(node, "second", "GC.0")?;
    assert_eq!(stdin["cni.dev/valid-attachments"], valid);
    assert_eq!(stdin["cni.dev/attachments"], valid);
    assert!(node.read_file("/run/plugins/first/DEL.0.env")?.contains("CNI_CONTAINERID=gone\n"));
    assert!(
        node.path(&cache).exists() && !node.path(&format!("{RESULTS}/pods-gone-net1")).exists()
    );

    node.sh("rm -f /run/plugins/order")?;
    chain.del(&pod, "eth0")?;
    assert_eq!(node.read_file("/run/plugins/order")?, "second DEL\nfirst DEL\n");
    assert_eq!(stdin_of(node, "first", "DEL.1")?["prevResult"], last);
    assert!(!node.path(&cache).exists());
    chain.del(&pod, "eth0")?;
    assert_eq!(stdin_of(node, "first", "DEL.2")?.get("prevResult"), None, "nothing is cached");

    let log = chain.take_log();
    assert!(log.iter().all(|run| !run.wall.is_zero() && run.stderr == "noise\n"));
    assert_eq!((log[0].plugin.as_str(), log[0].command.as_str()), ("first", "ADD"));
    assert!(chain.take_log().is_empty());
    Ok(())
}

#[test]
fn an_older_runtime_and_failing_plugins() -> Result<()> {
    e2e::needs_lab!();
    let plugins = Plugins::new("old")?;
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let conflist = json!({ "cniVersion": "0.3.1", "cniVersions": ["1.0.0", "1.1.0"], "name": "pods",
        "plugins": [{ "type": "first" }, { "type": "second" }] });
    let old = |own: &str| Chain::new(node, conflist.clone(), &[&plugins.0]).own_version(own);
    assert_eq!(old("1.0.0").version()?, "1.0.0");
    assert_eq!(old("0.4.0").version()?, "0.3.1");
    assert!(old("0.2.0").version().is_err());
    let pod = node.pod("pod-a")?;
    node.write_file("/run/plugins/first/ADD", "{}")?;
    node.write_file("/run/plugins/second/ADD", "{}")?;
    let chain = old("0.4.0");
    chain.add(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    assert_eq!(stdin_of(node, "second", "DEL.0")?.get("prevResult"), None, "since 0.4.0 only");
    assert!(chain.check(&pod, "eth0").is_err(), "there is no CHECK before 0.4.0");
    chain.gc(&[]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    chain.status()?;
    assert!(!node.path("/run/plugins/first/STATUS.0.stdin").exists(), "since 1.1.0 only");

    let object = json!({ "code": 11, "msg": "wait", "details": "a lock" });
    node.write_file("/run/plugins/second/fail.ADD", object.to_string())?;
    let expected = CniError {
        plugin: "second".into(),
        command: "ADD",
        code: 11,
        msg: "wait".into(),
        details: "a lock".into(),
        stderr: "noise\n".into(),
    };
    let chain = old("1.1.0");
    assert_eq!(chain.add(&pod, "eth0").unwrap_err(), expected);
    assert!(!node.path(&format!("{RESULTS}/pods-pod-a-eth0")).exists());
    node.write_file("/run/plugins/first/ADD", "{} {}")?;
    let error = chain.add(&pod, "eth0").unwrap_err();
    assert!(error.plugin == "first" && error.msg.contains("one JSON value"), "{error}");
    node.write_file("/run/plugins/second/fail.DEL", "boom")?;
    let error = chain.del(&pod, "eth0").unwrap_err();
    assert!(error.code == 0 && error.msg.contains("boom"), "{error}");
    assert!(!node.path("/run/plugins/first/DEL.1.stdin").exists(), "the first failure ends DEL");
    let missing = json!({ "name": "x", "plugins": [{ "type": "third" }] });
    let error = Chain::new(node, missing, &[&plugins.0]).add(&pod, "eth0").unwrap_err();
    assert!(error.msg.contains("\"third\""), "{error}");
    Ok(())
}

/// The machine's links, mounts, and the directories that nodes have of their own.
fn machine_state() -> String {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut links: Vec<_> = links.map(|entry| entry.file_name()).collect();
    links.sort();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dirs = ["/run/weft", "/run/netns", "/run/.lab", "/var/lib/cni", "/etc/weft", "/etc/cni"];
    let dirs = dirs.map(|dir| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        (Path::new(dir).exists(), names)
    });
    format!("{links:?}\n{dirs:?}\n{mounts}")
}

/// Processes of the machine that are in one of these network namespaces.
fn processes_in(namespaces: &[u64]) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_in = |path: &PathBuf| {
        fs::metadata(path.join("ns/net")).is_ok_and(|meta| namespaces.contains(&meta.ino()))
    };
    processes.map(|entry| entry.path()).filter(is_in).collect()
}

#[test]
fn nothing_is_left_when_the_holder_is_killed() -> Result<()> {
    e2e::needs_lab!();
    let before = machine_state();
    // On a node: its namespace's inode, that of a pod, and a process that would stay for ever.
    let script = "lab pod worker1 p && lab exec worker1 -- sh -c \
        'stat -L -c %i /proc/self/ns/net /run/netns/p; exec sleep 1000'";
    let mut lab = spawn(
        Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["run", "--", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    )?;
    let mut lines = lab.lines()?;
    let mut namespace = || -> Result<u64> { Ok(lines.next_line()?.context("stdout")?.parse()?) };
    let namespaces = [namespace()?, namespace()?];
    assert!(processes_in(&namespaces).len() >= 2, "the node's holder and sleep");
    // It alone, and not what it started.
    kill(Pid::from_raw(lab.id().try_into()?), Signal::SIGKILL)?;
    lab.wait()?;
    // The sleep on the node holds the pipe: its end is the end of the lab's processes.
    lines.rest()?;
    let end = Instant::now() + DEADLINE;
    loop {
        let left = processes_in(&namespaces);
        if left.is_empty() {
            break;
        }
        ensure!(Instant::now() < end, "still there: {left:?}");
        std::thread::yield_now();
    }
    assert_eq!(machine_state(), before);
    Ok(())
}

#[test]
fn the_lab_command_ends_as_its_command_did() -> Result<()> {
    e2e::needs_lab!();
    let lab = env!("CARGO_BIN_EXE_lab");
    let script = "lab exec node2 -- ping -c 1 192.168.1.1 >/dev/null && lab topology; exit 7";
    let output = run(Command::new(lab).args(["run", "--nodes", "2", "--", "sh", "-c", script]))?;
    assert_eq!(output.status.code(), Some(7), "{output}");
    let text = &output.stdout;
    assert!(text.contains("node2") && text.contains("10.0.2.0/24"), "{text}");
    for wrong in [&["walk"][..], &["run", "--nodes", "1"], &["run", "--color"], &["exec", "node1"]]
    {
        let output = run(Command::new(lab).args(wrong).env_remove("LAB"))?;
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    Ok(())
}

#[test]
fn a_pulled_cable_cuts_one_node_off() -> Result<()> {
    e2e::needs_lab!();
    for spread in [Spread::Own, Spread::Shared(2)] {
        let lab = Lab::start(Topology::nodes(3, spread, Families::Both, Families::Both))?;
        let (one, two, three) = (lab.node("node1")?, lab.node("node2")?, lab.node("node3")?);
        let quick = PingOptions { wait: 0.1, ..PingOptions::default() };
        lab.set_cable(one, false)?;
        for family in [Family::V4, Family::V6] {
            assert!(!ping(three, one.address(family)?, &quick)?.all());
            assert!(ping(three, two.address(family)?, &PingOptions::default())?.all());
        }
        lab.set_cable(one, true)?;
        for family in [Family::V4, Family::V6] {
            let to = one.address(family)?;
            let result = ping(three, to, &PingOptions { wait: 5.0, ..PingOptions::default() })?;
            assert!(result.all(), "{spread:?} {}", result.output);
        }
    }
    Ok(())
}

#[test]
fn a_reboot_leaves_disk_and_physical_network() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let (node, far) = (lab.node("worker1")?, lab.node("worker2")?);
    let before = node.snapshot()?;
    let boot = node.run_ok(&["cat", "/proc/sys/kernel/random/boot_id"])?;
    add_tunnel(node, node.address(Family::V4)?, 1, &[(far.address(Family::V4)?, 2)])?;
    node.pod("pod-a")?;
    node.sh("ip route add unreachable 10.0.1.0/24; ip rule add from 10.8.0.1 table 7
        ip -6 route add unreachable fd10:0:0:1::/64; ip nexthop add id 77 blackhole
        ip link add veth1 type veth peer name veth2; nft add table inet weft_x
        echo 1 >/proc/sys/net/ipv4/ip_forward; mkdir /run/weft; echo x >/run/weft/stamp
        mkdir -p /var/lib/cni/networks/pods; echo lease >/var/lib/cni/networks/pods/10.0.1.2")?;
    lab.reboot(node)?;
    assert_eq!(node.read_file("/var/lib/cni/networks/pods/10.0.1.2")?, "lease\n");
    let now = node.run_ok(&["cat", "/proc/sys/kernel/random/boot_id"])?;
    assert_ne!(now, boot);
    assert_eq!(far.run_ok(&["cat", "/proc/sys/kernel/random/boot_id"])?, boot);
    assert!(!node.path("/run/weft").exists());
    node.sh("rm -r /var/lib/cni/networks")?;
    before.without(&[Section::Sysctls]).assert_same(&node.snapshot()?);
    for family in [Family::V4, Family::V6] {
        let result = ping(node, far.address(family)?, &PingOptions::default())?;
        assert!(result.all(), "{}", result.output);
    }
    lab.reboot(node)?;
    assert_ne!(node.run_ok(&["cat", "/proc/sys/kernel/random/boot_id"])?, now);
    Ok(())
}

#[test]
fn plugin_executables_are_links_to_the_one_that_cargo_built() -> Result<()> {
    e2e::needs_lab!();
    let dirs = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(weft_bin_dir)).collect();
        asking
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    let inode = |name: &str| fs::metadata(dirs[0].join(name)).map(|meta| meta.ino());
    for name in ["veth", "host-local", "routing", "loopback"] {
        assert_eq!(inode(name)?, inode("weft")?, "{name}");
    }
    let lab = Lab::lesson()?;
    let seen = lab.node("worker1")?.path(&dirs[0].join("routing").to_string_lossy());
    assert!(seen.is_file(), "a node sees the plugins");
    let names: Vec<_> = fs::read_dir(&dirs[0])?.flatten().map(|entry| entry.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("new")), "{names:?}");
    Ok(())
}

/// How long all tests of this file may take.
const ALL: Duration = Duration::from_secs(600);

/// All the other tests of this file once more, as an ordinary user.
#[test]
fn ordinary_user() -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    testing::applies!(root, "the other tests were an ordinary user's already");
    testing::need!(testing::machine_root());
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut probe = Command::new("setpriv");
    probe.args(nobody).args(["unshare", "--user", "--map-root-user", "--mount", "--net", "true"]);
    let allowed = run(&mut probe)?;
    testing::need!(allowed.ok());
    let tests = std::env::current_exe()?;
    let mut command = within_reach(&tests)?;
    command.args(["setpriv"]).args(nobody).arg(&tests);
    command.args(["--skip", "ordinary_user", "--skip", "plugin_executables"]).current_dir("/");
    // None of them may skip itself.
    let output = run_within(ALL, command.env("CI", "true"))?;
    assert!(output.success(), "{output}");
    assert!(!output.stdout.contains(" 0 passed"), "{output}");
    Ok(())
}

/// The command that runs what its arguments say where everyone may reach `path` and its
/// neighbours: in a clone below a directory of mode 0700, a mount namespace in which that
/// directory is replaced.
fn within_reach(path: &Path) -> Result<Command> {
    const OPEN: &str = r#"
        blocked=$1 target=$2 aside=$(mktemp -d)
        shift 2
        mount -n --bind "$target" "$aside"
        mount -n -t tmpfs -o mode=755 open "$blocked"
        mkdir -p "$target"
        mount -n --move "$aside" "$target"
        rmdir "$aside"
        exec "$@""#;
    let ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
    let is_blocked = |dir: &&Path| fs::metadata(dir).is_ok_and(|meta| meta.mode() & 1 == 0);
    let Some(blocked) = ancestors.iter().rev().copied().find(is_blocked) else {
        return Ok(Command::new("env"));
    };
    // target/debug/deps/TEST
    let target = path.ancestors().nth(3).context("no target directory")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-e", "-c", OPEN, "sh"]).arg(blocked).arg(target);
    Ok(command)
}
