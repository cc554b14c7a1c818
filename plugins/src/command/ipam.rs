//! `weft ipam` and `weft ipam release`: host-local's leases, for the operator.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use cni::Network;
use ipam_host_local::{Lease, Usage};
use serde_json::{Value, json};

use super::conflist::RoutingNetwork;
use super::print::{print, table};
use crate::ipam::with_host_local;

pub(super) const HELP: &str = "\
Usage: weft ipam [--conf FILE] [-o json]
       weft ipam release [--conf FILE] ADDRESS|CONTAINER [IFNAME]

Prints, for each network whose IPAM plugin is host-local, how much of each range
is allocated, and every lease: address, container, interface, age, and whether
its interface lives (alive, gone, or ? where that cannot be told). Network and
broadcast address are not counted, the gateway counts as allocated.

release frees an address, or all that a container holds (by IFNAME alone, where
that is given). It refuses with exit status 1 while the interface lives, or
anything on this host refers to the address: delete the pod first.
";

/// Prints the text for one network.
pub(super) fn show(network: &RoutingNetwork) -> Result<()> {
    let (usage, leases) = read(host_local(network)?)?;
    print(&text(&network.config.network, &usage, &leases))
}

/// One network as JSON.
pub(super) fn json(network: &RoutingNetwork) -> Result<Value> {
    let (usage, leases) = read(host_local(network)?)?;
    Ok(json!({
        "network": network.config.network,
        "ranges": usage.iter().map(usage_json).collect::<Vec<_>>(),
        "leases": leases.iter().map(lease_json).collect::<Vec<_>>(),
    }))
}

/// What is used of each range of the network; none where another IPAM plugin has it.
pub(super) fn usage(network: &RoutingNetwork) -> Result<Option<Vec<Usage>>> {
    let Some(network) = &network.host_local else { return Ok(None) };
    Ok(Some(with_host_local(network, |plugin| plugin.usage(network))?))
}

/// "5/254 allocated from 10.0.2.0/24".
pub(super) fn usage_text(usage: &Usage) -> String {
    format!("{}/{} allocated from {}", usage.taken, usage.size, usage.range.subnet)
}

pub(super) fn usage_json(usage: &Usage) -> Value {
    let range = &usage.range;
    json!({
        "subnet": range.subnet.to_string(), "rangeStart": range.start, "rangeEnd": range.end,
        "gateway": range.gateway,
        // More than 64 bits in large IPv6 ranges, where the last digits are no matter.
        "size": u64::try_from(usage.size).unwrap_or(u64::MAX),
        "allocated": u64::try_from(usage.taken).unwrap_or(u64::MAX),
    })
}

fn lease_json(lease: &Lease) -> Value {
    json!({
        "address": lease.address, "container": lease.container_id, "interface": lease.ifname,
        "ageSeconds": lease.age.map(|age| age.as_secs()), "alive": lease.interface_lives,
    })
}

fn host_local(network: &RoutingNetwork) -> Result<&Network> {
    match &network.host_local {
        Some(network) => Ok(network),
        None => bail!("no plugin of {} has the IPAM plugin host-local", network.file.display()),
    }
}

fn read(network: &Network) -> Result<(Vec<Usage>, Vec<Lease>)> {
    Ok(with_host_local(network, |plugin| Ok((plugin.usage(network)?, plugin.leases(network)?)))?)
}

fn text(name: &str, usage: &[Usage], leases: &[Lease]) -> String {
    let mut text = format!("{name}:\n");
    for usage in usage {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", usage_text(usage));
    }
    if leases.is_empty() {
        return text + "  no leases\n";
    }
    let heading = ["ADDRESS", "CONTAINER", "INTERFACE", "AGE", "STATE"].map(str::to_owned);
    let rows = std::iter::once(heading).chain(leases.iter().map(row));
    text + &table(rows)
}

fn row(lease: &Lease) -> [String; 5] {
    let state = match lease.interface_lives {
        Some(true) => "alive",
        Some(false) => "gone",
        None => "?",
    };
    [
        lease.address.to_string(),
        lease.container_id.clone(),
        lease.ifname.clone().unwrap_or_else(|| "?".to_owned()),
        lease.age.map_or_else(|| "?".to_owned(), age),
        state.to_owned(),
    ]
}

/// In the largest unit that is there at least twice, as `kubectl` has it.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Frees what `what` names; returns how many leases that was.
pub(super) fn release(
    network: &RoutingNetwork,
    what: &str,
    interface: Option<&str>,
) -> Result<usize> {
    let network = host_local(network)?;
    let (_, leases) = read(network)?;
    let address: Option<IpAddr> = what.parse().ok();
    let of_interface = |lease: &&Lease| interface.is_none() || lease.ifname.as_deref() == interface;
    let named = |lease: &&Lease| match address {
        Some(address) => lease.address == address,
        None => lease.container_id == what,
    };
    let chosen: Vec<&Lease> = leases.iter().filter(named).filter(of_interface).collect();
    if let Some(alive) = chosen.iter().find(|lease| lease.interface_lives == Some(true)) {
        let interface = alive.ifname.as_deref().unwrap_or("?");
        bail!(
            "{} is not released: interface {interface} of container {} lives; delete the pod first",
            alive.address,
            alive.container_id
        );
    }
    for lease in &chosen {
        if with_host_local(network, |plugin| plugin.release(network, lease.address))?.is_some() {
            print(&format!("released {} of container {}\n", lease.address, lease.container_id))?;
        }
    }
    Ok(chosen.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [(5, "5s"), (119, "119s"), (120, "2m"), (7_300, "2h"), (200_000, "2d")];
        for (seconds, text) in ages {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
