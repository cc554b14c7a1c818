//! Namespaces, packets made by hand, and counts of what arrived.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::process::Command;
use std::thread;

use kernel::netlink::Socket;
use kernel::nft::{self, Table};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

/// Runs `test` where namespaces can be named without anybody seeing them; all
/// are gone with the thread.
pub(crate) fn in_lab(test: impl FnOnce() + Send + 'static) {
    let nothing: Option<&str> = None;
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests of the kernel run as root");
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(nothing, "/run", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs each line of `script` that is not empty; all must succeed.
pub(crate) fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the command of `script` succeeds.
pub(crate) fn succeeds(script: &str) -> bool {
    Command::new("sh").args(["-euc", script]).output().unwrap().status.success()
}

/// Runs `work` in the network namespace `name`.
pub(crate) fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{name}")).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Installs `table` in namespace `name`.
pub(crate) fn install(name: &str, table: &Table) {
    within(name, || nft::ensure(&mut Socket::netfilter().unwrap(), table).unwrap());
}

/// Packets that each counting rule of table `table` in namespace `name` has
/// seen, by its comment; rules with one comment are added up.
pub(crate) fn counted(name: &str, table: &str) -> BTreeMap<String, u64> {
    let counters =
        within(name, || nft::counters(&mut Socket::netfilter().unwrap(), table).unwrap());
    let mut sums = BTreeMap::new();
    for counter in counters {
        *sums.entry(counter.comment.unwrap_or_default()).or_default() += counter.packets;
    }
    sums
}

/// Sends a packet, IP header included, from namespace `name`. The kernel routes
/// it by `packet`'s destination and fills in nothing but an IPv4 checksum.
pub(crate) fn inject(name: &str, packet: &[u8], interface_index: u32) {
    within(name, || match packet[0] >> 4 {
        4 => {
            let to: [u8; 4] = packet[16..20].try_into().unwrap();
            let fd = raw_socket(AddressFamily::Inet);
            let broadcast = nix::sys::socket::sockopt::Broadcast;
            nix::sys::socket::setsockopt(&fd, broadcast, &true).unwrap();
            send(&fd, packet, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::from(to), 0)));
        }
        _ => {
            let to: [u8; 16] = packet[24..40].try_into().unwrap();
            let to = SocketAddrV6::new(Ipv6Addr::from(to), 0, 0, interface_index);
            send(&raw_socket(AddressFamily::Inet6), packet, &SockaddrIn6::from(to));
        }
    });
}

fn raw_socket(family: AddressFamily) -> std::os::fd::OwnedFd {
    socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap()
}

fn send(fd: &std::os::fd::OwnedFd, packet: &[u8], to: &dyn nix::sys::socket::SockaddrLike) {
    use std::os::fd::AsRawFd;
    let sent = sendto(fd.as_raw_fd(), packet, to, MsgFlags::empty()).unwrap();
    assert_eq!(sent, packet.len());
}

/// An ICMP or ICMPv6 echo request.
pub(crate) fn echo(from: &str, to: &str) -> Vec<u8> {
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    match from {
        IpAddr::V4(_) => {
            let mut icmp = vec![8, 0, 0, 0, 0, 1, 0, 1];
            let sum = checksum(&icmp, 0).to_be_bytes();
            icmp[2..4].copy_from_slice(&sum);
            ip(from, to, 1, 0, &icmp)
        }
        IpAddr::V6(_) => icmp6(from, to, &[128, 0, 0, 0, 0, 1, 0, 1]),
    }
}

/// An ICMPv6 message with its checksum filled in, hop limit 255.
pub(crate) fn icmp6(from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = checksum(&message, pseudo_header(from, to, 58, message.len())).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    ip(from, to, 58, 0, &message)
}

/// A UDP datagram with its checksum.
pub(crate) fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() + 8;
    let mut datagram = 40_000u16.to_be_bytes().to_vec();
    datagram.extend(port.to_be_bytes());
    datagram.extend((length as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = checksum(&datagram, pseudo_header(from, to, 17, length)).to_be_bytes();
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

/// An IP packet; `fragment` is IPv4's flags and offset.
pub(crate) fn ip(from: IpAddr, to: IpAddr, next: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((payload.len() as u16 + 20).to_be_bytes());
            packet.extend([0x12, 0x34]);
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, next, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([next, 255]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("addresses of two families"),
    }
    packet.extend(payload);
    packet
}

fn pseudo_header(from: IpAddr, to: IpAddr, next: u8, length: usize) -> u32 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let addresses = [octets(from), octets(to)].concat();
    words(&addresses) + u32::from(next) + length as u32
}

fn words(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// RFC 1071.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start + words(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
