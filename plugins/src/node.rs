//! This node and the node map, as the configuration's keys tell where they are.
//!
//! A map that cannot be read never takes a node down: the last good copy in
//! /run/weft goes on being used, with a warning; where there is none, what can be read.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use cluster::{Host, Identity, Map, Node, OwnError, identity, own_node};
use cni::{Code, Error, Network, Object};
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::link::Link;
use kernel::route::{Filter, Kind};
use serde_json::Value;

use crate::failure::{invalid_config, refused};
use crate::routing::stamp::Stamp;
use crate::state_dir;

/// Where the map is by default.
pub(crate) const NODES_DIR: &str = "/etc/weft/nodes.d";
/// File that names this node where the host name does not.
const NAME_FILE: &str = "/etc/weft/node-name";

/// Where the node map is, and which node of it this is where nothing else says so:
/// the keys `nodesDir`, `nodes`, `nodeName`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    /// Directory of map files; not used where `inline` is there.
    pub(crate) dir: PathBuf,
    /// The map itself.
    pub(crate) inline: Option<Value>,
    /// This node's name.
    pub(crate) node_name: Option<String>,
}

/// A map that was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The map.
    pub(crate) map: Map,
    /// What the directory looked like before it was read; none where that
    /// proves nothing about what was read.
    pub(crate) identity: Option<Identity>,
    /// What was wrong with the map as it stands, for people.
    pub(crate) warnings: Vec<String>,
}

impl Source {
    /// Reads the keys.
    pub(crate) fn read(keys: &Object) -> Result<Self, Error> {
        let dir = PathBuf::from(keys.text("nodesDir")?.unwrap_or(NODES_DIR));
        if !dir.is_absolute() {
            return Err(invalid_config(format!(
                "{}: {dir:?} must be an absolute path: a plugin's working directory is its caller's",
                keys.path_of("nodesDir")
            )));
        }
        Ok(Self {
            dir,
            inline: keys.get("nodes").cloned(),
            node_name: keys.text("nodeName")?.map(str::to_owned),
        })
    }

    /// Reads the keys of `ipam`, which stand there for `host-local`.
    pub(crate) fn of_ipam(network: &Network) -> Result<Self, Error> {
        Self::read(&network.ipam()?.unwrap_or_else(|| network.keys()))
    }

    /// The map; the last good copy where the directory as it stands is not whole; where
    /// there is no copy either, what of it can be read.
    ///
    /// # Errors
    /// Code 7: no map, and no copy either.
    pub(crate) fn load(&self) -> Result<Loaded, Error> {
        if let Some(value) = &self.inline {
            let map = Map::from_value(value, "nodes").map_err(|e| invalid(&e))?;
            let warnings = map.problems.iter().map(ToString::to_string).collect();
            return Ok(Loaded { map, identity: None, warnings });
        }
        let identity = identity(&self.dir, SystemTime::now()).ok().flatten();
        let (warnings, partial) = match Map::read(&self.dir) {
            Ok(map) if map.unreadable.is_empty() => {
                let warnings = map.problems.iter().map(ToString::to_string).collect();
                return Ok(Loaded { map, identity, warnings });
            }
            Ok(map) => {
                let problems = map.unreadable.iter().chain(&map.problems);
                (problems.map(ToString::to_string).collect(), Ok(map))
            }
            Err(e) => (vec![e.to_string()], Err(e)),
        };
        let map = self.last_good().map_or(partial, Ok).map_err(|e| invalid(&e))?;
        Ok(Loaded { map, identity: None, warnings })
    }

    /// Keeps `loaded` as the last good copy, if it is a whole map that was read
    /// from the directory.
    pub(crate) fn keep(&self, loaded: &Loaded) -> Result<(), Error> {
        let whole = loaded.map.unreadable.is_empty();
        let of_dir = loaded.map.origin == self.dir.display().to_string();
        if self.inline.is_some() || !of_dir || !whole {
            return Ok(());
        }
        let copy = loaded.map.to_compact_json();
        let name = self.copy_name();
        if state_dir::read(&name).as_deref() == Some(copy.as_bytes()) {
            return Ok(());
        }
        state_dir::write(&name, copy.as_bytes())
    }

