//! A sync: compare what the kernel holds with what it shall hold, and change
//! what differs, under one lock.

use cluster::Family;
use cni::{Code, Error};
use kernel::link::Link;
use kernel::netlink::Message;
use kernel::{Rtnetlink, sysctl};

use super::config::Config;
use super::desired::{Desired, Inputs, desired, device};
use super::device;
use super::difference::{Change, difference};
use super::firewall;
use super::host::{OnLink, underlay};
use super::observed::Observed;
use super::pods;
use crate::failure::refused;
use crate::forwarding;
use crate::node;
use crate::state_dir;

/// Lock of whoever changes what is between nodes.
const LOCK: &str = "sync.lock";

/// What a sync did, or would do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The changes, as commands.
    pub(crate) changes: Vec<String>,
    /// What is not as the configuration wants it and cannot be, for people.
    pub(crate) warnings: Vec<String>,
    /// MTU of pods, bytes.
    pub(crate) pod_mtu: u32,
}

/// Whether to make the changes or only to name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Do {
    /// Make them.
    Apply,
    /// Name them.
    Plan,
}

/// Brings this node's kernel to the state that `config` and the node map ask for.
pub(crate) fn sync(config: &Config, what: Do, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    let _lock = match what {
        Do::Apply => Some(lock()?),
        Do::Plan => None,
    };
    let loaded = config.source.load()?;
    let own = &node::own(&loaded.map, &config.source, config.protocol, host)?;
    let underlay = underlay(config, &loaded.map, own, host)?;
    let on_link = OnLink::read(config.protocol, host)?;

    let wanted = device(config, own, &underlay)?;
    let ours = device::ours(config, host)?;
    let steps = device::steps(config, wanted.as_ref(), &ours);
    let mut outcome = Outcome { warnings: loaded.warnings.clone(), ..Outcome::default() };
    let (made, gone): (Vec<_>, Vec<_>) =
        steps.into_iter().partition(|step| !matches!(step, device::Step::Delete(_)));
    outcome.changes.extend(made.iter().flat_map(|step| step.words(&underlay.name)));
    // A device that is in the way of its successor cannot wait for its routes.
    let early = if made.is_empty() { &[][..] } else { &gone };
    let late = if made.is_empty() { &gone } else { &[][..] };
    outcome.changes.splice(0..0, early.iter().flat_map(|step| step.words(&underlay.name)));
    let present = match what {
        Do::Plan => ours.into_iter().find(|link| link.name == config.device),
        Do::Apply => {
            forwarding::enable(
                own.ranges(Family::V4).next().is_some(),
                own.ranges(Family::V6).next().is_some(),
                host,
            )?;
            device::apply(early, config, host)?;
            device::apply(&made, config, host)?;
            find_device(config, wanted.is_some(), host)?
        }
    };
    let index = present.as_ref().filter(|_| wanted.is_some()).map_or(0, |link| link.index);
    let inputs = Inputs {
        config,
        map: &loaded.map,
        own,
        underlay: &underlay,
        on_link: &on_link,
        device: index,
    };
    let state = desired(inputs)?;
    let observed = Observed::read(present.as_ref(), config.protocol, host)?;
    let changes = difference(&state, &observed, index);
    let name_of = namer(config, index, &underlay.name);
    outcome.changes.extend(changes.iter().map(|change| change.words(&name_of)));
    outcome.changes.extend(late.iter().flat_map(|step| step.words(&underlay.name)));
    outcome.warnings.extend(state.notes.iter().cloned());
    outcome.pod_mtu = state.pod_mtu;
    if what == Do::Apply {
        check_ipv6(config, &state)?;
        apply(&changes, &name_of, host)?;
        device::apply(late, config, host)?;
        config.source.keep(&loaded)?;
    }
    let tables = firewall::tables(config, &loaded.map, own);
    outcome.changes.extend(firewall::converge(config, &tables, what)?);
    outcome.changes.extend(pods::adjust_mtu(config, state.pod_mtu, what, host)?);
    Ok(outcome)
}

fn find_device(config: &Config, wanted: bool, host: &mut Rtnetlink) -> Result<Option<Link>, Error> {
    let link = host.link_by_name(&config.device).map_err(refused)?;
    if wanted && link.is_none() {
        let msg = format!("VXLAN device {} vanished while it was set up", config.device);
        return Err(Error::new(Code::Kernel, msg));
    }
    Ok(link.filter(|link| link.vxlan.is_some()))
}

/// Takes the lock of whoever changes what is between nodes.
pub(super) fn lock() -> Result<std::fs::File, Error> {
    state_dir::lock(LOCK)
}

/// Tells interfaces' names, for people: one that cannot be looked up is no matter.
pub(super) fn namer(config: &Config, device: u32, underlay: &str) -> impl Fn(u32) -> String {
    move |dev| {
        if dev == device || dev == 0 {
            return config.device.clone();
        }
        let link = Rtnetlink::open().and_then(|mut rt| rt.link(dev)).ok().flatten();
        link.map_or_else(|| underlay.to_owned(), |link| link.name)
    }
}

/// The device may have been made while IPv6 was off by default.
fn check_ipv6(config: &Config, state: &Desired) -> Result<(), Error> {
    if state.device.is_some() && state.addresses.iter().any(ipnetwork::IpNetwork::is_ipv6) {
        let key = format!("net/ipv6/conf/{}/disable_ipv6", config.device);
        sysctl::set(&key, "0").map_err(refused)?;
    }
    Ok(())
}

/// Makes the changes; the first refused one is the error, the others are made all
/// the same.
pub(super) fn apply(
    changes: &[Change],
    name_of: &dyn Fn(u32) -> String,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let mut messages: Vec<Message> = changes.iter().map(Change::message).collect();
    let refusals = host.batch(&mut messages).map_err(refused)?;
    let mut failed = refusals.into_iter().filter_map(|refusal| {
        let change = changes.get(refusal.index)?;
        let harmless = change.removes() && refusal.error.is_gone();
        (!harmless).then_some((change, refusal.error))
    });
    let Some((change, error)) = failed.next() else { return Ok(()) };
    let others = failed.count();
    let error = refused(error.about(format_args!("`{}` failed", change.words(name_of))));
    Err(if others > 0 {
        error.with_details(format!("and {others} other changes were refused"))
    } else {
        error
    })
}
