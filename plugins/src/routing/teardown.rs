//! Taking away what is between nodes, for `weft teardown`. Pods, leases and
//! sysctls stay.

use cni::{Code, Error};
use kernel::Rtnetlink;

use super::config::Config;
use super::desired::Desired;
use super::difference::difference;
use super::observed::Observed;
use super::record::Record;
use super::sync::{Do, Outcome, lock, make, namer};
use super::{device, firewall, record, stamp};

/// By what a network's work is known: its configuration tells, or its record, where that
/// is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Name of the network.
    pub(crate) network: String,
    /// Number that routes, nexthops and tables are marked with.
    pub(crate) protocol: u8,
    /// Name of its VXLAN device.
    pub(crate) device: String,
}

impl Marks {
    /// Those of a network that is configured.
    pub(crate) fn of(config: &Config) -> Self {
        let Config { network, protocol, device, .. } = config;
        Self { network: network.clone(), protocol: *protocol, device: device.clone() }
    }

    /// Those of a network of which the record is left.
    pub(crate) fn on_record(network: String, record: Record) -> Self {
        Self { network, protocol: record.protocol, device: record.device }
    }

    /// Removes the routes, nexthops and nf_tables tables.
    pub(super) fn remove_entries(
        &self,
        what: Do,
        outcome: &mut Outcome,
        host: &mut Rtnetlink,
    ) -> Result<(), Error> {
        let observed = Observed::read(None, self.protocol, host)?;
        let changes = difference(&Desired::default(), &observed, 0);
        make(&changes, what, &namer(&self.device, 0, ""), outcome, host)?;
        outcome.add(firewall::remove(self.protocol, what)?);
        Ok(())
    }
}

/// Removes the routes, nexthops, devices and nf_tables tables of a network, and what is
/// kept of it in /run/weft; returns what was removed.
pub(crate) fn teardown(marks: &Marks, host: &mut Rtnetlink) -> Result<Outcome, Error> {
    let _lock = lock()?;
    let mut outcome = Outcome::default();
    stamp::remove(&marks.network)?;
    marks.remove_entries(Do::Apply, &mut outcome, host)?;
    if let Some(failure) = outcome.failures.into_iter().next() {
        return Err(Error::new(Code::Kernel, failure));
    }
    outcome.failures = Vec::new();
    for link in device::of_network(&marks.network, &marks.device, host)? {
        device::remove(&link, host)?;
        outcome.add([format!("ip link del {}", link.name)]);
    }
    record::remove(&marks.network)?;
    Ok(outcome)
}
