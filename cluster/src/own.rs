//! Which node of the map this host is.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::map::{Map, Quarantined};
use crate::node::Node;

/// What this host knows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host<'a> {
    /// Its addresses and the interface that holds each. Loopback and link-local
    /// addresses may be among them and do not count.
    pub addresses: &'a [(IpAddr, String)],
    /// The key `nodeName`.
    pub node_name: Option<&'a str>,
    /// What `/etc/weft/node-name` holds, without white space around it.
    pub name_file: Option<&'a str>,
    /// The host name.
    pub host_name: Option<&'a str>,
    /// The pod ranges that this host's own-range routes in the kernel are for.
    pub own_ranges: &'a [IpNetwork],
}

/// This host's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own<'m> {
    /// Its record.
    pub node: &'m Node,
    /// How it was recognised.
    pub by: By,
}

/// How this host was recognised. Its `Display` is a clause for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The record has this address, which an interface of this host holds.
    Address(IpAddr, String),
    /// The key `nodeName`.
    NodeName,
    /// `/etc/weft/node-name`.
    NameFile,
    /// The host name.
    HostName,
    /// This pod range, which the own-range route in the kernel is for.
    OwnRange(IpNetwork),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip, interface) => write!(f, "by its address {ip} on {interface}"),
            Self::NodeName => write!(f, "by nodeName"),
            Self::NameFile => write!(f, "by {NAME_FILE}"),
            Self::HostName => write!(f, "by the host name"),
            Self::OwnRange(range) => write!(f, "by the own-range route {range} in the kernel"),
        }
    }
}

/// Why it cannot be told which node this host is. The text of each says what was
/// seen on both sides and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnError {
    /// No record is this host's (CNI code 7).
    Unknown(String),
    /// More than one record is (CNI code 7).
    Ambiguous(String),
    /// The record is there but has no pod range, or no address, yet: whoever
    /// gives them out has still to do so (CNI code 11, try again).
    NoRangeYet {
        /// The record as it is.
        node: Box<Node>,
        /// The error.
        text: String,
    },
    /// The record is quarantined (CNI code 7). What was made for it while it was
    /// valid goes on working; `node` lets a caller recognise that.
    Quarantined {
        /// The record as far as it could be read.
        node: Box<Node>,
        /// The error.
        text: String,
    },
}

impl fmt::Display for OwnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(text)
            | Self::Ambiguous(text)
            | Self::NoRangeYet { text, .. }
            | Self::Quarantined { text, .. } => f.write_str(text),
        }
    }
}

impl std::error::Error for OwnError {}

const NAME_FILE: &str = "/etc/weft/node-name";

/// How many addresses or nodes a message lists before "and N more".
const LISTED: usize = 6;

/// Which node of `map` this host is.
///
/// 1. The record with an address of this host. Two of them are an error, unless
///    `nodeName` or `/etc/weft/node-name` names one of the two (two sites behind
///    NAT may use the same private addresses).
/// 2. Else the record called `nodeName`, else that called as
///    `/etc/weft/node-name` says, else that called as the host is. The first two
///    are there because somebody wrote them: if the map has no such record, that
///    is an error and nothing further down is tried. An address found in 1
///    outweighs them all the same: they say which node this is where addresses
///    do not.
/// 3. Else the record with the pod range that our own-range route in the kernel
///    is for: a node whose address and name changed, and whose pods still run.
pub fn own_node<'m>(map: &'m Map, host: &Host) -> Result<Own<'m>, OwnError> {
    let searched = Search { map, host };
    if let Some(found) = searched.by_address()? {
        return found.own();
    }
    if let Some(found) = searched.by_name()? {
        return found.own();
    }
    match searched.by_range()? {
        Some(found) => found.own(),
        None => Err(searched.unknown("")),
    }
}

