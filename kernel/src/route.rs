//! Routes (rtnetlink(7), `include/uapi/linux/rtnetlink.h`).

use std::fmt::Write;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::address::family_of;
use crate::error::Result;
use crate::netlink::{Attribute, Message, Reply, Rtnetlink};
use crate::uapi::{RTA_NH_ID, RTA_VIA, RTNH_F_ONLINK, rtax};

/// Length of `struct rtmsg`.
const RTMSG: usize = 12;
/// The main routing table.
pub const TABLE_MAIN: u32 = libc::RT_TABLE_MAIN as u32;
/// Metric that the kernel gives an IPv6 route made without one (IP6_RT_PRIO_USER).
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// What becomes of packets that a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Forwarded.
    Unicast,
    /// Delivered to this host.
    Local,
    /// Dropped, the sender told "host unreachable".
    Unreachable,
    /// Dropped in silence.
    Blackhole,
    /// Any other RTN_* type.
    Other(u8),
}

/// How far the destinations of a route are (`enum rt_scope_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Behind a gateway.
    Universe,
    /// On the link.
    Link,
    /// Any other.
    Other(u8),
}

/// A route with at most one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// What becomes of the packets.
    pub kind: Kind,
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop, of the destination's family.
    pub via: Option<IpAddr>,
    /// Interface.
    pub dev: Option<u32>,
    /// Nexthop object in place of `via` and `dev`.
    pub nexthop: Option<u32>,
    /// Whether `via` is on the link whatever the routes say.
    pub onlink: bool,
    /// Source address of what this host itself sends.
    pub src: Option<IpAddr>,
    /// Metric; in IPv6 the kernel reads 0 as 1024.
    pub metric: u32,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// How far its destinations are; IPv6 knows only [`Scope::Universe`].
    pub scope: Scope,
    /// Routing table.
    pub table: u32,
    /// Path MTU, bytes.
    pub mtu: Option<u32>,
    /// Advertised TCP segment size, bytes.
    pub advmss: Option<u32>,
}

/// Which routes to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// Only this protocol; 0 is any.
    pub protocol: u8,
    /// Only this interface.
    pub dev: Option<u32>,
    /// Only this table; 0 is any.
    pub table: u32,
}

/// What the kernel answers when asked for the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Type of the route that matched.
    pub kind: Kind,
    /// Interface that packets leave by.
    pub dev: Option<u32>,
    /// Next hop, none where the address itself is on the link.
    pub via: Option<IpAddr>,
    /// Source address that the kernel would choose.
    pub src: Option<IpAddr>,
    /// Path MTU of the route, bytes, where it has one of its own.
    pub mtu: Option<u32>,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => libc::RTN_UNICAST,
            Self::Local => libc::RTN_LOCAL,
            Self::Unreachable => libc::RTN_UNREACHABLE,
            Self::Blackhole => libc::RTN_BLACKHOLE,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            libc::RTN_UNICAST => Self::Unicast,
            libc::RTN_LOCAL => Self::Local,
            libc::RTN_UNREACHABLE => Self::Unreachable,
            libc::RTN_BLACKHOLE => Self::Blackhole,
            other => Self::Other(other),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Unicast => "",
            Self::Local => "local ",
            Self::Unreachable => "unreachable ",
            Self::Blackhole => "blackhole ",
            Self::Other(_) => "other ",
        }
    }
}

impl Scope {
    fn number(self) -> u8 {
        match self {
            Self::Universe => libc::RT_SCOPE_UNIVERSE,
            Self::Link => libc::RT_SCOPE_LINK,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            libc::RT_SCOPE_UNIVERSE => Self::Universe,
            libc::RT_SCOPE_LINK => Self::Link,
            other => Self::Other(other),
        }
    }
}

impl Route {
    /// A route to `dst` in the main table, with nothing else set.
    pub fn to(dst: IpNetwork, protocol: u8) -> Self {
        Self {
            kind: Kind::Unicast,
            dst,
            via: None,
            dev: None,
            nexthop: None,
            onlink: false,
            src: None,
            metric: 0,
            protocol,
            scope: Scope::Universe,
            table: TABLE_MAIN,
            mtu: None,
            advmss: None,
        }
    }

    /// The request that adds the route; refused (EEXIST) where one with the same
    /// destination and metric is there, whoever made it.
    pub fn add(&self) -> Message {
        let mut message = self.message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        if let Some(src) = self.src {
            message.attr_ip(libc::RTA_PREFSRC, src);
        }
        if self.mtu.is_some() || self.advmss.is_some() {
            message.nest(libc::RTA_METRICS, |metrics| {
                if let Some(mtu) = self.mtu {
                    metrics.attr_u32(rtax::MTU, mtu);
                }
                if let Some(advmss) = self.advmss {
                    metrics.attr_u32(rtax::ADVMSS, advmss);
                }
            });
        }
        message
    }

