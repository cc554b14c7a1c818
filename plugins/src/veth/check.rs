//! CHECK: what this plugin made of the attachment is still there. Changes that a
//! later plugin may make (MAC, MTU, routes of its own) are no failure.

use cni::{AddResult, Attachment, Error, Network};
use kernel::Rtnetlink;
use kernel::route::{Filter, Kind};

use super::config::Config;
use super::plan::host_prefix;
use crate::attachment::{Id, Namespaces, is_host_end};
use crate::failure::{check_failed, refused};
use crate::ipam::Ipam;

/// Fails if something is missing.
pub(super) fn check(attachment: &Attachment, network: &Network) -> Result<(), Error> {
    let result = network.require_prev_result()?;
    let config = Config::read(attachment, network)?;
    let ifname = &attachment.key.ifname;
    let mut host = Rtnetlink::open().map_err(refused)?;
    let namespaces = Namespaces::open(attachment, &host)?;
    namespaces.in_pod(|| check_pod_end(ifname, result, config.default_route))??;
    check_host_end(attachment, network, result, &mut host)?;
    Ipam::of(network)?.check(attachment, network)
}

fn check_pod_end(ifname: &str, result: &AddResult, default_route: bool) -> Result<(), Error> {
    let mut pod = Rtnetlink::open().map_err(refused)?;
    let Some(link) = pod.link_by_name(ifname).map_err(refused)? else {
        return Err(check_failed(format!("interface {ifname} is gone from the container")));
    };
    if link.kind.as_deref() != Some("veth") {
        return Err(check_failed(format!("interface {ifname} in the container is no veth")));
    }
    if !link.up {
        return Err(check_failed(format!("interface {ifname} is down in the container")));
    }
    let present = pod.addresses(Some(link.index)).map_err(refused)?;
    for ip in own_addresses(ifname, result) {
        if !present.iter().any(|address| address.address == ip) {
            let msg = format!("address {ip} is gone from interface {ifname} in the container");
            return Err(check_failed(msg));
        }
        if default_route && !has_default(ip.is_ipv6(), &mut pod)? {
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let msg = format!("the container's default route of {family} is gone");
            return Err(check_failed(msg));
        }
    }
    Ok(())
}

/// In whichever table: a later plugin (`sbr`) may have moved it.
fn has_default(ipv6: bool, pod: &mut Rtnetlink) -> Result<bool, Error> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let routes = pod.routes(Filter { family, ..Filter::default() }).map_err(refused)?;
    Ok(routes.iter().any(|route| route.dst.prefix() == 0 && route.kind == Kind::Unicast))
}

fn check_host_end(
    attachment: &Attachment,
    network: &Network,
    result: &AddResult,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let name = Id::of(&network.name, &attachment.key).host_end();
    let link = host.link_by_name(&name).map_err(refused)?;
    let Some(link) = link.filter(is_host_end) else {
        return Err(check_failed(format!("host end {name} is gone")));
    };
    if !link.up {
        return Err(check_failed(format!("host end {name} is down")));
    }
    for ip in own_addresses(&attachment.key.ifname, result) {
        let route = host.matching_route(ip.ip()).map_err(refused)?;
        let leads_here =
            |r: &kernel::route::Route| r.dev == Some(link.index) && r.dst == host_prefix(ip.ip());
        if !route.is_some_and(|route| leads_here(&route)) {
            let msg = format!("the host's route to {} by {name} is gone or overridden", ip.ip());
            return Err(check_failed(msg));
        }
    }
    Ok(())
}

/// The addresses of the attachment's own interface.
fn own_addresses<'a>(
    ifname: &'a str,
    result: &'a AddResult,
) -> impl Iterator<Item = ipnetwork::IpNetwork> + 'a {
    result
        .ips
        .iter()
        .filter(move |ip| {
            let interface = ip.interface.and_then(|index| result.interfaces.get(index));
            interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
        })
        .map(|ip| ip.address)
}
