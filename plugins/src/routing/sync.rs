//! A sync: compare what the kernel holds with what it shall hold, and change
//! what differs, under one lock.

use std::cell::LazyCell;

use cluster::{Family, Node};
use cni::{Code, Error};
use ipnetwork::IpNetwork;
use kernel::link::Link;
use kernel::netlink::{Message, Refusal};
use kernel::{Rtnetlink, sysctl};
use nix::errno::Errno;

use super::config::Config;
use super::desired::{Desired, Inputs, desired, device};
use super::difference::{Change, difference};
use super::host::{OnLink, Underlay, underlay};
use super::observed::Observed;
use super::stamp::{self, Facts, Stamp};
use super::{clash, device, firewall, pods};
use crate::failure::refused;
use crate::node::Loaded;
use crate::{forwarding, node, state_dir};

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
    /// Make them and name them.
    Apply,
    /// Make them; nobody reads their names.
    Repair,
    /// Name them.
    Plan,
}

/// What a sync decides from.
struct View {
    loaded: Loaded,
    own: Node,
    underlay: Underlay,
    on_link: OnLink,
}

impl View {
    fn read(config: &Config, host: &mut Rtnetlink) -> Result<Self, Error> {
        let loaded = config.source.load()?;
        let own = node::own(&loaded.map, &config.source, Some(config.protocol), host)?;
        let underlay = underlay(config, &loaded.map, &own, host)?;
        let on_link = OnLink::read(config.protocol, host)?;
        Ok(Self { loaded, own, underlay, on_link })
    }

    fn inputs<'a>(&'a self, config: &'a Config) -> Inputs<'a> {
        let Self { loaded, own, underlay, on_link } = self;
        Inputs { config, map: &loaded.map, own, underlay, on_link }
    }
}

/// Sees to it that the kernel is as `config` and the node map ask for, by the stamp
/// where that proves it; returns the MTU of pods, in bytes.
pub(super) fn ensure(config: &Config, host: &mut Rtnetlink) -> Result<u32, Error> {
    if let Some(mtu) = proven(config, host) {
        return Ok(mtu);
    }
    let _lock = lock()?;
    // Whoever had the lock may have done it: of many ADDs at once one syncs.
    if let Some(mtu) = proven(config, host) {
        return Ok(mtu);
    }
    let outcome = run(config, Do::Repair, host)?;
    outcome.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    Ok(outcome.pod_mtu)
}

/// The MTU of pods by the stamp, where that proves that nothing changed.
fn proven(config: &Config, host: &mut Rtnetlink) -> Option<u32> {
    let stamp = Stamp::open(&config.network)?;
    if stamp.holds(config, host) { stamp.pod_mtu() } else { None }
}

/// Brings this node's kernel to the state that `config` and the node map ask for,
/// or says what that would take.
pub(crate) fn sync(config: &Config, what: Do, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    match what {
        Do::Plan => run(config, what, host),
        Do::Apply | Do::Repair => {
            let _lock = lock()?;
            run(config, what, host)
        }
    }
}

/// A sync if nobody else is at one; `None` where somebody is. Never waits.
pub(super) fn try_sync(config: &Config, host: &mut Rtnetlink) -> Result<Option<Outcome>, Error> {
    let Some(_lock) = state_dir::try_lock(LOCK)? else { return Ok(None) };
    run(config, Do::Repair, host).map(Some)
}

fn run(config: &Config, what: Do, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    let view = View::read(config, host)?;
    let View { loaded, own, underlay, .. } = &view;
    let mut outcome = Outcome { warnings: loaded.warnings.clone(), ..Outcome::default() };

    let wanted = device(config, own, underlay)?;
    let mut state = desired(view.inputs(config))?;
    let steps = device::Steps::new(config, wanted.as_ref(), device::ours(config, host)?);
    // Nothing is changed, or promised, before it is known that it can be.
    steps.check(host)?;
    clash::refuse_shared_protocol(config, host)?;
    outcome.changes.extend(steps.before_words(&underlay.name));
    let device = match what {
        Do::Plan => steps.kept().cloned(),
        Do::Apply | Do::Repair => make_device(config, &view, &steps, wanted.is_some(), host)?,
    };
    state.place(device.as_ref().map_or(0, |link| link.index));
    converge_entries(config, &view, &mut state, device.as_ref(), what, &mut outcome, host)?;
    outcome.changes.extend(steps.after_words(&underlay.name));
    if what != Do::Plan {
        steps.apply_after(config, host)?;
    }
    let tables = firewall::tables(config, &loaded.map, own, underlay, &state.held);
    outcome.changes.extend(firewall::converge(config, &tables, what)?);
    pods::converge(config, state.pod_mtu, what, &mut outcome, host)?;
    if what != Do::Plan {
        config.source.keep(loaded)?;
        // Looked up again: what was done to it since is part of it.
        let device = find_device(config, wanted.is_some(), host)?;
        let (device, state, tables) = (device.as_ref(), &state, tables.as_slice());
        let facts = Facts { config, loaded, own, underlay, device, state, tables };
        stamp::write(facts, host)?;
    }
    Ok(outcome)
}

