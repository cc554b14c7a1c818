//! The VXLAN device: which of the host's it is, and what must be done to it.

use std::net::IpAddr;

use cni::{Code, Error};
use kernel::link::{Link, LinkChange, Vxlan, VxlanDevice, delete};
use kernel::netlink::Message;
use kernel::{Rtnetlink, format_mac, sysctl};

use super::config::Config;
use crate::failure::refused;

/// What is to be done to reach the device wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Delete this device.
    Delete(Link),
    /// Make the device.
    Create(VxlanDevice),
    /// Change this device in place.
    Change(Link, InPlace),
}

/// Changes that leave the device's entries as they are, but for the MAC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct InPlace {
    name: Option<String>,
    mac: Option<kernel::MacAddress>,
    mtu: Option<u32>,
    local: Option<IpAddr>,
    up: bool,
}

/// How every mark begins.
const MARK: &str = "weft network ";

/// The text by which a device of this network is known whatever its name.
fn mark(network: &str) -> String {
    format!("{MARK}{network}")
}

/// The network whose device `link` is, by its mark.
fn network_of(link: &Link) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(MARK)
}

/// The devices of other networks of ours, and those networks' names.
pub(super) fn of_other_networks(
    config: &Config,
    host: &mut Rtnetlink,
) -> Result<Vec<(Link, String)>, Error> {
    let devices = host.links_of_kind("vxlan").map_err(refused)?;
    let network = |link: &Link| network_of(link).map(str::to_owned);
    let marked = devices.into_iter().filter_map(|link| network(&link).map(|name| (link, name)));
    Ok(marked.filter(|(_, name)| *name != config.network).collect())
}

/// The devices that are ours: marked for this network, or unmarked and of the
/// configured name.
pub(super) fn ours(config: &Config, host: &mut Rtnetlink) -> Result<Vec<Link>, Error> {
    of_network(&config.network, &config.device, host)
}

/// The devices marked for `network`, or unmarked and called `name`.
pub(super) fn of_network(
    network: &str,
    name: &str,
    host: &mut Rtnetlink,
) -> Result<Vec<Link>, Error> {
    let devices = host.links_of_kind("vxlan").map_err(refused)?;
    let is_ours = |link: &Link| match network_of(link) {
        Some(marked) => marked == network,
        None => link.name == name,
    };
    Ok(devices.into_iter().filter(is_ours).collect())
}

/// What leads from the devices that are ours to the one wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    /// Before the entries, which need the device.
    before: Vec<Step>,
    /// After the entries: what is surplus goes when nothing is sent to it any more.
    after: Vec<Step>,
    /// The device that stays, whatever it is called.
    kept: Option<Link>,
}

impl Steps {
    /// The steps from the devices `ours` to the one wanted: pure.
    pub(super) fn new(config: &Config, wanted: Option<&VxlanDevice>, ours: Vec<Link>) -> Self {
        let kept =
            wanted.and_then(|wanted| ours.iter().find(|link| can_become(config, link, wanted)));
        let surplus = ours.iter().filter(|link| kept.is_none_or(|kept| kept.index != link.index));
        let surplus: Vec<Step> = surplus.cloned().map(Step::Delete).collect();
        let (before, after) = match (wanted, kept) {
            (None, _) => (Vec::new(), surplus),
            // Name, address or port may be what the new device needs.
            (Some(wanted), None) => {
                let create = Step::Create(wanted.clone());
                (surplus.into_iter().chain([create]).collect(), Vec::new())
            }
            (Some(wanted), Some(link)) => {
                let change = in_place(link, wanted);
                let changes = change != InPlace::default();
                let change = changes.then(|| Step::Change(link.clone(), change));
                (surplus.into_iter().chain(change).collect(), Vec::new())
            }
        };
        let kept = kept.cloned();
        Self { before, after, kept }
    }

