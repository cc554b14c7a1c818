//! Reads captured frames: the pcap file format, and Ethernet down to ICMP, through VXLAN.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// UDP ports taken for VXLAN's: the kernel's default and IANA's (RFC 7348).
pub const VXLAN_PORTS: [u16; 2] = [8472, 4789];

/// A frame as captured.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When, since the epoch.
    pub time: Duration,
    /// Length on the wire in bytes, from the Ethernet header on, without checksum.
    pub length: usize,
    /// What was captured of it.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// Its layers, with [`VXLAN_PORTS`] for VXLAN.
    pub fn frame(&self) -> Result<Frame> {
        self.frame_with(&VXLAN_PORTS)
    }

    /// Its layers, with these UDP destination ports for VXLAN.
    pub fn frame_with(&self, vxlan_ports: &[u16]) -> Result<Frame> {
        let frame = Frame::decode(&self.bytes, vxlan_ports)?;
        Ok(Frame { length: self.length, ..frame })
    }
}

/// Reads a pcap file (magic a1b2c3d4 or a1b23c4d, either byte order) of Ethernet
/// frames; one record that is still being written at the end is left out.
pub fn read_pcap(file: &[u8]) -> Result<Vec<Packet>> {
    let mut input = Bytes(file);
    let magic = input.array::<4>()?;
    let (big, per_second) = match magic {
        [0xa1, 0xb2, 0xc3, 0xd4] => (true, 1_000_000),
        [0xd4, 0xc3, 0xb2, 0xa1] => (false, 1_000_000),
        [0xa1, 0xb2, 0x3c, 0x4d] => (true, 1_000_000_000),
        [0x4d, 0x3c, 0xb2, 0xa1] => (false, 1_000_000_000),
        _ => bail!("no pcap file: it begins with {magic:02x?}"),
    };
    let number = |bytes: [u8; 4]| {
        if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    input.take(16)?;
    let linktype = number(input.array()?);
    ensure!(linktype == 1, "link type {linktype} is not Ethernet (1)");
    let mut packets = Vec::new();
    while let Ok(header) = input.take(16) {
        let mut header = Bytes(header);
        let mut next = || header.array().map(number);
        let (seconds, fraction, captured, length) = (next()?, next()?, next()?, next()?);
        let Ok(bytes) = input.take(captured as usize) else { break };
        let nanoseconds = u64::from(fraction) * (1_000_000_000 / per_second);
        packets.push(Packet {
            time: Duration::from_secs(seconds.into()) + Duration::from_nanos(nanoseconds),
            length: length as usize,
            bytes: bytes.to_vec(),
        });
    }
    Ok(packets)
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length in bytes, header included: on the wire for a captured frame.
    pub length: usize,
    /// Source MAC.
    pub source: Mac,
    /// Destination MAC.
    pub destination: Mac,
    /// EtherType.
    pub ethertype: u16,
    /// What it carries.
    pub payload: Payload,
}

/// What an Ethernet frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// IPv4 or IPv6.
    Ip(Ip),
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// Anything else, undecoded.
    Other(Vec<u8>),
}

/// An ARP packet (RFC 826).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender's IP address.
    pub sender: Ipv4Addr,
    /// Address that is asked for, or answered to.
    pub target: Ipv4Addr,
}

/// An IP packet of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class: DSCP and ECN.
    pub tos: u8,
    /// Length in bytes as the header says, header included.
    pub length: usize,
    /// Length of header with options or extension headers, in bytes.
    pub header: usize,
    /// Protocol of the transport layer (IANA's number).
    pub protocol: u8,
    /// IPv4's "don't fragment"; true for IPv6, whose routers never do.
    pub dont_fragment: bool,
    /// Whether fragments follow.
    pub more_fragments: bool,
    /// Offset of this fragment, in bytes.
    pub fragment_offset: usize,
    /// What it carries.
    pub transport: Transport,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp(Udp),
    /// TCP.
    Tcp(Tcp),
    /// ICMP or ICMPv6.
    Icmp(Icmp),
    /// Anything else, any fragment but the first, and what is cut short.
    Other(Vec<u8>),
}

