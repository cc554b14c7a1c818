//! The kernel's own share of a first sync: the messages alone, as bare as `bare` is for a
//! pod. No map is read, nothing listed, nothing compared.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::neighbour::{FdbEntry, Neighbour, State};
use kernel::netlink::Message;
use kernel::nexthop::Nexthop;
use kernel::route::Route;

use super::maps::{address, range, range6};

/// Route protocol, metric and MTU as `routing` has them by default, in a tunnel over IPv4
/// and Ethernet.
const PROTOCOL: u8 = 87;
const METRIC: u32 = 8;
const MTU: u32 = 1450;

/// Sends what `peers` others take, in the thread's network namespace, for the VXLAN device
/// called `device`; returns how long the kernel took.
pub(crate) fn run(device: &str, peers: usize, dual: bool) -> Result<Duration> {
    let mut host = Rtnetlink::open()?;
    let Some(index) = host.index_of(device)? else { anyhow::bail!("no device {device}") };
    let mut messages = Vec::new();
    for kind in [neighbours, entries, nexthops, routes] {
        for number in 0..peers {
            messages.extend(kind(index, number, dual)?);
        }
    }
    let started = Instant::now();
    let refused = host.batch(&mut messages)?;
    let took = started.elapsed();
    ensure!(refused.is_empty(), "{:?}", refused.first());
    Ok(took)
}

fn mac(number: usize) -> [u8; 6] {
    let [a, b, c, d] = range(number).octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The link-local address that the MAC gives (RFC 4291, appendix A).
fn link_local(number: usize) -> IpAddr {
    let [a, b, c, d] = range(number).octets().map(u16::from);
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0858, a << 8 | 0xff, 0xfe00 | b, c << 8 | d).into()
}

fn neighbours(index: u32, number: usize, dual: bool) -> Result<Vec<Message>> {
    let entry = |ip| {
        let mac = Some(mac(number));
        Neighbour { index, ip, mac, state: State::Permanent, external: false }.set()
    };
    let ips = [Some(IpAddr::from(range(number))), dual.then(|| link_local(number))];
    Ok(ips.into_iter().flatten().map(entry).collect())
}

fn entries(index: u32, number: usize, _: bool) -> Result<Vec<Message>> {
    let dst = Some(address(number, false).into());
    let mac = mac(number);
    Ok(vec![FdbEntry { index, mac, dst, state: State::Permanent, external: false }.set()])
}

fn nexthops(index: u32, number: usize, _: bool) -> Result<Vec<Message>> {
    let via = range(number);
    let nexthop = Nexthop {
        id: via.to_bits(),
        dev: index,
        via: via.into(),
        protocol: PROTOCOL,
        onlink: true,
    };
    Ok(vec![nexthop.add()])
}

fn routes(index: u32, number: usize, dual: bool) -> Result<Vec<Message>> {
    let via = range(number);
    let to = |dst: IpNetwork| {
        let mut route = Route::to(dst, PROTOCOL);
        (route.metric, route.mtu) = (METRIC, Some(MTU));
        route
    };
    let mut route = to(IpNetwork::new(via.into(), 24)?);
    route.nexthop = Some(via.to_bits());
    route.src = Some("10.16.0.0".parse()?);
    let mut messages = vec![route.add()];
    if dual {
        let mut route = to(IpNetwork::new(range6(number).into(), 64)?);
        route.via = Some(link_local(number));
        route.dev = Some(index);
        route.src = Some("fd10:0:0:1::".parse()?);
        messages.push(route.add());
    }
    Ok(messages)
}
