//! The plugin: what each verb does with the lease directory.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use cni::{
    AddResult, Attachment, AttachmentKey, Code, Dns, Error, IpConfig, Network, Object, Plugin,
};
use ipnetwork::IpNetwork;

use crate::boot::Boot;
use crate::config::OwnRanges;
use crate::lock::Wait;
use crate::notes::Origin;
use crate::range::{Range, RangeSet, canonical};
use crate::reclaim::{Look, Sight, collect, orphans, reclaim, without_route};
use crate::store::{Held, Holder, Store, state};
use crate::{config, resolv};

/// How long a verb waits for the lock: well below the minute that runtimes give DEL.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Most leases that one ADD takes back: what a verb costs stays bounded, and the next ADDs
/// need no look around.
const RECLAIM_MOST: usize = 256;

/// What host-local has to be told, as it knows neither the kernel nor the node map.
pub struct Host<'a> {
    /// This node's pod networks, by the keys of `ipam`. Asked only when no ranges are configured.
    pub own_ranges: OwnRanges<'a>,
    /// Looks around the host. Asked only where a lease may be nobody's, each time anew: an earlier
    /// look proves nothing for a pod that was being made then.
    pub look: &'a dyn Fn() -> Sight<'a>,
    /// The file with the id of this boot.
    pub boot_id: PathBuf,
    /// How long to wait for the lock of the lease directory.
    pub lock_wait: Duration,
}

impl<'a> Host<'a> {
    /// The host as it is.
    pub fn new(own_ranges: OwnRanges<'a>, look: &'a dyn Fn() -> Sight<'a>) -> Self {
        Self {
            own_ranges,
            look,
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            lock_wait: LOCK_WAIT,
        }
    }
}

/// The host-local plugin.
pub struct HostLocal<'a> {
    /// What it knows of the world around it.
    pub host: Host<'a>,
}

/// How much of a range is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The range.
    pub range: Range,
    /// Addresses of it, start and end included; in a range with the defaults that
    /// leaves out network and broadcast address.
    pub size: u128,
    /// Addresses of it that cannot be had, the gateway included.
    pub taken: u128,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address leased.
    pub address: IpAddr,
    /// Container that holds it.
    pub container_id: String,
    /// Interface of the container; old versions of the reference plugin did not write it.
    pub ifname: Option<String>,
    /// Time since it was made, by the wall clock, if that says anything sensible.
    pub age: Option<Duration>,
    /// We wrote it in this boot; else the reference plugin did, at a time unknown.
    pub ours: bool,
    /// Whether the interface exists, where [`Sight::interface_lives`] can tell.
    pub interface_lives: Option<bool>,
}

/// What was found of orphaned leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orphans {
    /// The leases whose interface is gone.
    pub orphans: Vec<Lease>,
    /// How many leases were looked at.
    pub leases: usize,
    /// Every one of them has its pod's route.
    pub proven: bool,
    /// [`HostLocal::state`] with these leases.
    pub state: Option<String>,
}

impl Lease {
    /// `None` where the file is no lease.
    pub(crate) fn of(held: &Held, interface_lives: Option<bool>) -> Option<Self> {
        let (container_id, ifname) = match &held.holder {
            Holder::Attachment(key) => (key.container_id.clone(), Some(key.ifname.clone())),
            Holder::Container(id) => (id.clone(), None),
            Holder::Nobody | Holder::Unknown => return None,
        };
        Some(Self {
            address: held.address,
            container_id,
            ifname,
            age: held.age,
            ours: held.origin == Origin::Ours,
            interface_lives,
        })
    }
}

