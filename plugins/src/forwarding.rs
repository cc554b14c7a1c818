//! Forwarding between interfaces, without which a node is no router for its pods.

use cni::Error;
use kernel::{Rtnetlink, sysctl};

use crate::attachment::is_host_end;
use crate::failure::refused;

/// Turns forwarding on for the families in use.
///
/// A host that forwards IPv6 no longer takes router advertisements
/// (`accept_ra` 1), and so loses its own default route when that expires:
/// interfaces that live on them get `accept_ra` 2 first.
pub(crate) fn enable(ipv4: bool, ipv6: bool, host: &mut Rtnetlink) -> Result<(), Error> {
    if ipv4 {
        sysctl::set("net/ipv4/ip_forward", "1").map_err(refused)?;
    }
    if ipv6 && sysctl::get("net/ipv6/conf/all/forwarding").map_err(refused)?.as_deref() == Some("0")
    {
        keep_router_advertisements(host)?;
        sysctl::set("net/ipv6/conf/all/forwarding", "1").map_err(refused)?;
    }
    Ok(())
}

fn keep_router_advertisements(host: &mut Rtnetlink) -> Result<(), Error> {
    for link in host.links().map_err(refused)? {
        if link.loopback || is_host_end(&link) {
            continue;
        }
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        if sysctl::get(&key).map_err(refused)?.as_deref() == Some("1") {
            sysctl::set(&key, "2").map_err(refused)?;
        }
    }
    Ok(())
}
