//! Address ranges and range sets: what may be allocated, in which order.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use cni::{Code, Error};
use ipnetwork::IpNetwork;

/// A run of addresses of one subnet. One address of each [`RangeSet`] goes to an
/// attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet; its prefix length goes with every address of the range.
    pub subnet: IpNetwork,
    /// First address that may be allocated.
    pub start: IpAddr,
    /// Last address that may be allocated.
    pub end: IpAddr,
    /// Gateway: never allocated. It need not lie in the subnet.
    pub gateway: IpAddr,
}

impl Range {
    /// A range as configured, its defaults filled in: the first address after the
    /// network's for start and gateway; for the end the last, in IPv4 the last
    /// before the broadcast address.
    ///
    /// An explicit start or end may be the network's or the broadcast address, as
    /// in the reference plugin. Fails with 7.
    pub fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, Error> {
        let length = subnet.prefix();
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if canonical(subnet.ip()) != subnet.ip() {
            return Err(invalid(format!(
                "network {subnet} is IPv4 written as IPv6: write it as IPv4"
            )));
        }
        if length > bits - 2 {
            return Err(invalid(format!(
                "network {subnet} is too small to allocate from: at most /{}",
                bits - 2
            )));
        }
        if subnet.ip() != subnet.network() {
            return Err(invalid(format!(
                "network {subnet} has host bits set: the network address for a prefix length of {length} is {}",
                subnet.network()
            )));
        }
        let first = from_number(number(subnet.network()) + 1, subnet.is_ipv4());
        let last = number(subnet.network()) | host_mask(bits - length);
        let last = from_number(last - u128::from(subnet.is_ipv4()), subnet.is_ipv4());
        let range = Self {
            subnet,
            start: start.map_or(first, canonical),
            end: end.map_or(last, canonical),
            gateway: gateway.map_or(first, canonical),
        };
        for (key, address) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if !subnet.contains(address) {
                return Err(invalid(format!("{key} {address} is not in network {subnet}")));
            }
        }
        if number(range.start) > number(range.end) {
            return Err(invalid(format!(
                "rangeStart {} is after rangeEnd {}",
                range.start, range.end
            )));
        }
        Ok(range)
    }

    /// Whether `address` lies between start and end.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.start.is_ipv4() == address.is_ipv4() && self.start <= address && address <= self.end
    }

    /// How many addresses the range has, the gateway included.
    pub fn size(&self) -> u128 {
        (number(self.end) - number(self.start)).saturating_add(1)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    fn is_default(&self) -> bool {
        Self::new(self.subnet, None, None, None)
            .is_ok_and(|range| (range.start, range.end) == (self.start, self.end))
    }
}

/// The subnet where it is wholly in use, else also the first and last address.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default() {
            write!(f, "{}", self.subnet)
        } else {
            write!(f, "{} ({}-{})", self.subnet, self.start, self.end)
        }
    }
}

/// Ranges of one family that serve one address of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// Fails with 7 if there is no range, if families are mixed, if ranges overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, Error> {
        let Some(first) = ranges.first() else { return Err(invalid("empty range set".into())) };
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(invalid("mixed address families in one range set".into()));
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Some(other) = ranges.iter().skip(i + 1).find(|other| range.overlaps(other)) {
                return Err(invalid(format!("ranges {range} and {other} overlap")));
            }
        }
        Ok(Self { ranges })
    }

    /// The ranges, in the order in which they are used; never empty.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether the set is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.ranges.iter().any(|range| range.start.is_ipv4())
    }

    /// The range that `address` lies in.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// Whether any range of `self` overlaps with any of `other`.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.ranges.iter().any(|a| other.ranges.iter().any(|b| a.overlaps(b)))
    }

    /// Stretches of addresses in the order in which they are tried: from the one
    /// after `last` on, through the other ranges, round to `last` itself. Without
    /// `last`, or where it lies in no range, from the start of the first.
    pub(crate) fn round_robin(&self, last: Option<IpAddr>) -> Vec<Stretch<'_>> {
        let at = last.and_then(|last| {
            let i = self.ranges.iter().position(|range| range.contains(last))?;
            Some((i, number(last)))
        });
        let whole = |range| Stretch { range, from: number_start(range), to: number(range.end) };
        let Some((i, last)) = at else { return self.ranges.iter().map(whole).collect() };
        let (before, from) = self.ranges.split_at(i);
        let Some((current, after)) = from.split_first() else { return Vec::new() };
        let mut stretches = Vec::with_capacity(self.ranges.len() + 1);
        if last < number(current.end) {
            stretches.push(Stretch { from: last + 1, ..whole(current) });
        }
        stretches.extend(after.iter().chain(before).map(whole));
        stretches.push(Stretch { to: last, ..whole(current) });
        stretches
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// Neighbouring addresses of one range, as numbers, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'a> {
    /// The range that they belong to.
    pub(crate) range: &'a Range,
    /// First address.
    pub(crate) from: u128,
    /// Last address.
    pub(crate) to: u128,
}

