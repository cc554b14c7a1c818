//! What a sync and an ADD cost with many nodes: `cargo test --release -p e2e --test
//! events -- --ignored --nocapture scale`. The goals are asserted in release builds.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Families, Topology};
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::neighbour::{FdbEntry, Neighbour, State};
use kernel::netlink::Message;
use kernel::netns::Netns;
use kernel::nexthop::Nexthop;
use kernel::route::Route;
use serde_json::json;

use crate::stage::Stage;

const SIZES: [usize; 5] = [10, 100, 1_000, 5_000, 10_000];
/// Times that an ADD is measured.
const ADDS: usize = 41;

/// A peer's numbers: pod ranges 10.A.B.0/24 from 10.64.0.0 and fd10:1:0:N::/64, address
/// from 172.16.0.0/12.
fn peer(number: usize, changed: bool, dual: bool) -> String {
    let address =
        Ipv4Addr::from_bits(0xac10_0001 + number as u32 + if changed { 1 << 18 } else { 0 });
    let range = Ipv4Addr::from_bits(0x0a40_0000 + ((number as u32) << 8));
    let v6 = Ipv6Addr::new(0xfd10, 1, 0, number as u16, 0, 0, 0, 0);
    let more = if dual { format!(",\"{v6}/64\"") } else { String::new() };
    format!(r#"{{"name":"n{number}","addresses":["{address}"],"podCIDRs":["{range}/24"{more}]}}"#)
}

/// The map with this node and `count` peers, of which the first `changed` have other addresses.
fn map(count: usize, changed: usize, dual: bool) -> String {
    let more = if dual { ",\"fd10:0:0:1::/64\"" } else { "" };
    let mut text = format!(
        r#"{{"nodes":[{{"name":"node1","addresses":["192.168.1.1"],"podCIDRs":["10.0.1.0/24"{more}]}}"#
    );
    for number in 0..count {
        let _ = write!(text, ",\n{}", peer(number, number < changed, dual));
    }
    text.push_str("]}\n");
    text
}

/// One sync.
#[derive(Clone, Copy)]
struct Run {
    wall: Duration,
    /// Seconds of processor time, the kernel's for it included.
    cpu: f64,
    /// Peak resident memory, MiB.
    peak: f64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} ({:.0}) ms", self.wall.as_secs_f64() * 1e3, self.cpu * 1e3))
    }
}

/// What one size costs.
struct Row {
    first: Run,
    nothing: Run,
    changed: Run,
    add: Duration,
    bare: Duration,
}

impl Stage {
    /// Runs `weft sync` and measures it, by GNU time.
    fn timed_sync(&self) -> Result<Run> {
        let weft = self.bin.join("weft").display().to_string();
        let script = format!("exec env time -f '%M %U %S' {weft} sync 2>&1 >/run/said");
        let output = self.node(0).command(&["sh", "-ec", &script]).output()?;
        ensure!(output.success(), "{output}");
        let numbers = output.stdout.split_whitespace().map(str::parse::<f64>);
        let numbers = numbers.collect::<Result<Vec<_>, _>>().context(output.stdout.clone())?;
        let [peak, user, system] = numbers[..] else { bail!("time says {}", output.stdout) };
        Ok(Run { wall: output.wall, cpu: user + system, peak: peak / 1024.0 })
    }

    /// The median time of `routing` for an ADD.
    fn timed_add(&self) -> Result<Duration> {
        self.settle()?;
        self.chains[0].take_log();
        for _ in 0..ADDS {
            let pod = self.pod(0, "scale")?;
            self.remove(0, &pod)?;
        }
        let log = self.chains[0].take_log();
        let adds = log.iter().filter(|run| run.plugin == "routing" && run.command == "ADD");
        let mut walls: Vec<Duration> = adds.map(|run| run.wall).collect();
        walls.sort_unstable();
        walls.get(walls.len() / 2).copied().context("no ADD was made")
    }

    /// The kernel's own share of a first sync: the messages alone.
    fn bare_batch(&self, count: usize, dual: bool) -> Result<Duration> {
        self.weft(0, &["teardown"])?.ok()?;
        self.node(0).write_file(e2e::NODE_MAP, map(0, 0, dual))?;
        self.weft(0, &["sync"])?.ok()?;
        let link = self.node(0).json(&["ip", "-j", "link", "show", "weft.1"])?;
        let index = link[0]["ifindex"].as_u64().context("no weft.1")? as u32;
        let sleeper = self.node(0).spawn(&["sleep", "600"])?;
        let node = Netns::open(&PathBuf::from(format!("/proc/{}/ns/net", sleeper.id())))?;
        let mut messages = messages(index, count, dual)?;
        let home = Netns::current()?;
        let mut host = node.run(&home, Rtnetlink::open)??;
        let started = Instant::now();
        let refused = host.batch(&mut messages)?;
        let took = started.elapsed();
        ensure!(refused.is_empty(), "{:?}", refused[0]);
        Ok(took)
    }
}

fn messages(index: u32, count: usize, dual: bool) -> Result<Vec<Message>> {
    let kinds = [neighbours, entries, nexthops, routes];
    let mut messages = Vec::new();
    for kind in kinds {
        for number in 0..count {
            messages.extend(kind(index, number, dual)?);
        }
    }
    Ok(messages)
}

