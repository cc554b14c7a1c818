//! Delegation to the IPAM plugin: our own `host-local` is called in this process,
//! anything else is executed.

use std::cell::{Cell, OnceCell};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cni::{AddResult, Attachment, AttachmentKey, Error, Network, Object, Plugin, Verb, delegate};
use ipam_host_local::{Host, HostLocal, OwnRanges, Sight};
use kernel::Rtnetlink;

use crate::addresses_in_use::{AddressesInUse, PodRoutes};
use crate::attachment::Id;
use crate::budget::{IPAM_STATUS, within};
use crate::failure::{invalid_config, refused};
use crate::node::{self, Source, Stamped};
use crate::orphans;

/// The IPAM plugin of a network.
#[derive(Debug)]
pub(crate) enum Ipam {
    /// `host-local` of this very file.
    OwnHostLocal,
    /// An executable.
    Executable {
        /// Its file.
        file: PathBuf,
        /// Whether it releases an address over the network, and so needs the link.
        needs_link: bool,
    },
}

impl Ipam {
    /// Finds the plugin that `ipam.type` names.
    pub(crate) fn of(network: &Network) -> Result<Self, Error> {
        let Some(name) = network.ipam_type()? else {
            let msg = "ipam.type: missing; name the IPAM plugin, such as \"host-local\"";
            return Err(invalid_config(msg));
        };
        let file = delegate::find(name, &network.path)?;
        if name == "host-local" && delegate::is_own_executable(&file) {
            return Ok(Self::OwnHostLocal);
        }
        Ok(Self::Executable { file, needs_link: name == "dhcp" })
    }

    /// Whether an address must be released while the link is still there.
    pub(crate) fn needs_link(&self) -> bool {
        matches!(self, Self::Executable { needs_link: true, .. })
    }

    /// Gets addresses; `stamped` is what [`node::stamped`] gives for the keys of `ipam`.
    pub(crate) fn add(
        &self,
        attachment: &Attachment,
        network: &Network,
        stamped: Option<&Stamped>,
    ) -> Result<AddResult, Error> {
        match self {
            Self::OwnHostLocal => {
                let own_ranges = |ipam: &Object| node::ranges_of(stamped, &Source::read(ipam)?);
                host_local(network, &own_ranges, |plugin| plugin.add(attachment, network))
            }
            Self::Executable { file, .. } => delegate::add(file, network).inspect_err(|_| {
                // The error of the ADD is the one that tells something; whatever
                // the plugin took before it failed is given back.
                let _ = delegate::call(file, Verb::Del, network);
            }),
        }
    }

    /// Checks the addresses.
    pub(crate) fn check(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        match self {
            Self::OwnHostLocal => {
                with_host_local(network, |plugin| plugin.check(attachment, network))
            }
            Self::Executable { file, .. } => delegate::call(file, Verb::Check, network),
        }
    }

    /// Releases the addresses.
    pub(crate) fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        match self {
            Self::OwnHostLocal => {
                with_host_local(network, |plugin| plugin.del(attachment, network))
            }
            Self::Executable { file, .. } => delegate::call(file, Verb::Del, network),
        }
    }

    /// Releases the addresses of attachments that are not in `valid`.
    pub(crate) fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        match self {
            Self::OwnHostLocal => with_host_local(network, |plugin| plugin.gc(valid, network)),
            Self::Executable { file, .. } => delegate::call(file, Verb::Gc, network),
        }
    }

    /// Frees orphaned leases; fails where no address could be had.
    pub(crate) fn status(&self, network: &Network) -> Result<(), Error> {
        match self {
            Self::OwnHostLocal => {
                let started = Instant::now();
                let status = timely_status(network, |network| {
                    with_host_local(network, |plugin| plugin.status(network))
                });
                free_orphans(network, IPAM_STATUS.saturating_sub(started.elapsed()));
                status
            }
            Self::Executable { file, .. } => delegate::call(file, Verb::Status, network),
        }
    }
}

/// STATUS, which says what it knows when the time is over: nothing against an ADD.
fn timely_status(
    network: &Network,
    status: fn(&Network) -> Result<(), Error>,
) -> Result<(), Error> {
    // What is wrong with the keys is not the map's fault.
    Source::of_ipam(network)?;
    let own = network.clone();
    within(IPAM_STATUS, move || status(&own)).unwrap_or_else(|| {
        let limit = IPAM_STATUS.as_millis();
        log::warn!("whether addresses are left was not known within {limit} ms");
        Ok(())
    })
}

