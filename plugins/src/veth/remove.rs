//! DEL and GC: the link goes first and takes addresses, routes and neighbours
//! with it; the address is released only when nothing answers to it any more.

use std::collections::BTreeSet;

use cni::{Attachment, AttachmentKey, Code, Error, Network};
use kernel::Rtnetlink;
use kernel::link::{
    HOST_END_GROUP_REMOVED, Link, LinkChange, delete, delete_by_name, delete_group,
};

use crate::attachment::{Alias, Id, is_host_end, is_name_busy, is_unfinished};
use crate::failure::refused;
use crate::ipam::Ipam;
use crate::trace::phase;

/// Removes the attachment, as far as it is there.
pub(super) fn del(attachment: &Attachment, network: &Network) -> Result<(), Error> {
    phase("parse");
    // An IPAM plugin that is missing is no reason to leave the link, and the address waits
    // for it. Where the configuration names none any more, which callers take from its
    // current file, no DEL could ever succeed, and the container would never go.
    let ipam = Ipam::of(network);
    let is_named = network.ipam_type().map_or(true, |name| name.is_some());
    let id = Id::of(&network.name, &attachment.key);
    let _lock = id.lock()?;
    phase("preparation");
    match ipam {
        Ok(ipam) if ipam.needs_link() => {
            let released = ipam.del(attachment, network);
            remove_link(id).and(released)
        }
        ipam => {
            remove_link(id)?;
            phase("link");
            if !is_named {
                log::warn!(
                    "the configuration names no IPAM plugin: whatever address the container had \
                     is left to the GC of the plugin that gave it"
                );
                return Ok(());
            }
            let released = ipam?.del(attachment, network);
            phase("ipam");
            released
        }
    }
}

fn remove_link(id: Id) -> Result<(), Error> {
    let name = id.host_end();
    match Rtnetlink::open().and_then(|mut host| host.request(delete_by_name(&name))) {
        Err(e) if !e.is_gone() => Err(refused(e.about(format_args!("cannot delete link {name}")))),
        _ => Ok(()),
    }
}

/// Whether nobody will finish the host end `link`: whoever made it was killed. Of which
/// network it was cannot be told, and does not matter, as it never was a pod's.
fn is_given_up(link: &Link, host: &mut Rtnetlink) -> Result<bool, Error> {
    if is_name_busy(&link.name)? {
        return Ok(false);
    }
    // It may have been finished before the lock was looked at.
    let now = host.link(link.index).map_err(refused)?;
    Ok(now.is_some_and(|now| now.name == link.name && is_unfinished(&now)))
}

/// Removes the pairs of this network that belong to no attachment in `valid`. One
/// that is being made right now is left alone, whatever the caller knows.
pub(super) fn gc(valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
    let mut host = Rtnetlink::open().map_err(refused)?;
    let valid_keys: BTreeSet<_> = valid.iter().collect();
    let mut stale = Vec::new();
    let links = host.links().map_err(refused)?;
    for link in links.iter().filter(|link| is_host_end(link)) {
        let is_stale = match link.alias.as_deref().and_then(Alias::parse) {
            Some(alias) if alias.network == network.name && !valid_keys.contains(&alias.key) => {
                !Id::of(&network.name, &alias.key).is_busy()?
            }
            Some(_) => false,
            None => is_unfinished(link) && is_given_up(link, &mut host)?,
        };
        if is_stale {
            stale.push(link);
        }
    }
    let failed = remove_links(&stale, &links, &mut host)?;
    // An IPAM plugin that is missing is no reason to leave the links.
    let released = Ipam::of(network).and_then(|ipam| ipam.gc(valid, network));
    if failed.is_empty() { released } else { Err(Error::new(Code::Kernel, failed.join("; "))) }
}

/// Removes `stale` of all the host's `links`; returns what failed. Each deletion of a link
/// makes everybody who changes links wait, so that many are put in a group (and
/// taken down: the spoof check knows that group not) and deleted in one call.
fn remove_links(
    stale: &[&Link],
    links: &[Link],
    host: &mut Rtnetlink,
) -> Result<Vec<String>, Error> {
    let is_stale = |link: &Link| stale.iter().any(|stale| stale.index == link.index);
    let mut grouped = links.iter().filter(|link| link.group == HOST_END_GROUP_REMOVED);
    // A group with a link of anybody else's in it is not deleted.
    let mut messages: Vec<_> = if stale.len() > 1 && grouped.all(is_stale) {
        let group = Some(HOST_END_GROUP_REMOVED);
        let change = LinkChange { up: Some(false), group, ..LinkChange::default() };
        let moves = stale.iter().map(|link| change.message(link.index));
        moves.chain([delete_group(HOST_END_GROUP_REMOVED)]).collect()
    } else {
        stale.iter().map(|link| delete(link.index)).collect()
    };
    let refusals = host.batch(&mut messages).map_err(refused)?;
    let failed = refusals.into_iter().filter(|refusal| !refusal.error.is_gone());
    let words = failed.map(|refusal| {
        let name = stale.get(refusal.index).map_or("group of stale links", |link| &link.name);
        refusal.error.about(format_args!("cannot delete link {name}")).to_string()
    });
    Ok(words.collect())
}