fn range(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a40_0000 + ((number as u32) << 8))
}

fn mac(number: usize) -> [u8; 6] {
    let [a, b, c, d] = range(number).octets();
    [0x0a, 0x58, a, b, c, d]
}

fn link_local(number: usize) -> IpAddr {
    let [a, b, c, d] = range(number).octets().map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0858, a << 8 | 0xff, 0xfe00 | b, c << 8 | d).into()
}

fn neighbours(index: u32, number: usize, dual: bool) -> Result<Vec<Message>> {
    let entry = |ip| {
        let mac = Some(mac(number));
        Neighbour { index, ip, mac, state: State::Permanent, external: false }.set()
    };
    let ips = [Some(IpAddr::from(range(number))), dual.then(|| link_local(number))];
    Ok(ips.into_iter().flatten().map(entry).collect())
}

fn entries(index: u32, number: usize, _: bool) -> Result<Vec<Message>> {
    let dst = Ipv4Addr::from_bits(0xac10_0001 + number as u32);
    let dst = Some(dst.into());
    let mac = mac(number);
    Ok(vec![FdbEntry { index, mac, dst, state: State::Permanent, external: false }.set()])
}

fn nexthops(index: u32, number: usize, _: bool) -> Result<Vec<Message>> {
    let via = range(number);
    let id = via.to_bits();
    Ok(vec![Nexthop { id, dev: index, via: via.into(), protocol: 87, onlink: true }.add()])
}

fn routes(index: u32, number: usize, dual: bool) -> Result<Vec<Message>> {
    let via = range(number);
    let mut route = Route::to(IpNetwork::new(via.into(), 24)?, 87);
    route.nexthop = Some(via.to_bits());
    route.metric = 8;
    route.mtu = Some(1450);
    route.src = Some("10.0.1.0".parse()?);
    let mut messages = vec![route.add()];
    if dual {
        let dst = Ipv6Addr::new(0xfd10, 1, 0, number as u16, 0, 0, 0, 0);
        let mut route = Route::to(IpNetwork::new(dst.into(), 64)?, 87);
        route.via = Some(link_local(number));
        route.dev = Some(index);
        route.metric = 8;
        route.mtu = Some(1450);
        route.src = Some("fd10:0:0:1::".parse()?);
        messages.push(route.add());
    }
    Ok(messages)
}

fn measure(count: usize, dual: bool) -> Result<Row> {
    let pods = if dual { Families::Both } else { Families::V4 };
    let topology = Topology::nodes(2, e2e::Spread::Own, Families::V4, pods);
    let stage = Stage::without_pods(topology, json!({}))?;
    let node = stage.node(0);
    node.write_file(e2e::NODE_MAP, map(count, 0, dual))?;
    let first = stage.timed_sync()?;
    let nothing = (0..5).map(|_| stage.timed_sync()).collect::<Result<Vec<Run>>>()?;
    let nothing = nothing.into_iter().min_by_key(|run| run.wall).context("no run")?;
    node.write_file(e2e::NODE_MAP, map(count, count.div_ceil(100), dual))?;
    let changed = stage.timed_sync()?;
    // The other node has the lab's own map.
    let add = Stage { chains: stage.chains.into_iter().take(1).collect(), ..stage };
    let (stage, add) = (&add, add.timed_add()?);
    let bare = stage.bare_batch(count, dual)?;
    Ok(Row { first, nothing, changed, add, bare })
}

#[test]
#[ignore = "measures: run it alone, in release"]
fn scale() -> Result<()> {
    println!("wall time (processor time)");
    println!(
        "{:<6} {:<7} {:<18} {:<9} {:<18} {:<18} {:<8} bare batch",
        "peers", "family", "first sync", "peak MiB", "nothing to do", "1 % changed", "ADD"
    );
    let ms = |wall: Duration| format!("{:.1} ms", wall.as_secs_f64() * 1e3);
    let mut missed = Vec::new();
    for dual in [false, true] {
        let mut least = None;
        for count in SIZES {
            let row = measure(count, dual)?;
            let family = if dual { "dual" } else { "IPv4" };
            println!(
                "{count:<6} {family:<7} {:<18} {:<9.1} {:<18} {:<18} {:<8} {}",
                row.first,
                row.first.peak,
                row.nothing,
                row.changed,
                ms(row.add),
                ms(row.bare)
            );
            let least = *least.get_or_insert(row.add);
            if count == 10_000 && !dual {
                missed.extend(goals(&row, least));
            }
        }
    }
    ensure!(
        cfg!(debug_assertions) || missed.is_empty(),
        "missed with 10,000 IPv4 peers: {missed:?}"
    );
    Ok(())
}

/// What of the goals for 10,000 IPv4 peers a row misses.
fn goals(row: &Row, least_add: Duration) -> Vec<&'static str> {
    let goals = [
        (row.first.wall < Duration::from_secs(1), "first sync below a second"),
        (row.nothing.wall < Duration::from_millis(150), "nothing to do in 150 ms"),
        (row.first.peak < 64.0, "peak below 64 MiB"),
        (row.add < least_add.mul_f64(1.1), "ADD within 10 % of that with 10 peers"),
    ];
    goals.into_iter().filter(|(met, _)| !met).map(|(_, goal)| goal).collect()
}
