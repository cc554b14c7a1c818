//! ADD: address, pair, routes; nothing is left behind where a step fails.

use cni::{AddResult, Attachment, Code, Error, Interface, IpConfig, Network};
use kernel::link::{LinkChange, VethPair, delete, question};
use kernel::netlink::{Message, Refusal};
use kernel::route::{Filter, TABLE_MAIN};
use kernel::{Rtnetlink, format_mac, sysctl};
use nix::errno::Errno;

use super::config::Config;
use super::plan::{Plan, is_default};
use super::spoof_check;
use crate::attachment::{Alias, Id, Namespaces, is_unfinished, random_index};
use crate::failure::refused;
use crate::forwarding;
use crate::ipam::Ipam;
use crate::node::{self, Source, Stamped};
use crate::trace::phase;

/// Attempts at an index that no link has.
const INDEX_ATTEMPTS: usize = 16;
/// MTU where nothing tells a better one (IEEE 802.3).
const ETHERNET_MTU: u32 = 1500;

/// Makes the attachment.
pub(super) fn add(attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
    phase("parse");
    let config = Config::read(attachment, network)?;
    let ipam = Ipam::of(network)?;
    let id = Id::of(&network.name, &attachment.key);
    let mut host = Rtnetlink::open().map_err(refused)?;
    let namespaces = Namespaces::open(attachment, &host)?;
    let _lock = id.lock()?;
    // Before the IPAM plugin is asked: undoing an ADD of an attachment that lives
    // would release its address.
    if host.index_of(&id.host_end()).map_err(refused)?.is_some() {
        return Err(host_end_exists(&id.host_end()));
    }
    let source = Source::of_ipam(network)?;
    let stamped = node::stamped(&network.name, &source, &host);
    let stamped = stamped.as_ref();
    let mtu = config.mtu.map_or_else(|| pod_mtu(stamped, &source, &mut host), Ok)?;

    phase("preparation");
    let given = ipam.add(attachment, network, stamped)?;
    phase("ipam");
    let plan = Plan::new(id, &config, &given, mtu, random_index());
    let wanted = Wanted { alias: alias(attachment, network), config: &config, namespaces, stamped };
    let plan = match plan.and_then(|plan| attach(plan, &wanted, &mut host)) {
        Ok(plan) => plan,
        Err(error) => {
            let released = ipam.del(attachment, network);
            return Err(released.err().map_or(error.clone(), |e| {
                error.with_details(format!("and the address could not be released: {e}"))
            }));
        }
    };
    Ok(result(&config, given, &plan, attachment))
}

/// What an attachment is made by, beside its plan.
struct Wanted<'a> {
    alias: Alias,
    config: &'a Config,
    namespaces: Namespaces,
    stamped: Option<&'a Stamped>,
}

fn alias(attachment: &Attachment, network: &Network) -> Alias {
    let netns = attachment.netns.as_ref().map(|path| path.display().to_string());
    Alias {
        network: network.name.clone(),
        key: attachment.key.clone(),
        netns: netns.unwrap_or_default(),
    }
}

/// Makes the pair with all that belongs to it, or nothing; returns the plan as it was
/// carried out.
fn attach(mut plan: Plan, wanted: &Wanted, host: &mut Rtnetlink) -> Result<Plan, Error> {
    let inside = wanted.namespaces.in_pod(|| make_pod_end(&mut plan, wanted))?;
    let mut pod = inside.inspect_err(|_| remove_unfinished(&plan.host_name, host))?;
    phase("pod addresses and routes");
    let set_up = prepare_host(&plan, wanted, host)
        .and_then(|()| make_host_end(&plan, &wanted.alias.text(), host))
        .and_then(|()| sync_carrier(&plan, &mut pod));
    if let Err(error) = set_up {
        // Either end takes the other with it.
        let removed = host.request(delete(plan.index));
        return Err(match removed {
            Err(e) if !e.is_gone() => error.with_details(format!("and the link stays: {e}")),
            _ => error,
        });
    }
    phase("host addresses and routes");
    Ok(plan)
}

/// Removes a pair that the kernel has made although its answer was lost. What stays
/// is found and removed by DEL and GC.
fn remove_unfinished(host_name: &str, host: &mut Rtnetlink) {
    match host.link_by_name(host_name) {
        Ok(Some(link)) if is_unfinished(&link) => {
            let _ = host.request(delete(link.index));
        }
        _ => {}
    }
}

/// What the host needs once for all pods. It is not undone, so it comes after what
/// can fail for one pod alone, and before the host's end is up.
fn prepare_host(plan: &Plan, wanted: &Wanted, host: &mut Rtnetlink) -> Result<(), Error> {
    forwarding::enable(plan.has(false), plan.has(true), host)?;
    if wanted.config.spoof_check {
        spoof_check::ensure(wanted.stamped.and_then(Stamped::spoof_check_seen_in))?;
    }
    phase("spoof check");
    Ok(())
}

