//! `weft trace`: which way a packet goes from this node, and why.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, bail};
use cluster::{Decision, Family, Map, Node, Way};
use ipnetwork::IpNetwork;
use kernel::link::Link;
use kernel::route::{Kind, Lookup};
use kernel::{Rtnetlink, format_mac};

use super::conflist::RoutingNetwork;
use super::in_the_way::in_the_way;
use super::print::print;
use crate::attachment::Alias;
use crate::node::recognise;
use crate::routing::config::Config;
use crate::routing::desired::policy;
use crate::routing::firewall::{TableState, masquerade_state};
use crate::routing::held::Held;
use crate::routing::masquerade;
use crate::routing::survey::held;

pub(super) const HELP: &str = "\
Usage: weft trace SRC DST [--conf FILE]

Prints which way a packet from address SRC to address DST goes from this node, as
the kernel has it now: route, neighbour, forwarding entry, outer route; tunnel or
native and the rule that decided it; MTU; whether the source is masqueraded, and
whether the kernel's table for that is the one that shall be there; and, where
the way is native, the routes that the physical network needs. Ends with the
commands that show each step. It sends nothing.

Run it on the node that SRC is on, and the other way round on that of DST.
Exit status 1 if a step is missing or another than it shall be.
";

/// Who an address belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// A pod range of this node.
    OwnPod(IpNetwork),
    /// A pod range of another node.
    Pod(String, IpNetwork),
    /// A pod range of a node whose record is quarantined.
    HeldPod(IpNetwork),
    ThisNode,
    Node(String),
    Outside,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    lines: Vec<(&'static str, String)>,
    commands: Vec<String>,
    broken: bool,
}

impl Report {
    fn say(&mut self, what: &'static str, text: impl Into<String>) {
        self.lines.push((what, text.into()));
    }

    fn broken(&mut self, what: &'static str, text: impl Into<String>) {
        self.say(what, text);
        self.broken = true;
    }

    fn text(&self, heading: &str) -> String {
        let mut text = format!("{heading}\n");
        for (what, line) in &self.lines {
            text += &format!("  {what:<12} {line}\n");
        }
        text += "To see each step:\n";
        text.extend(self.commands.iter().map(|command| format!("  {command}\n")));
        text
    }
}

/// What a trace is made from.
struct Trace<'a> {
    config: &'a Config,
    map: &'a Map,
    own: &'a Node,
    held: &'a Held,
    destination: IpAddr,
    from: Who,
    to: Who,
}