    /// The device that stays; none where it is made anew, or gone.
    pub(super) fn kept(&self) -> Option<&Link> {
        self.kept.as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// The steps before the entries, as commands.
    pub(super) fn before_words(&self, underlay: &str) -> Vec<String> {
        self.before.iter().flat_map(|step| step.words(underlay)).collect()
    }

    /// The steps after the entries, as commands.
    pub(super) fn after_words(&self, underlay: &str) -> Vec<String> {
        self.after.iter().flat_map(|step| step.words(underlay)).collect()
    }

    /// Fails if another program's device is in the way, before a step is taken: what
    /// works must not go for something that cannot be made.
    pub(super) fn check(&self, host: &mut Rtnetlink) -> Result<(), Error> {
        let goes = |link: &Link| {
            let is_it = |step: &Step| matches!(step, Step::Delete(l) if l.index == link.index);
            self.before.iter().any(is_it)
        };
        for step in &self.before {
            match step {
                Step::Delete(_) => {}
                Step::Create(device) => refuse_clash(device, goes, host)?,
                Step::Change(_, change) => {
                    change.name.iter().try_for_each(|name| refuse_taken_name(name, goes, host))?;
                }
            }
        }
        Ok(())
    }

    /// Whether a device is made anew.
    pub(super) fn make_one(&self) -> bool {
        self.before.iter().any(|step| matches!(step, Step::Create(_)))
    }

    /// Takes those of the steps before the entries that take away.
    pub(super) fn apply_removals(
        &self,
        config: &Config,
        host: &mut Rtnetlink,
    ) -> Result<(), Error> {
        let mut removals = self.before.iter().filter(|step| step.removes());
        removals.try_for_each(|step| step.apply(config, host))
    }

    /// Takes the other steps before the entries.
    pub(super) fn apply_makes(&self, config: &Config, host: &mut Rtnetlink) -> Result<(), Error> {
        let mut makes = self.before.iter().filter(|step| !step.removes());
        makes.try_for_each(|step| step.apply(config, host))
    }

    /// Takes the steps after the entries.
    pub(super) fn apply_after(&self, config: &Config, host: &mut Rtnetlink) -> Result<(), Error> {
        self.after.iter().try_for_each(|step| step.apply(config, host))
    }
}

/// Whether `link` differs from `wanted` only in what can change live. The mark is the
/// last thing that a device gets: one without was never finished, for whoever
/// made it was killed, or is another's of our name. One that somebody made part of a bridge
/// is made anew: what it receives is the bridge's.
fn can_become(config: &Config, link: &Link, wanted: &VxlanDevice) -> bool {
    let is_ours = link.alias == Some(mark(&config.network)) && link.controller.is_none();
    let Some(have) = link.vxlan.as_ref().filter(|_| is_ours) else {
        return false;
    };
    let want = &wanted.settings;
    let same_family = match (have.local, want.local) {
        (Some(have), Some(want)) => have.is_ipv4() == want.is_ipv4(),
        _ => false,
    };
    let fixed = |v: &Vxlan| (v.vni, v.port, v.source_ports, v.learning, v.udp_checksum, v.external);
    same_family && fixed(have) == fixed(want) && have.underlay == want.underlay
}

fn in_place(link: &Link, wanted: &VxlanDevice) -> InPlace {
    let have_local = link.vxlan.as_ref().and_then(|vxlan| vxlan.local);
    InPlace {
        name: (link.name != wanted.name).then(|| wanted.name.clone()),
        mac: (link.mac != Some(wanted.mac)).then_some(wanted.mac),
        mtu: (link.mtu != wanted.mtu).then_some(wanted.mtu),
        local: wanted.settings.local.filter(|_| have_local != wanted.settings.local),
        up: !link.up,
    }
}

impl Step {
    fn removes(&self) -> bool {
        matches!(self, Self::Delete(_))
    }

    fn apply(&self, config: &Config, host: &mut Rtnetlink) -> Result<(), Error> {
        match self {
            Self::Delete(link) => remove(link, host),
            Self::Create(device) => create(device, config, host),
            Self::Change(link, change) => change.apply(link, host),
        }
    }

    /// The step as commands.
    fn words(&self, underlay: &str) -> Vec<String> {
        match self {
            Self::Delete(link) => vec![format!("ip link del {}", link.name)],
            Self::Create(device) => vec![
                format!("ip link add {}", device.words(underlay)),
                format!("ip link set {} up", device.name),
            ],
            Self::Change(link, change) => change.words(&link.name),
        }
    }
}

impl InPlace {
    fn words(&self, name: &str) -> Vec<String> {
        let changes = self.link_changes();
        changes.iter().map(|change| format!("ip link set {name} {}", change.words())).collect()
    }

    fn apply(&self, link: &Link, host: &mut Rtnetlink) -> Result<(), Error> {
        let changes = self.link_changes();
        let mut messages: Vec<Message> =
            changes.iter().map(|change| change.message(link.index)).collect();
        match host.batch(&mut messages).map_err(refused)?.into_iter().next() {
            None => Ok(()),
            Some(refusal) => {
                let words = self.words(&link.name).join("; ");
                Err(refused(refusal.error.about(format_args!("`{words}` failed"))))
            }
        }
    }

    /// In the order that the kernel allows: a name only while the device is down.
    fn link_changes(&self) -> Vec<LinkChange<'_>> {
        let mut changes = Vec::new();
        if self.name.is_some() {
            changes.push(LinkChange { up: Some(false), ..LinkChange::default() });
            changes.push(LinkChange { name: self.name.as_deref(), ..LinkChange::default() });
        }
        let rest = LinkChange {
            mac: self.mac,
            mtu: self.mtu,
            vxlan_local: self.local,
            up: (self.up || self.name.is_some()).then_some(true),
            ..LinkChange::default()
        };
        if rest != LinkChange::default() {
            changes.push(rest);
        }
        changes
    }
}

