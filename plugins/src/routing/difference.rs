//! What to change so that the kernel holds what it shall: pure, in the order in
//! which nothing is ever sent into the void.
//!
//! Neighbour, forwarding entry, route, and the reverse to remove. A route whose
//! way changes is deleted and added at once, so that no other route's change
//! stands between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use ipnetwork::IpNetwork;
use kernel::address::Address;
use kernel::neighbour::{FdbEntry, Neighbour};
use kernel::netlink::Message;
use kernel::nexthop::Nexthop;
use kernel::route::Route;

use super::desired::Desired;
use super::observed::Observed;

/// One change, which prints as the command that makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// An address of the device.
    AddAddress(Address),
    /// Likewise.
    DeleteAddress(Address),
    /// An entry of the device.
    SetNeighbour(Neighbour),
    /// Likewise.
    DeleteNeighbour(Neighbour),
    /// An entry of the device.
    SetFdb(FdbEntry),
    /// Likewise.
    DeleteFdb(FdbEntry),
    /// A nexthop object.
    AddNexthop(Nexthop),
    /// Likewise; routes that use it go with it.
    DeleteNexthop(Nexthop),
    /// A route.
    AddRoute(Route),
    /// Likewise.
    DeleteRoute(Route),
}

impl Change {
    /// The request to the kernel.
    pub(crate) fn message(&self) -> Message {
        match self {
            Self::AddAddress(address) => address.add(),
            Self::DeleteAddress(address) => address.delete(),
            Self::SetNeighbour(neighbour) => neighbour.set(),
            Self::DeleteNeighbour(neighbour) => neighbour.delete(),
            Self::SetFdb(entry) => entry.set(),
            Self::DeleteFdb(entry) => entry.delete(),
            Self::AddNexthop(nexthop) => nexthop.add(),
            Self::DeleteNexthop(nexthop) => nexthop.delete(),
            Self::AddRoute(route) => route.add(),
            Self::DeleteRoute(route) => route.delete(),
        }
    }

    /// Whether the change takes something away: then it is as well if that is gone.
    pub(crate) fn removes(&self) -> bool {
        matches!(
            self,
            Self::DeleteAddress(_)
                | Self::DeleteNeighbour(_)
                | Self::DeleteFdb(_)
                | Self::DeleteNexthop(_)
                | Self::DeleteRoute(_)
        )
    }

    /// The change as a command; `name_of` tells interfaces' names.
    pub(crate) fn words(&self, name_of: &dyn Fn(u32) -> String) -> String {
        let route = |route: &Route| route.words(route.dev.map(name_of).as_deref());
        match self {
            Self::AddAddress(a) => format!("ip address add {}", a.words(&name_of(a.index))),
            Self::DeleteAddress(a) => {
                format!("ip address del {} dev {}", a.address, name_of(a.index))
            }
            Self::SetNeighbour(n) => format!("ip neighbour replace {}", n.words(&name_of(n.index))),
            Self::DeleteNeighbour(n) => {
                format!("ip neighbour del {} dev {}", n.ip, name_of(n.index))
            }
            Self::SetFdb(e) => format!("bridge fdb replace {}", e.words(&name_of(e.index))),
            Self::DeleteFdb(e) => format!("bridge fdb del {}", e.words(&name_of(e.index))),
            Self::AddNexthop(n) => format!("ip nexthop add {}", n.words(&name_of(n.dev))),
            Self::DeleteNexthop(n) => format!("ip nexthop del id {}", n.id),
            Self::AddRoute(r) => format!("ip route add {}", route(r)),
            Self::DeleteRoute(r) => format!("ip route del {}", route(r)),
        }
    }
}

