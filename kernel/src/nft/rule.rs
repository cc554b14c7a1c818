//! Rules: what a packet must be, and what becomes of it.

use crate::netlink::Message;

use super::set::{IpVersion, Set};
use super::uapi::{
    bitwise, cmp, counter, expression, family, fib, immediate, lookup, masquerade, meta, payload,
    verdict,
};
use super::{NESTED, put_be32, userdata};

/// A rule of a chain: tests from left to right, then what to do.
///
/// Every test loads register 1 and looks at it, so that a rule reads as the line
/// that `nft list ruleset` prints for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    expressions: Vec<Expression>,
    comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Meta(u32),
    Payload { base: u32, offset: u32, length: u32 },
    Fib { result: u32, flags: u32 },
    Mask(Vec<u8>),
    Compare { equal: bool, value: Vec<u8> },
    Lookup { set: String, member: bool },
    Counter,
    NoTrack,
    Masquerade,
    Verdict { code: i32, chain: Option<String> },
}

/// `rtnetlink.h`, RTN_UNICAST: the type of a destination that is neither this
/// host's own nor a broadcast, anycast or multicast address.
const RTN_UNICAST: u32 = 1;
/// `if.h`, IFNAMSIZ.
const INTERFACE_NAME_BYTES: usize = 16;

impl Rule {
    /// A rule that matches every packet and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Text for who reads the ruleset; at most 127 bytes are kept.
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// Came in by a link of group `group` (IFLA_GROUP).
    pub fn from_link_group(self, group: u32) -> Self {
        self.meta(meta::KEY_IIFGROUP).equals(&group.to_ne_bytes())
    }

    /// Came in by the link of this name.
    pub fn from_link(self, name: &str) -> Self {
        self.meta(meta::KEY_IIFNAME).equals(&padded(name))
    }

    /// Leaves by the link of this name.
    pub fn to_link(self, name: &str) -> Self {
        self.meta(meta::KEY_OIFNAME).equals(&padded(name))
    }

    /// Every bit of `bits` is set in the packet's mark.
    pub fn marked(self, bits: u32) -> Self {
        let bits = bits.to_ne_bytes();
        self.meta(meta::KEY_MARK).with(Expression::Mask(bits.to_vec())).equals(&bits)
    }

    /// UDP to `port`, behind whatever IPv6 extension headers.
    pub fn udp_to(self, port: u16) -> Self {
        self.meta(meta::KEY_L4PROTO)
            .equals(&[libc::IPPROTO_UDP as u8])
            .load(payload::TRANSPORT_HEADER, 2, 2)
            .equals(&port.to_be_bytes())
    }

    /// Carries VXLAN of another VNI than `vni` (24 bits; RFC 7348 section 5). A
    /// fragment too short to tell does not match.
    pub fn other_vni(self, vni: u32) -> Self {
        const VNI_OFFSET: u32 = 8 + 4;
        // Four bytes of a packet are loaded without a call (`nft_payload_fast_eval`); the
        // fourth is reserved.
        let value = (vni << 8).to_be_bytes();
        let field = (!0_u32 << 8).to_be_bytes();
        let loaded = self.load(payload::TRANSPORT_HEADER, VNI_OFFSET, 4);
        loaded.with(Expression::Mask(field.to_vec())).compare(false, &value)
    }

    /// Source address in `set`.
    pub fn source_in(self, set: &Set) -> Self {
        self.source(set).look_up(set, true)
    }

    /// Source address of the set's version and not in `set`.
    pub fn source_not_in(self, set: &Set) -> Self {
        self.source(set).look_up(set, false)
    }

    /// Destination address in `set`.
    pub fn destination_in(self, set: &Set) -> Self {
        self.destination(set).look_up(set, true)
    }

    /// Destination address of the set's version and not in `set`.
    pub fn destination_not_in(self, set: &Set) -> Self {
        self.destination(set).look_up(set, false)
    }