/// Makes the pair and sets up the pod's end; runs inside the pod's namespace and
/// returns a socket in it.
fn make_pod_end(plan: &mut Plan, wanted: &Wanted) -> Result<Rtnetlink, Error> {
    let mut pod = Rtnetlink::open().map_err(refused)?;
    let pod_name = &wanted.alias.key.ifname;
    phase("namespace entry");
    make_pair(plan, pod_name, &wanted.namespaces, &mut pod)?;
    phase("link");
    set_up_pod_end(plan, pod_name, wanted.config, &mut pod)?;
    Ok(pod)
}

/// The end that was up first drops what it sends until the kernel takes note of its
/// carrier, which it does when it comes to it (`linkwatch_event`), or when the link
/// is asked for (`rtnl_getlink`): then the pod's first packet is not lost.
fn sync_carrier(plan: &Plan, pod: &mut Rtnetlink) -> Result<(), Error> {
    pod.link(plan.index).map(drop).map_err(refused)
}

fn set_up_pod_end(
    plan: &Plan,
    pod_name: &str,
    config: &Config,
    pod: &mut Rtnetlink,
) -> Result<(), Error> {
    if plan.has(true) {
        enable_ipv6(pod_name)?;
    }
    let mut has_default_of = |ipv6| Ok::<_, Error>(plan.has(ipv6) && has_default(pod, ipv6)?);
    let has_default = [has_default_of(false)?, has_default_of(true)?];
    let mut steps = Steps::default();
    for address in plan.pod_addresses() {
        steps.push(address.add(), move || format!("ip address add {}", address.words(pod_name)));
    }
    for neighbour in plan.pod_neighbours() {
        let words = move || format!("ip neighbour replace {}", neighbour.words(pod_name));
        steps.push(neighbour.set(), words);
    }
    for route in plan.pod_routes(config.default_route, has_default) {
        steps.push(route.append(), move || format!("ip route add {}", route.words(Some(pod_name))));
    }
    steps.run(pod, "in the container")
}

/// Makes the pair, the pod's end up, under an index that both namespaces have free.
fn make_pair(
    plan: &mut Plan,
    pod_name: &str,
    namespaces: &Namespaces,
    pod: &mut Rtnetlink,
) -> Result<(), Error> {
    use std::os::fd::AsFd;
    for _ in 0..INDEX_ATTEMPTS {
        let pair = VethPair {
            pod_name,
            pod_mac: plan.pod_mac,
            host_name: &plan.host_name,
            host_mac: plan.host_mac,
            index: plan.index,
            mtu: plan.mtu,
            group: plan.group,
            host_netns: namespaces.host.as_fd(),
        };
        match pod.request(pair.message()) {
            Ok(()) => return Ok(()),
            Err(e) if e.errno == Errno::EBUSY => plan.index = random_index(),
            Err(e) if e.is_exists() && pod.link(plan.index).map_err(refused)?.is_some() => {
                plan.index = random_index();
            }
            Err(e) if e.is_exists() => return Err(already_there(plan, pod_name, pod, &e)),
            Err(e) => {
                let what = format!("cannot make the veth pair {pod_name} - {}", plan.host_name);
                return Err(refused(e.about(what)));
            }
        }
    }
    let msg = format!("no free interface index for {pod_name} in {INDEX_ATTEMPTS} attempts");
    Err(Error::new(Code::Kernel, msg))
}

/// Says which of the two names is taken.
fn already_there(plan: &Plan, pod_name: &str, pod: &mut Rtnetlink, error: &kernel::Error) -> Error {
    if !pod.link_by_name(pod_name).is_ok_and(|link| link.is_some()) {
        return host_end_exists(&plan.host_name);
    }
    let msg = format!("interface {pod_name} exists in the container already ({error}); DEL first");
    Error::new(Code::Kernel, msg)
}

fn host_end_exists(name: &str) -> Error {
    let msg = format!(
        "the host end {name} of this attachment exists already: an ADD of the same container, \
         interface and network was not followed by DEL"
    );
    Error::new(Code::Kernel, msg)
}

/// A namespace may come with IPv6 off (Docker and containerd do that for
/// containers without it).
fn enable_ipv6(pod_name: &str) -> Result<(), Error> {
    for interface in ["lo", pod_name] {
        sysctl::set(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0").map_err(refused)?;
    }
    Ok(())
}

fn has_default(pod: &mut Rtnetlink, ipv6: bool) -> Result<bool, Error> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let routes = pod.routes(Filter { family, table: TABLE_MAIN, ..Filter::default() });
    Ok(routes.map_err(refused)?.iter().any(is_default))
}

