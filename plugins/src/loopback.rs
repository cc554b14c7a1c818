//! `loopback`: brings the container's `lo` up.

use std::net::{Ipv4Addr, Ipv6Addr};

use cni::{AddResult, Attachment, AttachmentKey, Error, Interface, IpConfig, Network, Plugin};
use ipnetwork::IpNetwork;
use kernel::link::LinkChange;
use kernel::netns::Netns;
use kernel::{Rtnetlink, sysctl};

use crate::attachment::Namespaces;
use crate::failure::{check_failed, refused};

/// The plugin.
pub(crate) struct Loopback;

impl Plugin for Loopback {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        let has_ipv6 = in_container(attachment, || set_up(true))??;
        // A chained loopback leaves the result to the plugin that made it.
        if let Some(previous) = &network.prev_result {
            return Ok(previous.clone());
        }
        Ok(result(attachment, has_ipv6))
    }

    fn check(&self, attachment: &Attachment, _network: &Network) -> Result<(), Error> {
        let up = in_container(attachment, || -> Result<bool, Error> {
            let link =
                Rtnetlink::open().and_then(|mut rt| rt.link_by_name("lo")).map_err(refused)?;
            Ok(link.is_some_and(|link| link.up))
        })??;
        if up { Ok(()) } else { Err(check_failed("lo is down in the container")) }
    }

    fn del(&self, attachment: &Attachment, _network: &Network) -> Result<(), Error> {
        let Some(path) = &attachment.netns else { return Ok(()) };
        // A namespace that is gone, or a plain file left in its place, has no lo.
        let Ok(netns) = Netns::open(path) else { return Ok(()) };
        let home = Netns::current().map_err(refused)?;
        netns.run(&home, || set_up(false)).map_err(refused)??;
        Ok(())
    }

    fn gc(&self, _valid: &[AttachmentKey], _network: &Network) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _network: &Network) -> Result<(), Error> {
        Ok(())
    }
}

fn in_container<T>(attachment: &Attachment, work: impl FnOnce() -> T) -> Result<T, Error> {
    let host = Rtnetlink::open().map_err(refused)?;
    Namespaces::open(attachment, &host)?.in_pod(work)
}

/// Sets `lo` up or down; says whether it has, or will have, an IPv6 address.
fn set_up(up: bool) -> Result<bool, Error> {
    let mut rt = Rtnetlink::open().map_err(refused)?;
    let Some(lo) = rt.link_by_name("lo").map_err(refused)? else {
        return Err(check_failed("the container has no lo"));
    };
    if lo.up != up {
        let change = LinkChange { up: Some(up), ..LinkChange::default() };
        rt.request(change.message(lo.index))
            .map_err(|e| refused(e.about(format_args!("cannot set lo {}", change.words()))))?;
    }
    let disabled = sysctl::get("net/ipv6/conf/lo/disable_ipv6").map_err(refused)?;
    Ok(disabled.as_deref() == Some("0"))
}

/// The addresses that the kernel itself gives `lo` (RFC 1122 3.2.1.3, RFC 4291 2.5.3).
fn result(attachment: &Attachment, has_ipv6: bool) -> AddResult {
    let sandbox = attachment.netns.as_ref().map(|path| path.display().to_string());
    let lo = Interface {
        name: attachment.key.ifname.clone(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: sandbox.unwrap_or_default(),
        ..Interface::default()
    };
    let v4 = IpNetwork::new(Ipv4Addr::LOCALHOST.into(), 8);
    let v6 = IpNetwork::new(Ipv6Addr::LOCALHOST.into(), 128).ok().filter(|_| has_ipv6);
    let addresses = v4.into_iter().chain(v6);
    let ips = addresses.map(|address| IpConfig { address, gateway: None, interface: Some(0) });
    AddResult { interfaces: vec![lo], ips: ips.collect(), ..AddResult::default() }
}
