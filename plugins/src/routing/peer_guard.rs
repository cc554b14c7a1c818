//! Guarding the tunnel's ends: a VXLAN device decapsulates whatever reaches its
//! port, without a look at the sender (RFC 7348 section 7).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::nft::{Chain, Hook, IpVersion, Rule, Set, Table};

/// What is guarded on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerGuard<'a> {
    /// Number of the routing network, which names the table.
    pub(crate) protocol: u8,
    /// Tunnel ends of all other nodes, as their packets show them.
    pub(crate) tunnel_ends: &'a [IpAddr],
    /// Their other addresses of the underlay's family: a VXLAN device takes what is
    /// sent to any address of its host (`vxlan_sock_add` binds to none).
    pub(crate) other_addresses: &'a [IpAddr],
    /// The address that all peers send to, where it is on this host: not behind NAT.
    pub(crate) local: Option<IpAddr>,
    /// Name of the link under the tunnel.
    pub(crate) underlay: &'a str,
    /// UDP port of the tunnel.
    pub(crate) port: u16,
    /// VNI of the tunnel; another program's at the same port is left alone.
    pub(crate) vni: u32,
    /// Name of the VXLAN device.
    pub(crate) device: &'a str,
    /// Link groups of the pods' host ends.
    pub(crate) host_ends: &'a [u32],
    /// Whether VXLAN from elsewhere is dropped.
    pub(crate) guard: bool,
    /// Whether the tunnel's packets are kept out of connection tracking.
    pub(crate) no_track: bool,
}

/// Addresses, a set for each version that there are some of.
struct Addresses {
    /// Tunnel ends of the other nodes.
    ends: Vec<Set>,
    /// Their other addresses.
    others: Vec<Set>,
    /// Our own tunnel end.
    own: Vec<Set>,
}

fn sets(name: &str, addresses: &[IpAddr]) -> Vec<Set> {
    let networks: Vec<IpNetwork> = addresses.iter().map(|&ip| ip.into()).collect();
    let mut sets = vec![
        Set::new(format!("{name}4"), IpVersion::V4, &networks),
        Set::new(format!("{name}6"), IpVersion::V6, &networks),
    ];
    sets.retain(|set| !set.is_empty());
    sets
}

/// Name of the table of the routing network `protocol`.
pub(crate) fn table_name(protocol: u8) -> String {
    format!("weft_{protocol}_tunnel")
}