    fn last_good(&self) -> Option<Map> {
        let bytes = state_dir::read(&self.copy_name())?;
        let map = Map::from_json(&bytes, "the last good copy in /run/weft").ok()?;
        Some(map).filter(|map| map.unreadable.is_empty())
    }

    /// One copy a directory: its path with what a file name cannot hold escaped.
    fn copy_name(&self) -> String {
        let path = self.dir.display().to_string().replace('%', "%25").replace('/', "%2f");
        format!("nodes-{path}.json")
    }
}

/// Which node of `map` this host is. A record of ours that is quarantined goes on
/// being used while our own-range route confirms it: another node's mistake must
/// not stop this one. Own-range routes are those of `protocol`, or of any.
///
/// # Errors
/// Code 7 where it is none of them or cannot be told; 11 where its record has no
/// pod range yet, which whoever gives ranges out will mend.
pub(crate) fn own(
    map: &Map,
    source: &Source,
    protocol: Option<u8>,
    host: &mut Rtnetlink,
) -> Result<Node, Error> {
    recognise(map, source, protocol, host).map(|(node, _)| node)
}

/// As [`own`], and how it was recognised: a clause for people.
pub(crate) fn recognise(
    map: &Map,
    source: &Source,
    protocol: Option<u8>,
    host: &mut Rtnetlink,
) -> Result<(Node, String), Error> {
    let addresses = host_addresses(host)?;
    let name_file = std::fs::read_to_string(NAME_FILE).ok();
    let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let mut seen = Host {
        addresses: &addresses,
        node_name: source.node_name.as_deref(),
        name_file: name_file.as_deref().map(str::trim).filter(|name| !name.is_empty()),
        host_name: host_name.as_deref(),
        own_ranges: &[],
    };
    match own_node(map, &seen) {
        Ok(own) => return Ok((own.node.clone(), own.by.to_string())),
        Err(OwnError::Unknown(_) | OwnError::Quarantined { .. }) => {}
        Err(error) => return Err(not_told(map, &error)),
    }
    // Only now is it worth listing routes.
    let ranges = own_range_routes(protocol, host)?;
    seen.own_ranges = &ranges;
    match own_node(map, &seen) {
        Ok(own) => Ok((own.node.clone(), own.by.to_string())),
        Err(OwnError::Quarantined { node, text }) if confirms(&ranges, &node, protocol) => {
            log::warn!("{text}; it is used as it stands while the kernel has its own-range route");
            Ok((*node, "by its own-range route, while its record is quarantined".to_owned()))
        }
        Err(error) => Err(not_told(map, &error)),
    }
}

/// Whether the own-range routes are those of the record: all of it, and where the
/// routes are of one network alone, nothing beside, for a range that can no longer
/// be read would be taken away.
fn confirms(ranges: &[IpNetwork], node: &Node, protocol: Option<u8>) -> bool {
    let known = node.pod_ranges.iter().all(|range| ranges.contains(range));
    let whole = protocol.is_none() || ranges.iter().all(|range| node.pod_ranges.contains(range));
    !node.pod_ranges.is_empty() && known && whole
}

/// This node's record may be in a file that cannot be read, so those are named too.
fn not_told(map: &Map, error: &OwnError) -> Error {
    let code = match error {
        OwnError::NoRangeYet { .. } => Code::TryAgain,
        _ => Code::InvalidConfig,
    };
    let unreadable = map.unreadable.iter().map(|problem| format!("; {problem}"));
    Error::new(code, format!("{error}{}", unreadable.collect::<String>()))
}

/// This host's addresses, each with the name of its interface. Those of pods'
/// host ends are gateways, not the host's.
fn host_addresses(host: &mut Rtnetlink) -> Result<Vec<(IpAddr, String)>, Error> {
    let links = host.links().map_err(refused)?;
    let name_of = |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        link.filter(|link| !crate::attachment::is_host_end(link)).map(|link| link.name.clone())
    };
    let addresses = host.addresses(None).map_err(refused)?;
    Ok(addresses.iter().filter_map(|a| Some((a.address.ip(), name_of(a.index)?))).collect())
}

