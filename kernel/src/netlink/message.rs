//! Building netlink messages (RFC 3549 section 2.3; `include/uapi/linux/netlink.h`).

use std::net::IpAddr;

use crate::MacAddress;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// One netlink request under construction.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of type `kind` with `flags` besides NLM_F_REQUEST, its
    /// family's fixed header being `body`.
    pub fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; HEADER]);
        let mut message = Self(bytes);
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        message.put_header(4, &kind.to_ne_bytes());
        message.put_header(6, &flags.to_ne_bytes());
        message.0.extend_from_slice(body);
        message
    }

    /// Replaces the flags besides NLM_F_REQUEST.
    pub(crate) fn set_flags(&mut self, flags: i32) {
        self.put_header(6, &((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    }

    /// Appends an attribute, padded to four bytes.
    pub fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = (payload.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.pad();
        self
    }

    /// An attribute of one byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attr(kind, &[value])
    }

    /// An attribute of four bytes in host order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A string attribute with its closing NUL.
    pub fn attr_str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An address, four or sixteen bytes in network order.
    pub fn attr_ip(&mut self, kind: u16, ip: IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// A hardware address.
    pub fn attr_mac(&mut self, kind: u16, mac: &MacAddress) -> &mut Self {
        self.attr(kind, mac)
    }

    /// An attribute whose payload `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.attr(kind, &[]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        if let Some(field) = self.0.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        self
    }

    /// Appends raw bytes: a nested fixed header, as VETH_INFO_PEER carries one.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The bytes to send, with length, sequence number and, where `ack`, the
    /// wish for an answer filled in.
    pub(crate) fn finish(&mut self, sequence: u32, ack: bool) -> &[u8] {
        let length = self.0.len() as u32;
        self.put_header(0, &length.to_ne_bytes());
        self.put_header(8, &sequence.to_ne_bytes());
        if let (true, Some(flags)) = (ack, self.0.get_mut(6)) {
            *flags |= libc::NLM_F_ACK as u8;
        }
        &self.0
    }

    /// Length of the message in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn put_header(&mut self, at: usize, bytes: &[u8]) {
        if let Some(field) = self.0.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
