//! What happens to clusters, as values, and what runs one of them by one trigger.
//!
//! There are four nodes. Events hit the last two; a TCP connection between the first
//! two runs through all of them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{Families, Node, Pod, Spread, Topology};
use serde_json::{Value, json};

use crate::stage::{DEADLINE, Stage, TRIGGERS, Trigger, difference};
use crate::traffic::{Calm, Streams, Traffic};

/// The node that something is done to.
pub(crate) const HIT: usize = 2;
/// The node that leaves, joins, moves, reboots.
pub(crate) const LAST: usize = 3;
/// Nodes that nothing happens to.
const UNAFFECTED: [usize; 2] = [0, 1];
pub(crate) const ALL: &[usize] = &[0, 1, HIT, LAST];
pub(crate) const ALL_BUT_LAST: &[usize] = &[0, 1, HIT];

type Act = fn(&mut Scene) -> Result<()>;

/// One event.
pub(crate) struct Event {
    pub(crate) name: &'static str,
    /// What has to be so before it.
    pub(crate) prepare: Act,
    pub(crate) happen: Act,
    /// What else has to hold when it is repaired.
    pub(crate) check: Act,
    /// Brings back what the next event starts from.
    pub(crate) undo: Act,
    /// The nodes on which a trigger is set off.
    pub(crate) at: &'static [usize],
    /// The nodes that have a stamp before it.
    pub(crate) stamped: &'static [usize],
    /// The exit status of a sync before it: 1 if something stands in the way.
    pub(crate) settles: i32,
    /// Whether an ADD always sees it; else it may take the next STATUS.
    pub(crate) seen_by_add: bool,
    /// Whether `weft plan` has something to do after it.
    pub(crate) drifts: bool,
    /// Whether the kernel of HIT is to be again as before.
    pub(crate) restores: bool,
    /// Nodes whose pods end with it and are made anew after the trigger.
    pub(crate) pods_of: &'static [usize],
    /// The node that nobody reaches afterwards.
    pub(crate) away: Option<usize>,
}

/// An event on HIT's own kernel that every trigger sees and undoes.
pub(crate) const DAMAGE: Event = Event {
    name: "",
    prepare: |_| Ok(()),
    happen: |_| Ok(()),
    check: |_| Ok(()),
    undo: |_| Ok(()),
    at: &[HIT],
    stamped: &[HIT],
    settles: 0,
    seen_by_add: true,
    drifts: true,
    restores: true,
    pods_of: &[],
    away: None,
};

/// An event in the node map.
pub(crate) const MAP: Event = Event { at: ALL, stamped: ALL, restores: false, ..DAMAGE };

/// Four nodes with traffic.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) traffic: Traffic,
    streams: Streams,
    /// The map as it is, or is to be when an event is over.
    pub(crate) map: Value,
    /// VXLAN devices by their names.
    devices: &'static [&'static str],
    /// Last byte of the address that a node got last.
    number: u8,
}

impl Scene {
    /// Every node on a physical network of its own.
    pub(crate) fn tunnel() -> Result<Scene> {
        let topology = Topology::nodes(4, Spread::Own, Families::V4, Families::Both);
        Scene::new(topology, json!({}), &["weft.1"])
    }

    /// The same over IPv6.
    pub(crate) fn tunnel_over_ipv6() -> Result<Scene> {
        let topology = Topology::nodes(4, Spread::Own, Families::V6, Families::Both);
        Scene::new(topology, json!({ "underlayFamily": "ipv6" }), &["weft.1"])
    }

    /// All on one, without a tunnel.
    pub(crate) fn native() -> Result<Scene> {
        let topology = Topology::nodes(4, Spread::Shared(4), Families::Both, Families::Both);
        Scene::new(topology, json!({ "routingMode": "native" }), &[])
    }

