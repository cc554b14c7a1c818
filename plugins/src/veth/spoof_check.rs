//! Keeping pods to their own addresses.

use cni::{Code, Error};
use kernel::link::HOST_END_GROUP;
use kernel::netlink::Socket;
use kernel::nft::{self, Chain, Hook, Rule, Table};

/// Name of the table, one for all networks of a node.
pub(crate) const TABLE: &str = "weft_spoof";

/// Sees to it that the check is in force in the thread's network namespace, where it was
/// in the ruleset of number `seen_in`.
pub(crate) fn ensure(seen_in: Option<u32>) -> Result<(), Error> {
    let in_force = || {
        let mut socket = Socket::netfilter()?;
        if seen_in.is_none() || nft::generation(&mut socket).ok() != seen_in {
            nft::ensure(&mut socket, &table(HOST_END_GROUP))?;
        }
        Ok(())
    };
    in_force().map_err(|e: kernel::Error| {
        let advice = "the spoof check needs nf_tables with fib; spoofCheck false does without";
        Error::new(Code::Kernel, e.to_string()).with_details(advice)
    })
}

/// Takes the check away; false where there was none.
pub(crate) fn remove() -> Result<bool, Error> {
    let outcome = Socket::netfilter().and_then(|mut socket| nft::remove(&mut socket, TABLE));
    outcome.map_err(|e| Error::new(Code::Kernel, e.to_string()))
}

/// The table that drops what comes in by a link of group `host_ends` from an
/// address that the host does not route to that very link: a free address,
/// another pod's, the node's own. It needs nothing per pod, for a pod's own
/// addresses are routed to its host end.
///
/// Strict reverse path filtering (RFC 3704 section 2.2) by another means:
/// `rp_filter` is IPv4's alone, and void as soon as somebody sets
/// `all.rp_filter=2`.
///
/// What an address to be has no route for passes (`nft_fib.h`): IPv6 duplicate
/// address detection and IPv4 DHCP, both from the unspecified address to this
/// link alone. So do IPv6 link-local addresses, which are valid on this link
/// only; what is forwarded never comes from them.
pub(crate) fn table(host_ends: u32) -> Table {
    let drop = Rule::new()
        .from_link_group(host_ends)
        .source_is_elsewhere()
        .count()
        .drop()
        .comment("not the pod's own address");
    Table::new(TABLE).chain(Chain::at(Hook::PreroutingRaw, "received", vec![drop]))
}
