//! The stamp: what an ADD needs to see that nothing changed since the last sync,
//! so that its cost does not depend on the number of nodes.
//!
//! A file in /run/weft, one a network: lines that name what the sync started from
//! and what it made, then one line of fixed length for each peer, way and family,
//! of which an ADD reads a random one of each kind and asks the kernel for what
//! it says. The stamp is removed before the first change of a sync and written
//! after the last, so that a sync that is killed leaves none.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::time::SystemTime;

use cluster::{Identity, Mac, Node};
use cni::Error;
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::interface::Interface;
use kernel::link::{HOST_END_GROUP, Link};
use kernel::neighbour::{FdbEntry, Neighbour};
use kernel::netlink::Socket;
use kernel::nft::{self, Proof, Table};
use kernel::route::Route;

use super::config::Config;
use super::desired::Desired;
use super::difference::comparable;
use super::host::Underlay;
use crate::node::{Loaded, Source};
use crate::state_dir;
use crate::veth::spoof_check;

/// First line; another version may mean other things by the rest.
const MARK: &str = concat!("weft ", env!("CARGO_PKG_VERSION"));
/// What the file's name has after that of the network.
const SUFFIX: &str = ".stamp";
/// Line between the head and the peers.
const END: &str = "end";
/// The map's identity where it stands in the configuration.
const INLINE: &str = "inline";
/// Bytes of a peer's line, its newline included: two addresses, a MAC, a hash.
const PEER_BYTES: usize = 128;
/// Bytes read at first, enough for the head of any node with a few pod ranges.
const HEAD_BYTES: usize = 4096;

/// A stamp as read from its file.
#[derive(Debug)]
pub(crate) struct Stamp {
    file: File,
    /// Where the peers' lines begin.
    peers_at: u64,
    /// How many there are of each kind: tunnel IPv4, tunnel IPv6, native IPv4,
    /// native IPv6.
    counts: [u64; 4],
    fields: HashMap<String, Vec<String>>,
}

/// What a stamp is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) config: &'a Config,
    pub(super) loaded: &'a Loaded,
    pub(super) own: &'a Node,
    pub(super) underlay: &'a Underlay,
    pub(super) device: Option<&'a Link>,
    pub(super) state: &'a Desired,
    pub(super) tables: &'a [Table],
}

fn file_name(network: &str) -> String {
    format!("{network}{SUFFIX}")
}

/// The networks other than `network` that have a stamp.
pub(super) fn other_networks(network: &str) -> Vec<String> {
    let names = state_dir::names();
    let stamped = names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
    stamped.filter(|name| *name != network).map(str::to_owned).collect()
}

/// Removes the stamp of the network.
pub(super) fn remove(network: &str) -> Result<(), Error> {
    state_dir::remove(&file_name(network))
}

/// Writes the stamp; where the map's directory proves nothing about what was read,
/// removes it instead.
pub(super) fn write(facts: Facts, host: &Rtnetlink) -> Result<(), Error> {
    let name = file_name(&facts.config.network);
    let Some(text) = text(facts, host)? else { return state_dir::remove(&name) };
    if state_dir::read(&name).as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    state_dir::write(&name, text.as_bytes())
}

fn text(facts: Facts, host: &Rtnetlink) -> Result<Option<String>, Error> {
    let Facts { config, loaded, own, underlay, device, state, tables } = facts;
    let map = match (&config.source.inline, &loaded.identity) {
        // The map is part of the configuration.
        (Some(_), _) => INLINE.to_owned(),
        (None, Some(identity)) => identity.to_string(),
        (None, None) => return Ok(None),
    };
    let peers = Peers::of(state);
    let mut text = format!("{MARK}\n");
    let mut line = |key: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} {value}");
    };
    line("config", config_hash(config));
    line("protocol", config.protocol.to_string());
    line("netns", netns(host)?);
    line("map", map);
    line("map-directory", config.source.dir.display().to_string());
    line("node-name", config.source.node_name.clone().unwrap_or_default());
    let Underlay { index, name, mtu, up, local } = underlay;
    let link = Interface { name: name.clone(), mtu: *mtu, up: *up };
    line("underlay", format!("{index} {}", link_hash(*index, &link)));
    line("local", format!("{index} {local}"));
    if let Some(device) = device {
        line("device", format!("{} {}", device.index, hash(device)));
    }
    line("mtu", state.pod_mtu.to_string());
    for range in &own.pod_ranges {
        line("range", range.to_string());
    }
    for table in tables {
        line("table", table.proof().to_string());
    }
    if let Some((number, spoof_check)) = proven_ruleset(tables) {
        line("ruleset", format!("{number} {spoof_check}"));
    }
    line("peers", peers.counts());
    text.push_str(END);
    text.push('\n');
    text.extend(peers.lines);
    Ok(Some(text))
}

