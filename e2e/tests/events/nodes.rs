//! Nodes join, leave, move, reboot and are rebuilt, and get other pod ranges.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Family, Runtime};
use serde_json::json;

use crate::event::{ALL, ALL_BUT_LAST, Event, HIT, LAST, MAP, Scene};
use crate::stage::Trigger;

/// Ours are gone from everywhere.
fn nothing_is_left_of_last(scene: &mut Scene) -> Result<()> {
    for &index in ALL_BUT_LAST {
        let left = scene.traces_of_last(index)?;
        ensure!(left.is_empty(), "{left:#?}");
    }
    Ok(())
}

/// And back everywhere.
fn all_know_last(scene: &mut Scene) -> Result<()> {
    for &index in ALL_BUT_LAST {
        let found = scene.traces_of_last(index)?;
        ensure!(found.len() >= 2, "{found:#?}");
    }
    Ok(())
}

fn all_send_to_its_address(scene: &mut Scene) -> Result<()> {
    let address = scene.address()?;
    for &index in ALL_BUT_LAST {
        let found = scene.traces_of_last(index)?;
        ensure!(found.iter().any(|line| line.contains(&address)), "{address}: {found:#?}");
    }
    Ok(())
}

const JOINS: Event = Event {
    name: "node joins",
    prepare: |scene| {
        scene.publish_without_last()?;
        scene.tick(ALL_BUT_LAST)
    },
    happen: |scene| scene.publish(),
    check: all_know_last,
    stamped: ALL_BUT_LAST,
    ..MAP
};

const LEAVES: Event = Event {
    name: "node leaves",
    happen: |scene| scene.publish_without_last(),
    check: nothing_is_left_of_last,
    undo: |scene| {
        scene.publish()?;
        scene.stage.trigger_all(Trigger::Sync)
    },
    at: ALL_BUT_LAST,
    away: Some(LAST),
    ..MAP
};

pub(crate) const MOVES_KERNEL_FIRST: Event = Event {
    name: "address changes, kernel first",
    happen: |scene| {
        let script = scene.new_address()?;
        scene.last().sh(&script)?;
        // Still known by its name; nothing fails meanwhile.
        scene.tick(ALL)?;
        scene.publish()
    },
    check: all_send_to_its_address,
    ..MAP
};

pub(crate) const MOVES_MAP_FIRST: Event = Event {
    name: "address changes, map first",
    happen: |scene| {
        let script = scene.new_address()?;
        scene.publish()?;
        scene.tick(ALL)?;
        scene.last().sh(&script).map(drop)
    },
    check: all_send_to_its_address,
    ..MAP
};

const REBOOTS: Event = Event {
    name: "node reboots",
    happen: |scene| {
        scene.reboot_last()?;
        let leases = scene.last().sh("ls /var/lib/cni/networks/pods")?;
        ensure!(leases.contains("10.0.4."), "no lease is left: {leases}");
        Ok(())
    },
    // Of the time before nothing is left but what the new pod has.
    check: |scene| {
        let address = scene.stage.pods[LAST].addr(Family::V4)?.to_string();
        let leases = scene.last().sh("ls /var/lib/cni/networks/pods | grep '^10'")?;
        ensure!(leases.trim() == address, "{address}: {leases}");
        Ok(())
    },
    at: &[LAST],
    pods_of: &[LAST],
    ..MAP
};

/// Its disk is another, and its address; its name is what it was.
const REBUILT: Event = Event {
    name: "node rebuilt under its name",
    happen: |scene| {
        scene.reboot_last()?;
        let script = scene.new_address()?;
        scene.last().sh(&format!("rm -rf /var/lib/cni; {script}"))?;
        scene.publish()
    },
    check: all_send_to_its_address,
    pods_of: &[LAST],
    ..MAP
};

const EXCHANGED: Event = Event {
    name: "pod ranges exchanged",
    happen: |scene| {
        scene.hush(HIT);
        scene.hush(LAST);
        let ranges = scene.map["nodes"][HIT]["podCIDRs"].take();
        scene.map["nodes"][HIT]["podCIDRs"] = scene.map["nodes"][LAST]["podCIDRs"].take();
        scene.map["nodes"][LAST]["podCIDRs"] = ranges;
        scene.publish()
    },
    check: |scene| {
        for index in [HIT, LAST] {
            let address = scene.stage.pods[index].addr(Family::V4)?;
            let range = scene.map["nodes"][index]["podCIDRs"][0].as_str().context("a range")?;
            let range: ipnetwork::IpNetwork = range.parse()?;
            ensure!(range.contains(address), "{address} is not in {range}");
        }
        Ok(())
    },
    pods_of: &[HIT, LAST],
    ..MAP
};

/// A new node registers before anybody gives it a range.
fn register_without_range(scene: &mut Scene) -> Result<()> {
    scene.reboot_last()?;
    scene.last().sh("rm -rf /var/lib/cni")?;
    let mut map = scene.map.clone();
    map["nodes"][LAST]["podCIDRs"] = json!([]);
    scene.stage.lab.write_node_map(&map)?;
    scene.tick(ALL_BUT_LAST)?;
    let chain = &scene.stage.chains[LAST];
    let Err(error) = chain.status() else { bail!("STATUS without a range") };
    ensure!(error.code == 50, "{error}");
    let pod = scene.last().pod("early")?;
    let Err(error) = chain.add(&pod, "eth0") else { bail!("ADD without a range") };
    ensure!(error.code == 11 && error.msg.contains("podCIDRs"), "{error}");
    chain.del_with(Runtime { netns: "", ..Runtime::of(&pod, "eth0") })?;
    pod.delete()
}

const GETS_A_RANGE: Event = Event {
    name: "record gets its range",
    prepare: register_without_range,
    happen: |scene| scene.publish(),
    check: all_know_last,
    stamped: ALL_BUT_LAST,
    pods_of: &[LAST],
    ..MAP
};

#[test]
fn nodes_join_leave_and_move() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(&[&JOINS, &LEAVES, &MOVES_KERNEL_FIRST, &MOVES_MAP_FIRST])
}

#[test]
fn nodes_reboot_and_are_rebuilt_and_get_ranges() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(&[&REBOOTS, &REBUILT, &EXCHANGED, &GETS_A_RANGE])
}

/// A neighbour's address is a gateway here.
#[test]
fn nodes_on_one_link_do_the_same_without_a_tunnel() -> Result<()> {
    e2e::needs_lab!();
    Scene::native()?.play(&[
        &Event { name: "native: node joins", ..JOINS },
        &Event { name: "native: node leaves", ..LEAVES },
        &Event { name: "native: address changes, kernel first", ..MOVES_KERNEL_FIRST },
        // None of its own routes tells its address.
        &Event { name: "native: address changes, map first", drifts: false, ..MOVES_MAP_FIRST },
        &Event { name: "native: node reboots", ..REBOOTS },
    ])
}
