//! An ADD does the same with many nodes as with few. What it and a sync cost then, `make
//! bench` measures (docs/performance.md).

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use e2e::{Families, Topology};
use serde_json::json;

use crate::fast_path::traced;
use crate::stage::Stage;

/// Whatever reaches beyond the process, its memory apart.
const CALLS: &str = "%network,%file,read,pread64,write,ioctl,getdents64";

/// The map with this node and `count` peers, of both families.
fn map(count: usize) -> String {
    let mut text = String::from(
        r#"{"nodes":[{"name":"node1","addresses":["192.168.1.1"],"podCIDRs":["10.0.1.0/24","fd10:0:0:1::/64"]}"#,
    );
    for number in 0..count {
        let address = Ipv4Addr::from_bits(0xac10_0001 + number as u32);
        let v4 = Ipv4Addr::from_bits(0x0a40_0000 + ((number as u32) << 8));
        let v6 = Ipv6Addr::new(0xfd10, 1, 0, number as u16, 0, 0, 0, 0);
        let _ = write!(
            text,
            r#",{{"name":"n{number}","addresses":["{address}"],"podCIDRs":["{v4}/24","{v6}/64"]}}"#
        );
    }
    text.push_str("]}");
    text
}

/// The names of the system calls of an ADD with `count` peers, in order.
fn calls_of_an_add(count: usize) -> Result<Vec<String>> {
    let topology = Topology::nodes(2, e2e::Spread::Own, Families::V4, Families::Both);
    let stage = Stage::without_pods(topology, json!({}))?;
    stage.node(0).write_file(e2e::NODE_MAP, map(count))?;
    // The first pod finds the spoof check missing, and the second is by the stamp.
    let pod = stage.pod(0, "first")?;
    stage.settle()?;
    let text = traced(&stage, 0, CALLS)?;
    stage.remove(0, &pod)?;
    let name = |line: &str| {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        call.split('(').next().unwrap_or_default().to_owned()
    };
    Ok(text.lines().map(name).collect())
}

#[test]
fn an_add_makes_the_same_calls_whatever_the_number_of_peers() -> Result<()> {
    e2e::needs_lab!("strace");
    let few = calls_of_an_add(10)?;
    let many = calls_of_an_add(1_000)?;
    ensure!(few.iter().any(|call| call == "pread64"), "no stamp was read: {few:?}");
    ensure!(few == many, "with 10 peers {few:?}, with 1,000 {many:?}");
    Ok(())
}