/// Deletes the device; it may be gone already.
pub(super) fn remove(link: &Link, host: &mut Rtnetlink) -> Result<(), Error> {
    match host.request(delete(link.index)) {
        Err(e) if !e.is_gone() => {
            Err(refused(e.about(format_args!("cannot delete link {}", link.name))))
        }
        _ => Ok(()),
    }
}

fn create(device: &VxlanDevice, config: &Config, host: &mut Rtnetlink) -> Result<(), Error> {
    host.request(device.message())
        .map_err(|e| refused(e.about(format_args!("cannot make VXLAN device {}", device.name))))?;
    let set_up = |host: &mut Rtnetlink| -> Result<(), Error> {
        let Some(link) = host.link_by_name(&device.name).map_err(refused)? else {
            return Err(Error::new(Code::Kernel, format!("link {} vanished", device.name)));
        };
        if refuse_advertisements(&device.name)? {
            // Peers send to the address derived from the MAC, whatever addr_gen_mode
            // is by default.
            set(LinkChange { no_link_local: true, ..LinkChange::default() }, &link, host)?;
        }
        let mark = mark(&config.network);
        let up = LinkChange { up: Some(true), alias: Some(&mark), ..LinkChange::default() };
        set(up, &link, host)
    };
    set_up(host).inspect_err(|_| {
        // Half made, it would look like one that somebody took down.
        if let Ok(Some(link)) = host.link_by_name(&device.name) {
            let _ = remove(&link, host);
        }
    })
}

/// Keeps the device from taking a peer's pod, which could advertise itself, for
/// this node's router. False where the kernel has no IPv6.
pub(super) fn refuse_advertisements(name: &str) -> Result<bool, Error> {
    let key = format!("net/ipv6/conf/{name}/accept_ra");
    let there = sysctl::get(&key).map_err(refused)?.is_some();
    if there {
        sysctl::set(&key, "0").map_err(refused)?;
    }
    Ok(there)
}

fn set(change: LinkChange, link: &Link, host: &mut Rtnetlink) -> Result<(), Error> {
    host.request(change.message(link.index)).map_err(|e| {
        refused(e.about(format_args!("`ip link set {} {}` failed", link.name, change.words())))
    })
}

/// Two devices cannot share VNI, port and family (`vxlan_vni_in_use`), nor one
/// port with a device that takes every VNI; the kernel's error names neither.
fn refuse_clash(
    device: &VxlanDevice,
    goes: impl Fn(&Link) -> bool,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    refuse_taken_name(&device.name, &goes, host)?;
    let want = &device.settings;
    let clashes = |have: &Vxlan| {
        let same_family =
            have.local.is_none_or(|ip| want.local.is_none_or(|w| w.is_ipv4() == ip.is_ipv4()));
        have.port == want.port && same_family && (have.external || have.vni == want.vni)
    };
    let devices = host.links_of_kind("vxlan").map_err(refused)?;
    let others = devices.iter().filter(|link| !goes(link));
    match others.into_iter().find(|link| link.vxlan.as_ref().is_some_and(clashes)) {
        None => Ok(()),
        Some(link) => {
            let (whose, remedy) = match network_of(link) {
                Some(network) => (format!("network {network}"), leftover_remedy(network)),
                None => ("another program".to_owned(), "remove it".to_owned()),
            };
            let msg = format!(
                "VXLAN device {} of {whose} has VNI {} and port {} already; {remedy}, or set vni \
                 or tunnelPort to another on every node",
                link.name, want.vni, want.port
            );
            Err(Error::new(Code::InvalidConfig, msg))
        }
    }
}

/// What to do about another network of ours that may be a leftover.
pub(super) fn leftover_remedy(network: &str) -> String {
    format!("if {network} is no longer used, run `weft teardown`, then `weft sync`")
}

fn refuse_taken_name(
    name: &str,
    goes: impl Fn(&Link) -> bool,
    host: &mut Rtnetlink,
) -> Result<(), Error> {
    let link = host.link_by_name(name).map_err(refused)?;
    let Some(link) = link.filter(|link| !goes(link)) else { return Ok(()) };
    let mac = link.mac.as_ref().map_or("none".to_owned(), format_mac);
    let msg = match network_of(&link) {
        Some(network) => format!(
            "device: {name} is the VXLAN device of network {network}; {}, or set device to another \
             name",
            leftover_remedy(network)
        ),
        None => format!(
            "device: {name} is the name of another interface of this host (MAC {mac}); set device \
             to another name"
        ),
    };
    Err(Error::new(Code::InvalidConfig, msg))
}
