//! Pods on two nodes, by the tunnel, natively and with both families.

use anyhow::Result;
use e2e::{Families, Family, Lab, Topology, conf};

use crate::cri::{Client, Pod};
use crate::stage::{Stage, assert_reaches, prerequisites, serve};

/// A pod on each node that answers HTTP, and the clients of both nodes.
fn a_pod_each(stage: &Stage) -> Result<[(Client, Pod); 2]> {
    let pod = |index: usize, name: &str| -> Result<(Client, Pod)> {
        let client = stage.daemons[index].client()?;
        let pod = client.run(name)?;
        serve(&client, &pod)?;
        Ok((client, pod))
    };
    Ok([pod(0, "a")?, pod(1, "b")?])
}

fn assert_both_ways([(there, a), (here, b)]: &[(Client, Pod); 2]) -> Result<()> {
    assert_reaches(there, a, b)?;
    assert_reaches(here, b, a)
}

#[test]
fn pods_reach_each_other_by_the_tunnel_and_natively() -> Result<()> {
    testing::need!(prerequisites());
    let mut stage = Stage::lesson(conf::TUNNEL)?;
    let pods = a_pod_each(&stage)?;
    for ((_, pod), daemon) in pods.iter().zip(&stage.daemons) {
        let range = daemon.node().pod_range(Family::V4)?;
        assert!(matches!(pod.addresses[..], [one] if range.contains(one)), "{pod:?}");
    }
    assert_both_ways(&pods)?;
    stage.cluster.set_conflist(&conf::NATIVE.parse()?)?;
    stage.cluster.sync_all()?;
    for daemon in &stage.daemons {
        let (range, via) =
            (daemon.node().pod_range(Family::V4)?, daemon.node().address(Family::V4)?);
        let router = stage.cluster.lab().router();
        router.ip_batch(&format!("route add {range} via {via}\n"))?;
        let devices = daemon.node().run_ok(&["ip", "-o", "link", "show", "type", "vxlan"])?;
        assert!(devices.is_empty(), "{devices}");
    }
    assert_both_ways(&pods)?;
    for (client, pod) in &pods {
        client.remove(&pod.id)?;
    }
    stage.cluster.set_conflist(&conf::TUNNEL.parse()?)?;
    stage.assert_as_before()
}

#[test]
fn pods_have_an_address_of_each_family() -> Result<()> {
    testing::need!(prerequisites());
    let lab = || Lab::start(Topology::lesson(Families::V4, Families::Both));
    let stage = Stage::start(lab, &conf::TUNNEL.parse()?)?;
    let pods = a_pod_each(&stage)?;
    for ((_, pod), daemon) in pods.iter().zip(&stage.daemons) {
        let ranges = [daemon.node().pod_range(Family::V4)?, daemon.node().pod_range(Family::V6)?];
        let in_ranges = pod.addresses.iter().zip(ranges).all(|(one, range)| range.contains(*one));
        assert!(pod.addresses.len() == 2 && in_ranges, "{pod:?}");
    }
    assert_both_ways(&pods)?;
    for (client, pod) in &pods {
        client.remove(&pod.id)?;
    }
    stage.assert_as_before()
}
