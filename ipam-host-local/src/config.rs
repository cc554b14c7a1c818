//! The `ipam` object and what callers add to it.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::{Attachment, Code, Error, Network, Object, Route, Version};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::range::{Range, RangeSet, canonical};

/// Where leases are kept if `dataDir` is not given; the network's name is added.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// Answers with this node's pod networks, by the keys of `ipam`.
pub type OwnRanges<'a> = &'a dyn Fn(&Object<'_>) -> Result<Vec<IpNetwork>, Error>;

/// Directory of the network's leases.
pub(crate) fn directory(network: &Network) -> Result<PathBuf, Error> {
    let data_dir = match network.ipam()? {
        Some(ipam) => ipam.text("dataDir")?.unwrap_or(DATA_DIR),
        None => DATA_DIR,
    };
    Ok(PathBuf::from(data_dir).join(&network.name))
}

/// The `ipam` object; fails with 7 if there is none.
pub(crate) fn ipam(network: &Network) -> Result<Object<'_>, Error> {
    network
        .ipam()?
        .ok_or_else(|| Error::new(Code::InvalidConfig, "ipam: missing from the configuration"))
}

/// The range sets: those of the caller (`runtimeConfig.ipRanges`), then
/// `ipam.subnet`, then `ipam.ranges`; if that is none, this node's own ranges.
pub(crate) fn range_sets(network: &Network, own: OwnRanges<'_>) -> Result<Vec<RangeSet>, Error> {
    let ipam = ipam(network)?;
    let mut sets = match network.runtime_config()? {
        Some(keys) => keys.list("ipRanges", range_set)?,
        None => Vec::new(),
    };
    if ipam.text("subnet")?.is_some() {
        let set = range(&ipam).and_then(|range| RangeSet::new(vec![range]));
        sets.push(set.map_err(|error| error.context("ipam"))?);
    }
    sets.extend(ipam.list("ranges", range_set)?);
    if sets.is_empty() {
        sets = own_sets(own(&ipam)?)?;
    }
    check_sets(&sets, network.version)?;
    Ok(sets)
}

/// Addresses asked for, in CNI_ARGS (`IP`), `args.cni.ips` and
/// `runtimeConfig.ips`; each once.
pub(crate) fn requested(attachment: &Attachment, network: &Network) -> Result<Vec<IpAddr>, Error> {
    cni::reject_unknown_args(&attachment.args, &["IP"])?;
    let mut addresses = Vec::new();
    if let Some(text) = attachment.args.get("IP").filter(|text| !text.is_empty()) {
        addresses.push(cni::requested_ip(text).ok_or_else(|| {
            let msg = format!("CNI_ARGS: IP={text} is not an IP address");
            Error::new(Code::InvalidEnvironment, msg)
        })?);
    }
    addresses.extend(network.args_ips()?);
    addresses.extend(network.runtime_ips()?);
    let mut once: Vec<IpAddr> = Vec::new();
    for address in addresses.into_iter().map(canonical) {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    Ok(once)
}

/// `ipam.routes`, which go into the result as they are.
pub(crate) fn routes(ipam: &Object<'_>) -> Result<Vec<Route>, Error> {
    ipam.list("routes", Route::from_json)
}

fn range_set(value: &Value, path: String) -> Result<RangeSet, Error> {
    let Value::Array(items) = value else {
        let msg = format!("{path}: must be a list of ranges, not {value}");
        return Err(Error::new(Code::InvalidConfig, msg));
    };
    let ranges = items.iter().enumerate().map(|(i, item)| {
        let path = format!("{path}[{i}]");
        let keys = Object::of(item, path.clone())?;
        range(&keys)
            .map_err(|error| if error.msg.starts_with(&path) { error } else { error.context(path) })
    });
    RangeSet::new(ranges.collect::<Result<_, _>>()?).map_err(|error| error.context(path))
}

fn range(keys: &Object<'_>) -> Result<Range, Error> {
    let subnet: IpNetwork = match keys.text("subnet")? {
        Some(text) if text.contains('/') => {
            let subnet = keys.parse("subnet", "a network like 10.0.2.0/24")?;
            subnet.ok_or_else(|| missing(keys))?
        }
        Some(text) => {
            let msg = format!(
                "{}: {text:?} lacks a prefix length, as in 10.0.2.0/24",
                keys.path_of("subnet")
            );
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        None => return Err(missing(keys)),
    };
    let address = |key| keys.parse::<IpAddr>(key, "an IP address");
    Range::new(subnet, address("rangeStart")?, address("rangeEnd")?, address("gateway")?)
}

fn missing(keys: &Object<'_>) -> Error {
    Error::new(Code::InvalidConfig, format!("{}: missing", keys.path_of("subnet")))
}

fn own_sets(networks: Vec<IpNetwork>) -> Result<Vec<RangeSet>, Error> {
    let (v4, v6): (Vec<_>, Vec<_>) = networks.into_iter().partition(IpNetwork::is_ipv4);
    let mut sets = Vec::new();
    for family in [v4, v6] {
        let ranges = family.into_iter().map(|network| Range::new(network, None, None, None));
        let ranges: Vec<_> = ranges.collect::<Result<_, _>>().map_err(of_this_node)?;
        if !ranges.is_empty() {
            sets.push(RangeSet::new(ranges).map_err(of_this_node)?);
        }
    }
    if sets.is_empty() {
        let msg = "no address ranges: ipam.ranges is not set and this node has no podCIDRs";
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    Ok(sets)
}

fn of_this_node(error: Error) -> Error {
    error.context("podCIDRs of this node")
}

fn check_sets(sets: &[RangeSet], version: Version) -> Result<(), Error> {
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if version < Version::V0_3_0 && (v4 > 1 || sets.len() - v4 > 1) {
        let msg = format!(
            "cniVersion {version} does not support more than one address per family: \
             have one range set per family, or cniVersion 0.3.0 and up"
        );
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    for (i, set) in sets.iter().enumerate() {
        if let Some(j) = (i + 1..sets.len()).find(|j| sets.get(*j).is_some_and(|b| set.overlaps(b)))
        {
            let msg = format!("range set {i} ({set}) overlaps with range set {j}");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
    }
    Ok(())
}
