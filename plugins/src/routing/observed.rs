//! What the kernel holds of ours.

use cni::Error;
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::link::Link;
use kernel::neighbour::{FdbEntry, Neighbour, State};
use kernel::nexthop::Nexthop;
use kernel::route::{Filter, Route};

use crate::failure::refused;

/// Entries that are ours: on our device, or with our protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// Addresses of the device.
    pub(crate) addresses: Vec<IpNetwork>,
    /// Permanent neighbours on the device that no other program put there.
    pub(crate) neighbours: Vec<Neighbour>,
    /// Likewise of its forwarding database.
    pub(crate) fdb: Vec<FdbEntry>,
    /// Nexthop objects with our protocol.
    pub(crate) nexthops: Vec<Nexthop>,
    /// Routes with our protocol.
    pub(crate) routes: Vec<Route>,
}

impl Observed {
    /// Reads what is there; `device` is the VXLAN device, where there is one.
    pub(crate) fn read(
        device: Option<&Link>,
        protocol: u8,
        host: &mut Rtnetlink,
    ) -> Result<Self, Error> {
        let mut observed = Self::default();
        if let Some(device) = device {
            let addresses = host.addresses(Some(device.index)).map_err(refused)?;
            observed.addresses = addresses.iter().map(|address| address.address).collect();
            let ours = |state, external: bool| state == State::Permanent && !external;
            let neighbours = host.neighbours(Some(device.index)).map_err(refused)?;
            observed.neighbours =
                neighbours.into_iter().filter(|n| ours(n.state, n.external)).collect();
            let fdb = host.fdb(device.index).map_err(refused)?;
            observed.fdb = fdb.into_iter().filter(|e| ours(e.state, e.external)).collect();
        }
        let nexthops = host.nexthops(None).map_err(refused)?;
        observed.nexthops = nexthops.into_iter().filter(|n| n.protocol == protocol).collect();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let filter = Filter { family: family as u8, protocol, ..Filter::default() };
            observed.routes.extend(host.routes(filter).map_err(refused)?);
        }
        Ok(observed)
    }
}
