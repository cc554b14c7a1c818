//! Leases that nobody uses any more: how they are recognised, and how they are freed.
//!
//! A lease is *dead* if no CNI plugin works on its container (module `making`), nothing on the
//! host refers to its address, and its interface, if somebody can look for it, is gone. It is
//! an *orphan* if its interface is known to be gone.
//!
//! The order of the looks matters: leases first, then processes, then addresses and
//! interfaces. A plugin that ended before processes were listed has left an interface by
//! then, or has freed its lease.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use cni::{AttachmentKey, Error};

use crate::making;
use crate::notes::{Noted, Origin};
use crate::range::RangeSet;
use crate::store::{Held, Holder, Store};

/// Most leases that are read under the lock in the search for orphans: some 30 ms.
const SUSPECTS_MOST: usize = 4096;

/// Answers whether an attachment's interface exists or is being made.
pub type InterfaceLives<'a> = Box<dyn Fn(&AttachmentKey) -> Result<bool, Error> + 'a>;

/// Answers a question about an address.
pub type OfAddress<'a> = Box<dyn Fn(IpAddr) -> bool + 'a>;

/// What a look around the host shows. It may be taken when the first question is asked or later, never
/// before.
pub struct Sight<'a> {
    /// Whether the attachment's interface exists or is being made, where the caller can tell by container
    /// and interface name, as an interface plugin can.
    pub interface_lives: Option<InterfaceLives<'a>>,
    /// Whether the host has a pod's route to the address. Cheap, and asked about every lease, so
    /// that what follows is needed for few: a yes settles it.
    pub has_pod_route: OfAddress<'a>,
    /// Whether anything on this host refers to the address: a route, a neighbour, an
    /// interface in any network namespace. Where in doubt, true.
    pub address_in_use: OfAddress<'a>,
}

impl Sight<'_> {
    /// Nothing is known: every address counts as in use.
    pub fn blind() -> Self {
        Self {
            interface_lives: None,
            has_pod_route: Box::new(|_| false),
            address_in_use: Box::new(|_| true),
        }
    }

    /// Whether the holder's interface lives; `None` if that cannot be told.
    pub(crate) fn lives(&self, holder: &Holder) -> Option<bool> {
        let lives = self.interface_lives.as_ref()?;
        let Holder::Attachment(key) = holder else { return None };
        match lives(key) {
            Ok(lives) => Some(lives),
            Err(error) => {
                log::warn!("container {} counts as alive: {error}", key.container_id);
                Some(true)
            }
        }
    }
}

/// A look around, for leases that have been read before it. Each sign is looked for when it
/// is first needed, containers that are being worked on before anything else.
pub(crate) struct Look<'a> {
    making: OnceCell<HashSet<String>>,
    sight: Sight<'a>,
}

impl<'a> Look<'a> {
    pub(crate) fn new(sight: Sight<'a>) -> Self {
        Self { making: OnceCell::new(), sight }
    }

    /// Whether the holder of a lease can be dead; cheap where a pod has a route, as there may
    /// be many.
    fn is_suspect(&self, lease: &Noted) -> bool {
        (self.sight.interface_lives.is_some() || lease.origin == Origin::Other)
            && !self.is_in_use(lease.address)
    }

    /// Whether nobody uses the lease's address any more. A lease that we wrote in this
    /// boot is dead only if its interface can be asked for and is gone. Whatever refers to the
    /// address keeps it: another plugin than the one asking may have made the pod.
    pub(crate) fn is_dead(&self, held: &Held) -> bool {
        if held.holder.container_id().is_none() || self.is_in_use(held.address) {
            return false;
        }
        !self.lives(&held.holder).unwrap_or(held.origin == Origin::Ours)
    }

    /// Whether the lease is dead, and its interface known to be gone. Interfaces come before
    /// addresses, which take longer to look for.
    fn is_orphan(&self, held: &Held) -> bool {
        self.lives(&held.holder) == Some(false) && !self.is_in_use(held.address)
    }

    /// Whether a plugin works on the holder, or its interface lives; `None` if that cannot be told.
    fn lives(&self, holder: &Holder) -> Option<bool> {
        if holder.container_id().is_some_and(|id| self.is_being_made(id)) {
            return Some(true);
        }
        self.sight.lives(holder)
    }