/// A UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The checksum field; 0 says that there is none. A packet captured before the
    /// hardware, or what stands for it, filled it in has only a part of it here.
    pub checksum: u16,
    /// What it carries.
    pub payload: Vec<u8>,
    /// The payload as VXLAN, where the destination port is VXLAN's.
    pub vxlan: Option<Vxlan>,
}

/// A VXLAN header (RFC 7348, section 5) and the frame behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Flags; 8 says that the network identifier is valid.
    pub flags: u8,
    /// Network identifier.
    pub vni: u32,
    /// The frame inside.
    pub inner: Box<Frame>,
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// Bytes of data.
    pub data: usize,
}

/// An ICMP or ICMPv6 message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Whether it is ICMPv6.
    pub v6: bool,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The second word: identifier and sequence of an echo, MTU of "too big".
    pub word: u32,
    /// Length in bytes, header included.
    pub length: usize,
    /// The packet that an error message quotes, as far as it is quoted.
    pub quoted: Option<Box<Ip>>,
}

impl Icmp {
    /// Whether it is an echo request.
    pub fn is_request(&self) -> bool {
        self.kind == if self.v6 { 128 } else { 8 }
    }

    /// Whether it is an echo reply.
    pub fn is_reply(&self) -> bool {
        self.kind == if self.v6 { 129 } else { 0 }
    }

    /// The MTU that "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443) tells.
    pub fn too_big(&self) -> Option<u32> {
        match (self.v6, self.kind, self.code) {
            (false, 3, 4) => Some(self.word & 0xffff),
            (true, 2, _) => Some(self.word),
            _ => None,
        }
    }

    /// What it is, in words.
    pub fn meaning(&self) -> String {
        match (self.v6, self.kind, self.code) {
            _ if self.is_request() => format!("echo request {}", self.word & 0xffff),
            _ if self.is_reply() => format!("echo reply {}", self.word & 0xffff),
            _ if self.too_big().is_some() => {
                format!("too big, MTU is {}", self.too_big().unwrap_or_default())
            }
            (false, 3, 0) | (true, 1, 0) => "network unreachable".to_string(),
            (false, 3, 1) | (true, 1, 3) => "host unreachable".to_string(),
            (false, 3, 3) | (true, 1, 4) => "port unreachable".to_string(),
            (false, 11, 0) | (true, 3, 0) => "time to live exceeded".to_string(),
            (true, 133, _) => "router solicitation".to_string(),
            (true, 134, _) => "router advertisement".to_string(),
            (true, 135, _) => "neighbour solicitation".to_string(),
            (true, 136, _) => "neighbour advertisement".to_string(),
            (_, kind, code) => format!("type {kind} code {code}"),
        }
    }
}

impl Frame {
    /// Decodes a frame; `vxlan_ports` are the UDP destination ports of VXLAN.
    pub fn decode(bytes: &[u8], vxlan_ports: &[u16]) -> Result<Frame> {
        let mut input = Bytes(bytes);
        let destination = Mac(input.array()?);
        let source = Mac(input.array()?);
        let ethertype = input.u16()?;
        let payload = match ethertype {
            0x0800 | 0x86dd => Payload::Ip(Ip::decode(input.0, vxlan_ports)?),
            0x0806 => Payload::Arp(decode_arp(input)?),
            _ => Payload::Other(input.0.to_vec()),
        };
        Ok(Frame { length: bytes.len(), source, destination, ethertype, payload })
    }

    /// The IP packet that it carries.
    pub fn ip(&self) -> Option<&Ip> {
        if let Payload::Ip(ip) = &self.payload { Some(ip) } else { None }
    }

