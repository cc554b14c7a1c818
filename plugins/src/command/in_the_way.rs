//! Other programs' firewalls that may drop what pods send and get.

use anyhow::Result;
use ipnetwork::IpNetwork;
use kernel::netlink::Socket;
use kernel::nft::{ForwardDrop, forward_drops};

/// For each chain that drops what none of its rules accepts, what it is and the
/// commands that would let this node's pods through.
pub(super) fn in_the_way(own_ranges: &[IpNetwork]) -> Result<Vec<(String, Vec<String>)>> {
    let drops = forward_drops(&mut Socket::netfilter()?)?;
    let of = |drop: &ForwardDrop| (drop.to_string(), remedy(drop, own_ranges));
    Ok(drops.iter().map(of).filter(|(_, commands)| !commands.is_empty()).collect())
}

/// Commands that put rules for the pods before all others.
fn remedy(drop: &ForwardDrop, own_ranges: &[IpNetwork]) -> Vec<String> {
    let mut commands = Vec::new();
    for range in own_ranges {
        let (ip, iptables) = match range {
            IpNetwork::V4(_) => ("ip", "iptables"),
            IpNetwork::V6(_) => ("ip6", "ip6tables"),
        };
        if drop.family != "inet" && drop.family != ip {
            continue;
        }
        let ForwardDrop { family, table, chain, .. } = drop;
        // Tables of iptables-nft want rules in its own words.
        if *family != "inet" && table == "filter" && chain == "FORWARD" {
            commands.push(format!("{iptables} -I {chain} -s {range} -j ACCEPT"));
            commands.push(format!("{iptables} -I {chain} -d {range} -j ACCEPT"));
        } else {
            commands.push(format!(
                "nft insert rule {family} {table} {chain} {ip} saddr {range} accept"
            ));
            commands.push(format!(
                "nft insert rule {family} {table} {chain} {ip} daddr {range} accept"
            ));
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop(family: &'static str, table: &str) -> ForwardDrop {
        ForwardDrop { family, table: table.into(), chain: "FORWARD".into(), by_policy: true }
    }

    #[test]
    fn commands_suit_table_and_family() {
        let ranges = ["10.0.1.0/24", "fd10:1::/64"].map(|text| text.parse().expect("a network"));
        assert_eq!(
            remedy(&drop("ip", "filter"), &ranges),
            [
                "iptables -I FORWARD -s 10.0.1.0/24 -j ACCEPT",
                "iptables -I FORWARD -d 10.0.1.0/24 -j ACCEPT"
            ]
        );
        assert_eq!(
            remedy(&drop("ip6", "mine"), &ranges),
            [
                "nft insert rule ip6 mine FORWARD ip6 saddr fd10:1::/64 accept",
                "nft insert rule ip6 mine FORWARD ip6 daddr fd10:1::/64 accept"
            ]
        );
        assert_eq!(remedy(&drop("inet", "filter"), &ranges).len(), 4);
    }
}