/// A record, and in which part of the map it stands.
#[derive(Clone, Copy)]
enum Record<'m> {
    Applied(&'m Node),
    Incomplete(&'m Node),
    Quarantined(&'m Quarantined),
}

impl<'m> Record<'m> {
    fn node(self) -> &'m Node {
        match self {
            Self::Applied(node) | Self::Incomplete(node) => node,
            Self::Quarantined(quarantined) => &quarantined.node,
        }
    }
}

/// A record that is this host's.
struct Found<'m> {
    record: Record<'m>,
    by: By,
}

impl<'m> Found<'m> {
    fn own(self) -> Result<Own<'m>, OwnError> {
        let Self { record, by } = self;
        match record {
            Record::Applied(node) => Ok(Own { node, by }),
            Record::Incomplete(node) => {
                let (lacks, do_what) = match node.pod_ranges.is_empty() {
                    true => ("pod range", "it is there as soon as podCIDRs has one"),
                    false => ("address", "it is there as soon as addresses has one"),
                };
                let text = format!(
                    "this is node {:?} ({by}), which has no {lacks} in the node map yet; {do_what}",
                    node.name
                );
                Err(OwnError::NoRangeYet { node: Box::new(node.clone()), text })
            }
            Record::Quarantined(quarantined) => {
                let Quarantined { node, file, item, why } = quarantined;
                let text = format!("this is {item} of {file} ({by}), which is quarantined: {why}");
                Err(OwnError::Quarantined { node: Box::new(node.clone()), text })
            }
        }
    }
}

struct Search<'m, 'h> {
    map: &'m Map,
    host: &'h Host<'h>,
}

impl<'m> Search<'m, '_> {
    /// Records of which `is` holds. A quarantined one counts only where no
    /// other does, so that a bad record takes no healthy one's place.
    fn records(&self, is: impl Fn(&Node) -> bool) -> Vec<Record<'m>> {
        let applied = self.map.nodes.iter().map(Record::Applied);
        let sound = applied.chain(self.map.incomplete.iter().map(Record::Incomplete));
        let found: Vec<_> = sound.filter(|record| is(record.node())).collect();
        if !found.is_empty() {
            return found;
        }
        let quarantined = self.map.quarantined.iter().map(Record::Quarantined);
        quarantined.filter(|record| is(record.node())).collect()
    }

    fn by_address(&self) -> Result<Option<Found<'m>>, OwnError> {
        let own = self.usable_addresses();
        let has_own = |node: &Node| own.iter().any(|(ip, _)| node.has_address(*ip));
        let mut found = self.records(has_own);
        if different_names(&found) {
            let chosen = self.host.node_name.or(self.host.name_file);
            found.retain(|record| Some(record.node().name.as_str()) == chosen);
            if found.is_empty() {
                return Err(self.two_by_address(&self.records(has_own)));
            }
        }
        let Some(record) = found.first().copied() else { return Ok(None) };
        let seen = own.iter().find(|(ip, _)| record.node().has_address(*ip));
        Ok(seen
            .map(|(ip, interface)| Found { record, by: By::Address(*ip, (*interface).to_owned()) }))
    }

    fn by_name(&self) -> Result<Option<Found<'m>>, OwnError> {
        let Host { node_name, name_file, host_name, .. } = *self.host;
        let (name, by) = match (node_name, name_file, host_name) {
            (Some(name), _, _) => (name, By::NodeName),
            (None, Some(name), _) => (name, By::NameFile),
            (None, None, Some(name)) => (name, By::HostName),
            (None, None, None) => return Ok(None),
        };
        match (self.records(|node| node.name == name).first(), by) {
            (Some(record), by) => Ok(Some(Found { record: *record, by })),
            (None, By::NodeName) => Err(self.unknown(&format!(" nor the nodeName {name:?}"))),
            (None, By::NameFile) => {
                Err(self.unknown(&format!(" nor the name {name:?} of {NAME_FILE}")))
            }
            (None, _) => Ok(None),
        }
    }

    fn by_range(&self) -> Result<Option<Found<'m>>, OwnError> {
        let held = |node: &Node| {
            let ranges = self.host.own_ranges.iter();
            ranges.copied().find(|range| node.pod_ranges.contains(range))
        };
        let found = self.records(|node| held(node).is_some());
        if different_names(&found) {
            return Err(self.two_by_range(&found));
        }
        let Some(record) = found.first().copied() else { return Ok(None) };
        Ok(held(record.node()).map(|range| Found { record, by: By::OwnRange(range) }))
    }

    /// This host's addresses but those that every host has, each once.
    fn usable_addresses(&self) -> Vec<(IpAddr, &str)> {
        let mut seen = std::collections::HashSet::new();
        let all = self.host.addresses.iter().filter(|(ip, _)| !is_local(*ip) && seen.insert(*ip));
        all.map(|(ip, interface)| (*ip, interface.as_str())).collect()
    }
}