    /// The VXLAN header and what is inside.
    pub fn vxlan(&self) -> Option<&Vxlan> {
        self.ip()?.udp()?.vxlan.as_ref()
    }

    /// The innermost frame: the one in the tunnel, else this one.
    pub fn innermost(&self) -> &Frame {
        self.vxlan().map_or(self, |vxlan| vxlan.inner.innermost())
    }
}

impl Ip {
    /// Decodes an IP packet of either version.
    pub fn decode(bytes: &[u8], vxlan_ports: &[u16]) -> Result<Ip> {
        let version = bytes.first().context("an empty IP packet")? >> 4;
        let (mut ip, rest) = match version {
            4 => decode_v4(bytes)?,
            6 => decode_v6(bytes)?,
            _ => bail!("IP version {version}"),
        };
        // Ethernet pads short frames, and ICMP errors quote packets in part.
        let rest = &rest[..rest.len().min(ip.length.saturating_sub(ip.header))];
        let whole = ip.fragment_offset == 0;
        let transport =
            if whole { decode_transport(ip.protocol, rest, vxlan_ports).ok() } else { None };
        ip.transport = transport.flatten().unwrap_or_else(|| Transport::Other(rest.to_vec()));
        Ok(ip)
    }

    /// Whether it is a fragment of a larger packet.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }

    /// The UDP datagram that it carries.
    pub fn udp(&self) -> Option<&Udp> {
        if let Transport::Udp(udp) = &self.transport { Some(udp) } else { None }
    }

    /// The TCP segment that it carries.
    pub fn tcp(&self) -> Option<&Tcp> {
        if let Transport::Tcp(tcp) = &self.transport { Some(tcp) } else { None }
    }

    /// The ICMP message that it carries.
    pub fn icmp(&self) -> Option<&Icmp> {
        if let Transport::Icmp(icmp) = &self.transport { Some(icmp) } else { None }
    }
}

fn decode_arp(mut input: Bytes) -> Result<Arp> {
    ensure!(input.take(6)? == [0, 1, 8, 0, 6, 4], "ARP that is not for IPv4 over Ethernet");
    let operation = input.u16()?;
    input.take(6)?;
    let sender = Ipv4Addr::from(input.array::<4>()?);
    input.take(6)?;
    Ok(Arp { operation, sender, target: Ipv4Addr::from(input.array::<4>()?) })
}

/// RFC 791, section 3.1.
fn decode_v4(bytes: &[u8]) -> Result<(Ip, &[u8])> {
    let mut input = Bytes(bytes);
    let [first, tos] = input.array()?;
    let header = usize::from(first & 15) * 4;
    let length = usize::from(input.u16()?);
    input.take(2)?;
    let fragment = input.u16()?;
    let [ttl, protocol] = input.array()?;
    input.take(2)?;
    let source = Ipv4Addr::from(input.array::<4>()?);
    let destination = Ipv4Addr::from(input.array::<4>()?);
    let ip = Ip {
        source: source.into(),
        destination: destination.into(),
        ttl,
        tos,
        length,
        header,
        protocol,
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        fragment_offset: usize::from(fragment & 0x1fff) * 8,
        transport: Transport::Other(Vec::new()),
    };
    Ok((ip, bytes.get(header..).context("IPv4 options are cut short")?))
}