/// Traces in one network.
pub(super) fn run(
    source: IpAddr,
    destination: IpAddr,
    network: &RoutingNetwork,
) -> Result<ExitCode> {
    if source.is_ipv4() != destination.is_ipv4() {
        bail!("{source} and {destination} are of different families");
    }
    let config = &network.config;
    let mut host = Rtnetlink::open()?;
    let loaded = config.source.load()?;
    let (own, _) = recognise(&loaded.map, &config.source, Some(config.protocol), &mut host)?;
    let addresses = host.addresses(None)?;
    let of_host: Vec<IpAddr> = addresses.iter().map(|address| address.address.ip()).collect();
    let held = held(config, &loaded.map, &own, &mut host)?;
    let whose = |ip| whose(ip, &loaded.map, &own, &held, &of_host);
    let (from, to) = (whose(source), whose(destination));
    let trace = Trace { config, map: &loaded.map, own: &own, held: &held, destination, from, to };
    let mut report = Report::default();
    trace.follow(&mut report, &mut host)?;
    for (chain, commands) in in_the_way(&own.pod_ranges)? {
        report.say(
            "firewall",
            format!("{chain} drops what no rule before accepts; to let pods through:"),
        );
        commands.into_iter().for_each(|command| report.say("", command));
    }
    print(&report.text(&format!("{}: {source} -> {destination}", config.network)))?;
    Ok(if report.broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn whose(ip: IpAddr, map: &Map, own: &Node, held: &Held, of_host: &[IpAddr]) -> Who {
    if let Some(range) = own.pod_ranges.iter().find(|range| range.contains(ip)) {
        return Who::OwnPod(*range);
    }
    if of_host.contains(&ip) || own.has_address(ip) {
        return Who::ThisNode;
    }
    for node in map.nodes.iter().filter(|node| node.name != own.name) {
        if let Some(range) = node.pod_ranges.iter().find(|range| range.contains(ip)) {
            return Who::Pod(node.name.clone(), *range);
        }
        if node.has_address(ip) {
            return Who::Node(node.name.clone());
        }
    }
    match held.ranges.iter().find(|range| range.contains(ip)) {
        Some(range) => Who::HeldPod(*range),
        None => Who::Outside,
    }
}

impl Who {
    fn is_pod(&self) -> bool {
        matches!(self, Self::OwnPod(_) | Self::Pod(..) | Self::HeldPod(_))
    }

    fn text(&self, own: &Node) -> String {
        match self {
            Self::OwnPod(range) => format!("a pod of this node, {} ({range})", own.name),
            Self::Pod(name, range) => format!("a pod of node {name} ({range})"),
            Self::HeldPod(range) => {
                format!("a pod of a node whose record is quarantined ({range})")
            }
            Self::ThisNode => format!("this node, {}", own.name),
            Self::Node(name) => format!("node {name}"),
            Self::Outside => "no pod and no node of the map".to_owned(),
        }
    }
}

impl Trace<'_> {
    fn family(&self) -> Family {
        Family::of(self.destination)
    }

    fn ip(&self) -> &'static str {
        if self.destination.is_ipv4() { "ip" } else { "ip -6" }
    }

    fn peer(&self) -> Option<&Node> {
        match &self.to {
            Who::Pod(name, _) => self.map.nodes.iter().find(|node| node.name == *name),
            _ => None,
        }
    }

    fn follow(&self, report: &mut Report, host: &mut Rtnetlink) -> Result<()> {
        report.say("source", self.from.text(self.own));
        report.say("destination", self.to.text(self.own));
        if !matches!(self.from, Who::OwnPod(_) | Who::ThisNode) {
            report.say("", "the source is not on this node: this is what this node would forward");
        }
        let decision = self
            .peer()
            .and_then(|peer| policy(self.config, self.map).way(self.own, peer, self.family()));
        if let Some(Decision { way, reason }) = decision {
            report.say("way", format!("{way}, because {reason}"));
        }
        report.commands.push(format!("{} route get {}", self.ip(), self.destination));
        let Some(route) = host.route_to(self.destination)? else {
            let advice = match self.to {
                Who::OwnPod(_) => {
                    "no pod here has this address; the node's own-range route ends it"
                }
                Who::Pod(..) => "none, or one that rejects; weft sync makes it, weft plan says how",
                _ => "none, or one that rejects; the host's own routes must have it",
            };
            report.broken("route", advice);
            return Ok(());
        };
        self.first_hop(report, &route, decision, host)
    }

    fn first_hop(
        &self,
        report: &mut Report,
        route: &Lookup,
        decision: Option<Decision>,
        host: &mut Rtnetlink,
    ) -> Result<()> {
        let link = route.dev.map(|dev| host.link(dev)).transpose()?.flatten();
        let name = link.as_ref().map_or("?", |link| link.name.as_str());
        let matching = host.matching_route(self.destination)?;
        let prefix = matching.map_or_else(|| "?".to_owned(), |route| route.dst.to_string());
        report.say("route", route_text(&prefix, route, name));
        if route.kind == Kind::Local {
            report.say("", "delivered on this node");
            return Ok(());
        }
        let by_tunnel = self.config.tunnel_port.is_some() && name == self.config.device;
        let way = decision.map(|decision| decision.way);
        self.compare_way(report, way, by_tunnel);
        let alias = link.as_ref().and_then(|link| Alias::parse(link.alias.as_deref()?));
        if by_tunnel {
            self.through_tunnel(report, route, host)?;
        } else if let Some(Alias { key, .. }) = alias {
            report.say("pod", format!("{} of container {}", key.ifname, key.container_id));
        } else if way == Some(Way::Native) {
            self.physical_network(report, route);
        }
        report.say("MTU", mtu_text(route, link.as_ref(), by_tunnel, self.config));
        self.source_nat(report, by_tunnel);
        Ok(())
    }

    /// Says so where the kernel's route goes another way than it shall.
    fn compare_way(&self, report: &mut Report, wanted: Option<Way>, by_tunnel: bool) {
        match wanted {
            Some(Way::Tunnel) if !by_tunnel => report.broken(
                "",
                format!(
                    "this is not the way through {}: weft sync mends it, if no other program's \
                     route is in the way",
                    self.config.device
                ),
            ),
            Some(Way::Native) if by_tunnel => {
                report.broken("", "the way should not be through the tunnel: weft sync mends it");
            }
            _ => {}
        }
    }

    fn through_tunnel(
        &self,
        report: &mut Report,
        route: &Lookup,
        host: &mut Rtnetlink,
    ) -> Result<()> {
        let device = &self.config.device;
        let (Some(dev), Some(via)) = (route.dev, route.via) else {
            report.broken("neighbour", "the route has no gateway: weft sync mends it");
            return Ok(());
        };
        report.commands.push(format!("{} neighbour show {via} dev {device}", self.ip()));
        let Some(mac) = host.neighbour(dev, via)?.and_then(|neighbour| neighbour.mac) else {
            report.broken("neighbour", format!("none for {via}: weft sync makes it"));
            return Ok(());
        };
        report.say("neighbour", format!("{via} is at {}", format_mac(&mac)));
        report.commands.push(format!("bridge fdb get {} dev {device} self", format_mac(&mac)));
        let Some(end) = host.fdb_entry(dev, &mac)?.and_then(|entry| entry.dst) else {
            report
                .broken("forwarding", format!("none for {}: weft sync makes it", format_mac(&mac)));
            return Ok(());
        };
        let port = self.config.tunnel_port.unwrap_or_default();
        let vni = self.config.vni;
        report.say(
            "forwarding",
            format!("{} is behind {end}, VXLAN {vni}, UDP port {port}", format_mac(&mac)),
        );
        let ip = if end.is_ipv4() { "ip" } else { "ip -6" };
        report.commands.push(format!("{ip} route get {end}"));
        match host.route_to(end)? {
            Some(outer) => {
                let link = outer.dev.map(|dev| host.link(dev)).transpose()?.flatten();
                let name = link.as_ref().map_or("?", |link| link.name.as_str());
                report.say("outer route", route_text(&end.to_string(), &outer, name));
            }
            None => report.broken("outer route", format!("this host has no route to {end}")),
        }
        Ok(())
    }

    /// What the routers between the two nodes must know, for packets and replies.
    fn physical_network(&self, report: &mut Report, route: &Lookup) {
        let Some(peer) = self.peer() else { return };
        let Who::Pod(_, range) = self.to else { return };
        let Some(end) = peer.tunnel_end(self.family()) else { return };
        if route.via == Some(end) {
            report.say(
                "network",
                format!("node {} is on the same link: no router in between", peer.name),
            );
            return;
        }
        report.say("network", "the routers in between need these, for packets and replies:");
        report.say("", format!("{} route add {range} via {end}", self.ip()));
        let own_end = self.own.tunnel_end(self.family());
        for (range, end) in self.own.ranges(self.family()).zip(own_end.iter().cycle()) {
            report.say("", format!("{} route add {range} via {end}", self.ip()));
        }
    }

    /// What becomes of the source, and whether the kernel's table is the one that
    /// does so.
    fn source_nat(&self, report: &mut Report, by_tunnel: bool) {
        report.say("source NAT", self.masquerade(by_tunnel));
        let table = masquerade::table_name(self.config.protocol);
        match masquerade_state(self.config, self.map, self.own, self.held) {
            Ok(TableState::Ok) if !self.config.ip_masq => return,
            Ok(TableState::Ok) => {}
            Ok(TableState::Missing) => report.broken(
                "",
                format!("but the kernel has no table inet {table}: weft sync makes it"),
            ),
            Ok(TableState::Different) => report.broken(
                "",
                format!(
                    "but the kernel's table inet {table} is not what configuration and node map \
                     ask for: weft sync mends it"
                ),
            ),
            Err(error) => report.broken("", format!("but the kernel cannot be asked: {error}")),
        }
        report.commands.push(format!("nft list table inet {table}"));
    }

    /// What the masquerade table does to the source, by its own rules.
    fn masquerade(&self, by_tunnel: bool) -> String {
        let kept = |why: &str| format!("none: {why}");
        if !self.config.ip_masq {
            return kept("ipMasq is false");
        }
        let from_pod = self.from.is_pod();
        if by_tunnel && !from_pod {
            return "masqueraded: only pods' addresses may enter the tunnel".to_owned();
        }
        if !matches!(self.from, Who::OwnPod(_)) {
            return kept("the source is no pod of this node");
        }
        if self.to.is_pod() {
            return kept("the destination is a pod");
        }
        let holds =
            |cidrs: &[IpNetwork]| cidrs.iter().find(|c| c.contains(self.destination)).copied();
        if let Some(cidr) = holds(&self.config.non_masquerade_cidrs) {
            return kept(&format!("nonMasqueradeCIDRs holds {cidr}"));
        }
        if self.destination.is_multicast() {
            return kept("the destination is a multicast group");
        }
        match holds(&self.config.native_cidrs) {
            Some(_) if self.is_tunnel_node() => {
                "masqueraded: the destination is a node that is reached through the tunnel"
                    .to_owned()
            }
            Some(cidr) => kept(&format!("the native routing CIDR {cidr} holds the destination")),
            None => "masqueraded: from a pod to the outside".to_owned(),
        }
    }

    fn is_tunnel_node(&self) -> bool {
        let Who::Node(name) = &self.to else { return false };
        let Some(node) = self.map.nodes.iter().find(|node| node.name == *name) else {
            return false;
        };
        let policy = policy(self.config, self.map);
        let mut ways = Family::ALL.into_iter().filter_map(|f| policy.way(self.own, node, f));
        ways.any(|decision| decision.way == Way::Tunnel)
    }
}

fn route_text(to: &str, route: &Lookup, dev: &str) -> String {
    let mut text = match route.kind {
        Kind::Local => format!("local {to}"),
        _ => to.to_owned(),
    };
    if let Some(via) = route.via {
        text += &format!(" via {via}");
    }
    text += &format!(" dev {dev}");
    if let Some(src) = route.src {
        text += &format!(" src {src}");
    }
    text
}

fn mtu_text(route: &Lookup, link: Option<&Link>, by_tunnel: bool, config: &Config) -> String {
    let of_link = link.map(|link| link.mtu);
    let least = [route.mtu, of_link].into_iter().flatten().min();
    let Some(mtu) = least else { return "not known".to_owned() };
    if by_tunnel {
        format!("{mtu} bytes, {} with the tunnel's headers", mtu + config.overhead())
    } else {
        format!("{mtu} bytes")
    }
}
