//! What of the kernel's state belongs to quarantined nodes, and so stays as it is.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use cluster::{Family, Map, Node, vtep_mac};
use ipnetwork::IpNetwork;
use kernel::MacAddress;

use super::desired::tunnel_next_hop;
use super::observed::Observed;

/// What belongs to quarantined nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// Destinations of routes.
    pub(crate) ranges: HashSet<IpNetwork>,
    /// Addresses of neighbours and next hops.
    pub(crate) next_hops: HashSet<IpAddr>,
    /// Hardware addresses of VTEPs.
    pub(crate) macs: HashSet<MacAddress>,
    /// Tunnel ends.
    pub(crate) ends: HashSet<IpAddr>,
    /// A record, or a file of them, tells nothing of what is its nodes', so that it may be
    /// anything.
    anything: bool,
}

/// A route and what it leads to, as the kernel has them.
struct Chain {
    range: IpNetwork,
    next_hop: IpAddr,
    mac: Option<MacAddress>,
    end: Option<IpAddr>,
}

impl Held {
    /// What the quarantined records of `map` say; that of this node, `own`, is no
    /// peer's. What stands in files that cannot be read is not known to be gone.
    pub(crate) fn of(map: &Map, own: &Node) -> Self {
        let mut held = Self { anything: !map.unreadable.is_empty(), ..Self::default() };
        let records = map.quarantined.iter().map(|quarantined| &quarantined.node);
        for node in records.filter(|node| *node != own) {
            let addresses = node.addresses.iter().map(|address| address.ip);
            let addresses: Vec<IpAddr> = addresses.chain(node.tunnel_address).collect();
            held.anything |= addresses.is_empty() && node.pod_ranges.is_empty();
            held.next_hops.extend(&addresses);
            held.ends.extend(&addresses);
            held.ranges.extend(&node.pod_ranges);
            if !node.pod_ranges.is_empty() {
                held.macs.insert(vtep_mac(node).0);
                held.next_hops
                    .extend(Family::ALL.into_iter().filter_map(|f| tunnel_next_hop(node, f)));
            }
        }
        held
    }

    /// And what hangs together with it in the kernel: of a record with a typing
    /// error only a part can be read, but route, neighbour and forwarding entry
    /// of a node lead to one another.
    pub(crate) fn spread(&mut self, observed: &Observed) {
        if !self.anything && self.ranges.is_empty() && self.ends.is_empty() {
            return;
        }
        for chain in chains(observed) {
            let Chain { range, next_hop, mac, end } = chain;
            let is_held = self.anything
                || self.ranges.contains(&range)
                || self.next_hops.contains(&next_hop)
                || mac.is_some_and(|mac| self.macs.contains(&mac))
                || end.is_some_and(|end| self.ends.contains(&end));
            if is_held {
                self.ranges.insert(range);
                self.next_hops.insert(next_hop);
                self.macs.extend(mac);
                self.ends.extend(end);
            }
        }
    }
}

fn chains(observed: &Observed) -> impl Iterator<Item = Chain> {
    let gateways: HashMap<u32, IpAddr> = observed.nexthops.iter().map(|n| (n.id, n.via)).collect();
    let neighbours: HashMap<IpAddr, MacAddress> =
        observed.neighbours.iter().filter_map(|n| Some((n.ip, n.mac?))).collect();
    let ends: HashMap<MacAddress, IpAddr> =
        observed.fdb.iter().filter_map(|e| Some((e.mac, e.dst?))).collect();
    observed.routes.iter().filter_map(move |route| {
        let gateway = route.nexthop.and_then(|id| gateways.get(&id).copied());
        let next_hop = route.via.or(gateway)?;
        let mac = neighbours.get(&next_hop).copied();
        let end = mac.and_then(|mac| ends.get(&mac).copied());
        Some(Chain { range: route.dst, next_hop, mac, end })
    })
}
