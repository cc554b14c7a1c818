//! The MTU of living pods, on both ends.
//!
//! Lowering the host's end alone would drop what the pod goes on sending at the
//! old size, so the pod's end goes first, and where it cannot be reached both
//! stay: then the route's `mtu` answers with "fragmentation needed".

use std::path::Path;

use cni::{AddResult, Attachment, Error, Interface};
use kernel::Rtnetlink;
use kernel::link::{HOST_END_GROUP, Link, LinkChange};
use kernel::netlink::Socket;
use kernel::netns::Netns;
use kernel::nft;

use super::config::Config;
use super::sync::{Do, Outcome};
use crate::attachment::{Alias, Namespaces, is_host_end};
use crate::failure::refused;
use crate::veth::spoof_check;

/// Sets the MTU of the network's pods to `mtu` where it differs, restores the spoof
/// check, and adds to `outcome` what it did. A pod that refuses, or is just going, is no reason to
/// leave the others.
pub(super) fn converge(
    config: &Config,
    mtu: u32,
    what: Do,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let links = host.links_of_kind("veth").map_err(refused)?;
    keep_spoof_check(&links, what, outcome)?;
    for link in links {
        let Some(alias) = link.alias.as_deref().and_then(Alias::parse) else { continue };
        if !is_host_end(&link) || alias.network != config.network || link.mtu == mtu {
            continue;
        }
        let command = format!("ip link set {} mtu {mtu} (and its other end)", link.name);
        let adjusted = match what {
            Do::Plan => Ok(true),
            Do::Apply | Do::Repair => adjust(&link, Path::new(&alias.netns), mtu, host),
        };
        match adjusted {
            Ok(true) => outcome.add([command]),
            Ok(false) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => outcome.failures.push(format!("`{command}` failed: {error}")),
        }
    }
    Ok(())
}

/// Brings the spoof check back where pods that were made with it live: a ruleset that
/// somebody flushed would leave it away until the next ADD.
fn keep_spoof_check(links: &[Link], what: Do, outcome: &mut Outcome) -> Result<(), Error> {
    let is_checked = |link: &Link| is_host_end(link) && link.group == HOST_END_GROUP;
    if !links.iter().any(is_checked) {
        return Ok(());
    }
    let proof = spoof_check::table(HOST_END_GROUP).proof();
    let installed = Socket::netfilter().and_then(|mut socket| nft::installed(&mut socket, &proof));
    if installed.map_err(refused)? {
        return Ok(());
    }
    if what != Do::Plan {
        spoof_check::ensure(None)?;
    }
    outcome.add([format!("nft: replace table inet {}", spoof_check::TABLE)]);
    Ok(())
}

/// Sets both ends; false where the pod's cannot be reached.
fn adjust(
    link: &Link,
    netns: &Path,
    mtu: u32,
    host: &mut Rtnetlink,
) -> Result<bool, kernel::Error> {
    let Some(pod_index) = link.lower else { return Ok(false) };
    let Ok(pod) = Netns::open(netns) else { return Ok(false) };
    // The path may by now lead to another pod's namespace.
    if link.lower_nsid.is_none() || host.nsid(&pod)? != link.lower_nsid {
        return Ok(false);
    }
    let home = Netns::current()?;
    let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
    let inside = || Rtnetlink::open().and_then(|mut rt| rt.request(change.message(pod_index)));
    pod.run(&home, inside)??;
    host.request(change.message(link.index))?;
    Ok(true)
}

/// Whether the plugins before say that the whole attachment has the MTU already: then
/// its namespace need not be entered.
fn has_mtu(attachment: &Attachment, result: &AddResult, mtu: u32) -> bool {
    let is_pod_end = |i: &Interface| !i.sandbox.is_empty() && i.name == attachment.key.ifname;
    result.interfaces.iter().any(is_pod_end)
        && result.interfaces.iter().all(|interface| interface.mtu == Some(mtu))
}

/// Sets the MTU of the attachment that an earlier plugin made, whatever that is,
/// and in its result.
pub(super) fn adjust_attachment(
    attachment: &Attachment,
    namespaces: &Namespaces,
    result: &mut AddResult,
    mtu: u32,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    if has_mtu(attachment, result, mtu) {
        return Ok(());
    }
    let name = &attachment.key.ifname;
    let Some(link) = namespaces.in_pod(|| set_pod_end(name, mtu))?? else { return Ok(()) };
    let host_end = host_end(&link, &namespaces.pod, host)?;
    if let Some(host_end) = host_end.as_ref().filter(|link| link.mtu != mtu) {
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        host.request(change.message(host_end.index)).map_err(refused)?;
    }
    for interface in &mut result.interfaces {
        let is_pod_end = !interface.sandbox.is_empty() && interface.name == *name;
        let is_host_end = interface.sandbox.is_empty()
            && host_end.as_ref().is_some_and(|link| link.name == interface.name);
        if is_pod_end || is_host_end {
            interface.mtu = Some(mtu);
        }
    }
    Ok(())
}

/// Sets the MTU of the pod's end; runs inside the pod's namespace.
fn set_pod_end(name: &str, mtu: u32) -> Result<Option<Link>, Error> {
    let mut pod = Rtnetlink::open().map_err(refused)?;
    let Some(link) = pod.link_by_name(name).map_err(refused)? else { return Ok(None) };
    if link.mtu != mtu {
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
        pod.request(change.message(link.index)).map_err(|e| {
            refused(e.about(format_args!("cannot set the MTU of {name} in the container to {mtu}")))
        })?;
    }
    Ok(Some(link))
}

/// The host's end of the pod's `link`, if it is one of a veth pair.
fn host_end(link: &Link, pod: &Netns, host: &mut Rtnetlink) -> Result<Option<Link>, Error> {
    let Some(index) = link.lower.filter(|_| link.kind.as_deref() == Some("veth")) else {
        return Ok(None);
    };
    let Some(candidate) = host.link(index).map_err(refused)? else { return Ok(None) };
    let leads_back = candidate.lower == Some(link.index)
        && candidate.lower_nsid.is_some()
        && candidate.lower_nsid == host.nsid(pod).map_err(refused)?;
    Ok(Some(candidate).filter(|_| leads_back))
}
