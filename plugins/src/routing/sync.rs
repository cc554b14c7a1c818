//! A sync: compare what the kernel holds with what it shall hold, and change
//! what differs, under one lock.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::time::Duration;

use cluster::{Family, Node};
use cni::{Code, Error};
use ipam_host_local::{Lock, Wait};
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
use super::record::{self, Trigger};
use super::stamp::{self, Facts, Stamp};
use super::teardown::Marks;
use super::{clash, device, firewall, pods};
use crate::failure::refused;
use crate::node::Loaded;
use crate::{forwarding, node, state_dir};

/// Lock of whoever changes what is between nodes.
const LOCK: &str = "sync.lock";

/// How long to wait for another sync that has the lock: none takes nearly so long.
const PATIENCE: Wait = Wait::AtMost(Duration::from_secs(30));

/// What a sync did, or would do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The changes made, or to be made, as commands; of a repair not all are named.
    pub(crate) changes: Vec<String>,
    /// How many there are.
    pub(crate) count: usize,
    /// What of the node map could not be used, for people.
    pub(crate) problems: Vec<String>,
    /// Changes that were to be made and could not, or have no effect.
    pub(crate) failures: Vec<String>,
    /// What stands and no sync can better, such as a peer without an address of the
    /// tunnel's family, for people.
    pub(crate) notes: Vec<String>,
    /// MTU of pods, bytes.
    pub(crate) pod_mtu: u32,
}

impl Outcome {
    /// Adds changes.
    pub(crate) fn add(&mut self, changes: impl IntoIterator<Item = String>) {
        let before = self.changes.len();
        self.changes.extend(changes);
        self.count += self.changes.len() - before;
    }

    /// All that an operator should know of.
    fn warn(&self) {
        let warnings = self.problems.iter().chain(&self.failures).chain(&self.notes);
        warnings.for_each(|warning| log::warn!("{warning}"));
    }
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
        let on_link = OnLink::read(config, host)?;
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
    let outcome = recorded(config, Do::Repair, Trigger::Add, host)?;
    outcome.warn();
    Ok(outcome.pod_mtu)
}

/// The MTU of pods by the stamp, where that proves that nothing changed.
fn proven(config: &Config, host: &mut Rtnetlink) -> Option<u32> {
    let stamp = Stamp::open(&config.network)?;
    if stamp.holds(config, host) { stamp.pod_mtu() } else { None }
}

/// Brings this node's kernel to the state that `config` and the node map ask for.
pub(crate) fn sync(config: &Config, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    let _lock = lock()?;
    recorded(config, Do::Apply, Trigger::Command, host)
}

/// What a sync would do.
pub(crate) fn plan(config: &Config, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    run(config, Do::Plan, &mut outcome, host)?;
    Ok(outcome)
}

/// A sync, unless somebody else is at one, who does the work. Never waits.
pub(super) fn repair(config: &Config, trigger: Trigger) -> Result<(), Error> {
    let mut host = Rtnetlink::open().map_err(refused)?;
    let Some(_lock) = state_dir::lock(LOCK, Wait::No)? else { return Ok(()) };
    recorded(config, Do::Repair, trigger, &mut host).map(|outcome| outcome.warn())
}

/// A sync that is put on record, however it ends.
fn recorded(
    config: &Config,
    what: Do,
    trigger: Trigger,
    host: &mut Rtnetlink,
) -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let done = run(config, what, &mut outcome, host);
    record::write(config, trigger, &outcome, done.as_ref().err());
    done.map(|()| outcome)
}

fn run(
    config: &Config,
    what: Do,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let view = View::read(config, host)?;
    let View { loaded, own, underlay, .. } = &view;
    outcome.problems.clone_from(&loaded.warnings);

    let wanted = device(config, own, underlay)?;
    let mut state = desired(view.inputs(config))?;
    let steps = device::Steps::new(config, wanted.as_ref(), device::ours(config, host)?);
    // Nothing is changed, or promised, before it is known that it can be.
    steps.check(host)?;
    clash::refuse_shared_protocol(config, host)?;
    forget_former(config, what, outcome, host)?;
    let device = make_device(config, &view, &state, &steps, what, outcome, host)?;
    state.place(device.as_ref().map_or(0, |link| link.index));
    converge_entries(config, &view, &mut state, device.as_ref(), what, outcome, host)?;
    if what != Do::Plan {
        steps.apply_after(config, host)?;
    }
    outcome.add(steps.after_words(&underlay.name));
    let tables = firewall::tables(config, &loaded.map, own, underlay, &state.held);
    outcome.add(firewall::converge(config, &tables, what)?);
    pods::converge(config, state.pod_mtu, what, outcome, host)?;
    if what != Do::Plan {
        config.source.keep(loaded)?;
        // Looked up again: what was done to it since is part of it.
        let device = find_device(config, wanted.is_some(), host)?;
        let (device, state, tables) = (device.as_ref(), &state, tables.as_slice());
        let facts = Facts { config, loaded, own, underlay, device, state, tables };
        stamp::write(facts, host)?;
    }
    Ok(())
}

