//! Nexthop objects: next hops with a number of their own, shared by routes
//! (`include/uapi/linux/nexthop.h`).
//!
//! IPv4 routes that differ in the gateway alone and are otherwise alike sit in
//! one list that the kernel walks at each insertion (`fib_find_info`), n² in
//! all; with nexthop objects the list is short.

use std::net::IpAddr;

use crate::address::family_of;
use crate::error::Result;
use crate::netlink::{Message, Reply, Rtnetlink};
use crate::uapi::{RTM_DELNEXTHOP, RTM_GETNEXTHOP, RTM_NEWNEXTHOP, RTNH_F_ONLINK, nha};

/// Length of `struct nhmsg`.
const NHMSG: usize = 8;

/// A nexthop object with one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nexthop {
    /// Number, unique in the namespace.
    pub id: u32,
    /// Interface.
    pub dev: u32,
    /// Gateway.
    pub via: IpAddr,
    /// Who made it.
    pub protocol: u8,
    /// Whether `via` is on the link whatever the routes say.
    pub onlink: bool,
}

impl Nexthop {
    /// The request that adds the object.
    pub fn add(&self) -> Message {
        let flags = if self.onlink { RTNH_F_ONLINK } else { 0 };
        let body = header(family_of(self.via), self.protocol, flags);
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(RTM_NEWNEXTHOP, create, &body);
        message.attr_u32(nha::ID, self.id);
        message.attr_u32(nha::OIF, self.dev);
        message.attr_ip(nha::GATEWAY, self.via);
        message
    }

    /// The request that deletes the object, and with it the routes that use it.
    pub fn delete(&self) -> Message {
        let mut message = Message::new(RTM_DELNEXTHOP, 0, &header(0, 0, 0));
        message.attr_u32(nha::ID, self.id);
        message
    }

    /// The object as arguments of `ip nexthop add`, on the interface `dev`.
    pub fn words(&self, dev: &str) -> String {
        let onlink = if self.onlink { " onlink" } else { "" };
        format!("id {} via {} dev {dev} proto {}{onlink}", self.id, self.via, self.protocol)
    }
}

impl Rtnetlink {
    /// The nexthop objects on the interface of number `dev`, or all.
    pub fn nexthops(&mut self, dev: Option<u32>) -> Result<Vec<Nexthop>> {
        let mut message = Message::new(RTM_GETNEXTHOP, libc::NLM_F_DUMP, &header(0, 0, 0));
        if let Some(dev) = dev {
            message.attr_u32(nha::OIF, dev);
        }
        self.dump(&message, parse).map_err(|e| e.about("cannot list nexthop objects"))
    }
}

/// `struct nhmsg`.
fn header(family: u8, protocol: u8, flags: u32) -> [u8; NHMSG] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, 0, protocol, 0, a, b, c, d]
}

pub(crate) fn parse(reply: &Reply) -> Option<Nexthop> {
    if reply.kind != RTM_NEWNEXTHOP {
        return None;
    }
    let protocol = *reply.body.get(2)?;
    let flags = reply.body.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (mut id, mut dev, mut via) = (None, None, None);
    for attribute in reply.attributes(NHMSG) {
        match attribute.kind {
            nha::ID => id = attribute.u32(),
            nha::OIF => dev = attribute.u32(),
            nha::GATEWAY => via = attribute.ip(),
            _ => {}
        }
    }
    let onlink = flags & RTNH_F_ONLINK != 0;
    Some(Nexthop { id: id?, dev: dev?, via: via?, protocol, onlink })
}