impl PeerGuard<'_> {
    /// The table that does it, `None` where there is nothing to do.
    ///
    /// Looked at are packets as they come in, before connection tracking, and
    /// again when destination NAT is done, for a Service can lead to the
    /// tunnel's port. Fragments need no rule of their own: without connection
    /// tracking they come one by one, but the first holds the UDP header, and
    /// once it is dropped the rest is never put together.
    pub(crate) fn table(&self) -> Option<Table> {
        let addresses = Addresses {
            ends: sets("ends", self.tunnel_ends),
            others: sets("others", self.other_addresses),
            own: sets("own", self.local.as_slice()),
        };
        let mut chains = Vec::new();
        if self.guard {
            chains.extend(self.guarding(&addresses));
        } else if self.no_track {
            chains.extend(self.untracked(&addresses.ends));
        }
        if self.no_track {
            chains.push(self.sent(&addresses.ends));
        }
        if chains.is_empty() {
            return None;
        }
        let Addresses { ends, others, own } = addresses;
        let sets = ends.into_iter().chain(others).chain(own);
        let table = sets.fold(Table::new(table_name(self.protocol)), Table::set);
        Some(chains.into_iter().fold(table, Table::chain))
    }

    fn guarding(&self, addresses: &Addresses) -> Vec<Chain> {
        let to = |chain: &str| vec![Rule::new().udp_to(self.port).jump(chain)];
        vec![
            Chain::called("for_this_host", self.for_this_host(addresses)),
            Chain::called("just_received", self.just_received(addresses)),
            Chain::called("for_others", self.for_other_hosts(addresses)),
            Chain::at(Hook::PreroutingRaw, "received", to("just_received")),
            Chain::at(Hook::Input, "delivered", to("for_this_host")),
            Chain::at(Hook::Forward, "forwarded", to("for_others")),
        ]
    }

    fn just_received(&self, addresses: &Addresses) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        rules.extend(self.peers_packets(addresses));
        rules.extend(self.pod_to_node(addresses));
        // Broadcast and multicast reach the tunnel's socket as well as unicast
        // to a local address does.
        rules.push(Rule::new().to_other_host().back());
        rules.push(Rule::new().jump("for_this_host"));
        rules
    }

    fn for_this_host(&self, addresses: &Addresses) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        rules.extend(self.peers_packets(addresses));
        let from_pods = self.pods_packets();
        rules.extend(from_pods.map(|rule| rule.count().drop().comment("from a pod to this host")));
        // A pod's packet to another address of ours can look like its node's by now.
        rules.extend(addresses.own.iter().map(|set| {
            let elsewhere = Rule::new().destination_not_in(set).count().drop();
            elsewhere.comment("to no tunnel end")
        }));
        let ends = addresses.ends.iter();
        rules.extend(ends.map(|set| self.tracking(Rule::new().source_in(set)).accept()));
        rules.push(Rule::new().count().drop().comment("from no tunnel end"));
        rules
    }

    /// What nearly all packets are, so that they pass no other rule: by the underlay, hence
    /// from no pod, from a peer to our tunnel end.
    fn peers_packets(&self, addresses: &Addresses) -> impl Iterator<Item = Rule> {
        let ends = addresses.ends.iter();
        let pairs = ends.flat_map(|ends| addresses.own.iter().map(move |own| (ends, own)));
        let same = pairs.filter(|(ends, own)| ends.version() == own.version());
        same.map(|(ends, own)| {
            let rule = Rule::new().from_link(self.underlay).source_in(ends).destination_in(own);
            self.tracking(rule).accept()
        })
    }

    /// What this host forwards may leave with its own address, masqueraded, and
    /// so deceive the guard of the node that it is for.
    fn for_other_hosts(&self, addresses: &Addresses) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        rules.extend(self.pod_to_node(addresses));
        for sources in &addresses.ends {
            let same = |set: &&Set| set.version() == sources.version();
            let destinations = std::iter::once(sources).chain(addresses.others.iter().filter(same));
            rules.extend(destinations.map(|set| {
                let forged = Rule::new().destination_in(set).source_not_in(sources);
                forged.count().drop().comment("from no tunnel end to a node")
            }));
        }
        rules
    }

    fn pod_to_node(&self, addresses: &Addresses) -> impl Iterator<Item = Rule> {
        let nodes = || addresses.ends.iter().chain(&addresses.others);
        let to_nodes = move |rule: Rule| nodes().map(move |set| rule.clone().destination_in(set));
        let rules = self.pods_packets().flat_map(to_nodes);
        rules.map(|rule| rule.count().drop().comment("from a pod to a node"))
    }

    /// Pods' packets, whatever their source: of pods here, and of pods elsewhere,
    /// which come out of the tunnel. Nodes reach each other beside the tunnel.
    fn pods_packets(&self) -> impl Iterator<Item = Rule> {
        let from_group = |&group: &u32| Rule::new().from_link_group(group);
        let here = self.host_ends.iter().map(from_group);
        here.chain([Rule::new().from_link(self.device)])
    }

    fn not_ours(&self) -> Rule {
        Rule::new().other_vni(self.vni).back()
    }

    fn tracking(&self, rule: Rule) -> Rule {
        if self.no_track { rule.no_track() } else { rule }
    }

    /// Without the guard, what comes from tunnel ends.
    fn untracked(&self, ends: &[Set]) -> Vec<Chain> {
        let mut rules = vec![self.not_ours(), Rule::new().to_other_host().back()];
        rules.extend(ends.iter().map(|set| Rule::new().source_in(set).no_track()));
        let jump = Rule::new().udp_to(self.port).jump("just_received");
        vec![
            Chain::called("just_received", rules),
            Chain::at(Hook::PreroutingRaw, "received", vec![jump]),
        ]
    }

    fn sent(&self, ends: &[Set]) -> Chain {
        let rule = |set| Rule::new().udp_to(self.port).destination_in(set).no_track();
        Chain::at(Hook::OutputRaw, "sent", ends.iter().map(rule).collect())
    }
}