/// The changes that lead from `observed` to `desired`. `device` is the number of
/// the VXLAN device, 0 where there is none.
pub(crate) fn difference(desired: &Desired, observed: &Observed, device: u32) -> Vec<Change> {
    let held = &desired.held;
    let mut changes = Vec::new();
    let address = |&address: &IpNetwork| Address { index: device, address, prefix_route: false };
    let missing_addresses = missing(&desired.addresses, &observed.addresses);
    changes.extend(missing_addresses.map(address).map(Change::AddAddress));
    // Now, for a range that went from us to a peer makes our address its gateway,
    // and the kernel takes no gateway that is its own address.
    let surplus_addresses = missing(&observed.addresses, &desired.addresses);
    changes.extend(surplus_addresses.map(address).map(Change::DeleteAddress));

    let neighbour_key = |n: &Neighbour| n.ip;
    let fdb_key = |e: &FdbEntry| e.mac;
    let nexthop_key = |n: &Nexthop| n.id;
    changes.extend(
        unequal(&desired.neighbours, &observed.neighbours, neighbour_key).map(Change::SetNeighbour),
    );
    changes.extend(unequal(&desired.fdb, &observed.fdb, fdb_key).map(Change::SetFdb));

    let nexthops: Vec<Nexthop> =
        unequal(&desired.nexthops, &observed.nexthops, nexthop_key).collect();
    let replaced: HashSet<u32> = nexthops.iter().map(|n| n.id).collect();
    // One that changes takes its routes with it, which are then added anew.
    let outdated = observed.nexthops.iter().filter(|n| replaced.contains(&n.id));
    changes.extend(outdated.copied().map(Change::DeleteNexthop));
    changes.extend(nexthops.into_iter().map(Change::AddNexthop));

    changes.extend(route_changes(desired, observed, &replaced));

    let surplus_nexthops = surplus(&desired.nexthops, &observed.nexthops, nexthop_key);
    changes.extend(
        surplus_nexthops.filter(|n| !held.next_hops.contains(&n.via)).map(Change::DeleteNexthop),
    );
    let surplus_fdb = surplus(&desired.fdb, &observed.fdb, fdb_key);
    changes.extend(surplus_fdb.filter(|e| !held.macs.contains(&e.mac)).map(Change::DeleteFdb));
    let surplus_neighbours = surplus(&desired.neighbours, &observed.neighbours, neighbour_key);
    changes.extend(
        surplus_neighbours.filter(|n| !held.next_hops.contains(&n.ip)).map(Change::DeleteNeighbour),
    );
    changes
}

/// Route changes, those of one destination together.
fn route_changes(desired: &Desired, observed: &Observed, replaced: &HashSet<u32>) -> Vec<Change> {
    let went_along = |route: &&Route| route.nexthop.is_some_and(|id| replaced.contains(&id));
    let there: Vec<Route> =
        observed.routes.iter().filter(|r| !went_along(r)).map(comparable).collect();
    let wanted: HashSet<Route> = desired.routes.iter().map(comparable).collect();
    let present: HashSet<Route> = there.iter().copied().collect();
    let mut by_destination: BTreeMap<IpNetwork, Vec<Change>> = BTreeMap::new();
    let unwanted = there.iter().filter(|route| !wanted.contains(route));
    for route in unwanted.filter(|route| !desired.held.ranges.contains(&route.dst)) {
        by_destination.entry(route.dst).or_default().push(Change::DeleteRoute(*route));
    }
    for route in desired.routes.iter().filter(|route| !present.contains(&comparable(route))) {
        by_destination.entry(route.dst).or_default().push(Change::AddRoute(*route));
    }
    by_destination.into_values().flatten().collect()
}

/// A route without what the kernel reports of its nexthop object on top of it.
pub(super) fn comparable(route: &Route) -> Route {
    match route.nexthop {
        Some(_) => Route { via: None, dev: None, onlink: false, ..*route },
        None => *route,
    }
}

/// Items of `wanted` that `there` lacks or has with other values.
fn unequal<'a, T: Copy + PartialEq, K: Eq + Hash>(
    wanted: &'a [T],
    there: &'a [T],
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = T> {
    let there: HashMap<K, T> = there.iter().map(|item| (key(item), *item)).collect();
    wanted.iter().filter(move |item| there.get(&key(item)) != Some(item)).copied()
}

/// Items of `there` whose key `wanted` lacks.
fn surplus<'a, T: Copy, K: Eq + Hash>(
    wanted: &'a [T],
    there: &'a [T],
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = T> {
    let wanted: HashSet<K> = wanted.iter().map(&key).collect();
    there.iter().filter(move |item| !wanted.contains(&key(item))).copied()
}

fn missing<'a>(
    wanted: &'a [IpNetwork],
    there: &'a [IpNetwork],
) -> impl Iterator<Item = &'a IpNetwork> {
    wanted.iter().filter(|address| !there.contains(address))
}