/// Number of the nf_tables ruleset that holds `tables`, and whether it holds the spoof
/// check, too; none where a table is missing, or somebody changes something just now.
fn proven_ruleset(tables: &[Table]) -> Option<(u32, bool)> {
    let mut socket = Socket::netfilter().ok()?;
    // The number first: what is committed after it makes another.
    let number = nft::generation(&mut socket).ok()?;
    let mut holds = |table: &Table| nft::installed(&mut socket, &table.proof()).ok();
    for table in tables {
        holds(table).filter(|holds| *holds)?;
    }
    Some((number, holds(&spoof_check::table(HOST_END_GROUP))?))
}

/// The peers' lines, those of a kind together.
struct Peers {
    counts: [usize; 4],
    lines: Vec<String>,
}

impl Peers {
    fn of(state: &Desired) -> Self {
        let neighbours: HashMap<IpAddr, &Neighbour> =
            state.neighbours.iter().map(|n| (n.ip, n)).collect();
        let fdb: HashMap<_, &FdbEntry> = state.fdb.iter().map(|e| (e.mac, e)).collect();
        let gateways: HashMap<u32, IpAddr> = state.nexthops.iter().map(|n| (n.id, n.via)).collect();
        let mut kinds: [Vec<String>; 4] = Default::default();
        for route in state.routes.iter().filter(|r| r.kind == kernel::route::Kind::Unicast) {
            let via = route.via.or_else(|| gateways.get(&route.nexthop?).copied());
            let neighbour = via.and_then(|via| neighbours.get(&via).copied());
            let mac = neighbour.and_then(|n| n.mac);
            let entry = mac.and_then(|mac| fdb.get(&mac).copied());
            let kind = kind(neighbour.is_some(), route.dst.is_ipv6());
            if let Some(lines) = kinds.get_mut(kind) {
                lines.push(peer_line(route, neighbour, entry));
            }
        }
        let counts = [0, 1, 2, 3].map(|kind: usize| kinds.get(kind).map_or(0, Vec::len));
        Self { counts, lines: kinds.into_iter().flatten().collect() }
    }

    fn counts(&self) -> String {
        self.counts.map(|count| count.to_string()).join(" ")
    }
}

fn kind(tunnel: bool, ipv6: bool) -> usize {
    usize::from(!tunnel) * 2 + usize::from(ipv6)
}

/// Where to look in the kernel, and the hash of what must be there.
fn peer_line(route: &Route, neighbour: Option<&Neighbour>, entry: Option<&FdbEntry>) -> String {
    let via = neighbour.map_or("-".to_owned(), |n| n.ip.to_string());
    let mac = entry.map_or("-".to_owned(), |e| Mac(e.mac).to_string());
    let expected = hash(&(comparable(route), neighbour, entry));
    let line = format!("{} {via} {mac} {expected}", route.dst.ip());
    format!("{line:<width$}\n", width = PEER_BYTES - 1)
}

