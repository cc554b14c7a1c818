//! What a pod costs the kernel: the calls that `veth` makes for an ADD and for a
//! DEL, and nothing else. No configuration is read, no address allocated, no lock
//! taken, nothing verified.
//!
//! Called as a plugin is: CNI_COMMAND (ADD or DEL), CNI_NETNS, CNI_IFNAME, and the
//! host end's name as CNI_CONTAINERID; CNI_ARGS holds the pod's addresses:
//! `IP4=10.0.0.2;IP6=fd00::2`.
//!
//! `bare measure PROGRAM [ARGUMENT...]` runs a program and writes the peak resident set (bytes)
//! of it and of its children to the file that USAGE names. That needs a small
//! process: what a program is started from counts as its own until it is executed
//! (`exec_mmap` in the kernel's fs/exec.c).

use std::env::var;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use kernel::address::Address;
use kernel::link::{LinkChange, VethPair, delete_by_name, question};
use kernel::neighbour::{Neighbour, State};
use kernel::netlink::Message;
use kernel::netns::Netns;
use kernel::route::{Route, Scope};
use kernel::{MacAddress, Rtnetlink, sysctl};
use nix::sys::resource::{UsageWho, getrusage};

/// Protocol numbers that `veth` gives its routes, on the host and in the pod.
const PROTOCOLS: (u8, u8) = (88, 3);
const POD_MAC: MacAddress = [0x0a, 0x58, 0, 0, 0, 2];
const HOST_MAC: MacAddress = [0x0e, 0, 0, 0, 0, 1];
/// MTU of a pod whose packets go through VXLAN over IPv4 and Ethernet.
const MTU: u32 = 1450;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{{\"code\":999,\"msg\":{:?}}}", format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "measure") {
        let mut program = Command::new(words.next().context("measure what?")?);
        program.args(words);
        return measure(program);
    }
    match var("CNI_COMMAND")?.as_str() {
        "ADD" => add(),
        "DEL" => Ok(Rtnetlink::open()?.request(delete_by_name(&var("CNI_CONTAINERID")?))?),
        other => bail!("{other} is neither ADD nor DEL"),
    }
}

fn add() -> Result<()> {
    let (pod_name, host_name) = (var("CNI_IFNAME")?, var("CNI_CONTAINERID")?);
    let addresses = addresses(&var("CNI_ARGS")?)?;
    let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    // As good as random, and unlike those that the kernel gives out.
    let index = 0x0200_0000 + std::process::id();
    let home = Netns::current()?;
    let pod = Netns::open(Path::new(&var("CNI_NETNS")?))?;
    let mut host = Rtnetlink::open()?;
    pod.run(&home, || -> Result<()> {
        let mut inside = Rtnetlink::open()?;
        let pair = VethPair {
            group: kernel::link::HOST_END_GROUP,
            pod_name: &pod_name,
            pod_mac: POD_MAC,
            host_name: &host_name,
            host_mac: HOST_MAC,
            index,
            mtu: MTU,
            host_netns: home.as_fd(),
        };
        inside.request(pair.message())?;
        if has_ipv6 {
            sysctl::set("net/ipv6/conf/lo/disable_ipv6", "0")?;
            sysctl::set(&format!("net/ipv6/conf/{pod_name}/disable_ipv6"), "0")?;
        }
        batch(&mut inside, addresses.iter().flat_map(|ip| in_pod(index, *ip)).collect())
    })??;
    sysctl::set(&format!("net/ipv6/conf/{host_name}/accept_ra"), "0")?;
    if has_ipv6 {
        sysctl::set(&format!("net/ipv6/conf/{host_name}/disable_ipv6"), "0")?;
    }
    let named = LinkChange { alias: Some(&host_name), ..LinkChange::default() };
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let mut messages = vec![named.message(index), question(index), up.message(index)];
    messages.extend(addresses.iter().flat_map(|ip| on_host(index, *ip)));
    batch(&mut host, messages)
}

/// The pod's address, the gateway's neighbour entry, and the routes to and by it.
fn in_pod(index: u32, ip: IpAddr) -> [Message; 4] {
    let (gateway, prefix, any): (IpAddr, u8, IpAddr) = match ip {
        IpAddr::V4(_) => (Ipv4Addr::new(169, 254, 1, 1).into(), 24, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => ("fe80::1:1".parse().unwrap_or(ip), 64, Ipv6Addr::UNSPECIFIED.into()),
    };
    let network = |ip, prefix| IpNetwork::new(ip, prefix).unwrap_or(IpNetwork::from(ip));
    let address = Address { index, address: network(ip, prefix), prefix_route: false };
    let neighbour = neighbour(index, gateway, HOST_MAC, State::Permanent);
    let mut link = Route::to(gateway.into(), PROTOCOLS.1);
    link.dev = Some(index);
    link.scope = scope(ip);
    let mut default = Route::to(network(any, 0), PROTOCOLS.1);
    default.dev = Some(index);
    default.via = Some(gateway);
    default.onlink = true;
    [address.add(), neighbour.set(), link.append(), default.append()]
}

/// The gateway's address, the route to the pod, and its neighbour entry.
fn on_host(index: u32, ip: IpAddr) -> [Message; 3] {
    let gateway: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
        IpAddr::V6(_) => "fe80::1:1".parse().unwrap_or(ip),
    };
    let address = Address { index, address: gateway.into(), prefix_route: true };
    let mut route = Route::to(ip.into(), PROTOCOLS.0);
    route.dev = Some(index);
    route.scope = scope(ip);
    [address.add(), route.add(), neighbour(index, ip, POD_MAC, State::Stale).set()]
}

fn neighbour(index: u32, ip: IpAddr, mac: MacAddress, state: State) -> Neighbour {
    Neighbour { index, ip, mac: Some(mac), state, external: false }
}

fn scope(ip: IpAddr) -> Scope {
    if ip.is_ipv4() { Scope::Link } else { Scope::Universe }
}

fn batch(socket: &mut Rtnetlink, mut messages: Vec<Message>) -> Result<()> {
    match socket.batch(&mut messages)?.into_iter().next() {
        Some(refusal) => Err(refusal.error).with_context(|| format!("message {}", refusal.index)),
        None => Ok(()),
    }
}

fn addresses(args: &str) -> Result<Vec<IpAddr>> {
    let values = args.split(';').filter_map(|pair| pair.split_once('='));
    let values = values.filter(|(key, _)| matches!(*key, "IP4" | "IP6"));
    values.map(|(_, ip)| ip.parse().with_context(|| format!("{ip} is no address"))).collect()
}

fn measure(mut program: Command) -> Result<()> {
    let status = program.status().context("cannot run it")?;
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * 1024;
    std::fs::write(var("USAGE")?, peak.to_string())?;
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}
