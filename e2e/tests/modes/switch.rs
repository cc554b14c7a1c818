//! A cluster's mode is changed under running pods.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Cluster, Families, Family, Node, PingOptions, Place, Pod, Section, Snapshot, Spread, Topology,
};
use serde_json::{Value, json};

use crate::look::{DEADLINE, echoes, frames, host_ends, mtu, set_elements};
use crate::wire::{connect, listen, read};
use crate::{assert_ping, conflist, pod_network};

/// The longest that a connection may stand still.
const LONGEST_STALL: Duration = Duration::from_secs(2);
/// What the connection sends at a time, and how often: some 6 MB/s in full segments,
/// so that each change of MTU meets data.
const CHUNK: usize = 32 << 10;
const PERIOD: Duration = Duration::from_millis(5);

fn native() -> Value {
    conflist(json!({
        "routingMode": "native", "tunnelPort": 0,
        "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16",
    }))
}

/// A TCP connection that sends without a pause until told to stop.
struct Stream {
    far: TcpStream,
    near: TcpStream,
}

/// Stops the sender when dropped, by a panic too.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the receiver saw.
struct Received {
    bytes: usize,
    longest_stall: Duration,
}

/// Both ends of a new connection to a pod.
fn connected(from: &Place, to: &Pod, family: Family, port: u16) -> Result<(TcpStream, TcpStream)> {
    let at = SocketAddr::new(to.addr(family)?, port);
    let listener = listen(to, at)?;
    let near = connect(from, at)?;
    Ok((near, listener.accept()?.0))
}

impl Stream {
    fn start(from: &Pod, to: &Pod, family: Family, port: u16) -> Result<Stream> {
        let (near, far) = connected(from, to, family, port)?;
        far.set_read_timeout(Some(DEADLINE))?;
        near.set_write_timeout(Some(DEADLINE))?;
        Ok(Stream { far, near })
    }

    /// Sends until `stop`; returns the bytes sent.
    fn send(mut near: TcpStream, stop: &AtomicBool) -> Result<usize> {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let chunk: Vec<u8> = (sent..sent + CHUNK).map(|at| (at % 251) as u8).collect();
            near.write_all(&chunk).context("the sender")?;
            sent += CHUNK;
            thread::sleep(PERIOD);
        }
        Ok(sent)
    }

    /// Reads to the end; every byte has to be the one sent at its place.
    fn receive(mut far: TcpStream) -> Result<Received> {
        let mut received = Received { bytes: 0, longest_stall: Duration::ZERO };
        let mut buffer = vec![0; 1 << 16];
        let mut last = Instant::now();
        loop {
            let count = read(&mut far, &mut buffer).context("the receiver")?;
            if count == 0 {
                return Ok(received);
            }
            received.longest_stall = received.longest_stall.max(last.elapsed());
            last = Instant::now();
            let expected = (received.bytes..).map(|at| (at % 251) as u8);
            ensure!(buffer[..count].iter().copied().eq(expected.take(count)), "other bytes arrive");
            received.bytes += count;
        }
    }

    /// Does `work` while the connection sends; nothing may be lost, nor stand still.
    fn survives<T>(self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stopping = Stopping(&stop);
            let (near, far) = (self.near, self.far);
            let receiver = scope.spawn(|| Stream::receive(far));
            let sender = scope.spawn(|| Stream::send(near, &stop));
            let done = work();
            drop(stopping);
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // The receiver first: where it fails, the sender does so too.
            let (done, received, sent) = (done?, received?, sent?);
            let stall = received.longest_stall;
            eprintln!("{what}: {sent} bytes, the longest stall {stall:?}");
            ensure!(received.bytes == sent && sent > 0, "{} of {sent} bytes", received.bytes);
            ensure!(stall <= LONGEST_STALL, "{what}: the connection stood still for {stall:?}");
            Ok(done)
        })
    }
}

/// What the kernel holds once IPv6 has settled its link-local addresses.
fn state(node: &Place) -> Result<Snapshot> {
    node.wait_until("no address is tentative", DEADLINE, || {
        let tentative = node.run_ok(&["ip", "-6", "-o", "address", "show", "tentative"])?;
        Ok(tentative.is_empty().then_some(()))
    })?;
    Ok(node.snapshot()?.without(&[Section::Files]))
}

struct Switched {
    cluster: Cluster,
    pods: [Pod; 2],
}

