//! The standalone host-local: for chains of other plugins, and for trying it out.
//!
//! It knows neither a node map nor the kernel, so ranges have to be configured,
//! and addresses that the reference plugin leased count as in use.

use std::process::ExitCode;

use cni::{Code, Error, Object};
use ipam_host_local::{Host, HostLocal, Sight};

fn main() -> ExitCode {
    let own_ranges = |ipam: &Object<'_>| {
        let msg = format!("{}: missing, and this program has no node map", ipam.path_of("ranges"));
        Err(Error::new(Code::InvalidConfig, msg))
    };
    cni::run(&HostLocal { host: Host::new(&own_ranges, &Sight::blind) })
}