/// Loopback and link-local addresses, which every host may have.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback()
        || match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
}

fn different_names(records: &[Record]) -> bool {
    let names = records.iter().map(|record| &record.node().name);
    names.clone().zip(names.skip(1)).any(|(a, b)| a != b)
}

/// The texts.
impl Search<'_, '_> {
    fn unknown(&self, nor: &str) -> OwnError {
        let Self { map, host } = self;
        let nodes = map.nodes.iter().chain(&map.incomplete);
        let there = listed(nodes.map(|node| match node.tunnel_address.or_else(|| first(node)) {
            Some(ip) => format!("{} {ip}", node.name),
            None => node.name.clone(),
        }));
        let there = if there.is_empty() { "no usable record" } else { &there };
        let called = match (nor.is_empty(), host.host_name) {
            (true, Some(name)) => format!(" nor its host name {name:?}"),
            _ => String::new(),
        };
        OwnError::Unknown(format!(
            "no node of {} has an address of this host ({}){nor}{called}; the map has {there}; set \
             nodeName, write the node's name into {NAME_FILE}, or add the node to the map",
            map.origin,
            self.host_side()
        ))
    }

    fn two_by_address(&self, found: &[Record]) -> OwnError {
        OwnError::Ambiguous(format!(
            "more than one node of {} has an address of this host ({}): {}; correct their \
             addresses, or name this one in {NAME_FILE}",
            self.map.origin,
            self.host_side(),
            described(found)
        ))
    }

    fn two_by_range(&self, found: &[Record]) -> OwnError {
        let ranges = listed(self.host.own_ranges.iter().map(ToString::to_string));
        OwnError::Ambiguous(format!(
            "no node of {} has an address of this host ({}), and the own-range routes in the \
             kernel ({ranges}) are those of more than one: {}; set nodeName, or write the node's \
             name into {NAME_FILE}",
            self.map.origin,
            self.host_side(),
            described(found)
        ))
    }

    fn host_side(&self) -> String {
        let own = self.usable_addresses();
        if own.is_empty() {
            return "it has none but loopback and link-local ones".to_owned();
        }
        listed(own.iter().map(|(ip, interface)| format!("{ip} on {interface}")))
    }
}

fn first(node: &Node) -> Option<IpAddr> {
    node.addresses.first().map(|address| address.ip)
}

fn described(records: &[Record]) -> String {
    listed(records.iter().map(|record| {
        let node = record.node();
        let addresses = listed(node.addresses.iter().map(ToString::to_string));
        match node.tunnel_address {
            Some(tunnel) => format!("{:?} ({addresses}, tunnelAddress {tunnel})", node.name),
            None => format!("{:?} ({addresses})", node.name),
        }
    }))
}

/// The first few of `items`, and how many more there are.
fn listed(items: impl Iterator<Item = String>) -> String {
    let mut items = items.fuse();
    let shown: Vec<String> = items.by_ref().take(LISTED).collect();
    match items.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
