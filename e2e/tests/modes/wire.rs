//! Packets made by hand, and sockets in a place's network.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::Place;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::look::DEADLINE;

pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
/// IPv4's flag in the word that also holds the offset.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;

/// Runs `work` in a place's network; sockets that it makes stay there.
pub(crate) fn within<T: Send>(place: &Place, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let words = place.nsenter();
    let mut paths = words.iter().filter_map(|word| word.to_str()?.strip_prefix("--net="));
    let path = paths.next_back().context("a place has a network")?;
    let netns = File::open(path).with_context(|| path.to_owned())?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).context("these tests need root")?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sends a packet with its IP header, to `interface` where the destination needs one.
/// The kernel adds nothing but IPv4's checksum.
pub(crate) fn inject(place: &Place, packet: &[u8], interface: Option<&str>) -> Result<()> {
    let index = match interface {
        Some(name) => crate::look::link(place, name)?["ifindex"].as_u64().context("no index")?,
        None => 0,
    };
    within(place, || match destination(packet)? {
        IpAddr::V4(to) => {
            let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
            send(AddressFamily::Inet, packet, &to)
        }
        IpAddr::V6(to) => {
            let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, index as u32));
            send(AddressFamily::Inet6, packet, &to)
        }
    })
}

fn send(family: AddressFamily, packet: &[u8], to: &dyn SockaddrLike) -> Result<()> {
    let fd: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let sent = sendto(fd.as_raw_fd(), packet, to, MsgFlags::empty())?;
    ensure!(sent == packet.len(), "{sent} bytes of {} sent", packet.len());
    Ok(())
}

fn destination(packet: &[u8]) -> Result<IpAddr> {
    let (start, length) =
        if packet.first().is_some_and(|b| b >> 4 == 4) { (16, 4) } else { (24, 16) };
    let bytes = packet.get(start..start + length).context("a packet is cut short")?;
    match length {
        4 => Ok(IpAddr::from(<[u8; 4]>::try_from(bytes)?)),
        _ => Ok(IpAddr::from(<[u8; 16]>::try_from(bytes)?)),
    }
}

/// An IP packet, `next` its protocol and `fragment` IPv4's flags and offset.
pub(crate) fn ip(from: IpAddr, to: IpAddr, next: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 0, 0x57, 0x66, 0, 0, 64, next, 0, 0];
            header[2..4].copy_from_slice(&(payload.len() as u16 + 20).to_be_bytes());
            header[6..8].copy_from_slice(&fragment.to_be_bytes());
            [header, from.octets().to_vec(), to.octets().to_vec()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, next, 255];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            [header, from.octets().to_vec(), to.octets().to_vec()].concat()
        }
        _ => unreachable!("the tests pair addresses of one family"),
    };
    packet.extend(payload);
    packet
}

/// A UDP datagram with its checksum.
pub(crate) fn udp(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    for word in [40_001, port, payload.len() as u16 + 8, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    fill_in_checksum(from, to, UDP, 6, &mut datagram);
    datagram
}

/// An ICMPv6 message in its packet.
pub(crate) fn icmp6(from: IpAddr, to: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    fill_in_checksum(from, to, ICMP6, 2, &mut message);
    ip(from, to, ICMP6, 0, &message)
}

/// An echo request of either family with `size` bytes of data, in its packet.
pub(crate) fn echo_request(from: IpAddr, to: IpAddr, size: usize) -> Vec<u8> {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0, 0x57, 0x66, 0, 1];
    message.resize(8 + size, 0);
    if from.is_ipv6() {
        return icmp6(from, to, &message);
    }
    let sum = !fold(words(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, 1, 0, &message)
}

/// RFC 1071, over the pseudo-header of RFC 768 or RFC 8200 section 8.1.
fn fill_in_checksum(from: IpAddr, to: IpAddr, next: u8, at: usize, data: &mut [u8]) {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let addresses = words(&octets(from)) + words(&octets(to));
    let sum = !fold(addresses + u32::from(next) + data.len() as u32 + words(data));
    data[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn words(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into());
    bytes.chunks(2).map(word).sum()
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A TCP listener in a place's network, which waits no longer than [`DEADLINE`] for
/// a connection (SO_RCVTIMEO, socket(7)).
pub(crate) fn listen(place: &Place, at: SocketAddr) -> Result<TcpListener> {
    let listener = within(place, || TcpListener::bind(at).with_context(|| at.to_string()))?;
    let patience = TimeVal::new(DEADLINE.as_secs() as i64, 0);
    setsockopt(&listener, ReceiveTimeout, &patience)?;
    Ok(listener)
}

/// Reads what is there. With a time limit set a read is not taken up again after the
/// process was stopped and continued, whoever did that (signal(7)).
pub(crate) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A TCP connection from a place.
pub(crate) fn connect(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, DEADLINE);
    within(place, || connect().with_context(|| format!("{to} from {}", place.name())))
}

/// The address that `server`, listening at `at`, sees of a connection that `client`
/// makes to `dial`; a question and an answer have passed over it.
pub(crate) fn seen(
    client: &Place,
    dial: SocketAddr,
    server: &Place,
    at: SocketAddr,
) -> Result<IpAddr> {
    let listener = listen(server, at)?;
    let mut near = connect(client, dial)?;
    let (mut far, peer) = listener.accept().context("nobody connects")?;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(DEADLINE))?;
    }
    let mut buffer = [0; 8];
    near.write_all(b"question")?;
    far.read_exact(&mut buffer)?;
    far.write_all(b"answered")?;
    near.read_exact(&mut buffer)?;
    ensure!(&buffer == b"answered", "{buffer:?}");
    Ok(peer.ip())
}
