//! Addresses of interfaces (`include/uapi/linux/if_addr.h`).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::error::Result;
use crate::netlink::{Message, Reply, Rtnetlink};

/// Length of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface.
    pub index: u32,
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// Whether the kernel made, or shall make, the route to the prefix.
    pub prefix_route: bool,
}

impl Address {
    /// The request that adds the address. IPv6 addresses are usable at once: no
    /// duplicate address detection (IFA_F_NODAD), which takes a second or two.
    pub fn add(&self) -> Message {
        let mut message = self.message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let mut flags = 0;
        if !self.prefix_route {
            flags |= libc::IFA_F_NOPREFIXROUTE;
        }
        if self.address.is_ipv6() {
            flags |= libc::IFA_F_NODAD;
        }
        message.attr_u32(libc::IFA_FLAGS, flags);
        message
    }

    /// The request that removes the address.
    pub fn delete(&self) -> Message {
        self.message(libc::RTM_DELADDR, 0)
    }

    /// The address as arguments of `ip address add`, on the interface `dev`.
    pub fn words(&self, dev: &str) -> String {
        let prefix = if self.prefix_route { "" } else { " noprefixroute" };
        let nodad = if self.address.is_ipv6() { " nodad" } else { "" };
        format!("{} dev {dev}{prefix}{nodad}", self.address)
    }

    fn message(&self, kind: u16, flags: i32) -> Message {
        let ip = self.address.ip();
        let mut message = Message::new(kind, flags, &header(ip, self.address.prefix(), self.index));
        message.attr_ip(libc::IFA_LOCAL, ip);
        message.attr_ip(libc::IFA_ADDRESS, ip);
        message
    }
}

impl Rtnetlink {
    /// The addresses of the interface of number `index`, or of all.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>> {
        let mut body = [0; IFADDRMSG];
        if let (Some(index), Some(field)) = (index, body.get_mut(4..)) {
            field.copy_from_slice(&index.to_ne_bytes());
        }
        let message = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &body);
        match self.dump(&message, parse) {
            // The kernel's answer for an interface that is gone.
            Err(e) if e.is_gone() => Ok(Vec::new()),
            other => other.map_err(|e| e.about("cannot list addresses")),
        }
    }
}

/// AF_INET or AF_INET6.
pub(crate) fn family_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// `struct ifaddrmsg`.
fn header(ip: IpAddr, prefix: u8, index: u32) -> [u8; IFADDRMSG] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family_of(ip), prefix, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]
}

pub(crate) fn parse(reply: &Reply) -> Option<Address> {
    if reply.kind != libc::RTM_NEWADDR {
        return None;
    }
    let prefix = *reply.body.get(1)?;
    let index = reply.body.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (mut local, mut address, mut flags) = (None, None, 0);
    for attribute in reply.attributes(IFADDRMSG) {
        match attribute.kind {
            libc::IFA_LOCAL => local = attribute.ip(),
            libc::IFA_ADDRESS => address = attribute.ip(),
            libc::IFA_FLAGS => flags = attribute.u32()?,
            _ => {}
        }
    }
    // IFA_ADDRESS is the far end on a point-to-point link.
    let address = IpNetwork::new(local.or(address)?, prefix).ok()?;
    Some(Address { index, address, prefix_route: flags & libc::IFA_F_NOPREFIXROUTE == 0 })
}
