//! Random edits of map and conflist, one after another: after each sync the kernel
//! of a node that lived through them all equals that of a node that starts afresh.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{Families, NODE_MAP, Topology};
use serde_json::{Value, json};

use crate::stage::{Stage, difference};

/// The xorshift64* generator (Vigna, 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A node's record. Ranges come from a small stock, so that they pass from one node to another.
fn record(random: &mut Random, name: &str, address: Option<&str>, taken: &[Value]) -> Value {
    loop {
        let number = random.below(40) + 10;
        let mut ranges = Vec::new();
        let families = random.below(4);
        if families != 0 {
            ranges.push(format!("10.1.{number}.0/24"));
        }
        if families != 1 {
            ranges.push(format!("fd20:0:0:{number}::/64"));
        }
        if families == 3 && random.one_in(3) {
            ranges.push(format!("10.2.{number}.0/25"));
        }
        let free = format!("192.168.{}.{}", 100 + random.below(3), 1 + random.below(250));
        let address = address.map_or(free, str::to_owned);
        let mut record = json!({ "name": name, "addresses": [address], "podCIDRs": ranges });
        if random.one_in(6) {
            record["vtepMAC"] = json!(format!("02:00:00:00:01:{number:02x}"));
        }
        if random.one_in(8) {
            let last = 1 + random.below(250);
            record["tunnelAddress"] = json!(format!("198.51.100.{last}"));
        }
        let clashes = |other: &Value| {
            other["name"] != record["name"]
                && (other["addresses"] == record["addresses"]
                    || (!other["tunnelAddress"].is_null()
                        && other["tunnelAddress"] == record["tunnelAddress"])
                    || number_of(other) == Some(number))
        };
        if !taken.iter().any(clashes) {
            return record;
        }
    }
}

/// The number that a record's ranges come from.
fn number_of(record: &Value) -> Option<usize> {
    let range = record["podCIDRs"][0].as_str()?;
    let number = match range.strip_prefix("fd20:0:0:") {
        Some(rest) => rest.split("::").next()?,
        None => range.split('.').nth(2)?,
    };
    number.parse().ok()
}

/// Changes one thing, now and then two at once.
fn edit(random: &mut Random, nodes: &mut Vec<Value>, own: &str, serial: usize) {
    match random.below(6) {
        0 | 1 if nodes.len() < 25 => {
            let new = record(random, &format!("peer{serial}"), None, nodes);
            let at = random.below(nodes.len() + 1);
            nodes.insert(at, new);
        }
        2 if nodes.len() > 3 => {
            let at = random.below(nodes.len());
            if nodes[at]["name"] != "worker1" {
                nodes.remove(at);
            }
        }
        3 => {
            let at = random.below(nodes.len());
            nodes.swap(0, at);
        }
        _ => {
            let at = random.below(nodes.len());
            let name = nodes[at]["name"].as_str().unwrap_or_default().to_owned();
            let address = (name == "worker1").then_some(own);
            nodes[at] = record(random, &name, address, nodes);
        }
    }
    if random.one_in(5) {
        edit(random, nodes, own, serial + 100_000);
    }
}

/// Keys for `routing`, and the device that they ask for.
fn keys(random: &mut Random) -> (Value, Option<String>) {
    let vni = 1 + random.below(2);
    let device = Some(format!("weft.{vni}"));
    match random.below(5) {
        0 => (json!({ "routingMode": "native", "vni": vni }), None),
        1 => {
            let cidr = ["10.1.0.0/17", "10.1.16.0/20"][random.below(2)];
            let links = ["192.168.101.0/24"];
            (
                json!({ "routingMode": "hybrid", "vni": vni, "ipv4NativeRoutingCIDR": cidr, "links": links, "mtu": 1450 }),
                device,
            )
        }
        2 => (json!({ "vni": vni, "ipMasq": false, "mtu": 1400 }), device),
        _ => (json!({ "vni": vni }), device),
    }
}

/// Peers with IPv6 pods are reported where the mode is native, for the lab's nodes have
/// no IPv6 address; nothing else may be wrong.
fn sync(stage: &Stage) -> Result<()> {
    let output = stage.weft(1, &["sync"])?;
    let known = |line: &str| line.contains("note: ") && line.contains("has no IPv6 address");
    ensure!(output.success() && output.stderr.lines().all(known), "{output}");
    Ok(())
}

#[test]
fn after_any_edit_a_node_equals_a_fresh_one() -> Result<()> {
    e2e::needs_lab!();
    let soak = std::env::var_os("WEFT_SOAK").is_some();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = std::env::var("WEFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(now | 1);
    let edits = if soak { 1_000 } else { 50 };
    println!("{edits} edits, WEFT_SEED={seed}");
    let mut random = Random(seed);
    let topology = || Topology::lesson(Families::V4, Families::Both);
    // worker1 of each.
    let mut veteran = Stage::without_pods(topology(), json!({}))?;
    let mut fresh = Stage::without_pods(topology(), json!({}))?;
    let own = "192.168.211.128";
    let mut nodes = vec![record(&mut random, "worker1", Some(own), &[])];
    let mut device = Some("weft.1".to_owned());
    for number in 0..edits {
        if random.one_in(6) {
            let (keys, wanted) = keys(&mut random);
            // Whoever changes the protocol's number or the tables' owner tears down first.
            veteran.configure(1, keys.clone())?;
            fresh.weft(1, &["teardown"])?.ok()?;
            fresh.configure(1, keys)?;
            device = wanted;
        } else {
            edit(&mut random, &mut nodes, own, number);
            fresh.weft(1, &["teardown"])?.ok()?;
        }
        let map = json!({ "nodes": nodes });
        let context = || {
            format!("edit {number} of WEFT_SEED={seed}: {map}\n{}", veteran.chains[1].conflist())
        };
        for stage in [&veteran, &fresh] {
            stage.node(1).write_file(NODE_MAP, map.to_string())?;
            sync(stage).with_context(context)?;
        }
        let devices: Vec<&str> = device.as_deref().into_iter().collect();
        let (lived, wanted) = (veteran.state(1, &devices)?, fresh.state(1, &devices)?);
        ensure!(lived == wanted, "{}\n{}", context(), difference(&wanted, &lived));
        let links =
            |stage: &Stage| stage.node(1).run_ok(&["sh", "-c", "ip -o link | cut -d: -f2 | sort"]);
        ensure!(links(&veteran)? == links(&fresh)?, "{}: {}", context(), links(&veteran)?);
        ensure!(veteran.is_converged(1)?, "{}", context());
    }
    Ok(())
}
