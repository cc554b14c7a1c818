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

/// Tunnel ends, a set for each version that there are some of.
struct Ends(Vec<Set>);

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
        let networks: Vec<IpNetwork> = self.tunnel_ends.iter().map(|&ip| ip.into()).collect();
        let mut ends = Ends(vec![
            Set::new("ends4", IpVersion::V4, &networks),
            Set::new("ends6", IpVersion::V6, &networks),
        ]);
        ends.0.retain(|set| !set.is_empty());
        let mut chains = Vec::new();
        if self.guard {
            chains.extend(self.guarding(&ends));
        } else if self.no_track {
            chains.extend(self.untracked(&ends));
        }
        if self.no_track {
            chains.push(self.sent(&ends));
        }
        if chains.is_empty() {
            return None;
        }
        let table = ends.0.into_iter().fold(Table::new(table_name(self.protocol)), Table::set);
        Some(chains.into_iter().fold(table, Table::chain))
    }

    fn guarding(&self, ends: &Ends) -> Vec<Chain> {
        let to = |chain: &str| vec![Rule::new().udp_to(self.port).jump(chain)];
        vec![
            Chain::called("for_this_host", self.for_this_host(ends)),
            Chain::called("just_received", self.just_received(ends)),
            Chain::called("for_others", self.for_other_hosts(ends)),
            Chain::at(Hook::PreroutingRaw, "received", to("just_received")),
            Chain::at(Hook::Input, "delivered", to("for_this_host")),
            Chain::at(Hook::Forward, "forwarded", to("for_others")),
        ]
    }

    fn just_received(&self, ends: &Ends) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        rules.extend(self.pod_to_node(ends));
        // Broadcast and multicast reach the tunnel's socket as well as unicast
        // to a local address does.
        rules.push(Rule::new().to_other_host().back());
        rules.push(Rule::new().jump("for_this_host"));
        rules
    }

    fn for_this_host(&self, ends: &Ends) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        let from_pods = self.pods_packets();
        rules.extend(from_pods.map(|rule| rule.count().drop().comment("from a pod to this host")));
        rules.extend(ends.0.iter().map(|set| self.tracking(Rule::new().source_in(set)).accept()));
        rules.push(Rule::new().count().drop().comment("from no tunnel end"));
        rules
    }

    /// What this host forwards may leave with its own address, masqueraded, and
    /// so deceive the guard of the node that it is for.
    fn for_other_hosts(&self, ends: &Ends) -> Vec<Rule> {
        let mut rules = vec![self.not_ours()];
        rules.extend(self.pod_to_node(ends));
        rules.extend(ends.0.iter().map(|set| {
            let forged = Rule::new().destination_in(set).source_not_in(set).count().drop();
            forged.comment("from no tunnel end to a node")
        }));
        rules
    }

    fn pod_to_node(&self, ends: &Ends) -> impl Iterator<Item = Rule> {
        let to_ends = |rule: Rule| ends.0.iter().map(move |set| rule.clone().destination_in(set));
        let rules = self.pods_packets().flat_map(to_ends);
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
    fn untracked(&self, ends: &Ends) -> Vec<Chain> {
        let mut rules = vec![self.not_ours(), Rule::new().to_other_host().back()];
        rules.extend(ends.0.iter().map(|set| Rule::new().source_in(set).no_track()));
        let jump = Rule::new().udp_to(self.port).jump("just_received");
        vec![
            Chain::called("just_received", rules),
            Chain::at(Hook::PreroutingRaw, "received", vec![jump]),
        ]
    }

    fn sent(&self, ends: &Ends) -> Chain {
        let rule = |set| Rule::new().udp_to(self.port).destination_in(set).no_track();
        Chain::at(Hook::OutputRaw, "sent", ends.0.iter().map(rule).collect())
    }
}