impl Plugin for HostLocal<'_> {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        let sets = config::range_sets(network, self.host.own_ranges)?;
        let requested = config::requested(attachment, network)?;
        let ipam = config::ipam(network)?;
        let dns = match ipam.text("resolvConf")? {
            Some(path) => resolv::read(path.as_ref())?,
            None => Dns::default(),
        };
        let routes = config::routes(&ipam)?;
        let mut store = self.open_or_create(network)?;
        let allocated = self.allocate(&mut store, network, &attachment.key, &sets, requested);
        store.close();
        Ok(AddResult { interfaces: Vec::new(), ips: allocated?, routes, dns })
    }

    fn check(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        let sets = config::range_sets(network, self.host.own_ranges)?;
        let Some(mut store) = self.open(network)? else { return Err(no_lease(&attachment.key)) };
        let held = store.held_by(&attachment.key);
        store.close();
        let (exact, any) = held?;
        let held = if exact.is_empty() { any } else { exact };
        if held.is_empty() {
            return Err(no_lease(&attachment.key));
        }
        match &network.prev_result {
            Some(result) => compare(&attachment.key, &held, &sets, result),
            None => Ok(()),
        }
    }

    fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        let Some(mut store) = self.open(network)? else { return Ok(()) };
        let released = release_all(&mut store, &attachment.key);
        store.close();
        released
    }

    fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        let Some(mut store) = self.open(network)? else { return Ok(()) };
        let collected = collect(&mut store, valid, (self.host.look)());
        store.close();
        collected
    }

    fn status(&self, network: &Network) -> Result<(), Error> {
        // A configuration that is wrong keeps its own code; a node map that says nothing of
        // this node is what STATUS is there to tell.
        let own_ranges = |ipam: &Object<'_>| {
            let ranges = (self.host.own_ranges)(ipam);
            ranges.map_err(|error| Error { code: Code::Unavailable as u32, ..error })
        };
        let sets = config::range_sets(network, &own_ranges)?;
        // Somebody holding the lock is at work: no reason to hold STATUS up, which in
        // turn would hold up every ADD (containerd).
        let opened = self.open_within(network, Wait::No);
        let Some(mut store) = opened.map_err(unavailable)? else { return Ok(()) };
        let exhausted = self.exhausted(&mut store, &sets);
        store.close();
        match exhausted? {
            Some(set) => Err(unavailable(set)),
            None => Ok(()),
        }
    }

    fn enters_netns(&self) -> bool {
        false
    }
}