/// RFC 8200, sections 3 and 4.
fn decode_v6(bytes: &[u8]) -> Result<(Ip, &[u8])> {
    let mut input = Bytes(bytes);
    let word = u32::from_be_bytes(input.array()?);
    let length = usize::from(input.u16()?) + 40;
    let [next, ttl] = input.array()?;
    let source = Ipv6Addr::from(input.array::<16>()?);
    let destination = Ipv6Addr::from(input.array::<16>()?);
    let mut ip = Ip {
        source: source.into(),
        destination: destination.into(),
        ttl,
        tos: (word >> 20 & 0xff) as u8,
        length,
        header: 40,
        protocol: next,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        transport: Transport::Other(Vec::new()),
    };
    // Hop-by-hop, routing, destination options: a length in units of 8 bytes beyond
    // the first; fragment: 8 bytes. Only what follows the first fragment's is decoded.
    while matches!(ip.protocol, 0 | 43 | 44 | 60) && ip.fragment_offset == 0 {
        let header = input.array::<8>()?;
        if ip.protocol == 44 {
            let fragment = u16::from_be_bytes([header[2], header[3]]);
            ip.fragment_offset = usize::from(fragment & 0xfff8);
            ip.more_fragments = fragment & 1 != 0;
            ip.header += 8;
        } else {
            input.take(usize::from(header[1]) * 8)?;
            ip.header += 8 + usize::from(header[1]) * 8;
        }
        ip.protocol = header[0];
    }
    Ok((ip, input.0))
}

fn decode_transport(protocol: u8, bytes: &[u8], vxlan_ports: &[u16]) -> Result<Option<Transport>> {
    let transport = match protocol {
        17 => Transport::Udp(decode_udp(Bytes(bytes), vxlan_ports)?),
        6 => Transport::Tcp(decode_tcp(Bytes(bytes))?),
        1 | 58 => Transport::Icmp(decode_icmp(protocol == 58, bytes)?),
        _ => return Ok(None),
    };
    Ok(Some(transport))
}

fn decode_udp(mut input: Bytes, vxlan_ports: &[u16]) -> Result<Udp> {
    let (source, destination) = (input.u16()?, input.u16()?);
    input.take(2)?;
    let checksum = input.u16()?;
    let is_vxlan = vxlan_ports.contains(&destination);
    let vxlan = if is_vxlan { decode_vxlan(input, vxlan_ports).ok() } else { None };
    Ok(Udp { source, destination, checksum, payload: input.0.to_vec(), vxlan })
}

fn decode_vxlan(mut input: Bytes, vxlan_ports: &[u16]) -> Result<Vxlan> {
    let [flags, ..] = input.array::<4>()?;
    let vni = u32::from_be_bytes(input.array()?) >> 8;
    Ok(Vxlan { flags, vni, inner: Box::new(Frame::decode(input.0, vxlan_ports)?) })
}

/// RFC 9293, section 3.1.
fn decode_tcp(mut input: Bytes) -> Result<Tcp> {
    let all = input.0.len();
    let (source, destination) = (input.u16()?, input.u16()?);
    input.take(8)?;
    let [offset, flags] = input.array()?;
    let data = all.saturating_sub(usize::from(offset >> 4) * 4);
    Ok(Tcp { source, destination, flags, data })
}

fn decode_icmp(v6: bool, bytes: &[u8]) -> Result<Icmp> {
    let mut input = Bytes(bytes);
    let [kind, code] = input.array()?;
    input.take(2)?;
    let word = u32::from_be_bytes(input.array()?);
    let error = if v6 { kind < 128 } else { matches!(kind, 3 | 4 | 5 | 11 | 12) };
    let quoted = if error { Ip::decode(input.0, &[]).ok().map(Box::new) } else { None };
    Ok(Icmp { v6, kind, code, word, length: bytes.len(), quoted })
}

/// What is left of the input.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("a packet is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().context("a packet is cut short")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }
}

/// Prints a frame layer by layer, the bytes of each header, its fields, and what it is for.
impl Frame {
    /// Its headers from the outermost, and what the last of them carries.
    pub fn layers(&self) -> Vec<Layer> {
        layers(self, self.vxlan().is_some())
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} bytes on the wire", self.length)?;
        for layer in self.layers() {
            writeln!(
                f,
                "{:>6}  {:<8}  {:<48}  {}",
                layer.bytes, layer.name, layer.fields, layer.what
            )?;
        }
        Ok(())
    }
}

/// One line of a printed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Length in bytes of the header, or of the data where that is the last.
    pub bytes: usize,
    /// The protocol.
    pub name: &'static str,
    /// What its fields say.
    pub fields: String,
    /// What it is there for.
    pub what: &'static str,
}