    /// The host's routes would not send to the source by the link that the
    /// packet came from (`fib saddr . iif oif missing`).
    pub fn source_is_elsewhere(self) -> Self {
        let flags = fib::SADDR | fib::IIF | fib::PRESENT;
        self.with(Expression::Fib { result: fib::RESULT_OIF, flags }).equals(&0u32.to_ne_bytes())
    }

    /// The destination is a unicast address of another host: neither local nor
    /// broadcast nor multicast nor anycast.
    pub fn to_other_host(self) -> Self {
        let load = Expression::Fib { result: fib::RESULT_ADDRTYPE, flags: fib::DADDR };
        self.with(load).equals(&RTN_UNICAST.to_ne_bytes())
    }

    /// Counts packets and bytes.
    pub fn count(self) -> Self {
        self.with(Expression::Counter)
    }

    /// No connection tracking for the packet.
    pub fn no_track(self) -> Self {
        self.with(Expression::NoTrack)
    }

    /// Source address becomes that of the outgoing link, source port a fully
    /// random one.
    pub fn masquerade(self) -> Self {
        self.with(Expression::Masquerade)
    }

    /// Drops the packet.
    pub fn drop(self) -> Self {
        self.with(Expression::Verdict { code: verdict::DROP, chain: None })
    }

    /// Ends the hook's chain; other chains at the hook still see the packet.
    pub fn accept(self) -> Self {
        self.with(Expression::Verdict { code: verdict::ACCEPT, chain: None })
    }

    /// Back to the chain that jumped here; from a hook's chain, its policy.
    pub fn back(self) -> Self {
        self.with(Expression::Verdict { code: verdict::RETURN, chain: None })
    }

    /// On with the rules of chain `chain`, then back.
    pub fn jump(self, chain: impl Into<String>) -> Self {
        self.with(Expression::Verdict { code: verdict::JUMP, chain: Some(chain.into()) })
    }

    /// The chain that the rule jumps to.
    pub(super) fn target(&self) -> Option<&str> {
        self.expressions.iter().find_map(|expression| match expression {
            Expression::Verdict { chain, .. } => chain.as_deref(),
            _ => None,
        })
    }

    /// Whether the rule looks something up in `set`.
    pub(super) fn refers_to(&self, set: &Set) -> bool {
        let name = set.name();
        let is_lookup = |e: &Expression| matches!(e, Expression::Lookup { set, .. } if set == name);
        self.expressions.iter().any(is_lookup)
    }

    /// Appends NFTA_RULE_EXPRESSIONS and NFTA_RULE_USERDATA.
    pub(super) fn encode(&self, message: &mut Message) {
        message.nest(super::uapi::rule::EXPRESSIONS | NESTED, |list| {
            for expression in &self.expressions {
                list.nest(expression::LIST_ELEM | NESTED, |element| expression.encode(element));
            }
        });
        if let Some(text) = &self.comment {
            message.attr(super::uapi::rule::USERDATA, &userdata::comment(text));
        }
    }

