//! Namespaces, packets made by hand, and counts of what arrived.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kernel::netlink::Socket;
use kernel::nft::{self, Table};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

/// What these tests need.
pub(crate) fn prerequisites() -> Result<(), String> {
    testing::kernel()?;
    testing::programs(&["ping", "sysctl", "awk"])
}

/// Runs `test` where namespaces can be named without anybody seeing them; all
/// are gone with the thread. Skipped where that is not permitted.
pub(crate) fn in_lab(test: impl FnOnce() + Send + 'static) {
    testing::need!(prerequisites());
    let nothing: Option<&str> = None;
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a new mount namespace");
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

/// Two nodes on two links, a router between them, a host outside, and an intruder
/// on the first node's link. Pods `pod1` and `pod2` are reached through the
/// tunnel; the router knows a way to them besides. Strict reverse path filtering
/// everywhere.
pub(crate) const CLUSTER: &str = r#"
for name in router outside intruder node1 node2 pod1 pod2; do
  ip netns add $name
  ip -n $name link set lo up
  ip netns exec $name sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
    net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 \
    net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
done
ip -n router link add link1 type bridge
ip -n router link set link1 up
attach() { # namespace, address, IPv6 address, router's: a port of the router's bridge
  ip -n $1 link add eth0 type veth peer name port-$1 netns router
  ip -n router link set port-$1 master link1 up
  address $1 $2 $3 192.168.1.254 2001:db8:1::fe
}
connect() { # the same, on a link of its own
  ip -n $1 link add eth0 type veth peer name port-$1 netns router
  ip -n router addr add $4/24 dev port-$1
  ip -n router addr add $5/64 dev port-$1 nodad
  ip -n router link set port-$1 up
  address $@
}
address() {
  ip -n $1 addr add $2/24 brd + dev eth0
  ip -n $1 addr add $3/64 dev eth0 nodad
  ip -n $1 link set eth0 up
  ip -n $1 route add default via $4
  ip -n $1 route add default via $5
}
ip -n router addr add 192.168.1.254/24 dev link1
ip -n router addr add 2001:db8:1::fe/64 dev link1 nodad
attach node1 192.168.1.1 2001:db8:1::1
attach intruder 192.168.1.66 2001:db8:1::66
connect node2 192.168.2.1 2001:db8:2::1 192.168.2.254 2001:db8:2::fe
connect outside 203.0.113.9 2001:db8:9::9 203.0.113.254 2001:db8:9::fe
for i in 1 2; do
  ip -n router route add 10.0.$i.0/24 via 192.168.$i.1
  ip -n router route add fd00:$i::/64 via 2001:db8:$i::1
  ip -n node$i link add host-end group 2003134068 type veth peer name eth0 netns pod$i
  ip -n node$i link set host-end up
  ip -n node$i route add 10.0.$i.2 dev host-end
  ip -n node$i route add fd00:$i::2 dev host-end
  ip -n node$i addr add 10.0.$i.1/32 dev host-end
  ip -n node$i addr add fd00:$i::1/128 dev host-end nodad
  ip -n pod$i addr add 10.0.$i.2/32 dev eth0
  ip -n pod$i addr add fd00:$i::2/128 dev eth0 nodad
  ip -n pod$i link set eth0 up
  ip -n pod$i route add 10.0.$i.1 dev eth0
  ip -n pod$i route add default via 10.0.$i.1
  ip -n pod$i route add fd00:$i::1 dev eth0
  ip -n pod$i route add default via fd00:$i::1
  ip -n node$i link add weft.1 address 0a:58:0a:00:0$i:00 type vxlan id 1 dstport 8472 \
    local 192.168.$i.1 dev eth0 nolearning
  ip -n node$i addr add 10.0.$i.0/32 dev weft.1
  ip -n node$i addr add fd00:$i::/128 dev weft.1 nodad
  ip -n node$i link set weft.1 up
done
peer() { # of node $1: node $2
  ip -n node$1 neigh add 10.0.$2.0 lladdr 0a:58:0a:00:0$2:00 dev weft.1 nud permanent
  ip -n node$1 neigh add fe80::$2 lladdr 0a:58:0a:00:0$2:00 dev weft.1 nud permanent
  bridge -n node$1 fdb add 0a:58:0a:00:0$2:00 dst 192.168.$2.1 dev weft.1 self permanent
  ip -n node$1 route add 10.0.$2.0/24 via 10.0.$2.0 dev weft.1 onlink src 10.0.$1.0
  ip -n node$1 route add fd00:$2::/64 via fe80::$2 dev weft.1 src fd00:$1::
}
peer 1 2
peer 2 1
"#;

/// Where a datagram came from that `client` sent from `source` (an unspecified
/// address and port 0 as routes have it) to `dial`, as the server in `server` at
/// `listen` saw it. The answer must reach the client, and come from `dial`.
pub(crate) fn talk(
    (client, source): (&str, &str),
    dial: &str,
    (server, listen): (&str, &str),
) -> SocketAddr {
    let patience = Some(Duration::from_secs(5));
    let server = within(server, || UdpSocket::bind(listen).unwrap());
    let client = within(client, || UdpSocket::bind(source).unwrap());
    server.set_read_timeout(patience).unwrap();
    client.set_read_timeout(patience).unwrap();
    client.connect(dial).unwrap();
    client.send(b"question").unwrap();
    let mut buffer = [0; 16];
    let (_, seen) = receive(&server, &mut buffer).expect("the question arrives");
    server.send_to(b"answer", seen).unwrap();
    let (length, _) = receive(&client, &mut buffer).expect("the answer arrives");
    assert_eq!(&buffer[..length], b"answer");
    seen
}

/// A datagram. With a time limit set the call is not taken up again after the process
/// was stopped and continued, whoever did that (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
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

/// Packets that device `device` in namespace `name` has received.
pub(crate) fn received(name: &str, device: &str) -> u64 {
    let statistics = within(name, || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = statistics.lines().find_map(|line| line.trim().strip_prefix(device));
    let columns = line.and_then(|line| line.strip_prefix(':')).expect("the device is there");
    columns.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until `reading` gives something else than `before`, and returns that.
pub(crate) fn changed<T: PartialEq>(what: &str, before: &T, reading: impl Fn() -> T) -> T {
    wait_for(what, || reading() != *before);
    reading()
}

/// Waits until `happened`.
pub(crate) fn wait_for(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: nothing happens");
        thread::yield_now();
    }
}
