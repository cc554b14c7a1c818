//! The keys of `veth`.

use cluster::Mac;
use cni::{Attachment, Code, Dns, Error, Network};

use crate::failure::invalid_config;

/// Least MTU of an IPv4 interface (RFC 791 section 3.2).
pub(super) const MIN_MTU: u32 = 68;
/// Least MTU with IPv6 (RFC 8200 section 5); below it the kernel drops every
/// IPv6 address of the interface.
pub(super) const MIN_MTU_IPV6: u32 = 1280;
/// Largest MTU of a veth (`drivers/net/veth.c`, ETH_MAX_MTU).
const MAX_MTU: u32 = 65535;

/// Every key of the plugin.
pub(crate) const KEYS: [&str; 5] = ["ipam", "mtu", "spoofCheck", "defaultRoute", "dns"];

/// The plugin's configuration.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// MTU of both ends, bytes; by default that of the underlay.
    pub(super) mtu: Option<u32>,
    /// Whether packets from addresses that are not the pod's are dropped.
    pub(super) spoof_check: bool,
    /// Whether the pod gets a default route even if the IPAM gives none.
    pub(super) default_route: bool,
    /// Name servers in place of the IPAM's.
    pub(super) dns: Option<Dns>,
    /// Hardware address asked for by the caller.
    pub(super) mac: Option<Mac>,
}

impl Config {
    /// Reads and checks the keys.
    pub(super) fn read(attachment: &Attachment, network: &Network) -> Result<Self, Error> {
        let keys = network.keys();
        cni::reject_unknown_args(&attachment.args, &["MAC", "IP"])?;
        let mtu = keys.integer("mtu", 0, MAX_MTU.into())?.map(|mtu| mtu as u32);
        // 0 is how Go programs write "the default".
        let mtu = mtu.filter(|&mtu| mtu != 0);
        if let Some(mtu) = mtu.filter(|&mtu| mtu < MIN_MTU) {
            return Err(invalid_config(format!(
                "mtu: {mtu} is less than {MIN_MTU} bytes, the least of IPv4"
            )));
        }
        Ok(Self {
            mtu,
            spoof_check: keys.bool("spoofCheck")?.unwrap_or(true),
            default_route: keys.bool("defaultRoute")?.unwrap_or(true),
            dns: network.dns()?,
            mac: requested_mac(attachment, network)?,
        })
    }
}

/// The MAC that the caller asks for: of the capability, else of `args.cni`, else
/// of CNI_ARGS; the order of the reference plugins.
fn requested_mac(attachment: &Attachment, network: &Network) -> Result<Option<Mac>, Error> {
    if let Some(text) = network.runtime_mac()? {
        return parse_mac("runtimeConfig.mac", text, Code::InvalidConfig).map(Some);
    }
    if let Some(keys) = network.args_cni()? {
        if let Some(text) = keys.text("mac")? {
            return parse_mac("args.cni.mac", text, Code::InvalidConfig).map(Some);
        }
    }
    match attachment.args.get("MAC").filter(|text| !text.is_empty()) {
        Some(text) => parse_mac("CNI_ARGS: MAC", text, Code::InvalidEnvironment).map(Some),
        None => Ok(None),
    }
}

fn parse_mac(key: &str, text: &str, code: Code) -> Result<Mac, Error> {
    let mac: Mac = text.parse().map_err(|e| Error::new(code, format!("{key}: {e}")))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    let msg = format!("{key}: {text:?} is a group address or zero, which no interface can have");
    Err(Error::new(code, msg))
}