/// Frees orphaned leases, as many as `time` is enough for. It fails no STATUS.
fn free_orphans(network: &Network, time: Duration) {
    if time.is_zero() {
        // Cut off already, and said so.
        return;
    }
    let own = network.clone();
    let work = move || with_host_local(&own, |plugin| orphans::tick(plugin, &own));
    match within(time, work) {
        Some(Ok(())) => {}
        Some(Err(error)) => log::warn!("cannot free orphaned leases: {error}"),
        None => log::warn!(
            "the search for orphaned leases did not finish within {} ms and was cut off; \
             `weft sync` completes it",
            time.as_millis()
        ),
    }
}

/// Runs `work` with `host-local` as `veth` uses it: it can tell which leases belong
/// to interfaces that are gone.
pub(crate) fn with_host_local<T>(
    network: &Network,
    work: impl FnOnce(&HostLocal) -> Result<T, Error>,
) -> Result<T, Error> {
    let own_ranges = |ipam: &Object| node::pod_ranges(&network.name, &Source::read(ipam)?);
    host_local(network, &own_ranges, work)
}

fn host_local<T>(
    network: &Network,
    own_ranges: OwnRanges,
    work: impl FnOnce(&HostLocal) -> Result<T, Error>,
) -> Result<T, Error> {
    let look = || {
        let ends = HostEnds::default();
        let interface_lives = move |key: &AttachmentKey| ends.lives(&network.name, key);
        Sight { interface_lives: Some(Box::new(interface_lives)), ..addresses() }
    };
    work(&HostLocal { host: Host::new(own_ranges, &look) })
}

/// `host-local` called by another interface plugin.
pub(crate) struct StandaloneHostLocal;

impl Plugin for StandaloneHostLocal {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        standalone(network, |plugin| plugin.add(attachment, network))
    }

    fn check(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        standalone(network, |plugin| plugin.check(attachment, network))
    }

    fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        standalone(network, |plugin| plugin.del(attachment, network))
    }

    fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        standalone(network, |plugin| plugin.gc(valid, network))
    }

    fn status(&self, network: &Network) -> Result<(), Error> {
        timely_status(network, |network| standalone(network, |plugin| plugin.status(network)))
    }

    fn enters_netns(&self) -> bool {
        false
    }
}

/// Runs `work` with `host-local` as it is where nothing is known of interfaces.
fn standalone<T>(
    network: &Network,
    work: impl FnOnce(&HostLocal) -> Result<T, Error>,
) -> Result<T, Error> {
    let own_ranges = |ipam: &Object| node::pod_ranges(&network.name, &Source::read(ipam)?);
    work(&HostLocal { host: Host::new(&own_ranges, &addresses) })
}

/// What can be seen of addresses.
fn addresses<'a>() -> Sight<'a> {
    let (routes, in_use) = (PodRoutes::default(), AddressesInUse::default());
    Sight {
        interface_lives: None,
        has_pod_route: Box::new(move |ip| routes.contain(ip)),
        address_in_use: Box::new(move |ip| in_use.contains(ip)),
    }
}

/// Questions that are cheaper than a list of all links.
const FEW: usize = 64;

/// The names of all links, listed once there are more than [`FEW`] questions: where a range is
/// exhausted, there are as many as leases.
#[derive(Default)]
struct HostEnds {
    names: OnceCell<HashSet<String>>,
    questions: Cell<usize>,
}

impl HostEnds {
    /// Whether the attachment has a host end, or is being made or removed right now.
    fn lives(&self, network: &str, key: &AttachmentKey) -> Result<bool, Error> {
        self.questions.set(self.questions.get() + 1);
        if self.questions.get() > FEW {
            let names = self.names.get_or_init(|| link_names().unwrap_or_default());
            if names.contains(&Id::of(network, key).host_end()) {
                return Ok(true);
            }
        }
        // One that the list lacks may have been made since.
        interface_lives(network, key)
    }
}

fn link_names() -> kernel::Result<HashSet<String>> {
    Ok(Rtnetlink::open()?.links()?.into_iter().map(|link| link.name).collect())
}

/// Whether the attachment has a host end, or is being made or removed right now.
/// The lock is looked at first: whoever holds it makes the host end before it
/// lets go.
fn interface_lives(network: &str, key: &AttachmentKey) -> Result<bool, Error> {
    let id = Id::of(network, key);
    if id.is_busy()? {
        return Ok(true);
    }
    let host = Rtnetlink::open().map_err(refused)?;
    Ok(host.index_of(&id.host_end()).map_err(refused)?.is_some())
}