    /// The request that adds the route beside others of the same destination
    /// and metric (multipath).
    pub fn append(&self) -> Message {
        let mut message = self.add();
        message.set_flags(libc::NLM_F_CREATE | libc::NLM_F_APPEND);
        message
    }

    /// The request that deletes this route and no other: it names protocol,
    /// device and next hop too.
    pub fn delete(&self) -> Message {
        self.message(libc::RTM_DELROUTE, 0)
    }

    /// The route as arguments of `ip route add`; `dev` is its interface's name.
    pub fn words(&self, dev: Option<&str>) -> String {
        let mut words = format!("{}{}", self.kind.word(), self.dst);
        let mut say = |word: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a string does not fail.
                let _ = write!(words, " {word} {value}");
            }
        };
        say("nhid", self.nexthop.map(|id| id.to_string()));
        say("via", self.via.map(|ip| ip.to_string()));
        say("dev", dev.map(str::to_owned));
        say("proto", Some(self.protocol.to_string()));
        say("src", self.src.map(|ip| ip.to_string()));
        say("metric", (self.metric != 0).then(|| self.metric.to_string()));
        say("table", (self.table != TABLE_MAIN).then(|| self.table.to_string()));
        say("scope", (self.scope == Scope::Link).then(|| "link".to_owned()));
        say("mtu", self.mtu.map(|mtu| mtu.to_string()));
        say("advmss", self.advmss.map(|advmss| advmss.to_string()));
        if self.onlink {
            words.push_str(" onlink");
        }
        words
    }

    fn message(&self, kind: u16, flags: i32) -> Message {
        let mut message = Message::new(kind, flags, &self.header());
        message.attr_ip(libc::RTA_DST, self.dst.ip());
        if let Some(id) = self.nexthop {
            message.attr_u32(RTA_NH_ID, id);
        }
        if let Some(via) = self.via {
            message.attr_ip(libc::RTA_GATEWAY, via);
        }
        if let Some(dev) = self.dev {
            message.attr_u32(libc::RTA_OIF, dev);
        }
        if self.metric != 0 {
            message.attr_u32(libc::RTA_PRIORITY, self.metric);
        }
        if self.table > 255 {
            message.attr_u32(libc::RTA_TABLE, self.table);
        }
        message
    }

    /// `struct rtmsg`.
    fn header(&self) -> [u8; RTMSG] {
        let flags = if self.onlink { RTNH_F_ONLINK } else { 0 };
        let [a, b, c, d] = flags.to_ne_bytes();
        [
            family_of(self.dst.ip()),
            self.dst.prefix(),
            0,
            0,
            u8::try_from(self.table).unwrap_or(libc::RT_TABLE_UNSPEC),
            self.protocol,
            self.scope.number(),
            self.kind.number(),
            a,
            b,
            c,
            d,
        ]
    }
}

impl Rtnetlink {
    /// The routes that `filter` picks. Routes with several next hops are listed
    /// without any.
    pub fn routes(&mut self, filter: Filter) -> Result<Vec<Route>> {
        self.list_routes(filter, Some)
    }

    /// Destinations of the routes that `filter` picks and that lead to one address each. There
    /// may be tens of thousands, which is why no routes are kept.
    pub fn host_routes(&mut self, filter: Filter) -> Result<Vec<IpAddr>> {
        let is_one = |dst: &IpNetwork| *dst == IpNetwork::from(dst.ip());
        self.list_routes(filter, |route| Some(route.dst).filter(is_one).map(|dst| dst.ip()))
    }

