//! Records that contradict each other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::node::{Family, Mac, Node};
use crate::vtep::vtep_mac;

/// Two nodes, by their index among those compared, that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The one that comes first in the map.
    pub(crate) first: usize,
    /// The other one.
    pub(crate) second: usize,
    pub(crate) clash: Clash,
}

/// What of the two clashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clash {
    Name,
    /// The overlapping pod ranges, that of the first node first.
    Ranges(IpNetwork, IpNetwork),
    TunnelEnd(IpAddr),
    Mac(Mac),
    /// The first node's pod range holds an address of the second: routing the
    /// range would cut everybody off from that node. The two may be the same
    /// node, and the second is not to blame.
    AddressInRange(IpNetwork, IpAddr),
}

impl Clash {
    /// The same clash with the two nodes changing places.
    pub(crate) fn seen_from_second(self) -> Self {
        match self {
            Self::Ranges(first, second) => Self::Ranges(second, first),
            same => same,
        }
    }
}

/// The conflicts among `nodes`, enough of them to name every node that has one
/// and one of its adversaries: of n nodes with overlapping ranges, n - 1 pairs
/// and not their square. In n log n.
pub(crate) fn conflicts(nodes: &[&Node]) -> Vec<Conflict> {
    let mut found = Vec::new();
    same(nodes, &mut found, |node| Some(node.name.as_str()), |_| Clash::Name);
    for family in Family::ALL {
        same(nodes, &mut found, |node| node.tunnel_end(family), Clash::TunnelEnd);
    }
    let mut macs = Vec::new();
    same(nodes, &mut macs, |node| Some(vtep_mac(node)), Clash::Mac);
    // Two addresses derived from IPv4 ranges are the same because the ranges
    // overlap, which is the better thing to say.
    let from_range =
        |node: usize| nodes[node].vtep_mac.is_none() && nodes[node].range_v4().is_some();
    found.extend(macs.into_iter().filter(|c| !(from_range(c.first) && from_range(c.second))));
    overlaps(nodes, &mut found);
    found
}

/// Nodes for which `key` is the same.
fn same<'n, K: Hash + Eq + Copy>(
    nodes: &[&'n Node],
    found: &mut Vec<Conflict>,
    key: impl Fn(&'n Node) -> Option<K>,
    clash: impl Fn(K) -> Clash,
) {
    let mut seen = HashMap::with_capacity(nodes.len());
    for (second, node) in nodes.iter().enumerate() {
        let Some(key) = key(node) else { continue };
        match seen.entry(key) {
            Entry::Vacant(free) => {
                free.insert(second);
            }
            Entry::Occupied(taken) => {
                found.push(Conflict { first: *taken.get(), second, clash: clash(key) });
            }
        }
    }
}

/// A pod range or an address on the line of all addresses of its family.
struct Span {
    family: Family,
    start: u128,
    end: u128,
    node: usize,
    what: Thing,
}

#[derive(Clone, Copy)]
enum Thing {
    Range(IpNetwork),
    Address(IpAddr),
}

/// Goes along the line with a stack of the ranges that are open. CIDRs either
/// nest or are disjoint, so whatever begins inside an open range is wholly in
/// it, and the ranges below the top already clash with the top.
fn overlaps(nodes: &[&Node], found: &mut Vec<Conflict>) {
    let mut open: Vec<(Span, IpNetwork)> = Vec::new();
    let mut blamed = vec![false; nodes.len()];
    for span in spans(nodes) {
        let is_open = |outer: &Span| outer.family == span.family && outer.end >= span.start;
        while open.last().is_some_and(|(outer, _)| !is_open(outer)) {
            open.pop();
        }
        let around = open.last().map(|(outer, range)| (outer.node, *range));
        match (span.what, around) {
            (Thing::Range(inner), Some((node, outer))) => {
                found.push(overlap((node, outer), (span.node, inner)));
                open.push((span, inner));
            }
            (Thing::Range(range), None) => open.push((span, range)),
            (Thing::Address(ip), Some((first, range))) if !blamed[first] => {
                blamed[first] = true;
                let clash = Clash::AddressInRange(range, ip);
                found.push(Conflict { first, second: span.node, clash });
            }
            (Thing::Address(_), _) => {}
        }
    }
}

fn overlap(a: (usize, IpNetwork), b: (usize, IpNetwork)) -> Conflict {
    let (first, second) = if a.0 < b.0 { (a, b) } else { (b, a) };
    Conflict { first: first.0, second: second.0, clash: Clash::Ranges(first.1, second.1) }
}

/// All ranges and addresses by their start, the larger first, addresses last.
fn spans(nodes: &[&Node]) -> Vec<Span> {
    let mut spans = Vec::with_capacity(nodes.len() * 3);
    for (index, node) in nodes.iter().enumerate() {
        spans.extend(node.pod_ranges.iter().map(|range| range_span(index, *range)));
        let addresses = node.addresses.iter().map(|address| address.ip).chain(node.tunnel_address);
        spans.extend(addresses.map(|ip| {
            let start = number(ip);
            let what = Thing::Address(ip);
            Span { family: Family::of(ip), start, end: start, node: index, what }
        }));
    }
    let is_address = |span: &Span| matches!(span.what, Thing::Address(_));
    spans.sort_unstable_by_key(|span| {
        (span.family, span.start, is_address(span), u128::MAX - span.end, span.node)
    });
    spans
}

fn range_span(node: usize, range: IpNetwork) -> Span {
    let (start, end) = (number(range.network()), number(range.broadcast()));
    Span { family: Family::of_network(&range), start, end, node, what: Thing::Range(range) }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}
