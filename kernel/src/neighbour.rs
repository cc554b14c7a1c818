//! Neighbour entries, and the forwarding database of a VXLAN device, which the
//! kernel keeps behind the same messages (`include/uapi/linux/neighbour.h`).

use std::net::IpAddr;

use crate::address::family_of;
use crate::error::Result;
use crate::netlink::{Message, Reply, Rtnetlink};
use crate::uapi::NTF_EXT_LEARNED;
use crate::{MacAddress, format_mac};

/// Length of `struct ndmsg`.
const NDMSG: usize = 12;

/// How far an entry is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Never expires, never relearned.
    Permanent,
    /// Usable at once; confirmed or relearned by traffic.
    Stale,
    /// Any other NUD_* state.
    Other(u16),
}

/// An IP address on a link and its hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Interface.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address; none while unresolved.
    pub mac: Option<MacAddress>,
    /// How far it is trusted.
    pub state: State,
    /// Whether another program (a routing daemon) put it there.
    pub external: bool,
}

/// Where a VXLAN device sends frames for a hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    /// VXLAN device.
    pub index: u32,
    /// Inner destination.
    pub mac: MacAddress,
    /// Tunnel end of the peer.
    pub dst: Option<IpAddr>,
    /// How far it is trusted.
    pub state: State,
    /// Whether another program (a routing daemon) put it there.
    pub external: bool,
}

impl State {
    fn bits(self) -> u16 {
        match self {
            Self::Permanent => libc::NUD_PERMANENT,
            Self::Stale => libc::NUD_STALE,
            Self::Other(bits) => bits,
        }
    }

    fn of(bits: u16) -> Self {
        match bits {
            bits if bits & libc::NUD_PERMANENT != 0 => Self::Permanent,
            libc::NUD_STALE => Self::Stale,
            other => Self::Other(other),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Stale => "stale",
            Self::Other(_) => "none",
        }
    }
}

impl Neighbour {
    /// The request that sets the entry, whatever stood there.
    pub fn set(&self) -> Message {
        let mut message = self.message(libc::RTM_NEWNEIGH, SET);
        if let Some(mac) = &self.mac {
            message.attr_mac(libc::NDA_LLADDR, mac);
        }
        message
    }

    /// The request that removes the entry.
    pub fn delete(&self) -> Message {
        self.message(libc::RTM_DELNEIGH, 0)
    }

    /// The entry as arguments of `ip neighbour replace`, on the interface `dev`.
    pub fn words(&self, dev: &str) -> String {
        let mac = self.mac.map_or(String::new(), |mac| format!(" lladdr {}", format_mac(&mac)));
        format!("{}{mac} dev {dev} nud {}", self.ip, self.state.word())
    }

    fn message(&self, kind: u16, flags: i32) -> Message {
        let body = header(family_of(self.ip), self.index, self.state, 0);
        let mut message = Message::new(kind, flags, &body);
        message.attr_ip(libc::NDA_DST, self.ip);
        message
    }
}

impl FdbEntry {
    /// The request that sets the entry, replacing another tunnel end of the MAC.
    pub fn set(&self) -> Message {
        self.message(libc::RTM_NEWNEIGH, SET)
    }

    /// The request that removes the entry.
    pub fn delete(&self) -> Message {
        self.message(libc::RTM_DELNEIGH, 0)
    }

    /// The entry as arguments of `bridge fdb replace`, on the interface `dev`.
    pub fn words(&self, dev: &str) -> String {
        let dst = self.dst.map_or(String::new(), |ip| format!(" dst {ip}"));
        format!("{} dev {dev}{dst} self {}", format_mac(&self.mac), self.state.word())
    }

    fn message(&self, kind: u16, flags: i32) -> Message {
        let body = header(libc::AF_BRIDGE as u8, self.index, self.state, libc::NTF_SELF);
        let mut message = Message::new(kind, flags, &body);
        message.attr_mac(libc::NDA_LLADDR, &self.mac);
        if let Some(dst) = self.dst {
            message.attr_ip(libc::NDA_DST, dst);
        }
        message
    }
}

