//! Sets of addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A constant set of the addresses of some networks. The kernel refuses changes
/// to it as long as a rule refers to it, so that it can be replaced with its
/// table only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    name: String,
    version: IpVersion,
    ranges: Vec<Range>,
}

/// Addresses from `first` to `last`, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: u128,
    last: u128,
}

/// An element as the kernel takes it: the first address of an interval, or the
/// first behind one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) interval_end: bool,
}

impl IpVersion {
    fn bytes(self) -> usize {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    fn highest(self) -> u128 {
        u128::MAX >> (128 - 8 * self.bytes())
    }

    fn key(self, number: u128) -> Vec<u8> {
        number.to_be_bytes().into_iter().skip(16 - self.bytes()).collect()
    }
}

impl Set {
    /// Those of `networks` that are of `version`; what overlaps or adjoins is
    /// one interval.
    pub fn new<'a>(
        name: impl Into<String>,
        version: IpVersion,
        networks: impl IntoIterator<Item = &'a IpNetwork>,
    ) -> Self {
        let ranges = networks.into_iter().filter_map(|network| range_of(version, network));
        Self { name: name.into(), version, ranges: merged(ranges.collect()) }
    }

    /// The set's name in its table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which addresses it holds.
    pub fn version(&self) -> IpVersion {
        self.version
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Length of an element's key in bytes.
    pub(super) fn key_length(&self) -> usize {
        self.version.bytes()
    }

    /// Whether it needs the slower kind of set, a tree rather than a hash.
    pub(super) fn has_intervals(&self) -> bool {
        self.ranges.iter().any(|range| range.first != range.last)
    }

    /// The elements, each interval's start before its end.
    pub(super) fn elements(&self) -> Vec<Element> {
        let intervals = self.has_intervals();
        let mut elements = Vec::with_capacity(2 * self.ranges.len());
        for range in &self.ranges {
            let key = self.version.key(range.first);
            elements.push(Element { key, interval_end: false });
            // The interval that reaches the last address has no end.
            if intervals && range.last < self.version.highest() {
                let key = self.version.key(range.last + 1);
                elements.push(Element { key, interval_end: true });
            }
        }
        elements
    }
}

fn range_of(version: IpVersion, network: &IpNetwork) -> Option<Range> {
    let (first, last) = match (version, network) {
        (IpVersion::V4, IpNetwork::V4(n)) => (n.network().into(), n.broadcast().into()),
        (IpVersion::V6, IpNetwork::V6(n)) => (n.network().into(), n.broadcast().into()),
        _ => return None,
    };
    Some(Range { first: number(first), last: number(last) })
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut result: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match result.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => result.push(range),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(version: IpVersion, networks: &[&str]) -> Vec<(String, bool)> {
        let networks: Vec<IpNetwork> = networks.iter().map(|n| n.parse().unwrap()).collect();
        let text = |key: &[u8]| match key.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(key).unwrap()).to_string(),
            _ => IpAddr::from(<[u8; 16]>::try_from(key).unwrap()).to_string(),
        };
        let set = Set::new("s", version, &networks);
        set.elements().iter().map(|e| (text(&e.key), e.interval_end)).collect()
    }

    fn pairs(list: &[(&str, bool)]) -> Vec<(String, bool)> {
        list.iter().map(|(key, end)| ((*key).to_owned(), *end)).collect()
    }

    #[test]
    fn overlapping_and_adjacent_networks_are_one_interval() {
        let got = elements(
            IpVersion::V4,
            &["10.0.1.0/24", "10.0.0.0/24", "10.0.1.128/25", "10.0.3.0/24", "fd00::/8"],
        );
        let want =
            [("10.0.0.0", false), ("10.0.2.0", true), ("10.0.3.0", false), ("10.0.4.0", true)];
        assert_eq!(got, pairs(&want));
    }

    #[test]
    fn an_interval_to_the_last_address_stays_open() {
        assert_eq!(elements(IpVersion::V4, &["240.0.0.0/4"]), pairs(&[("240.0.0.0", false)]));
        assert_eq!(elements(IpVersion::V4, &["0.0.0.0/0"]), pairs(&[("0.0.0.0", false)]));
        assert_eq!(elements(IpVersion::V6, &["ff00::/8"]), pairs(&[("ff00::", false)]));
    }

    #[test]
    fn lone_addresses_need_no_interval() {
        let got = elements(IpVersion::V6, &["fd00::2", "fd00::9", "fd00::2"]);
        assert_eq!(got, pairs(&[("fd00::2", false), ("fd00::9", false)]));
    }

    #[test]
    fn neighbouring_addresses_become_an_interval() {
        let got = elements(IpVersion::V4, &["10.0.0.2", "10.0.0.1"]);
        assert_eq!(got, pairs(&[("10.0.0.1", false), ("10.0.0.3", true)]));
    }
}
