//! Router advertisements: a pod's change nothing, the network's go on being heard.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use e2e::{Cluster, Families, Place, Topology};
use serde_json::{Value, json};

use crate::conflist;
use crate::look::{becomes, changed, host_ends};
use crate::wire::{icmp6, inject};

/// A router advertisement (RFC 4861 section 4.2) of a default router for `lifetime`
/// seconds, with a prefix for addresses of one's own (section 4.6.2).
fn advertisement(from: Ipv6Addr, lifetime: u16, prefix: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend([0; 8]);
    message.extend([3, 4, 64, 0xc0]);
    message.extend(3600u32.to_be_bytes());
    message.extend(3600u32.to_be_bytes());
    message.extend([0; 4]);
    message.extend(prefix.octets());
    let all_nodes = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    icmp6(from.into(), all_nodes, &message)
}

/// A link's own IPv6 address.
fn link_local(place: &Place, name: &str) -> Result<Ipv6Addr> {
    let words = ["ip", "-6", "-j", "address", "show", "dev", name, "scope", "link"];
    let links = place.json(&words)?;
    let addresses = links.as_array().into_iter().flatten();
    let mut addresses = addresses.flat_map(|link| link["addr_info"].as_array()).flatten();
    let address = addresses.find_map(|address| address["local"].as_str());
    Ok(address.with_context(|| format!("{name} has no link-local address"))?.parse()?)
}

/// Advertisements that a link has received (RFC 4293's counters).
fn heard(place: &Place, name: &str) -> Result<u64> {
    let text = place.run_ok(&["cat", &format!("/proc/net/dev_snmp6/{name}")])?;
    let line = text.lines().find_map(|line| line.strip_prefix("Icmp6InRouterAdvertisements"));
    Ok(line.context("a link counts its advertisements")?.trim().parse()?)
}

/// The IPv6 default routes that advertisements gave, by interface.
fn advertised(place: &Place) -> Result<Vec<Value>> {
    let routes = place.json(&["ip", "-6", "-j", "route", "show", "default", "proto", "ra"])?;
    let routes = routes.as_array().cloned().unwrap_or_default();
    Ok(routes.iter().map(|route| route["dev"].clone()).collect())
}

#[test]
fn a_pod_s_change_nothing_on_its_node() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let topology = Topology::lesson(Families::Both, Families::Both);
    for spoof_check in [true, false] {
        let veth = json!({ "spoofCheck": spoof_check });
        let conflist = crate::conflist_of(veth, json!({}));
        let cluster = Cluster::start(topology.clone(), &conflist)?;
        let pod = cluster.pod("worker1", "pod-a")?;
        let worker1 = cluster.node("worker1")?;
        let [host_end] = &host_ends(worker1)?[..] else { panic!("one pod, one host end") };
        let router = link_local(&pod, "eth0")?;
        let advertisement = advertisement(router, 1800, "2001:db8:bad::".parse()?);
        let state = || -> Result<_> {
            let routes = worker1.json(&["ip", "-6", "-j", "route", "show", "table", "all"])?;
            let bad = |text: &str| text.contains("2001:db8:bad") || text.contains("\"ra\"");
            let addresses = worker1.json(&["ip", "-6", "-j", "address", "show"])?;
            Ok((bad(&routes.to_string()), bad(&addresses.to_string())))
        };
        let before = heard(worker1, host_end)?;
        inject(&pod, &advertisement, Some("eth0"))?;
        assert_eq!(
            changed("the pod advertises", &before, || heard(worker1, host_end))?,
            before + 1
        );
        assert_eq!(state()?, (false, false), "spoofCheck {spoof_check}");

        // The same packet where nobody had turned advertisements off.
        worker1.set_sysctls(&[(&format!("net/ipv6/conf/{host_end}/accept_ra"), "2")])?;
        inject(&pod, &advertisement, Some("eth0"))?;
        becomes("the advertisement would have worked", &(true, true), state)?;
    }
    Ok(())
}

#[test]
fn a_node_that_lives_on_them_keeps_its_default_route() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let topology = Topology::lesson(Families::Both, Families::Both);
    let cluster = Cluster::start(topology, &conflist(json!({})))?;
    let (worker1, router) = (cluster.node("worker1")?, cluster.lab().router());
    worker1.run_ok(&["ip", "-6", "route", "del", "default"])?;
    assert_eq!(worker1.sysctl("net/ipv6/conf/eth0/accept_ra")?, "1");
    assert_eq!(worker1.sysctl("net/ipv6/conf/all/forwarding")?, "0");
    let from = link_local(router, "net211")?;
    let advertise = |lifetime| {
        let packet = advertisement(from, lifetime, "fd00:211::".parse()?);
        inject(router, &packet, Some("net211"))
    };
    let eth0 = vec![json!("eth0")];
    advertise(1800)?;
    becomes("a default route by advertisement", &eth0, || advertised(worker1))?;

    let pod = cluster.pod("worker1", "pod-a")?;
    assert_eq!(worker1.sysctl("net/ipv6/conf/all/forwarding")?, "1");
    assert_eq!(worker1.sysctl("net/ipv6/conf/eth0/accept_ra")?, "2");
    assert_eq!(advertised(worker1)?, eth0, "forwarding took the default route away");
    let remote = cluster.pod("worker2", "pod-b")?;
    for place in [&**worker1, &*pod] {
        let to = remote.addr(e2e::Family::V6)?;
        crate::assert_ping(place, to, e2e::PingOptions::default())?;
    }

    // The router goes, and comes back.
    advertise(0)?;
    becomes("no default route", &Vec::new(), || advertised(worker1))?;
    advertise(1800)?;
    becomes("the default route is back", &eth0, || advertised(worker1))
}