impl Rtnetlink {
    /// The neighbour entries on the interface of number `index`, or on all; of
    /// both families.
    pub fn neighbours(&mut self, index: Option<u32>) -> Result<Vec<Neighbour>> {
        let mut message = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[0; NDMSG]);
        if let Some(index) = index {
            message.attr_u32(libc::NDA_IFINDEX, index);
        }
        let list = self.dump(&message, |reply| parse(reply)?.neighbour());
        list.map_err(|e| e.about("cannot list neighbours"))
    }

    /// The neighbour entry of `ip` on the interface of number `index`.
    pub fn neighbour(&mut self, index: u32, ip: IpAddr) -> Result<Option<Neighbour>> {
        let body = header(family_of(ip), index, State::Other(0), 0);
        let mut message = Message::new(libc::RTM_GETNEIGH, 0, &body);
        message.attr_ip(libc::NDA_DST, ip);
        let found = self.get(message, |reply| parse(reply)?.neighbour());
        found.map_err(|e| e.about(format_args!("cannot look up neighbour {ip}")))
    }

    /// The forwarding database of the VXLAN device of number `index`.
    pub fn fdb(&mut self, index: u32) -> Result<Vec<FdbEntry>> {
        let body = header(libc::AF_BRIDGE as u8, index, State::Other(0), 0);
        let message = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &body);
        // The filter of an FDB dump is by device or by its bridge, loosely.
        let list = self.dump(&message, |reply| parse(reply)?.fdb_entry());
        let list = list.map_err(|e| e.about("cannot list the forwarding database"))?;
        Ok(list.into_iter().filter(|entry| entry.index == index).collect())
    }

    /// The forwarding entry of `mac` on the VXLAN device of number `index`.
    pub fn fdb_entry(&mut self, index: u32, mac: &MacAddress) -> Result<Option<FdbEntry>> {
        let body = header(libc::AF_BRIDGE as u8, index, State::Other(0), libc::NTF_SELF);
        let mut message = Message::new(libc::RTM_GETNEIGH, 0, &body);
        message.attr_mac(libc::NDA_LLADDR, mac);
        let found = self.get(message, |reply| parse(reply)?.fdb_entry());
        found.map_err(|e| e.about(format_args!("cannot look up {} in the FDB", format_mac(mac))))
    }
}

/// Create or replace.
const SET: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

/// `struct ndmsg`.
fn header(family: u8, index: u32, state: State, flags: u8) -> [u8; NDMSG] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [low, high] = state.bits().to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, low, high, flags, 0]
}

/// A message of either kind, taken apart.
pub(crate) struct Parsed {
    family: u8,
    index: u32,
    state: State,
    external: bool,
    mac: Option<MacAddress>,
    dst: Option<IpAddr>,
}

pub(crate) fn parse(reply: &Reply) -> Option<Parsed> {
    if reply.kind != libc::RTM_NEWNEIGH {
        return None;
    }
    let body = reply.body;
    let mut parsed = Parsed {
        family: *body.first()?,
        index: body.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?,
        state: State::of(body.get(8..10)?.try_into().ok().map(u16::from_ne_bytes)?),
        external: body.get(10)? & NTF_EXT_LEARNED != 0,
        mac: None,
        dst: None,
    };
    for attribute in reply.attributes(NDMSG) {
        match attribute.kind {
            libc::NDA_LLADDR => parsed.mac = attribute.mac(),
            libc::NDA_DST => parsed.dst = attribute.ip(),
            _ => {}
        }
    }
    Some(parsed)
}

impl Parsed {
    pub(crate) fn neighbour(self) -> Option<Neighbour> {
        if i32::from(self.family) == libc::AF_BRIDGE {
            return None;
        }
        let Self { index, state, external, mac, dst, .. } = self;
        Some(Neighbour { index, ip: dst?, mac, state, external })
    }

    pub(crate) fn fdb_entry(self) -> Option<FdbEntry> {
        let Self { index, state, external, mac, dst, .. } = self;
        Some(FdbEntry { index, mac: mac?, dst, state, external })
    }
}
