//! The nf_tables tables of a routing network, as configuration and map ask for
//! them, and bringing the kernel's in line.

use std::net::IpAddr;

use cluster::{Family, Map, Node, Way};
use cni::{Code, Error};
use ipnetwork::IpNetwork;
use kernel::link::HOST_END_GROUPS;
use kernel::netlink::Socket;
use kernel::nft::{self, Table};

use super::config::Config;
use super::desired::policy;
use super::held::Held;
use super::host::Underlay;
use super::masquerade::{self, Masquerade};
use super::peer_guard::{self, PeerGuard};
use super::sync::Do;

/// The tables that shall be there: pure.
pub(super) fn tables(
    config: &Config,
    map: &Map,
    own: &Node,
    underlay: &Underlay,
    held: &Held,
) -> Vec<Table> {
    let masquerade = masquerade(config, map, own, held);
    masquerade.into_iter().chain(peer_guard(config, map, own, underlay, held)).collect()
}

/// How a table of the kernel stands to what shall be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableState {
    /// As it shall be; also where none shall be.
    Ok,
    Missing,
    /// Another one, or one that should not be there.
    Different,
}

/// How the masquerade table stands.
pub(crate) fn masquerade_state(
    config: &Config,
    map: &Map,
    own: &Node,
    held: &Held,
) -> Result<TableState, Error> {
    let name = masquerade::table_name(config.protocol);
    let mut socket = Socket::netfilter().map_err(refused)?;
    let wanted = masquerade(config, map, own, held);
    let installed = wanted.as_ref().map(|table| nft::installed(&mut socket, &table.proof()));
    if let Some(true) = installed.transpose().map_err(refused)? {
        return Ok(TableState::Ok);
    }
    Ok(match (nft::exists(&mut socket, &name).map_err(refused)?, wanted) {
        (false, None) => TableState::Ok,
        (false, Some(_)) => TableState::Missing,
        (true, _) => TableState::Different,
    })
}

/// Every name that a table of the network may have.
fn table_names(protocol: u8) -> [String; 2] {
    [masquerade::table_name(protocol), peer_guard::table_name(protocol)]
}

/// Every node that packets may come from or go to: those that are quarantined
/// have pods that still run.
fn all_nodes(map: &Map) -> impl Iterator<Item = &Node> {
    map.nodes.iter().chain(map.quarantined.iter().map(|quarantined| &quarantined.node))
}

fn masquerade(config: &Config, map: &Map, own: &Node, held: &Held) -> Option<Table> {
    if !config.ip_masq {
        return None;
    }
    let policy = policy(config, map);
    let by_tunnel = |node: &&Node| {
        let mut ways = Family::ALL.into_iter().filter_map(|family| policy.way(own, node, family));
        ways.any(|decision| decision.way == Way::Tunnel)
    };
    let tunnel_nodes: Vec<_> = all_nodes(map)
        .filter(|node| node.name != own.name)
        .filter(by_tunnel)
        .flat_map(|node| node.addresses.iter().map(|address| address.ip).chain(node.tunnel_address))
        .collect();
    let pod_ranges: Vec<IpNetwork> =
        all_nodes(map).flat_map(|node| &node.pod_ranges).chain(&held.ranges).copied().collect();
    let masquerade = Masquerade {
        protocol: config.protocol,
        own_ranges: &own.pod_ranges,
        pod_ranges: &pod_ranges,
        native_cidrs: &config.native_cidrs,
        tunnel_nodes: &tunnel_nodes,
        non_masquerade_cidrs: &config.non_masquerade_cidrs,
        device: config.tunnel_port.map(|_| config.device.as_str()),
    };
    Some(masquerade.table())
}

fn peer_guard(
    config: &Config,
    map: &Map,
    own: &Node,
    underlay: &Underlay,
    held: &Held,
) -> Option<Table> {
    let port = config.tunnel_port?;
    let family = config.underlay_family;
    let peers = || all_nodes(map).filter(|node| node.name != own.name);
    let ends = peers().filter_map(|node| node.tunnel_end(family));
    let held = held.ends.iter().copied().filter(|ip| Family::of(*ip) == family);
    let tunnel_ends: Vec<IpAddr> = ends.chain(held).collect();
    let others = peers().flat_map(|node| {
        let addresses = node.addresses.iter().map(|address| address.ip);
        addresses
            .filter(move |ip| Family::of(*ip) == family && node.tunnel_end(family) != Some(*ip))
    });
    let other_addresses: Vec<IpAddr> = others.collect();
    let guard = PeerGuard {
        protocol: config.protocol,
        tunnel_ends: &tunnel_ends,
        other_addresses: &other_addresses,
        local: own.tunnel_end(family).filter(|ip| *ip == underlay.local),
        underlay: &underlay.name,
        port,
        vni: config.vni,
        device: &config.device,
        host_ends: &HOST_END_GROUPS,
        guard: config.peer_guard,
        no_track: config.no_track,
    };
    guard.table()
}

/// Names of the network's tables that shall be there, and whether each is.
pub(super) fn present(wanted: &[Table]) -> Result<Vec<(String, bool)>, Error> {
    let mut socket = Socket::netfilter().map_err(refused)?;
    let state = |table: &Table| {
        let installed = nft::installed(&mut socket, &table.proof()).map_err(refused)?;
        Ok((table.name().to_owned(), installed))
    };
    wanted.iter().map(state).collect()
}

/// Brings the kernel's tables in line; returns the changes, for people.
pub(super) fn converge(config: &Config, wanted: &[Table], what: Do) -> Result<Vec<String>, Error> {
    let mut socket = Socket::netfilter().map_err(refused)?;
    let surplus = table_names(config.protocol).into_iter();
    let surplus = surplus.filter(|name| !wanted.iter().any(|table| table.name() == name));
    let mut changes = delete(surplus, what, &mut socket)?;
    for table in wanted {
        let changed = match what {
            Do::Plan => nft::installed(&mut socket, &table.proof()).map(|installed| !installed),
            Do::Apply | Do::Repair => nft::ensure(&mut socket, table),
        };
        if changed.map_err(refused)? {
            changes.push(format!("nft: replace table inet {}", table.name()));
        }
    }
    Ok(changes)
}

/// Deletes the tables of the network that is marked with `protocol`; returns the
/// changes as commands.
pub(super) fn remove(protocol: u8, what: Do) -> Result<Vec<String>, Error> {
    let mut socket = Socket::netfilter().map_err(refused)?;
    delete(table_names(protocol).into_iter(), what, &mut socket)
}

fn delete(
    names: impl Iterator<Item = String>,
    what: Do,
    socket: &mut Socket,
) -> Result<Vec<String>, Error> {
    let mut changes = Vec::new();
    for name in names {
        let removed = match what {
            Do::Plan => nft::exists(socket, &name),
            Do::Apply | Do::Repair => nft::remove(socket, &name),
        };
        if removed.map_err(refused)? {
            changes.push(format!("nft delete table inet {name}"));
        }
    }
    Ok(changes)
}

fn refused(error: kernel::Error) -> Error {
    let advice = "masquerading and guarding need nf_tables; ipMasq, peerGuard and noTrack false \
                  do without";
    Error::new(Code::Kernel, error.to_string()).with_details(advice)
}
