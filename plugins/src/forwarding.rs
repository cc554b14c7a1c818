//! Forwarding between interfaces, without which a node is no router for its pods.

use cni::Error;
use kernel::{Rtnetlink, sysctl};

use crate::attachment::is_host_end;
use crate::failure::refused;

/// A kernel setting that is not as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    key: String,
    value: &'static str,
}

impl Setting {
    /// The change as a command. The key has slashes, as interfaces' names may hold dots.
    pub(crate) fn words(&self) -> String {
        format!("sysctl -w {}={}", self.key, self.value)
    }

    /// Makes the change.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        sysctl::set(&self.key, self.value).map(drop).map_err(refused)
    }
}

/// Turns forwarding on for the families in use.
pub(crate) fn enable(ipv4: bool, ipv6: bool, host: &mut Rtnetlink) -> Result<(), Error> {
    missing(ipv4, ipv6, host)?.iter().try_for_each(Setting::apply)
}

/// What is to be set, in this order, so that the host forwards the families in use.
///
/// A host that forwards IPv6 no longer takes router advertisements
/// (`accept_ra` 1), and so loses its own default route when that expires:
/// interfaces that live on them get `accept_ra` 2 first.
pub(crate) fn missing(ipv4: bool, ipv6: bool, host: &mut Rtnetlink) -> Result<Vec<Setting>, Error> {
    let on = |key: &str| Setting { key: key.to_owned(), value: "1" };
    let mut settings = Vec::new();
    let (key4, key6) = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding");
    if ipv4 && sysctl::get(key4).map_err(refused)?.as_deref() != Some("1") {
        settings.push(on(key4));
    }
    if ipv6 && sysctl::get(key6).map_err(refused)?.as_deref() == Some("0") {
        settings.extend(router_advertisements(host)?);
        settings.push(on(key6));
    }
    Ok(settings)
}

fn router_advertisements(host: &mut Rtnetlink) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    for link in host.links().map_err(refused)? {
        if link.loopback || is_host_end(&link) {
            continue;
        }
        let key = format!("net/ipv6/conf/{}/accept_ra", link.name);
        if sysctl::get(&key).map_err(refused)?.as_deref() == Some("1") {
            settings.push(Setting { key, value: "2" });
        }
    }
    Ok(settings)
}