    fn with(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    fn meta(self, key: u32) -> Self {
        self.with(Expression::Meta(key))
    }

    fn load(self, base: u32, offset: u32, length: u32) -> Self {
        self.with(Expression::Payload { base, offset, length })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(true, value)
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        self.with(Expression::Compare { equal, value: value.to_vec() })
    }

    fn look_up(self, set: &Set, member: bool) -> Self {
        self.with(Expression::Lookup { set: set.name().to_owned(), member })
    }

    fn source(self, set: &Set) -> Self {
        let (protocol, offset, length) = match set.version() {
            IpVersion::V4 => (family::IPV4, 12, 4),
            IpVersion::V6 => (family::IPV6, 8, 16),
        };
        self.address(protocol, offset, length)
    }

    fn destination(self, set: &Set) -> Self {
        let (protocol, offset, length) = match set.version() {
            IpVersion::V4 => (family::IPV4, 16, 4),
            IpVersion::V6 => (family::IPV6, 24, 16),
        };
        self.address(protocol, offset, length)
    }

    fn address(self, protocol: u8, offset: u32, length: u32) -> Self {
        self.meta(meta::KEY_NFPROTO).equals(&[protocol]).load(
            payload::NETWORK_HEADER,
            offset,
            length,
        )
    }
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload { .. } => "payload",
            Self::Fib { .. } => "fib",
            Self::Mask(_) => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Counter => "counter",
            Self::NoTrack => "notrack",
            Self::Masquerade => "masq",
            Self::Verdict { .. } => "immediate",
        }
    }

    fn encode(&self, message: &mut Message) {
        message.attr_str(expression::NAME, self.name());
        message.nest(expression::DATA | NESTED, |data| self.encode_data(data));
    }

    fn encode_data(&self, data: &mut Message) {
        match self {
            Self::Meta(key) => {
                put_be32(data, meta::KEY, *key);
                put_be32(data, meta::DREG, expression::REGISTER_1);
            }
            Self::Payload { base, offset, length } => {
                put_be32(data, payload::DREG, expression::REGISTER_1);
                put_be32(data, payload::BASE, *base);
                put_be32(data, payload::OFFSET, *offset);
                put_be32(data, payload::LEN, *length);
            }
            Self::Fib { result, flags } => {
                put_be32(data, fib::FLAGS, *flags);
                put_be32(data, fib::RESULT, *result);
                put_be32(data, fib::DREG, expression::REGISTER_1);
            }
            Self::Mask(mask) => encode_mask(data, mask),
            Self::Compare { equal, value } => {
                put_be32(data, cmp::SREG, expression::REGISTER_1);
                put_be32(data, cmp::OP, if *equal { cmp::EQUAL } else { cmp::NOT_EQUAL });
                put_value(data, cmp::DATA, value);
            }
            Self::Lookup { set, member } => {
                data.attr_str(lookup::SET, set);
                put_be32(data, lookup::SREG, expression::REGISTER_1);
                if !member {
                    put_be32(data, lookup::FLAGS, lookup::INVERTED);
                }
            }
            Self::Counter => {
                data.attr(counter::BYTES, &[0; 8]).attr(counter::PACKETS, &[0; 8]);
            }
            Self::NoTrack => {}
            Self::Masquerade => put_be32(data, masquerade::FLAGS, masquerade::RANDOM_FULLY),
            Self::Verdict { code, chain } => encode_verdict(data, *code, chain.as_deref()),
        }
    }
}

fn padded(link_name: &str) -> Vec<u8> {
    let mut value = link_name.as_bytes().to_vec();
    value.resize(INTERFACE_NAME_BYTES, 0);
    value
}

fn encode_mask(data: &mut Message, mask: &[u8]) {
    put_be32(data, bitwise::SREG, expression::REGISTER_1);
    put_be32(data, bitwise::DREG, expression::REGISTER_1);
    put_be32(data, bitwise::LEN, mask.len() as u32);
    put_value(data, bitwise::MASK, mask);
    put_value(data, bitwise::XOR, &vec![0; mask.len()]);
}

fn encode_verdict(data: &mut Message, code: i32, chain: Option<&str>) {
    put_be32(data, immediate::DREG, expression::REGISTER_VERDICT);
    data.nest(immediate::DATA | NESTED, |data| {
        data.nest(expression::DATA_VERDICT | NESTED, |data| {
            put_be32(data, expression::VERDICT_CODE, code as u32);
            if let Some(chain) = chain {
                data.attr_str(expression::VERDICT_CHAIN, chain);
            }
        });
    });
}

fn put_value(data: &mut Message, kind: u16, value: &[u8]) {
    data.nest(kind | NESTED, |data| {
        data.attr(expression::DATA_VALUE, value);
    });
}
