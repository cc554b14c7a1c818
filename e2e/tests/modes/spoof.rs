//! A pod sends from its own addresses alone, whatever `rp_filter` says.

use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{Cluster, Families, Family, Node, PingOptions, Pod, Topology};
use serde_json::{Value, json};

use crate::look::{DEADLINE, becomes, dropped, echoes, frames, host_ends, inner};
use crate::wire::{echo_request, inject};
use crate::{assert_ping, conflist_of};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const SIZE: u32 = 58;

/// worker1 with two pods, worker2 with one.
struct Town {
    cluster: Cluster,
    liar: Pod,
    neighbour: Pod,
    remote: Pod,
}

fn keys(spoof_check: bool) -> Value {
    conflist_of(json!({ "spoofCheck": spoof_check }), json!({}))
}

impl Town {
    fn start(spoof_check: bool) -> Result<Town> {
        let topology = Topology::lesson(Families::Both, Families::Both);
        let cluster = Cluster::start(topology, &keys(spoof_check))?;
        let liar = cluster.pod("worker1", "liar")?;
        let neighbour = cluster.pod("worker1", "neighbour")?;
        let remote = cluster.pod("worker2", "remote")?;
        Ok(Town { cluster, liar, neighbour, remote })
    }

    fn worker1(&self) -> Result<&Node> {
        self.cluster.node("worker1")
    }

    /// Reverse path filtering of every interface that a liar's packets come in by.
    fn set_rp_filter(&self, value: &str) -> Result<()> {
        self.cluster.set_rp_filter(value)?;
        for host_end in host_ends(self.worker1()?)? {
            let key = format!("net/ipv4/conf/{host_end}/rp_filter");
            self.worker1()?.set_sysctls(&[(&key, value)])?;
        }
        Ok(())
    }

    /// What is not the liar's: free, a neighbour's, a remote pod's, its node's, another
    /// node's, the gateway's, anybody's.
    fn forged(&self, family: Family) -> Result<Vec<IpAddr>> {
        let (free, gateway, anybody) = match family {
            Family::V4 => ("10.0.1.99", "10.0.1.1", "203.0.113.7"),
            Family::V6 => ("fd10:0:0:1::99", "fd10:0:0:1::1", "2001:db8::7"),
        };
        Ok(vec![
            free.parse()?,
            self.neighbour.addr(family)?,
            self.remote.addr(family)?,
            self.worker1()?.address(family)?,
            self.cluster.node("worker2")?.address(family)?,
            gateway.parse()?,
            anybody.parse()?,
        ])
    }

    /// Each forged packet is counted, and none reaches the neighbour or the remote pod.
    fn is_safe(&self, rp_filter: &str) -> Result<()> {
        self.set_rp_filter(rp_filter)?;
        let worker1 = self.worker1()?;
        for family in FAMILIES {
            for target in [&self.neighbour, &self.remote] {
                let capture = target.capture("eth0", "icmp or icmp6")?;
                let to = target.addr(family)?;
                let own = self.liar.addr(family)?;
                let before = dropped(worker1, "weft_spoof")?;
                let mut sent = 0;
                for from in self.forged(family)?.into_iter().filter(|from| *from != to) {
                    inject(&self.liar, &echo_request(from, to, SIZE as usize), None)?;
                    sent += 1;
                }
                becomes(&format!("{sent} forged packets are counted"), &(before + sent), || {
                    dropped(worker1, "weft_spoof")
                })?;
                let honest = PingOptions { size: SIZE, ..PingOptions::default() };
                assert_ping(&self.liar, to, honest)?;
                let frames = frames(capture)?;
                let heard: Vec<IpAddr> =
                    echoes(&frames, true, SIZE).into_iter().map(|f| inner(f).source).collect();
                assert_eq!(heard, [own], "rp_filter {rp_filter}, at {}", target.name());
                assert_eq!(dropped(worker1, "weft_spoof")?, before + sent, "honest packets pass");
            }
        }
        Ok(())
    }

    /// Whether a packet that the liar forges from a free address is heard remotely.
    fn assert_heard(&self, family: Family) -> Result<()> {
        let from = self.forged(family)?.into_iter().next().context("a free address")?;
        let capture = self.remote.capture("eth0", "icmp or icmp6")?;
        let packet = echo_request(from, self.remote.addr(family)?, SIZE as usize);
        inject(&self.liar, &packet, None)?;
        capture.wait_for(DEADLINE, |packet| {
            packet.frame().is_ok_and(|frame| {
                let frames = [frame];
                echoes(&frames, true, SIZE).iter().any(|frame| inner(frame).source == from)
            })
        })?;
        Ok(())
    }
}

#[test]
fn with_any_rp_filter() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let town = Town::start(true)?;
    ["0", "1", "2"].into_iter().try_for_each(|value| town.is_safe(value))
}

#[test]
fn unless_the_check_is_off() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let mut town = Town::start(false)?;
    town.set_rp_filter("0")?;
    for family in FAMILIES {
        town.assert_heard(family)?;
    }
    // Another attachment's check is none of this pod's business.
    town.cluster.set_conflist(&keys(true))?;
    let checked = town.cluster.pod("worker1", "checked")?;
    town.set_rp_filter("0")?;
    for family in FAMILIES {
        town.assert_heard(family)?;
        let from = town.forged(family)?[0];
        let before = dropped(town.worker1()?, "weft_spoof")?;
        let to = town.remote.addr(family)?;
        inject(&checked, &echo_request(from, to, SIZE as usize), None)?;
        becomes("the checked pod's lie is counted", &(before + 1), || {
            dropped(town.worker1()?, "weft_spoof")
        })?;
    }
    // Both kinds of host end are weft's: their MTU follows, DEL and the guard find them.
    let narrow = conflist_of(json!({}), json!({ "mtu": 1400 }));
    town.cluster.set_conflist(&narrow)?;
    town.cluster.sync_all()?;
    for pod in [&town.liar, &town.neighbour, &checked] {
        assert_eq!(crate::look::mtu(pod, "eth0")?, 1400, "{}", pod.name());
    }
    Ok(())
}
