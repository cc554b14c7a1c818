//! Orphaned leases: `weft sync` frees them, `weft plan` and `weft status` list them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use cni::{Error, Network, Object};
use ipam_host_local::{HostLocal, Lease, Wait};

use super::conflist::RoutingNetwork;
use super::installed::{BIN_DIRECTORY, is_weft_file};
use crate::budget::within;
use crate::ipam::with_host_local;

/// How long to wait for the lock of the lease directory: whoever runs the command may run it again.
const BRIEFLY: Wait = Wait::AtMost(Duration::from_secs(5));

/// How long to look at most. Each process is looked at, and one that hangs may not show itself.
const LIMIT: Duration = Duration::from_secs(20);

/// Frees the orphaned leases of the network, and returns what was done as commands.
pub(super) fn free(network: &RoutingNetwork) -> Result<Vec<String>> {
    commands(network, |plugin, network| {
        Ok(plugin.free_orphans(network, BRIEFLY, usize::MAX)?.orphans)
    })
}

/// What [`free`] would do.
pub(super) fn list(network: &RoutingNetwork) -> Result<Vec<String>> {
    commands(network, |plugin, network| plugin.orphans(network, BRIEFLY))
}

fn commands(
    network: &RoutingNetwork,
    find: fn(&HostLocal<'_>, &Network) -> Result<Vec<Lease>, Error>,
) -> Result<Vec<String>> {
    let Some(own) = of_veth(network).cloned() else { return Ok(Vec::new()) };
    let found = within(LIMIT, move || with_host_local(&own, |plugin| find(plugin, &own)));
    let Some(found) = found else {
        bail!("cannot look for orphaned leases: not done within {} s", LIMIT.as_secs());
    };
    Ok(found?.iter().map(|lease| format!("weft ipam release {}", lease.address)).collect())
}

/// What `veth` is told, where weft's own `host-local` gives it addresses: of no other
/// plugin's interfaces is it known whether they are gone.
fn of_veth(network: &RoutingNetwork) -> Option<&Network> {
    let told = network.host_local.as_ref().filter(|_| network.is_veth)?;
    is_served_by_weft(told).then_some(told)
}

/// Whether a plugin of weft's would run `host-local` in its own process. Without ranges no
/// other program can serve the network.
fn is_served_by_weft(network: &Network) -> bool {
    let has_ranges = |keys: &Object<'_>| keys.get("ranges").or(keys.get("subnet")).is_some();
    if network.ipam().ok().flatten().is_some_and(|keys| !has_ranges(&keys)) {
        return true;
    }
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join("host-local"));
    let installed = Path::new(BIN_DIRECTORY).join("host-local");
    let file = beside.into_iter().chain([installed]).find(|file| file.is_file());
    file.is_some_and(|file| is_weft_file(&file))
}
