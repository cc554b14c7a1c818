//! Masquerading what pods send to the outside, and what enters the tunnel with
//! an address that is no pod's.

use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use kernel::nft::{Chain, Hook, IpVersion, Rule, Set, Table};

/// Mark of packets that kube-proxy masquerades itself (its `--iptables-masquerade-bit`
/// 14, also in nftables mode).
const KUBE_PROXY_MARK: u32 = 0x4000;
/// RFC 5771; a source that joined a group is known by its own address.
const MULTICAST_V4: IpNetwork =
    IpNetwork::V4(Ipv4Network::new_checked(std::net::Ipv4Addr::new(224, 0, 0, 0), 4).unwrap());
/// RFC 4291 section 2.7.
const MULTICAST_V6: IpNetwork = IpNetwork::V6(
    Ipv6Network::new_checked(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).unwrap(),
);

/// What is masqueraded on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masquerade<'a> {
    /// Number of the routing network, which names the table.
    pub(crate) protocol: u8,
    /// Pod ranges of this node.
    pub(crate) own_ranges: &'a [IpNetwork],
    /// Pod ranges of all nodes.
    pub(crate) pod_ranges: &'a [IpNetwork],
    /// What the physical network carries pods' addresses to.
    pub(crate) native_cidrs: &'a [IpNetwork],
    /// Addresses of the nodes that are reached through the tunnel. Native CIDRs
    /// do not exempt them: they would answer through the tunnel what came to
    /// them beside it, and reverse path filtering would drop that.
    pub(crate) tunnel_nodes: &'a [IpAddr],
    /// Destinations that see pods' own addresses, whatever else holds.
    pub(crate) non_masquerade_cidrs: &'a [IpNetwork],
    /// Name of the VXLAN device, if there is one.
    pub(crate) device: Option<&'a str>,
}

/// The sets of one version of IP.
struct Sets {
    own: Set,
    pods: Set,
    exempt: Set,
    nodes: Set,
    native: Set,
}

impl Sets {
    fn into_list(self) -> [Set; 5] {
        [self.own, self.pods, self.exempt, self.nodes, self.native]
    }
}

/// Name of the table of the routing network `protocol`.
pub(crate) fn table_name(protocol: u8) -> String {
    format!("weft_{protocol}_masquerade")
}

impl Masquerade<'_> {
    /// The table that does it. Replies need no rule, for the kernel shows NAT
    /// chains the first packet of a connection only.
    pub(crate) fn table(&self) -> Table {
        let versions = [self.sets(IpVersion::V4, "4"), self.sets(IpVersion::V6, "6")];
        let mut leaving = vec![
            Rule::new().marked(KUBE_PROXY_MARK).back().comment("kube-proxy masquerades these"),
        ];
        let mut from_pods = Vec::new();
        for sets in &versions {
            leaving.extend(self.entering_tunnel(sets));
        }
        for sets in versions.iter().filter(|sets| !sets.own.is_empty()) {
            leaving.push(Rule::new().source_in(&sets.own).jump("from_pods"));
            from_pods.extend(kept(sets));
        }
        from_pods.push(Rule::new().count().masquerade().comment("pods to the outside"));
        let chains = [
            Chain::called("from_pods", from_pods),
            Chain::at(Hook::PostroutingSourceNat, "leaving", leaving),
        ];
        let sets = versions.into_iter().flat_map(Sets::into_list);
        let table = sets.fold(Table::new(table_name(self.protocol)), Table::set);
        chains.into_iter().fold(table, Table::chain)
    }

    fn sets(&self, version: IpVersion, suffix: &str) -> Sets {
        let set = |name: &str, networks: &[IpNetwork]| {
            Set::new(format!("{name}{suffix}"), version, networks)
        };
        let nodes: Vec<IpNetwork> = self.tunnel_nodes.iter().map(|&ip| ip.into()).collect();
        let exempt = [self.non_masquerade_cidrs, &[MULTICAST_V4, MULTICAST_V6]].concat();
        Sets {
            own: set("own_pods", self.own_ranges),
            pods: set("pods", self.pod_ranges),
            exempt: set("exempt", &exempt),
            nodes: set("tunnel_nodes", &nodes),
            native: set("native", self.native_cidrs),
        }
    }

    /// The node's own addresses, and those of hosts outside that a Service leads
    /// to a pod, are not what the other node routes back through the tunnel.
    fn entering_tunnel(&self, sets: &Sets) -> Option<Rule> {
        let device = self.device.filter(|_| !sets.pods.is_empty())?;
        let rule = Rule::new().to_link(device).source_not_in(&sets.pods).count().masquerade();
        Some(rule.comment("no pod's address into the tunnel"))
    }
}

/// What of pods' packets keeps its source.
fn kept(sets: &Sets) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new().destination_in(&sets.pods).back(),
        Rule::new().destination_in(&sets.exempt).back(),
    ];
    if !sets.native.is_empty() {
        if !sets.nodes.is_empty() {
            let to_node = Rule::new().destination_in(&sets.nodes).count().masquerade();
            rules.push(to_node.comment("pods to nodes behind the tunnel"));
        }
        rules.push(Rule::new().destination_in(&sets.native).back());
    }
    rules
}
