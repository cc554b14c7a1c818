//! Taking away what is between nodes, for `weft teardown`. Pods, leases and
//! sysctls stay.

use cni::{Code, Error};
use kernel::Rtnetlink;

use super::config::Config;
use super::desired::Desired;
use super::device;
use super::difference::difference;
use super::firewall;
use super::observed::Observed;
use super::stamp;
use super::sync::{apply, lock, namer};

/// Removes the routes, nexthops, devices and nf_tables tables of `config`'s network; returns what
/// was removed, as commands.
pub(crate) fn teardown(config: &Config, host: &mut Rtnetlink) -> Result<Vec<String>, Error> {
    let _lock = lock()?;
    let observed = Observed::read(None, config.protocol, host)?;
    let changes = difference(&Desired::default(), &observed, 0);
    let name_of = namer(config, 0, "");
    stamp::remove(&config.network)?;
    if let Some(warning) = apply(&changes, &name_of, host)?.into_iter().next() {
        return Err(Error::new(Code::Kernel, warning));
    }
    let mut removed: Vec<String> = changes.iter().map(|change| change.words(&name_of)).collect();
    for link in device::ours(config, host)? {
        device::remove(&link, host)?;
        removed.push(format!("ip link del {}", link.name));
    }
    removed.extend(firewall::remove(config)?);
    Ok(removed)
}