    fn is_being_made(&self, container: &str) -> bool {
        self.making().contains(container)
    }

    fn is_in_use(&self, address: IpAddr) -> bool {
        if (self.sight.has_pod_route)(address) {
            return true;
        }
        // A plugin that is done by now has left traces: so it is looked for before them.
        self.making();
        (self.sight.address_in_use)(address)
    }

    fn making(&self) -> &HashSet<String> {
        self.making.get_or_init(making::containers)
    }
}

/// Frees leases of `set` that are certainly nobody's, `most` of them at most. `sight` is asked
/// once the leases are known.
pub(crate) fn reclaim<'a>(
    store: &mut Store,
    set: &RangeSet,
    most: usize,
    sight: &dyn Fn() -> Sight<'a>,
) -> Result<(), Error> {
    store.verify_notes()?;
    let mut noted = store.noted()?;
    noted.retain(|lease| set.range_of(lease.address).is_some());
    let look = Look::new(sight());
    let mut freed = 0;
    for lease in noted.into_iter().filter(|lease| look.is_suspect(lease)) {
        let Some(held) = store.read(lease.address)? else { continue };
        if look.is_dead(&held) && store.release(held.address, &held.holder)? {
            log::info!("{} freed: its holder {:?} is gone", held.address, held.holder);
            freed += 1;
        }
        if freed == most {
            break;
        }
    }
    Ok(())
}

/// The leases that no pod has a route for, [`SUSPECTS_MOST`] at most; and how many leases there are.
pub(crate) fn without_route(
    store: &mut Store,
    sight: &Sight<'_>,
) -> Result<(Vec<Held>, usize), Error> {
    let noted = store.noted()?;
    let count = noted.len();
    let has_route = |lease: &Noted| (sight.has_pod_route)(lease.address);
    let mut suspects: Vec<_> = noted.into_iter().filter(|lease| !has_route(lease)).collect();
    if suspects.len() > SUSPECTS_MOST {
        // Each gets its turn, though the first ones may be none that can be freed.
        let first = RandomState::new().build_hasher().finish() % suspects.len() as u64;
        suspects.rotate_left(first as usize);
        suspects.truncate(SUSPECTS_MOST);
    }
    let mut held = Vec::new();
    let mut vanished = false;
    for Noted { address, .. } in suspects {
        match store.read(address) {
            Ok(Some(lease)) => held.push(lease),
            Ok(None) => vanished = true,
            Err(error) => log::warn!("{error}"),
        }
    }
    if vanished {
        // Somebody removed it by hand, and each STATUS would look for it again.
        store.verify_notes()?;
    }
    Ok((held, count))
}

/// Those of the leases `held` that are orphans. No lock is needed: a plugin that comes later to
/// a lease that is there makes no interface for it, but fails.
pub(crate) fn orphans(held: Vec<Held>, sight: Sight<'_>) -> impl Iterator<Item = Held> {
    let look = Look::new(sight);
    held.into_iter().filter(move |held| look.is_orphan(held))
}

/// Frees every lease whose holder is not in `valid`, is not being worked on and has no
/// interface left, as far as that can be told.
pub(crate) fn collect(
    store: &mut Store,
    valid: &[AttachmentKey],
    sight: Sight<'_>,
) -> Result<(), Error> {
    let look = Look::new(sight);
    let keys: HashSet<_> = valid.iter().collect();
    let ids: HashSet<_> = valid.iter().map(|key| key.container_id.as_str()).collect();
    let is_valid = |holder: &Holder| match holder {
        Holder::Attachment(key) => keys.contains(key),
        Holder::Container(id) => ids.contains(id.as_str()),
        Holder::Nobody | Holder::Unknown => true,
    };
    store.verify_notes()?;
    let noted = store.noted()?;
    let mut outcome = Ok(());
    for lease in noted {
        let Some(held) = store.read(lease.address)? else { continue };
        if is_valid(&held.holder) || look.lives(&held.holder) == Some(true) {
            continue;
        }
        if let Err(error) = store.release(held.address, &held.holder) {
            outcome = Err(error);
        }
    }
    outcome
}
