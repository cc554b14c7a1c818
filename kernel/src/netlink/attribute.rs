//! Reading netlink attributes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::MacAddress;

/// NLA_F_NESTED and NLA_F_NET_BYTEORDER, the flag bits of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes one after the other; malformed rest ends the iteration.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

/// One attribute of a reply.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// Type without flag bits.
    pub kind: u16,
    /// Payload without padding.
    pub payload: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(u16::from_ne_bytes(array(self.0, 0)?));
        let kind = u16::from_ne_bytes(array(self.0, 2)?) & TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind, payload })
    }
}

impl<'a> Attribute<'a> {
    /// One byte.
    pub fn u8(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// Two bytes in network order.
    pub fn be16(&self) -> Option<u16> {
        array(self.payload, 0).map(u16::from_be_bytes)
    }

    /// Four bytes in host order.
    pub fn u32(&self) -> Option<u32> {
        array(self.payload, 0).map(u32::from_ne_bytes)
    }

    /// Four bytes in network order.
    pub fn be32(&self) -> Option<u32> {
        array(self.payload, 0).map(u32::from_be_bytes)
    }

    /// Eight bytes in network order.
    pub fn be64(&self) -> Option<u64> {
        array(self.payload, 0).map(u64::from_be_bytes)
    }

    /// A string, up to its NUL.
    pub fn str(&self) -> Option<&'a str> {
        let bytes = self.payload.split(|&byte| byte == 0).next()?;
        std::str::from_utf8(bytes).ok()
    }

    /// An address of either family, by its length.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.payload.len() {
            4 => array(self.payload, 0).map(|b: [u8; 4]| Ipv4Addr::from(b).into()),
            16 => array(self.payload, 0).map(|b: [u8; 16]| Ipv6Addr::from(b).into()),
            _ => None,
        }
    }

    /// A hardware address of six bytes.
    pub fn mac(&self) -> Option<MacAddress> {
        if self.payload.len() == 6 { array(self.payload, 0) } else { None }
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}

/// `N` bytes of `bytes` from `at`, if they are there.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