    fn list_routes<T>(
        &mut self,
        filter: Filter,
        of: impl Fn(Route) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut body = [0; RTMSG];
        body[0] = filter.family;
        body[4] = u8::try_from(filter.table).unwrap_or(libc::RT_TABLE_UNSPEC);
        body[5] = filter.protocol;
        let mut message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &body);
        if let Some(dev) = filter.dev {
            message.attr_u32(libc::RTA_OIF, dev);
        }
        if filter.table > 255 {
            message.attr_u32(libc::RTA_TABLE, filter.table);
        }
        let picked = |route: &Route| {
            (filter.protocol == 0 || route.protocol == filter.protocol)
                && (filter.table == 0 || route.table == filter.table)
        };
        match self.dump(&message, |reply| parse(reply).filter(picked).and_then(&of)) {
            // A table that was never used, or an interface just gone.
            Err(e) if e.is_gone() => Ok(Vec::new()),
            other => other.map_err(|e| e.about("cannot list routes")),
        }
    }

    /// The way that a packet of this host to `ip` would take; `None` where no
    /// route matches.
    pub fn route_to(&mut self, ip: IpAddr) -> Result<Option<Lookup>> {
        let found = self.look_up(ip, 0, |reply| parse(reply).map(Lookup::from));
        found.map_err(|e| e.about(format_args!("cannot look up the route to {ip}")))
    }

    /// The route itself, as it stands in the table, that `ip` matches.
    pub fn matching_route(&mut self, ip: IpAddr) -> Result<Option<Route>> {
        let found = self.look_up(ip, RTM_F_FIB_MATCH, parse);
        found.map_err(|e| e.about(format_args!("cannot look up the route of {ip}")))
    }

    /// Whether a packet of this host to `ip` would meet an unreachable route: the
    /// kernel answers with that route's error and not with the route.
    pub fn is_unreachable(&mut self, ip: IpAddr) -> Result<bool> {
        match self.get(question(ip, 0), parse) {
            Err(e) if is_no_route(e.errno) => Ok(e.errno == nix::errno::Errno::EHOSTUNREACH),
            Err(e) => Err(e.about(format_args!("cannot look up the route to {ip}"))),
            Ok(_) => Ok(false),
        }
    }

    fn look_up<T>(
        &mut self,
        ip: IpAddr,
        flags: u32,
        parse: impl Fn(&Reply) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(question(ip, flags), parse) {
            // What an unreachable, prohibit or blackhole route makes of the look-up.
            Err(e) if is_no_route(e.errno) => Ok(None),
            other => other,
        }
    }
}

fn question(ip: IpAddr, flags: u32) -> Message {
    let length = if ip.is_ipv4() { 32 } else { 128 };
    let [a, b, c, d] = flags.to_ne_bytes();
    let body = [family_of(ip), length, 0, 0, 0, 0, 0, 0, a, b, c, d];
    let mut message = Message::new(libc::RTM_GETROUTE, 0, &body);
    message.attr_ip(libc::RTA_DST, ip);
    message
}

/// `rtnetlink.h`: answer with the route in the table, not with its use.
const RTM_F_FIB_MATCH: u32 = 0x2000;

fn is_no_route(errno: nix::errno::Errno) -> bool {
    use nix::errno::Errno::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
    matches!(errno, ENETUNREACH | EHOSTUNREACH | EACCES | EINVAL)
}

impl From<Route> for Lookup {
    fn from(route: Route) -> Self {
        let Route { kind, dev, via, src, mtu, .. } = route;
        Self { kind, dev, via, src, mtu }
    }
}

pub(crate) fn parse(reply: &Reply) -> Option<Route> {
    if reply.kind != libc::RTM_NEWROUTE {
        return None;
    }
    let &[family, prefix, _, _, table, protocol, scope, kind, ..] = reply.body else {
        return None;
    };
    let flags = reply.body.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)?;
    let unspecified = match i32::from(family) {
        libc::AF_INET => IpNetwork::new([0; 4].into(), 0),
        libc::AF_INET6 => IpNetwork::new([0u8; 16].into(), 0),
        _ => return None,
    };
    let mut route = Route::to(unspecified.ok()?, protocol);
    route.kind = Kind::of(kind);
    route.scope = Scope::of(scope);
    route.table = table.into();
    route.onlink = flags & RTNH_F_ONLINK != 0;
    for attribute in reply.attributes(RTMSG) {
        parse_attribute(&mut route, prefix, attribute)?;
    }
    // The kernel hangs IPv6 routes that lead nowhere on the loopback device.
    if matches!(route.kind, Kind::Unreachable | Kind::Blackhole) {
        route.dev = None;
    }
    if route.dst.is_ipv6() && route.metric == IPV6_DEFAULT_METRIC {
        route.metric = 0;
    }
    Some(route)
}

fn parse_attribute(route: &mut Route, prefix: u8, attribute: Attribute) -> Option<()> {
    match attribute.kind {
        libc::RTA_DST => route.dst = IpNetwork::new(attribute.ip()?, prefix).ok()?,
        libc::RTA_GATEWAY => route.via = attribute.ip(),
        // `struct rtvia`: a family and an address, here of the other family.
        RTA_VIA => route.via = None,
        libc::RTA_OIF => route.dev = attribute.u32(),
        libc::RTA_PREFSRC => route.src = attribute.ip(),
        libc::RTA_PRIORITY => route.metric = attribute.u32()?,
        libc::RTA_TABLE => route.table = attribute.u32()?,
        RTA_NH_ID => route.nexthop = attribute.u32(),
        libc::RTA_METRICS => {
            for metric in attribute.nested() {
                match metric.kind {
                    rtax::MTU => route.mtu = metric.u32(),
                    rtax::ADVMSS => route.advmss = metric.u32(),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Some(())
}