/// Takes the steps that the entries need to have been taken.
fn make_device(
    config: &Config,
    view: &View,
    steps: &device::Steps,
    wanted: bool,
    host: &mut Rtnetlink,
) -> Result<Option<Link>, Error> {
    forwarding::enable(has(&view.own, Family::V4), has(&view.own, Family::V6), host)?;
    if !steps.is_empty() {
        stamp::remove(&config.network)?;
    }
    steps.apply_before(config, host)?;
    find_device(config, wanted, host)
}

/// Brings addresses, neighbours, forwarding entries, nexthops and routes in line.
fn converge_entries(
    config: &Config,
    view: &View,
    state: &mut Desired,
    device: Option<&Link>,
    what: Do,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let index = device.map_or(0, |link| link.index);
    let observed = Observed::read(device, config.protocol, host)?;
    state.held.spread(&observed);
    let changes = difference(state, &observed, index);
    let name_of = namer(config, index, &view.underlay.name);
    if what != Do::Repair {
        outcome.changes.extend(changes.iter().map(|change| change.words(&name_of)));
    }
    outcome.warnings.extend(state.notes.iter().cloned());
    outcome.pod_mtu = state.pod_mtu;
    if what == Do::Plan {
        return Ok(());
    }
    if device.is_some() {
        device::refuse_advertisements(&config.device)?;
    }
    if !changes.is_empty() {
        stamp::remove(&config.network)?;
        allow_ipv6(config, state)?;
        outcome.warnings.extend(apply(&changes, &name_of, host)?);
    }
    Ok(())
}

fn has(node: &Node, family: Family) -> bool {
    node.ranges(family).next().is_some()
}

/// The VXLAN device under its name, if it is wanted.
fn find_device(config: &Config, wanted: bool, host: &mut Rtnetlink) -> Result<Option<Link>, Error> {
    if !wanted {
        return Ok(None);
    }
    let link = host.link_by_name(&config.device).map_err(refused)?;
    let link = link.filter(|link| link.vxlan.is_some());
    if link.is_none() {
        let msg = format!("VXLAN device {} vanished while it was set up", config.device);
        return Err(Error::new(Code::Kernel, msg));
    }
    Ok(link)
}

/// Takes the lock of whoever changes what is between nodes.
pub(super) fn lock() -> Result<std::fs::File, Error> {
    state_dir::lock(LOCK)
}

/// Tells interfaces' names, for people: one that cannot be looked up is no matter.
pub(super) fn namer(config: &Config, device: u32, underlay: &str) -> impl Fn(u32) -> String {
    let links = LazyCell::new(|| Rtnetlink::open().and_then(|mut rt| rt.links()));
    move |dev| {
        if dev == device || dev == 0 {
            return config.device.clone();
        }
        let link = links.iter().flatten().find(|link| link.index == dev);
        link.map_or_else(|| underlay.to_owned(), |link| link.name.clone())
    }
}

/// The device may have been made while IPv6 was off by default.
fn allow_ipv6(config: &Config, state: &Desired) -> Result<(), Error> {
    if state.device.is_some() && state.addresses.iter().any(IpNetwork::is_ipv6) {
        let key = format!("net/ipv6/conf/{}/disable_ipv6", config.device);
        sysctl::set(&key, "0").map_err(refused)?;
    }
    Ok(())
}

/// Makes the changes. One that the kernel refuses for what it says does not keep
/// the others from being made, and is told as a warning: a route of another
/// program in the way of one peer must not stop this node.
///
/// # Errors
/// The kernel takes no change at all: no privilege, no memory.
pub(super) fn apply(
    changes: &[Change],
    name_of: &dyn Fn(u32) -> String,
    host: &mut Rtnetlink,
) -> Result<Vec<String>, Error> {
    let mut messages: Vec<Message> = changes.iter().map(Change::message).collect();
    let mut warnings = Vec::new();
    for Refusal { index, error } in host.batch(&mut messages).map_err(refused)? {
        let Some(change) = changes.get(index) else { continue };
        if change.removes() && error.is_gone() {
            continue;
        }
        let errno = error.errno;
        let error = error.about(format_args!("`{}` failed", change.words(name_of)));
        if matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOMEM | Errno::ENOBUFS) {
            return Err(refused(error));
        }
        warnings.push(error.to_string());
    }
    Ok(warnings)
}