impl Stretch<'_> {
    /// The address with this number.
    pub(crate) fn address(&self, number: u128) -> IpAddr {
        from_number(number, self.range.start.is_ipv4())
    }
}

fn number_start(range: &Range) -> u128 {
    number(range.start)
}

/// An address as a number. IPv4 addresses are those of `::ffff:0:0/96`, so that one
/// number is one address of either family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a [`number`].
pub(crate) fn from_number(number: u128, ipv4: bool) -> IpAddr {
    let v6 = Ipv6Addr::from_bits(number);
    match v6.to_ipv4_mapped() {
        Some(v4) if ipv4 => v4.into(),
        _ => v6.into(),
    }
}

/// An IPv4 address written as IPv6 (`::ffff:10.0.0.1`) is an IPv4 address, as in Go.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn host_mask(bits: u8) -> u128 {
    1u128.checked_shl(bits.into()).map_or(u128::MAX, |one| one - 1)
}

fn invalid(msg: String) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: &str, end: &str) -> Result<Range, Error> {
        Range::new(subnet.parse().unwrap(), start.parse().ok(), end.parse().ok(), None)
    }

    fn addresses(set: &RangeSet, last: &str) -> Vec<String> {
        let stretches = set.round_robin(last.parse().ok());
        let all = stretches.iter().flat_map(|s| (s.from..=s.to).map(|n| s.address(n).to_string()));
        all.collect()
    }

    #[test]
    fn defaults_leave_out_network_and_broadcast() {
        let v4 = range("10.0.2.0/24", "", "").unwrap();
        assert_eq!(
            (v4.start.to_string(), v4.end.to_string()),
            ("10.0.2.1".into(), "10.0.2.254".into())
        );
        assert_eq!((v4.gateway.to_string(), v4.size()), ("10.0.2.1".into(), 254));
        assert_eq!(v4.to_string(), "10.0.2.0/24");
        let v6 = range("fd00::/64", "", "").unwrap();
        assert_eq!(v6.start.to_string(), "fd00::1");
        assert_eq!(v6.end.to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(range("::/0", "", "").unwrap().size(), u128::MAX);
        assert_eq!(range("0.0.0.0/0", "", "").unwrap().end.to_string(), "255.255.255.254");
    }

    #[test]
    fn bad_ranges_are_refused() {
        for (subnet, start, end) in [
            ("10.0.0.0/31", "", ""),
            ("fd00::/127", "", ""),
            ("10.0.0.1/24", "", ""),
            ("10.0.0.0/24", "10.0.1.1", ""),
            ("10.0.0.0/24", "", "10.0.1.1"),
            ("10.0.0.0/24", "fd00::1", ""),
            ("10.0.0.0/24", "10.0.0.9", "10.0.0.8"),
            ("10.0.0.0/24", "10.0.0.255", ""),
            ("10.0.0.0/24", "", "10.0.0.0"),
            ("::ffff:10.0.0.0/120", "", ""),
        ] {
            assert_eq!(range(subnet, start, end).unwrap_err().code, 7, "{subnet} {start} {end}");
        }
    }

    #[test]
    fn sets_refuse_overlap_and_mixture() {
        let a = range("10.0.0.0/24", "10.0.0.10", "10.0.0.20").unwrap();
        let inside = range("10.0.0.0/24", "10.0.0.12", "10.0.0.13").unwrap();
        let v6 = range("fd00::/64", "", "").unwrap();
        assert!(RangeSet::new(vec![a.clone(), inside.clone()]).is_err());
        assert!(RangeSet::new(vec![inside, a.clone()]).is_err());
        assert!(RangeSet::new(vec![a, v6]).is_err());
        assert!(RangeSet::new(Vec::new()).is_err());
    }

    #[test]
    fn order_goes_round_and_ends_at_the_last() {
        let set = RangeSet::new(vec![
            range("10.0.0.0/24", "10.0.0.3", "10.0.0.5").unwrap(),
            range("10.0.1.0/24", "10.0.1.3", "10.0.1.4").unwrap(),
        ])
        .unwrap();
        let whole = ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.1.3", "10.0.1.4"];
        assert_eq!(addresses(&set, ""), whole);
        assert_eq!(addresses(&set, "10.9.9.9"), whole);
        assert_eq!(addresses(&set, "10.0.1.4"), whole);
        let from_middle = ["10.0.0.5", "10.0.1.3", "10.0.1.4", "10.0.0.3", "10.0.0.4"];
        assert_eq!(addresses(&set, "10.0.0.4"), from_middle);
        let next_range = ["10.0.1.3", "10.0.1.4", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        assert_eq!(addresses(&set, "10.0.0.5"), next_range);
    }

    #[test]
    fn numbers_are_addresses() {
        for text in ["10.0.0.1", "::", "fd00::1", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_number(number(address), address.is_ipv4()), address);
        }
        assert_eq!(
            canonical("::ffff:10.0.0.1".parse().unwrap()),
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
    }
}