impl Stamp {
    /// Opens the stamp of the network; `None` where there is none that this version
    /// can read.
    pub(crate) fn open(network: &str) -> Option<Self> {
        let file = File::open(state_dir::path(&file_name(network))).ok()?;
        let mut head = vec![0; HEAD_BYTES];
        let mut length = file.read_at(&mut head, 0).ok()?;
        let end = format!("\n{END}\n");
        loop {
            let bytes = head.get(..length)?;
            let found = bytes.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let text = std::str::from_utf8(bytes.get(..at)?).ok()?;
                return Self::parse(file, text, at + end.len());
            }
            // A head as long as the file has no end.
            let from = head.len();
            head.resize(from * 2, 0);
            let more = file.read_at(head.get_mut(length..)?, length as u64).ok()?;
            if more == 0 {
                return None;
            }
            length += more;
        }
    }

    fn parse(file: File, head: &str, peers_at: usize) -> Option<Self> {
        let mut lines = head.lines();
        if lines.next()? != MARK {
            return None;
        }
        let mut fields: HashMap<String, Vec<String>> = HashMap::new();
        for (key, value) in lines.filter_map(|line| line.split_once(' ')) {
            fields.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        let mut stamp = Self { file, peers_at: peers_at as u64, counts: [0; 4], fields };
        let counts: Vec<u64> =
            stamp.field("peers")?.split(' ').map_while(|count| count.parse().ok()).collect();
        stamp.counts = counts.try_into().ok()?;
        Some(stamp)
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.fields(key).first().map(String::as_str)
    }

    fn fields(&self, key: &str) -> &[String] {
        self.fields.get(key).map_or(&[], Vec::as_slice)
    }

    /// MTU of pods.
    pub(crate) fn pod_mtu(&self) -> Option<u32> {
        self.field("mtu")?.parse().ok()
    }

    /// This node's pod ranges, if the map that `source` leads to is the one that the
    /// stamp was made from, in the network namespace of `host`.
    pub(crate) fn own_ranges(&self, source: &Source, host: &Rtnetlink) -> Option<Vec<IpNetwork>> {
        let same_name = self.field("node-name")? == source.node_name.as_deref().unwrap_or_default();
        let current = same_name && source.inline.is_none() && self.is_of(&source.dir)?;
        if !current || self.field("netns")? != netns(host).ok()? {
            return None;
        }
        self.ranges()
    }

    fn ranges(&self) -> Option<Vec<IpNetwork>> {
        self.fields("range").iter().map(|range| range.parse().ok()).collect()
    }

    /// Number of the nf_tables ruleset that was seen to hold all that the network needs.
    fn ruleset(&self) -> Option<u32> {
        self.field("ruleset")?.split(' ').next()?.parse().ok()
    }

    /// Number of the ruleset in which the spoof check was in force.
    pub(crate) fn spoof_check_seen_in(&self) -> Option<u32> {
        self.ruleset().filter(|_| self.field("ruleset").is_some_and(|line| line.ends_with(" true")))
    }

    /// The underlay's number.
    pub(crate) fn underlay(&self) -> Option<u32> {
        self.field("underlay")?.split(' ').next()?.parse().ok()
    }

    /// Whether a link is the underlay as the sync saw it, so that what was derived
    /// from it holds.
    pub(crate) fn is_underlay(&self, index: u32, link: &Interface) -> bool {
        let stamped = self.field("underlay").and_then(|line| line.split_once(' '));
        stamped.is_some_and(|(stamped, expected)| {
            stamped.parse() == Ok(index) && link_hash(index, link) == expected
        })
    }

    /// Whether the network, in this network namespace, marks its routes with `protocol` and
    /// has some.
    pub(super) fn marks_with(&self, protocol: u8, host: &mut Rtnetlink) -> bool {
        let mut marks = || {
            let same = self.field("protocol")? == protocol.to_string()
                && self.field("netns")? == netns(host).ok()?;
            if same { self.own_ranges_hold(host) } else { None }
        };
        marks().unwrap_or(false)
    }

    fn is_of(&self, dir: &Path) -> Option<bool> {
        if Path::new(self.field("map-directory")?) != dir {
            return Some(false);
        }
        Some(Identity::from_str(self.field("map")?).ok()?.holds(dir, SystemTime::now()))
    }

    /// Whether configuration, map, underlay and the kernel, as far as a few
    /// look-ups tell, are as the last sync left them.
    pub(super) fn holds(&self, config: &Config, host: &mut Rtnetlink) -> bool {
        self.proof(config, host).unwrap_or(false)
    }

    fn proof(&self, config: &Config, host: &mut Rtnetlink) -> Option<bool> {
        let map_holds = match &config.source.inline {
            Some(_) => self.field("map")? == INLINE,
            None => self.is_of(&config.source.dir)?,
        };
        let holds = map_holds
            && self.field("config")? == config_hash(config)
            && self.field("netns")? == netns(host).ok()?
            && self.links_hold(host)?
            && self.own_ranges_hold(host)?
            && self.tables_hold()?;
        if !holds {
            return Some(false);
        }
        let random = RandomState::new().build_hasher().finish();
        let mut first = 0;
        for count in self.counts {
            if count > 0 && !self.peer_holds(first + random % count, host)? {
                return Some(false);
            }
            first += count;
        }
        Some(true)
    }

    fn links_hold(&self, host: &mut Rtnetlink) -> Option<bool> {
        let underlay = self.underlay()?;
        let link = host.interface(underlay).ok()??;
        let (index, local) = self.field("local")?.split_once(' ')?;
        let local: IpAddr = local.parse().ok()?;
        let addresses = host.addresses(index.parse().ok()).ok()?;
        if !self.is_underlay(underlay, &link) || !addresses.iter().any(|a| a.address.ip() == local)
        {
            return Some(false);
        }
        let Some(device) = self.field("device") else { return Some(true) };
        let (index, expected) = device.split_once(' ')?;
        Some(hash(&host.link(index.parse().ok()?).ok()??) == expected)
    }

    fn own_ranges_hold(&self, host: &mut Rtnetlink) -> Option<bool> {
        for range in self.ranges()? {
            if !host.is_unreachable(last_address(&range)).ok()? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn tables_hold(&self) -> Option<bool> {
        let tables = self.fields("table");
        if tables.is_empty() {
            return Some(true);
        }
        let mut socket = Socket::netfilter().ok()?;
        if self.ruleset().is_some() && self.ruleset() == nft::generation(&mut socket).ok() {
            return Some(true);
        }
        for proof in tables {
            if !nft::installed(&mut socket, &Proof::from_str(proof).ok()?).ok()? {
                return Some(false);
            }
        }
        Some(true)
    }

    fn peer_holds(&self, number: u64, host: &mut Rtnetlink) -> Option<bool> {
        let mut line = [0; PEER_BYTES];
        self.file.read_exact_at(&mut line, self.peers_at + number * PEER_BYTES as u64).ok()?;
        let mut words = std::str::from_utf8(&line).ok()?.split_ascii_whitespace();
        let (ip, via, mac, expected) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let route = host.matching_route(ip.parse().ok()?).ok()??;
        let device = self.field("device").and_then(|line| line.split(' ').next()?.parse().ok());
        let neighbour = match via.parse() {
            Ok(via) => host.neighbour(device?, via).ok()?,
            Err(_) => None,
        };
        let entry = match Mac::from_str(mac) {
            Ok(mac) => host.fdb_entry(device?, &mac.0).ok()?,
            Err(_) => None,
        };
        let found = (comparable(&route), neighbour.as_ref(), entry.as_ref());
        Some(hash(&found) == expected)
    }
}

/// The address of a range by which its own-range route is asked for: not the
/// first, which is our device's; and hardly ever a pod's.
fn last_address(range: &IpNetwork) -> IpAddr {
    range.broadcast()
}

/// The configuration as it was understood.
fn config_hash(config: &Config) -> String {
    hash(&format!("{config:?}"))
}

fn link_hash(index: u32, link: &Interface) -> String {
    hash(&(index, &link.name, link.mtu, link.up))
}

/// The network namespace of `host`.
fn netns(host: &Rtnetlink) -> Result<String, Error> {
    let (device, inode) =
        host.netns().and_then(|netns| netns.identity()).map_err(crate::failure::refused)?;
    Ok(format!("{device}:{inode}"))
}

/// SipHash with a fixed key: the same in every run of this executable, which is all
/// that a stamp lives for.
fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