    fn new(topology: Topology, keys: Value, devices: &'static [&'static str]) -> Result<Scene> {
        let map = topology.node_map();
        let stage = Stage::with_pods(topology, keys)?;
        let (traffic, streams) = (stage.traffic()?, stage.streams(UNAFFECTED)?);
        Ok(Scene { stage, traffic, streams, map, devices, number: 100 })
    }

    /// Runs each event by each trigger, and prints how long it took until every pair talked.
    pub(crate) fn play(&mut self, events: &[&Event]) -> Result<()> {
        for event in events {
            for trigger in TRIGGERS {
                self.run(event, trigger).with_context(|| format!("{}, {trigger:?}", event.name))?;
            }
        }
        Ok(())
    }

    fn run(&mut self, event: &Event, trigger: Trigger) -> Result<()> {
        let mark = self.streams.mark()?;
        (event.prepare)(self).context("preparing")?;
        if trigger == Trigger::Add {
            // Without a stamp no ADD overlooks anything.
            self.stage.settle_some(event.stamped, event.settles)?;
        }
        let before = self.state()?;
        (event.happen)(self).context("it happens")?;
        let drifted = !self.converged(event.at)?;
        ensure!(drifted == event.drifts, "weft plan finds something to do: {drifted}");
        let started = Instant::now();
        let mut pods = self.set_off(event.at, trigger)?;
        let mut through = format!("{trigger:?}");
        if trigger == Trigger::Add && !event.seen_by_add && !self.converged(event.at)? {
            self.set_off(event.at, Trigger::Status)?;
            through.push_str(" and Status");
        }
        let done = Instant::now();
        self.renew_pods(event.pods_of)?;
        let reaches = |nodes: [usize; 2]| event.away.is_none_or(|away| !nodes.contains(&away));
        let last = self.traffic.wait_for(done, DEADLINE, reaches)?;
        let (run, talks) = (done - started, done + last - started);
        for (index, pod) in pods.drain(..) {
            self.stage.remove(index, &pod)?;
        }
        self.assert_whole(event, &before)?;
        (event.undo)(self).context("undoing")?;
        let Calm { stall, retransmissions } = self.streams.assert_calm(&mark)?;
        println!(
            "{}: {through} took {run:.0?}, all talk after {talks:.0?}; unaffected TCP: longest \
             wait {stall:.0?}, {retransmissions} segments again",
            event.name
        );
        Ok(())
    }

    /// Sets off a trigger on one node after the other; returns the pods of ADDs.
    fn set_off(&self, nodes: &[usize], trigger: Trigger) -> Result<Vec<(usize, Pod)>> {
        let mut pods = Vec::new();
        for &index in nodes {
            pods.extend(self.stage.set_off(index, trigger)?.map(|pod| (index, pod)));
        }
        Ok(pods)
    }

    fn assert_whole(&mut self, event: &Event, before: &str) -> Result<()> {
        for &index in event.at {
            let plan = self.stage.weft(index, &["plan"])?;
            ensure!(plan.success(), "not whole: {plan}");
        }
        if event.restores {
            let now = self.state()?;
            ensure!(now == before, "not as before:\n{}", difference(before, &now));
        }
        (event.check)(self)
    }

    fn state(&self) -> Result<String> {
        self.stage.state(HIT, self.devices)
    }

    pub(crate) fn converged(&self, nodes: &[usize]) -> Result<bool> {
        for &index in nodes {
            if !self.stage.is_converged(index)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Replaces the pods of some nodes, and the pings from and to them.
    fn renew_pods(&mut self, nodes: &[usize]) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        for &index in nodes {
            let old = self.stage.pods[index].clone();
            if self.stage.node(index).path(old.netns()).exists() {
                self.stage.remove(index, &old)?;
            }
            self.stage.pods[index] = self.stage.pod(index, "pod")?;
        }
        let is_new = |pair: [usize; 2]| nodes.iter().any(|index| pair.contains(index));
        self.traffic.0.extend(self.stage.pings(is_new)?);
        Ok(())
    }

    /// Ends the pings from and to a node's pod.
    pub(crate) fn hush(&mut self, index: usize) {
        self.traffic.0.retain(|flow| !flow.nodes.contains(&index));
    }

    pub(crate) fn hit(&self) -> &Node {
        self.stage.node(HIT)
    }

    pub(crate) fn last(&self) -> &Node {
        self.stage.node(LAST)
    }

    /// Runs a script on HIT.
    pub(crate) fn damage(&self, script: &str) -> Result<()> {
        self.hit().sh(script).map(drop)
    }

    /// Publishes the map.
    pub(crate) fn publish(&self) -> Result<()> {
        self.stage.lab.write_node_map(&self.map)
    }

    /// Publishes the map without LAST.
    pub(crate) fn publish_without_last(&self) -> Result<()> {
        let mut map = self.map.clone();
        map["nodes"].as_array_mut().context("the map has nodes")?.remove(LAST);
        self.stage.lab.write_node_map(&map)
    }

    /// STATUS on some nodes.
    pub(crate) fn tick(&self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|&index| self.stage.trigger(index, Trigger::Status))
    }

    /// LAST's first address, by the map.
    pub(crate) fn address(&self) -> Result<String> {
        let address = self.map["nodes"][LAST]["addresses"][0].as_str();
        address.map(str::to_owned).context("the last node has an address")
    }

    /// Gives LAST another address in the map that is still to be published; returns a
    /// script that moves it there.
    pub(crate) fn new_address(&mut self) -> Result<String> {
        self.number += 1;
        let old = self.address()?;
        let host = old.rfind(['.', ':']).context("an address")? + 1;
        let new = format!("{}{}", &old[..host], self.number);
        self.map["nodes"][LAST]["addresses"][0] = json!(new);
        self.move_last(&old, &new)
    }

    fn move_last(&self, old: &str, new: &str) -> Result<String> {
        let host = self.last().host();
        let network = host.addresses.first().context("the last node has an address")?;
        let routers = &self.stage.lab.topology().links[host.link].router;
        let router = routers.iter().find(|router| router.is_ipv4() == network.is_ipv4());
        let (router, length) = (router.context("a router")?.ip(), network.prefix());
        let nodad = if network.is_ipv6() { "nodad" } else { "" };
        Ok(format!(
            "ip address del {old}/{length} dev eth0; ip address add {new}/{length} dev eth0 {nodad}
             ip route replace default via {router}"
        ))
    }

    /// After a reboot: the address that the map has, whatever the node started with.
    pub(crate) fn take_address(&self) -> Result<()> {
        let first = self.last().host().addresses.first().context("an address")?;
        let (start, now) = (first.ip().to_string(), self.address()?);
        if start == now {
            return Ok(());
        }
        self.last().sh(&self.move_last(&start, &now)?).map(drop)
    }

    /// Turns LAST off and on again.
    pub(crate) fn reboot_last(&mut self) -> Result<()> {
        self.hush(LAST);
        self.stage.lab.reboot(self.last())?;
        self.take_address()
    }

    /// What other nodes hold of LAST's.
    pub(crate) fn traces_of_last(&self, index: usize) -> Result<Vec<String>> {
        let record = &self.map["nodes"][LAST];
        let lists = [&record["addresses"], &record["podCIDRs"]];
        let words = lists.into_iter().filter_map(Value::as_array).flatten();
        let words = words.filter_map(Value::as_str);
        // Of a range its first address, which the tunnel's entries name.
        let words: Vec<&str> = words.filter_map(|word| word.split('/').next()).collect();
        let mac = "0a:58:0a:00:04:00";
        let state = self.stage.state(index, self.devices)?;
        let names = |line: &&str| {
            let mut found = line.split(|c: char| c.is_whitespace() || c == '/' || c == ',');
            found.any(|word| words.contains(&word) || word == mac)
        };
        Ok(state.lines().filter(names).map(str::to_owned).collect())
    }
}

/// Asserts the MTU that a link of a place has.
pub(crate) fn assert_mtu(place: &e2e::Place, link: &str, mtu: u32) -> Result<()> {
    let shown = place.run_ok(&["ip", "link", "show", link])?;
    ensure!(shown.contains(&format!("mtu {mtu} ")), "{shown}");
    Ok(())
}
