//! Which addresses anything on this host refers to, in whatever network namespace:
//! the evidence that a lease which nobody vouches for is nobody's.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kernel::Rtnetlink;
use kernel::neighbour::State;
use kernel::netns::Netns;
use kernel::route::Filter;
use nix::errno::Errno;

use crate::attachment::POD_ROUTE_PROTOCOL;

/// The addresses, listed when first asked for: where a range is exhausted, there are
/// as many questions as leases.
#[derive(Default)]
pub(crate) struct AddressesInUse(OnceCell<Option<HashSet<IpAddr>>>);

impl AddressesInUse {
    /// Whether the address is used. In doubt it is.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let addresses = self.0.get_or_init(|| {
            let listed = list();
            listed.inspect_err(|error| log::info!("every address counts as in use: {error}")).ok()
        });
        addresses.as_ref().is_none_or(|addresses| addresses.contains(&ip))
    }
}

/// The addresses that `veth` has a route to, in order; listed when first asked for, each
/// family alone.
#[derive(Default)]
pub(crate) struct PodRoutes {
    ipv4: OnceCell<Vec<IpAddr>>,
    ipv6: OnceCell<Vec<IpAddr>>,
}

impl PodRoutes {
    /// Whether `veth` has a route to the address, as it has to each pod's. To list them takes a
    /// fraction of the time that interfaces take, or other namespaces.
    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        let (family, routes) = match ip {
            IpAddr::V4(_) => (libc::AF_INET, &self.ipv4),
            IpAddr::V6(_) => (libc::AF_INET6, &self.ipv6),
        };
        // Where they cannot be listed everything else is asked.
        let routes = routes.get_or_init(|| pod_routes(family).unwrap_or_default());
        routes.binary_search(&ip).is_ok()
    }
}

fn pod_routes(family: i32) -> kernel::Result<Vec<IpAddr>> {
    let filter = Filter { protocol: POD_ROUTE_PROTOCOL, ..of_family(family) };
    let mut routes = Rtnetlink::open()?.host_routes(filter)?;
    routes.sort_unstable();
    Ok(routes)
}

fn of_family(family: i32) -> Filter {
    Filter { family: family as u8, ..Filter::default() }
}

/// The addresses that this namespace refers to, and those of interfaces in all others:
/// nothing on the host knows of an idle pod behind a bridge, macvlan or ipvlan.
fn list() -> kernel::Result<HashSet<IpAddr>> {
    let mut addresses = referred_to()?;
    let home = Netns::current()?;
    let mut seen = HashSet::from([home.identity()?]);
    for path in processes().chain(mounts()) {
        // A process that ended meanwhile, or a mount of another kind of namespace.
        let Ok(netns) = Netns::open(&path) else { continue };
        if !seen.insert(netns.identity()?) {
            continue;
        }
        match netns.run(&home, interfaces) {
            Ok(found) => addresses.extend(found?),
            Err(error) if error.errno == Errno::EINVAL => {}
            Err(error) => return Err(error),
        }
    }
    Ok(addresses)
}

/// Addresses of this namespace's interfaces, neighbours and host routes.
fn referred_to() -> kernel::Result<HashSet<IpAddr>> {
    let mut addresses: HashSet<IpAddr> = interfaces()?.into_iter().collect();
    let mut host = Rtnetlink::open()?;
    // One that failed is there because somebody asked in vain.
    let failed = State::Other(libc::NUD_FAILED);
    let neighbours = host.neighbours(None)?;
    addresses.extend(neighbours.iter().filter(|n| n.state != failed).map(|n| n.ip));
    for family in [libc::AF_INET, libc::AF_INET6] {
        addresses.extend(host.host_routes(of_family(family))?);
    }
    Ok(addresses)
}

fn interfaces() -> kernel::Result<Vec<IpAddr>> {
    let addresses = Rtnetlink::open()?.addresses(None)?;
    Ok(addresses.into_iter().map(|address| address.address.ip()).collect())
}

/// The namespaces of all processes.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes = entries.filter(move |e| e.file_name().to_str().is_some_and(is_process));
    processes.map(|entry| entry.path().join("ns/net"))
}

/// Namespaces that are mounted, as those of pods are.
fn mounts() -> impl Iterator<Item = PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths: Vec<PathBuf> = text.lines().filter_map(mounted_namespace).collect();
    paths.into_iter()
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) that is a
/// namespace's.
fn mounted_namespace(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next()? != "nsfs" {
        return None;
    }
    Some(Path::new(&unescape(mount.split(' ').nth(4)?)).to_owned())
}

/// Undoes the octal escapes of white space and backslash.
fn unescape(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(path.to_owned(), |path, (escape, byte)| path.replace(escape, byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_told_from_others() {
        let namespace = "523 25 0:4 net:[4026532200] /run/netns/a\\040b rw shared:2 - nsfs nsfs rw";
        assert_eq!(mounted_namespace(namespace), Some("/run/netns/a b".into()));
        let other = "25 1 0:22 / /run rw,nosuid shared:12 - tmpfs tmpfs rw,size=10k";
        assert_eq!(mounted_namespace(other), None);
    }
}