/// Sets up the host's end.
fn make_host_end(plan: &Plan, alias: &str, host: &mut Rtnetlink) -> Result<(), Error> {
    let name = &plan.host_name;
    // Before it is up: one router advertisement of the pod would give the node a
    // default route (CVE-2020-10749).
    let accept_ra = format!("net/ipv6/conf/{name}/accept_ra");
    // Absent where the kernel has no IPv6.
    sysctl::set_if_there(&accept_ra, "0").map_err(refused)?;
    if plan.has(true) {
        sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0").map_err(refused)?;
    }
    phase("host sysctls");
    let mut steps = Steps::default();
    // The alias first: set on a link that is up it is a change that every protocol is told
    // of, and IPv6 looks through all routes of the node each time (`rt6_sync_up`). Asked
    // for while still down, the link is taken note of as without carrier
    // (`linkwatch_sync_dev`), so that IPv6 begins when the kernel next looks after carriers,
    // within a second, and not within this call: what is set here works before that.
    let named = LinkChange { alias: Some(alias), ..LinkChange::default() };
    steps.push(named.message(plan.index), move || format!("ip link set {name} {}", named.words()));
    steps.push(question(plan.index), move || format!("ip link show {name}"));
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    steps.push(up.message(plan.index), move || format!("ip link set {name} {}", up.words()));
    for address in plan.host_addresses() {
        steps.push(address.add(), move || format!("ip address add {}", address.words(name)));
    }
    for route in plan.host_routes() {
        steps.push(route.add(), move || format!("ip route add {}", route.words(Some(name))));
    }
    // They save the first packet's resolution, and the table is one for all namespaces.
    steps.neighbours_are_optional();
    for neighbour in plan.host_neighbours() {
        steps.push(neighbour.set(), move || {
            format!("ip neighbour replace {}", neighbour.words(name))
        });
    }
    steps.run(host, "on the host")
}

/// Requests that go out together, and the words that name each in an error.
#[derive(Default)]
struct Steps<'a> {
    messages: Vec<Message>,
    words: Vec<Box<dyn Fn() -> String + 'a>>,
    /// The first of the neighbour entries that may be missing.
    optional: Option<usize>,
}

impl<'a> Steps<'a> {
    fn push(&mut self, message: Message, words: impl Fn() -> String + 'a) {
        self.messages.push(message);
        self.words.push(Box::new(words));
    }

    /// Lets the kernel refuse the neighbour entries that follow if its table is full
    /// (`gc_thresh3`, 1,024 entries; net/core/neighbour.c).
    fn neighbours_are_optional(&mut self) {
        self.optional = Some(self.messages.len());
    }

    fn run(mut self, socket: &mut Rtnetlink, place: &str) -> Result<(), Error> {
        let mut refusals = socket.batch(&mut self.messages).map_err(refused)?;
        let count = refusals.len();
        refusals.retain(|Refusal { index, error }| {
            error.errno != Errno::ENOBUFS || self.optional.is_none_or(|first| *index < first)
        });
        if refusals.len() < count {
            log::warn!(
                "the kernel's neighbour table is full: left out the pod's entry, which the \
                 kernel resolves by itself; raise net.ipv4.neigh.default.gc_thresh3 and \
                 net.ipv6.neigh.default.gc_thresh3"
            );
        }
        let Some(Refusal { index, error }) = refusals.into_iter().next() else { return Ok(()) };
        let words = self.words.get(index).map_or_else(String::new, |words| words());
        Err(refused(error.about(format_args!("{place}, `{words}` failed"))))
    }
}

/// MTU that the node map leads to, else that of the default route's link.
fn pod_mtu(stamped: Option<&Stamped>, source: &Source, host: &mut Rtnetlink) -> Result<u32, Error> {
    if let Some(mtu) = node::pod_mtu(stamped, source, host)? {
        return Ok(mtu);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let filter = Filter { family: family as u8, table: TABLE_MAIN, ..Filter::default() };
        let routes = host.routes(filter).map_err(refused)?;
        let dev = routes.iter().filter(|route| is_default(route)).find_map(|route| route.dev);
        let Some(dev) = dev else { continue };
        if let Some(link) = host.link(dev).map_err(refused)? {
            return Ok(link.mtu);
        }
    }
    Ok(ETHERNET_MTU)
}

/// The result: both ends, the addresses on the pod's, and what the IPAM gave.
fn result(config: &Config, given: AddResult, plan: &Plan, attachment: &Attachment) -> AddResult {
    let sandbox = attachment.netns.as_ref().map(|path| path.display().to_string());
    let host = Interface {
        name: plan.host_name.clone(),
        mac: format_mac(&plan.host_mac),
        mtu: Some(plan.mtu),
        ..Interface::default()
    };
    let pod = Interface {
        name: attachment.key.ifname.clone(),
        mac: format_mac(&plan.pod_mac),
        mtu: Some(plan.mtu),
        sandbox: sandbox.unwrap_or_default(),
        ..Interface::default()
    };
    let ips = plan.addresses.iter().map(|&(address, gateway)| IpConfig {
        address,
        gateway: Some(gateway),
        interface: Some(1),
    });
    AddResult {
        interfaces: vec![host, pod],
        ips: ips.collect(),
        routes: given.routes,
        dns: config.dns.clone().unwrap_or(given.dns),
    }
}