impl Switched {
    /// The lesson's cluster in tunnel mode, the router with the routes that native
    /// mode will need, strict reverse path filtering everywhere.
    fn start() -> Result<Switched> {
        let topology = Topology::lesson(Families::Both, Families::Both);
        let cluster = Cluster::start(topology, &conflist(json!({})))?;
        cluster.set_rp_filter("1")?;
        cluster.route_to_all()?;
        let pods = [cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?];
        cluster.sync_all()?;
        Ok(Switched { cluster, pods })
    }

    /// Changes the conflist on every node and syncs; the nodes follow one another.
    fn switch(&mut self, conflist: &Value) -> Result<()> {
        self.cluster.set_conflist(conflist)?;
        self.cluster.sync_all()
    }

    /// Asserts the MTU of both ends of both pods.
    fn assert_mtu(&self, expected: u64) -> Result<()> {
        for pod in &self.pods {
            assert_eq!(mtu(pod, "eth0")?, expected, "{}", pod.name());
            for host_end in host_ends(pod.node())? {
                assert_eq!(mtu(pod.node(), &host_end)?, expected, "{host_end}");
            }
        }
        Ok(())
    }

    /// Whether a ping shows in the tunnel, on the router.
    fn is_tunnelled(&self, family: Family) -> Result<bool> {
        // By its length, for the tunnel carries the connections too.
        let filter = "icmp or icmp6 or (udp port 8472 and (len == 169 or len == 189))";
        let capture = self.cluster.lab().router().capture("net211", filter)?;
        let options = PingOptions { size: 77, ..PingOptions::default() };
        assert_ping(&self.pods[0], self.pods[1].addr(family)?, options)?;
        let frames = frames(capture)?;
        let seen = echoes(&frames, true, 77);
        assert_eq!(seen.len(), 1, "one request passes the router");
        Ok(seen[0].vxlan().is_some())
    }
}

