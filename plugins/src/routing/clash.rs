//! Two networks on one node that mark their routes alike: each would take the
//! other's for leftovers of its own and delete them.

use cni::Error;
use kernel::Rtnetlink;
use kernel::route::Filter;

use super::config::Config;
use super::device;
use super::stamp::{self, Stamp};
use crate::failure::{invalid_config, refused};

/// Fails where another network has routes here that are marked with our protocol.
///
/// A network with a tunnel is known by routes on its device; one without has nothing
/// in the kernel that names it, and is known by what its last sync left in /run/weft.
pub(super) fn refuse_shared_protocol(config: &Config, host: &mut Rtnetlink) -> Result<(), Error> {
    for (link, network) in device::of_other_networks(config, host)? {
        if has_routes(link.index, config.protocol, host)? {
            return Err(shared(config, &network));
        }
    }
    for network in stamp::other_networks(&config.network) {
        if Stamp::open(&network).is_some_and(|stamp| stamp.marks_with(config.protocol, host)) {
            return Err(shared(config, &network));
        }
    }
    Ok(())
}

fn has_routes(dev: u32, protocol: u8, host: &mut Rtnetlink) -> Result<bool, Error> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let dev = Some(dev);
        let filter = Filter { family: family as u8, protocol, dev, ..Filter::default() };
        if !host.routes(filter).map_err(refused)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn shared(config: &Config, network: &str) -> Error {
    invalid_config(format!(
        "routeProtocol: network {network} marks its routes on this node with protocol {} too, so \
         that each would delete the other's; {}, or set routeProtocol to another number in one of \
         them",
        config.protocol,
        device::leftover_remedy(network)
    ))
}