impl HostLocal<'_> {
    /// The ranges of `network` and how much of each is in use.
    pub fn usage(&self, network: &Network) -> Result<Vec<Usage>, Error> {
        let sets = config::range_sets(network, self.host.own_ranges)?;
        let ranges = sets.iter().flat_map(RangeSet::ranges).cloned();
        let Some(store) = self.open(network)? else {
            let usage = |range: Range| {
                let taken = u128::from(range.contains(range.gateway));
                Usage { size: range.size(), range, taken }
            };
            return Ok(ranges.map(usage).collect());
        };
        let usage = ranges
            .map(|range| Ok(Usage { size: range.size(), taken: store.taken(&range)?, range }));
        let usage = usage.collect();
        store.close();
        usage
    }

    /// The leases of `network`, by address.
    pub fn leases(&self, network: &Network) -> Result<Vec<Lease>, Error> {
        let Some(store) = self.open(network)? else { return Ok(Vec::new()) };
        let sight = (self.host.look)();
        let mut leases = Vec::new();
        for noted in store.noted()? {
            let Some(held) = store.read(noted.address)? else { continue };
            leases.extend(Lease::of(&held, sight.lives(&held.holder)));
        }
        store.close();
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// Frees `address`, for an operator, and says whose it was; `None` if nobody's. Fails with
    /// 11 if its interface lives or something on the host refers to it.
    pub fn release(&self, network: &Network, address: IpAddr) -> Result<Option<Lease>, Error> {
        let address = canonical(address);
        let leases = self.leases(network)?;
        let Some(lease) = leases.into_iter().find(|lease| lease.address == address) else {
            return Ok(None);
        };
        let Some(mut store) = self.open(network)? else { return Ok(None) };
        let released = match store.read(address)? {
            Some(held) if !Look::new((self.host.look)()).is_dead(&held) => Err(Error::new(
                Code::TryAgain,
                format!(
                    "{address} is in use by container {}: delete the pod first",
                    lease.container_id
                ),
            )),
            Some(held) => store.release(address, &held.holder),
            None => Ok(false),
        };
        store.close();
        Ok(released?.then_some(lease))
    }

    /// Frees orphaned leases, `most` at most. With [`Wait::No`], none where somebody else is at
    /// work on the leases.
    pub fn free_orphans(
        &self,
        network: &Network,
        wait: Wait,
        most: usize,
    ) -> Result<Orphans, Error> {
        let (mut found, orphans) = self.find_orphans(network, wait)?;
        let orphans: Vec<Held> = orphans.take(most).collect();
        if orphans.is_empty() {
            return Ok(found);
        }
        let Some(mut store) = self.open_within(network, wait)? else { return Ok(found) };
        let mut outcome = Ok(());
        for held in orphans {
            match store.release_unchanged(&held) {
                Ok(true) => {
                    log::info!(
                        "{} freed: the interface of {:?} is gone",
                        held.address,
                        held.holder
                    );
                    found.orphans.extend(Lease::of(&held, Some(false)));
                }
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        store.close();
        outcome.map(|()| found)
    }

    /// The orphaned leases.
    pub fn orphans(&self, network: &Network, wait: Wait) -> Result<Vec<Lease>, Error> {
        let (_, orphans) = self.find_orphans(network, wait)?;
        Ok(orphans.filter_map(|held| Lease::of(&held, Some(false))).collect())
    }

    /// The orphaned leases. They are looked for without the lock, which may take some time where
    /// there are many processes.
    fn find_orphans(
        &self,
        network: &Network,
        wait: Wait,
    ) -> Result<(Orphans, impl Iterator<Item = Held>), Error> {
        let sight = (self.host.look)();
        let mut found = Orphans::default();
        let mut suspects = Vec::new();
        if sight.interface_lives.is_some() {
            if let Some(mut store) = self.open_within(network, wait)? {
                (suspects, found.leases) = without_route(&mut store, &sight)?;
                found.state = store.close_with_state();
                found.proven = suspects.is_empty();
            }
        }
        Ok((found, orphans(suspects, sight)))
    }

    /// What tells whether a lease was made or removed: another text then. `None` where there is
    /// no lease directory.
    pub fn state(&self, network: &Network) -> Result<Option<String>, Error> {
        Ok(state(&config::directory(network)?))
    }

    fn boot(&self) -> Result<Boot, Error> {
        Boot::read(&self.host.boot_id)
    }

    fn open(&self, network: &Network) -> Result<Option<Store>, Error> {
        self.open_within(network, Wait::AtMost(self.host.lock_wait))
    }

    /// The store; `None` if there is none, or `wait` is [`Wait::No`] and somebody is at work.
    pub(crate) fn open_within(
        &self,
        network: &Network,
        wait: Wait,
    ) -> Result<Option<Store>, Error> {
        Store::open(&config::directory(network)?, false, self.boot()?, wait)
    }

    fn open_or_create(&self, network: &Network) -> Result<Store, Error> {
        let wait = Wait::AtMost(self.host.lock_wait);
        let path = config::directory(network)?;
        Store::open(&path, true, self.boot()?, wait)?.ok_or_else(|| {
            Error::new(Code::Io, format!("the lease directory {} has vanished", path.display()))
        })
    }

    /// One address of each set, or none at all.
    fn allocate(
        &self,
        store: &mut Store,
        network: &Network,
        key: &AttachmentKey,
        sets: &[RangeSet],
        mut requested: Vec<IpAddr>,
    ) -> Result<Vec<IpConfig>, Error> {
        let mut ips = Vec::new();
        let mut outcome = Ok(());
        for (i, set) in sets.iter().enumerate() {
            let wanted = requested.iter().position(|address| set.range_of(*address).is_some());
            let wanted = wanted.map(|at| requested.remove(at));
            match self.allocate_one(store, network, key, (i, set), wanted) {
                Ok(ip) => ips.push(ip),
                Err(error) => outcome = Err(error.context(format_args!("range set {i}"))),
            }
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() && !requested.is_empty() {
            outcome = Err(left_over(&requested, sets));
        }
        let Err(error) = outcome else { return Ok(ips) };
        for ip in ips {
            store.release(ip.address.ip(), &Holder::Attachment(key.clone()))?;
        }
        Err(error)
    }

    fn allocate_one(
        &self,
        store: &mut Store,
        network: &Network,
        key: &AttachmentKey,
        (i, set): (usize, &RangeSet),
        wanted: Option<IpAddr>,
    ) -> Result<IpConfig, Error> {
        let (exact, any) = store.held_by(key)?;
        if let Some(held) = exact.iter().chain(&any).find(|held| set.range_of(**held).is_some()) {
            return Err(duplicate(*held, key));
        }
        let address = match wanted {
            Some(address) => self.take(store, key, set, address)?,
            None => self.take_next(store, network, key, (i, set))?,
        };
        store.set_last_reserved(i, address);
        set.range_of(address).and_then(|range| ip_config(address, range)).ok_or_else(|| {
            Error::new(Code::Internal, format!("{address} was allocated outside of {set}"))
        })
    }

    /// The address that was asked for.
    fn take(
        &self,
        store: &mut Store,
        key: &AttachmentKey,
        set: &RangeSet,
        address: IpAddr,
    ) -> Result<IpAddr, Error> {
        if set.range_of(address).is_some_and(|range| range.gateway == address) {
            let msg = format!("requested address {address} is the gateway of its subnet");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        if store.lease(address, key)? {
            return Ok(address);
        }
        let dead =
            |held: &Held| held.address == address && Look::new((self.host.look)()).is_dead(held);
        if let Some(held) = store.read(address)?.filter(dead) {
            if store.release(address, &held.holder)? && store.lease(address, key)? {
                return Ok(address);
            }
        }
        Err(Error::new(
            Code::TryAgain,
            format!("requested address {address} of {set} is taken: ask for another, or free it"),
        ))
    }

    /// The next free address in turn.
    fn take_next(
        &self,
        store: &mut Store,
        network: &Network,
        key: &AttachmentKey,
        (i, set): (usize, &RangeSet),
    ) -> Result<IpAddr, Error> {
        let last = store.last_reserved(i);
        let mut reclaimed = false;
        loop {
            match store.next_free(set, last)? {
                Some(address) if store.lease(address, key)? => return Ok(address),
                Some(_) => {}
                None if reclaimed => return Err(exhausted(store, network, set)?),
                None => {
                    reclaim(store, set, RECLAIM_MOST, self.host.look)?;
                    reclaimed = true;
                }
            }
        }
    }

    /// The first set that has no address left, as the error that says so. Looks for what
    /// can be reclaimed as ADD does, so that it says what ADD would.
    fn exhausted(&self, store: &mut Store, sets: &[RangeSet]) -> Result<Option<Error>, Error> {
        for set in sets {
            if store.next_free(set, None)?.is_none() {
                reclaim(store, set, 1, self.host.look)?;
            }
            if store.next_free(set, None)?.is_none() {
                return exhausted_error(store, set, "").map(Some);
            }
        }
        Ok(None)
    }
}

/// Releases what `key` holds; leases that name only the container if there are no others.
fn release_all(store: &mut Store, key: &AttachmentKey) -> Result<(), Error> {
    let (exact, any) = store.held_by(key)?;
    let (addresses, holder) = if exact.is_empty() {
        (any, Holder::Container(key.container_id.clone()))
    } else {
        (exact, Holder::Attachment(key.clone()))
    };
    let mut outcome = Ok(());
    for address in addresses {
        if let Err(error) = store.release(address, &holder) {
            outcome = Err(error);
        }
    }
    outcome
}

/// Whether the leases are those of the result: every address of our ranges is leased,
/// and of the leases at least one is in use.
fn compare(
    key: &AttachmentKey,
    held: &[IpAddr],
    sets: &[RangeSet],
    result: &AddResult,
) -> Result<(), Error> {
    let addresses = || result.ips.iter().map(|ip| ip.address.ip());
    let is_ours = |address: &IpAddr| sets.iter().any(|set| set.range_of(*address).is_some());
    let AttachmentKey { container_id, ifname } = key;
    if let Some(address) = addresses().filter(is_ours).find(|address| !held.contains(address)) {
        let msg =
            format!("{address} is not leased to interface {ifname} of container {container_id}");
        return Err(Error::new(Code::CheckFailed, msg));
    }
    if addresses().any(|address| held.contains(&address)) {
        return Ok(());
    }
    let held: Vec<_> = held.iter().map(IpAddr::to_string).collect();
    let held = held.join(", ");
    let msg =
        format!("interface {ifname} of container {container_id} has none of its leases: {held}");
    Err(Error::new(Code::CheckFailed, msg))
}

fn no_lease(key: &AttachmentKey) -> Error {
    let AttachmentKey { container_id, ifname } = key;
    let msg = format!("no address is leased to interface {ifname} of container {container_id}");
    Error::new(Code::CheckFailed, msg)
}

fn duplicate(address: IpAddr, key: &AttachmentKey) -> Error {
    let AttachmentKey { container_id, ifname } = key;
    Error::new(
        Code::InvalidEnvironment,
        format!(
            "{address} is leased already to interface {ifname} of container {container_id}: \
             DEL it before another ADD"
        ),
    )
}

fn left_over(requested: &[IpAddr], sets: &[RangeSet]) -> Error {
    let list = |items: Vec<String>| items.join(", ");
    let addresses = list(requested.iter().map(IpAddr::to_string).collect());
    let sets = list(sets.iter().map(RangeSet::to_string).collect());
    let msg =
        format!("cannot allocate all requested addresses: {addresses} (one from each of {sets})");
    Error::new(Code::InvalidConfig, msg)
}

fn exhausted(store: &Store, network: &Network, set: &RangeSet) -> Result<Error, Error> {
    exhausted_error(store, set, &format!(" (network {})", network.name))
}

fn exhausted_error(store: &Store, set: &RangeSet, network: &str) -> Result<Error, Error> {
    let (mut taken, mut size) = (0u128, 0u128);
    for range in set.ranges() {
        taken = taken.saturating_add(store.taken(range)?);
        size = size.saturating_add(range.size());
    }
    let path = store.path().display();
    let msg = format!(
        "{taken} of {size} addresses of {set} are taken{network}; delete pods or give the \
         network more ranges; leases are in {path}"
    );
    Ok(Error::new(Code::TryAgain, msg))
}

fn unavailable(error: Error) -> Error {
    Error { code: Code::Unavailable as u32, ..error }
}

fn ip_config(address: IpAddr, range: &Range) -> Option<IpConfig> {
    let address = IpNetwork::new(address, range.subnet.prefix()).ok()?;
    Some(IpConfig { address, gateway: Some(range.gateway), interface: None })
}