/// Takes away what this network marked with another number, until its configuration
/// changed: nobody else would, and it stands in the way of what is marked with the new one.
fn forget_former(
    config: &Config,
    what: Do,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let Some(protocol) = record::former_protocol(config) else { return Ok(()) };
    let former = Marks { protocol, ..Marks::of(config) };
    if what != Do::Plan {
        stamp::remove(&config.network)?;
    }
    former.remove_entries(what, outcome, host)
}

/// Makes what the entries need: forwarding, the device with its guards; returns the
/// device, as far as there is one.
fn make_device(
    config: &Config,
    view: &View,
    state: &Desired,
    steps: &device::Steps,
    what: Do,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<Option<Link>, Error> {
    let View { loaded, own, underlay, .. } = view;
    let forwarding = forwarding::missing(has(own, Family::V4), has(own, Family::V6), host)?;
    if what != Do::Plan {
        forwarding.iter().try_for_each(forwarding::Setting::apply)?;
        if !steps.is_empty() {
            stamp::remove(&config.network)?;
        }
        steps.apply_removals(config, host)?;
    }
    outcome.add(forwarding.iter().map(forwarding::Setting::words));
    if what != Do::Plan && steps.make_one() {
        // No device is up for a moment without them.
        let tables = firewall::tables(config, &loaded.map, own, underlay, &state.held);
        outcome.add(firewall::converge(config, &tables, what)?);
    }
    let device = match what {
        Do::Plan => steps.kept().cloned(),
        Do::Apply | Do::Repair => {
            steps.apply_makes(config, host)?;
            find_device(config, state.device.is_some(), host)?
        }
    };
    outcome.add(steps.before_words(&underlay.name));
    Ok(device)
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
    outcome.notes.extend(state.notes.iter().cloned());
    outcome.failures.extend(state.shadowed.iter().cloned());
    outcome.pod_mtu = state.pod_mtu;
    if device.is_some() && what != Do::Plan {
        device::refuse_advertisements(&config.device)?;
    }
    if !changes.is_empty() && what != Do::Plan {
        stamp::remove(&config.network)?;
        allow_ipv6(config, state)?;
    }
    let name_of = namer(&config.device, index, &view.underlay.name);
    make(&changes, what, &name_of, outcome, host)
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
///
/// # Errors
/// Code 11: somebody has it, and does not give it back.
pub(crate) fn lock() -> Result<Option<Lock>, Error> {
    state_dir::lock(LOCK, PATIENCE)
}

/// Removes the lock's file; to be called by whoever has the lock.
pub(crate) fn remove_lock() -> Result<(), Error> {
    state_dir::remove(LOCK)
}

/// Tells interfaces' names, for people: one that cannot be looked up is no matter.
pub(super) fn namer(device_name: &str, device: u32, underlay: &str) -> impl Fn(u32) -> String {
    let links = LazyCell::new(|| Rtnetlink::open().and_then(|mut rt| rt.links()));
    move |dev| {
        if dev == device || dev == 0 {
            return device_name.to_owned();
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

/// Makes the changes, or with [`Do::Plan`] names them alone. One that the kernel
/// refuses for what it says does not keep the others from being made, and is told as a
/// failure: a route of another program in the way of one peer must not stop this node.
///
/// # Errors
/// The kernel takes no change at all: no privilege, no memory.
pub(super) fn make(
    changes: &[Change],
    what: Do,
    name_of: &dyn Fn(u32) -> String,
    outcome: &mut Outcome,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let mut undone = HashSet::new();
    if what != Do::Plan && !changes.is_empty() {
        let mut messages: Vec<Message> = changes.iter().map(Change::message).collect();
        for Refusal { index, error } in host.batch(&mut messages).map_err(refused)? {
            let Some(change) = changes.get(index) else { continue };
            undone.insert(index);
            if change.removes() && error.is_gone() {
                continue;
            }
            let errno = error.errno;
            let error = error.about(format_args!("`{}` failed", change.words(name_of)));
            if matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOMEM | Errno::ENOBUFS) {
                return Err(refused(error));
            }
            outcome.failures.push(error.to_string());
        }
    }
    let made = changes.iter().enumerate().filter(|(index, _)| !undone.contains(index));
    match what {
        Do::Repair => outcome.count += made.count(),
        Do::Apply | Do::Plan => outcome.add(made.map(|(_, change)| change.words(name_of))),
    }
    Ok(())
}