/// The pods' difference is their MTU alone, which IPv6 shows as a sysctl too.
#[track_caller]
fn assert_only_mtu(before: &Snapshot, after: &Snapshot, (old, new): (u64, u64)) {
    let diff = before.diff(after);
    assert!(!diff.is_empty(), "the MTU did not change");
    let with_mtu = |mtu: u64| [format!("\"mtu\":{mtu}"), format!("/mtu:{mtu}")];
    for line in diff.lines() {
        let mtu = if line.starts_with('-') { old } else { new };
        assert!(with_mtu(mtu).iter().any(|text| line.contains(text)), "{diff}");
    }
    let without = |sign: char, mtu: u64| -> Vec<String> {
        let lines = diff.lines().filter(|line| line.starts_with(sign));
        let plain =
            |line: &str| with_mtu(mtu).iter().fold(line.to_owned(), |l, m| l.replace(m, "MTU"));
        let mut lines: Vec<String> = lines.map(|line| plain(&line[1..])).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(without('-', old), without('+', new), "more than the MTU changed");
}

fn assert_native(switched: &Switched) -> Result<()> {
    let node = switched.cluster.node("worker1")?;
    let links = node.json(&["ip", "-j", "link", "show", "type", "vxlan"])?;
    assert!(links.as_array().is_none_or(Vec::is_empty), "{links}");
    for family in ["-4", "-6"] {
        let routes = node.json(&["ip", family, "-j", "route", "show", "proto", "87"])?;
        let routes = routes.as_array().context("our own range is routed")?;
        assert_eq!(routes.len(), 1, "the way to the peers is the host's: {routes:?}");
        assert_eq!(routes[0]["type"], "unreachable", "{routes:?}");
    }
    assert_eq!(node.json(&["ip", "-j", "nexthop"])?, json!([]));
    let fdb = node.json(&["bridge", "-j", "fdb", "show"])?.to_string();
    assert!(!fdb.contains("\"dst\""), "{fdb}");
    assert_eq!(set_elements(node, "weft_87_tunnel", "ends4")?, None);
    let native = set_elements(node, "weft_87_masquerade", "native4")?;
    assert_eq!(native, Some(vec!["10.0.0.0/8".to_owned()]));
    let native = set_elements(node, "weft_87_masquerade", "native6")?;
    assert_eq!(native, Some(vec!["fd10::/16".to_owned()]));
    Ok(())
}

#[test]
fn from_tunnel_to_native_and_back_under_living_pods() -> Result<()> {
    e2e::needs_lab!();
    let mut cluster = Switched::start()?;
    let worker1 = Place::clone(cluster.cluster.node("worker1")?);
    let pods = [state(&cluster.pods[0])?, state(&cluster.pods[1])?];
    let node = state(&worker1)?;
    cluster.assert_mtu(1450)?;
    assert!(cluster.is_tunnelled(Family::V4)? && cluster.is_tunnelled(Family::V6)?);

    cluster.switch(&native())?;
    cluster.assert_mtu(1500)?;
    assert!(!cluster.is_tunnelled(Family::V4)? && !cluster.is_tunnelled(Family::V6)?);
    assert_native(&cluster)?;
    for (before, pod) in pods.iter().zip(&cluster.pods) {
        assert_only_mtu(before, &state(pod)?, (1450, 1500));
        let to = cluster.pods[1].addr(Family::V4)?;
        assert_ping(&cluster.pods[0], to, PingOptions::exact(1500, to))?;
    }

    cluster.switch(&conflist(json!({})))?;
    cluster.assert_mtu(1450)?;
    assert!(cluster.is_tunnelled(Family::V4)? && cluster.is_tunnelled(Family::V6)?);
    for (before, pod) in pods.iter().zip(&cluster.pods) {
        before.assert_same(&state(pod)?);
    }
    assert_same_but_for_indexes(&node, &state(&worker1)?);
    Ok(())
}

/// A device that is made anew has another index.
#[track_caller]
fn assert_same_but_for_indexes(before: &Snapshot, after: &Snapshot) {
    let strip = |line: &str| -> Option<String> {
        let (start, rest) = line[1..].split_once("\"ifindex\":")?;
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        Some(format!("{start}{rest}"))
    };
    let diff = before.diff(after);
    let of = |sign| -> Vec<String> {
        let lines = diff.lines().filter(|line| line.starts_with(sign));
        let mut lines: Vec<String> =
            lines.map(|line| strip(line).unwrap_or_else(|| line[1..].to_owned())).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(of('-'), of('+'), "{diff}");
}

#[test]
fn a_connection_survives_the_switch_and_the_way_back() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    for family in [Family::V4, Family::V6] {
        let mut cluster = Switched::start()?;
        let [a, b] = cluster.pods.clone();
        let stream = Stream::start(&a, &b, family, 5001)?;
        let reverse = Stream::start(&b, &a, family, 5002)?;
        let name = |way| format!("{family:?}, {way}");
        stream.survives(&name("one way"), || {
            reverse.survives(&name("the other way"), || {
                cluster.switch(&native())?;
                // What passes now passes natively.
                assert!(!cluster.is_tunnelled(family)?);
                cluster.switch(&conflist(json!({})))?;
                assert!(cluster.is_tunnelled(family)?);
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// A TCP connection over which questions are asked and answered.
struct Talk {
    near: TcpStream,
    far: TcpStream,
}

impl Talk {
    fn start(from: &Place, to: &Pod, family: Family, port: u16) -> Result<Talk> {
        let (near, far) = connected(from, to, family, port)?;
        near.set_read_timeout(Some(Duration::from_millis(20)))?;
        far.set_nonblocking(true)?;
        Ok(Talk { near, far })
    }

    /// The address that the far end sees.
    fn seen(&self) -> Result<IpAddr> {
        Ok(self.far.peer_addr()?.ip())
    }

    fn ask(&mut self) -> Result<()> {
        Ok(self.near.write_all(b"?")?)
    }

    /// Whether the question is answered in time.
    fn is_answered(&mut self, within: Duration) -> Result<bool> {
        let end = Instant::now() + within;
        let nothing_yet = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock => Ok(0),
            _ => Err(error),
        };
        while Instant::now() < end {
            if read(&mut self.far, &mut [0]).or_else(nothing_yet)? == 1 {
                self.far.write_all(b"!")?;
            }
            if read(&mut self.near, &mut [0]).or_else(nothing_yet)? == 1 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// As the documentation says: between a node itself and a remote pod, for its source
/// address is the pod network's in the tunnel and the node's natively.
#[test]
fn a_connection_of_the_node_itself_stands_still_until_its_way_is_back() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let mut cluster = Switched::start()?;
    let worker1 = Node::clone(cluster.cluster.node("worker1")?);
    let pod = cluster.pods[1].clone();
    let families = [Family::V4, Family::V6];
    let start = |port| -> Result<Vec<Talk>> {
        families.into_iter().map(|family| Talk::start(&worker1, &pod, family, port)).collect()
    };
    let mut tunnelled = start(5003)?;
    for (talk, family) in tunnelled.iter_mut().zip(families) {
        talk.ask()?;
        assert!(talk.is_answered(DEADLINE)?);
        assert_eq!(talk.seen()?, pod_network(&worker1, family)?);
    }

    cluster.switch(&native())?;
    for talk in &mut tunnelled {
        talk.ask()?;
        assert!(!talk.is_answered(Duration::from_secs(1))?, "its address is there no longer");
    }
    let mut bare = start(5004)?;
    for (talk, family) in bare.iter_mut().zip(families) {
        talk.ask()?;
        assert!(talk.is_answered(DEADLINE)?);
        assert_eq!(talk.seen()?, worker1.address(family)?);
    }

    cluster.switch(&conflist(json!({})))?;
    // The other end answers beside the tunnel, for which strict reverse path filtering
    // drops what comes through it; IPv6 has none.
    let [v4, v6] = &mut bare[..] else { panic!("a connection of each family") };
    v4.ask()?;
    v6.ask()?;
    assert!(v6.is_answered(DEADLINE)?);
    assert!(!v4.is_answered(Duration::from_secs(1))?);
    for talk in &mut tunnelled {
        // TCP asks again after as long as it has waited already, at the most.
        assert!(talk.is_answered(6 * DEADLINE)?);
    }
    Ok(())
}

/// Without a `weft sync`: the next pod's ADD brings its node along, and only its node.
#[test]
fn the_next_pod_brings_its_node_along() -> Result<()> {
    e2e::needs_lab!();
    let mut cluster = Switched::start()?;
    cluster.cluster.set_conflist(&native())?;
    cluster.cluster.pod("worker1", "pod-c")?;
    assert_native(&cluster)?;
    let worker1 = cluster.cluster.node("worker1")?;
    for host_end in host_ends(worker1)? {
        assert_eq!(mtu(worker1, &host_end)?, 1500, "{host_end}");
    }
    assert_eq!([mtu(&cluster.pods[0], "eth0")?, mtu(&cluster.pods[1], "eth0")?], [1500, 1450]);
    assert!(mtu(cluster.cluster.node("worker2")?, "weft.1")? > 0, "worker2 has its tunnel still");
    cluster.cluster.pod("worker2", "pod-d")?;
    cluster.assert_mtu(1500)?;
    assert!(!cluster.is_tunnelled(Family::V4)? && !cluster.is_tunnelled(Family::V6)?);
    Ok(())
}

/// Routes of ours to peers, as `(destination, whether by a gateway on eth0)`.
fn peer_routes(node: &Place, family: &str) -> Result<Vec<String>> {
    let routes = node.json(&["ip", family, "-j", "route", "show", "proto", "87", "dev", "eth0"])?;
    let routes = routes.as_array().into_iter().flatten();
    Ok(routes.filter_map(|route| route["dst"].as_str()).map(str::to_owned).collect())
}

#[test]
fn native_peers_on_the_same_link_get_routes_unless_told_otherwise() -> Result<()> {
    e2e::needs_lab!();
    let native =
        |auto: bool| conflist(json!({ "routingMode": "native", "autoDirectNodeRoutes": auto }));
    let topology = Topology::nodes(3, Spread::Shared(2), Families::Both, Families::Both);
    let mut cluster = Cluster::start(topology, &native(true))?;
    cluster.sync_all()?;
    let node1 = Place::clone(cluster.node("node1")?);
    assert_eq!(peer_routes(&node1, "-4")?, ["10.0.2.0/24"]);
    assert_eq!(peer_routes(&node1, "-6")?, ["fd10:0:0:2::/64"]);

    cluster.set_conflist(&native(false))?;
    cluster.sync_all()?;
    assert!(peer_routes(&node1, "-4")?.is_empty() && peer_routes(&node1, "-6")?.is_empty());
    assert_eq!(node1.json(&["ip", "-j", "nexthop"])?, json!([]));
    Ok(())
}

#[test]
fn a_peer_off_the_link_is_an_error_where_it_may_not_be_skipped() -> Result<()> {
    e2e::needs_lab!();
    let strict = json!({ "routingMode": "native", "directRoutingSkipUnreachable": false });
    let topology = Topology::nodes(3, Spread::Shared(2), Families::V4, Families::V4);
    let mut cluster = Cluster::start(topology, &conflist(json!({})))?;
    cluster.sync_all()?;
    let node1 = Place::clone(cluster.node("node1")?);
    let before = node1.snapshot()?.without(&[Section::Files]);
    cluster.set_conflist(&conflist(strict))?;
    let output = cluster.weft("node1", &["sync"])?;
    assert!(!output.success(), "{output}");
    for text in ["node3", "192.168.2.1", "192.168.1.254"] {
        assert!(output.stderr.contains(text), "{text}: {output}");
    }
    before.assert_same(&node1.snapshot()?.without(&[Section::Files]));
    Ok(())
}