fn own_range_routes(protocol: Option<u8>, host: &mut Rtnetlink) -> Result<Vec<IpNetwork>, Error> {
    let protocol = protocol.unwrap_or(0);
    let mut ranges = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let filter = Filter { family: family as u8, protocol, ..Filter::default() };
        let routes = host.routes(filter).map_err(refused)?;
        ranges.extend(routes.iter().filter(|r| r.kind == Kind::Unreachable).map(|r| r.dst));
    }
    Ok(ranges)
}

/// The link that holds one of `node`'s addresses; of `family`'s where given.
pub(crate) fn link_of(
    node: &Node,
    family: Option<cluster::Family>,
    host: &mut Rtnetlink,
) -> Result<Option<(Link, IpAddr)>, Error> {
    let held = host.addresses(None).map_err(refused)?;
    let wanted = node.addresses.iter().map(|address| address.ip);
    let mut wanted = wanted.filter(|ip| family.is_none_or(|f| cluster::Family::of(*ip) == f));
    let found = wanted.find_map(|ip| {
        held.iter().find(|address| address.address.ip() == ip).map(|address| (address.index, ip))
    });
    let Some((index, ip)) = found else { return Ok(None) };
    let link = host.link(index).map_err(refused)?;
    Ok(link.map(|link| (link, ip)))
}

/// What the last sync left for this very map, so that an ADD does not open it.
#[derive(Debug)]
pub(crate) struct Stamped {
    stamp: Stamp,
    /// This node's pod ranges.
    ranges: Vec<IpNetwork>,
}

impl Stamped {
    /// Number of the nf_tables ruleset in which the spoof check was in force.
    pub(crate) fn spoof_check_seen_in(&self) -> Option<u32> {
        self.stamp.spoof_check_seen_in()
    }
}

/// The stamp of the network, if it was made from the map as it is now, in the network
/// namespace of `host`.
pub(crate) fn stamped(network: &str, source: &Source, host: &Rtnetlink) -> Option<Stamped> {
    let stamp = Stamp::open(network)?;
    let ranges = stamp.own_ranges(source, host)?;
    Some(Stamped { stamp, ranges })
}

/// This node's pod ranges.
pub(crate) fn pod_ranges(network: &str, source: &Source) -> Result<Vec<IpNetwork>, Error> {
    let host = Rtnetlink::open().map_err(refused)?;
    ranges_of(stamped(network, source, &host).as_ref(), source)
}

/// This node's pod ranges: of the stamp where there is one, else of the map.
pub(crate) fn ranges_of(
    stamped: Option<&Stamped>,
    source: &Source,
) -> Result<Vec<IpNetwork>, Error> {
    if let Some(stamped) = stamped {
        return Ok(stamped.ranges.clone());
    }
    let mut host = Rtnetlink::open().map_err(refused)?;
    let loaded = source.load()?;
    Ok(own(&loaded.map, source, None, &mut host)?.pod_ranges)
}

/// MTU for a pod: what the last sync found, while the link that it derived it from
/// is as it was, as a change of MTU after the pair is made has the kernel walk every
/// IPv6 route of the node (`rt6_mtu_change`); else that of the link that holds this
/// node's address. `None` where no map tells of this node, which is no error for a
/// plugin that can do without.
pub(crate) fn pod_mtu(
    stamped: Option<&Stamped>,
    source: &Source,
    host: &mut Rtnetlink,
) -> Result<Option<u32>, Error> {
    if let Some((stamp, index)) = stamped.and_then(|s| Some((&s.stamp, s.stamp.underlay()?))) {
        if let Some(link) = host.interface(index).map_err(refused)? {
            let derived = stamp.pod_mtu().filter(|_| stamp.is_underlay(index, &link));
            return Ok(Some(derived.unwrap_or(link.mtu)));
        }
    }
    let Ok(loaded) = source.load() else { return Ok(None) };
    let Ok(own) = own(&loaded.map, source, None, host) else { return Ok(None) };
    Ok(link_of(&own, None, host)?.map(|(link, _)| link.mtu))
}

fn invalid(error: &cluster::MapError) -> Error {
    Error::new(Code::InvalidConfig, error.to_string())
}