/// `outer`: whether these are the headers around a tunnel.
fn layers(frame: &Frame, outer: bool) -> Vec<Layer> {
    let mut lines = vec![Layer {
        bytes: 14,
        name: "Ethernet",
        fields: format!("{} > {}", frame.source, frame.destination),
        what: if outer { "this hop of the physical network" } else { "next hop of the packet" },
    }];
    match &frame.payload {
        Payload::Ip(ip) => lines.extend(ip_layers(ip, outer)),
        Payload::Arp(arp) if arp.operation == 1 => lines.push(Layer {
            bytes: 28,
            name: "ARP",
            fields: format!("who has {}? tell {}", arp.target, arp.sender),
            what: "asks for a MAC",
        }),
        Payload::Arp(arp) => lines.push(Layer {
            bytes: 28,
            name: "ARP",
            fields: format!("{} is at {}", arp.sender, frame.source),
            what: "tells a MAC",
        }),
        Payload::Other(bytes) => lines.push(Layer {
            bytes: bytes.len(),
            name: "data",
            fields: format!("EtherType {:#06x}", frame.ethertype),
            what: "",
        }),
    }
    lines
}

fn ip_layers(ip: &Ip, outer: bool) -> Vec<Layer> {
    let v4 = ip.source.is_ipv4();
    let hops = if v4 { "ttl" } else { "hop limit" };
    let mut fields = format!("{} > {} {hops} {}", ip.source, ip.destination, ip.ttl);
    if ip.is_fragment() {
        let more = if ip.more_fragments { "+" } else { "" };
        fields.push_str(&format!(" fragment at {}{more}", ip.fragment_offset));
    }
    let what = if outer { "node to node: all that the router sees" } else { "who talks to whom" };
    let mut lines =
        vec![Layer { bytes: ip.header, name: if v4 { "IPv4" } else { "IPv6" }, fields, what }];
    match &ip.transport {
        Transport::Udp(udp) => lines.extend(udp_layers(udp)),
        Transport::Tcp(tcp) => lines.push(Layer {
            bytes: ip.length.saturating_sub(ip.header),
            name: "TCP",
            fields: format!("{} > {}, {} bytes of data", tcp.source, tcp.destination, tcp.data),
            what: "",
        }),
        Transport::Icmp(icmp) => lines.push(Layer {
            bytes: icmp.length,
            name: if icmp.v6 { "ICMPv6" } else { "ICMP" },
            fields: icmp.meaning(),
            what: if icmp.is_request() || icmp.is_reply() { "the ping" } else { "" },
        }),
        Transport::Other(bytes) => lines.push(Layer {
            bytes: bytes.len(),
            name: "data",
            fields: format!("protocol {}", ip.protocol),
            what: "",
        }),
    }
    lines
}

fn udp_layers(udp: &Udp) -> Vec<Layer> {
    let what =
        if udp.vxlan.is_some() { "source: hash of the flow; destination: VXLAN" } else { "" };
    let fields = format!("{} > {}", udp.source, udp.destination);
    let mut lines = vec![Layer { bytes: 8, name: "UDP", fields, what }];
    let Some(vxlan) = &udp.vxlan else {
        let bytes = udp.payload.len();
        lines.push(Layer { bytes, name: "data", fields: String::new(), what: "" });
        return lines;
    };
    let fields = format!("VNI {}", vxlan.vni);
    lines.push(Layer { bytes: 8, name: "VXLAN", fields, what: "which overlay; a frame follows" });
    let inner = layers(&vxlan.inner, vxlan.inner.vxlan().is_some());
    lines.extend(inner.into_iter().enumerate().map(|(index, layer)| {
        if index == 0 { Layer { what: "VTEP to VTEP, inside the tunnel", ..layer } } else { layer }
    }));
    lines
}
