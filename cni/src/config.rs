//! Keys of a configuration that the spec and its conventions define, so that all
//! plugins read them alike.

use std::net::IpAddr;
use std::str::FromStr;

use crate::{Code, Dns, Error, Network, Object};

impl Network {
    /// `runtimeConfig`: what the caller passes for capabilities; absent when empty.
    pub fn runtime_config(&self) -> Result<Option<Object<'_>>, Error> {
        self.keys().object("runtimeConfig")
    }

    /// `runtimeConfig.mac`: the hardware address that the container shall have.
    pub fn runtime_mac(&self) -> Result<Option<&str>, Error> {
        self.runtime_config()?.map_or(Ok(None), |keys| keys.text("mac"))
    }

    /// `runtimeConfig.ips`: addresses that the container shall have.
    pub fn runtime_ips(&self) -> Result<Vec<IpAddr>, Error> {
        self.runtime_config()?.map_or(Ok(Vec::new()), |keys| requested_ips(&keys))
    }

    /// `args.cni`: what the caller passes by convention, outside of capabilities.
    pub fn args_cni(&self) -> Result<Option<Object<'_>>, Error> {
        self.keys().object("args")?.map_or(Ok(None), |args| args.object("cni"))
    }

    /// `args.cni.ips`: addresses that the container shall have.
    pub fn args_ips(&self) -> Result<Vec<IpAddr>, Error> {
        self.args_cni()?.map_or(Ok(Vec::new()), |keys| requested_ips(&keys))
    }

    /// `ipam`: the keys of the IPAM plugin.
    pub fn ipam(&self) -> Result<Option<Object<'_>>, Error> {
        self.keys().object("ipam")
    }

    /// `ipam.type`: which IPAM plugin to run.
    pub fn ipam_type(&self) -> Result<Option<&str>, Error> {
        self.ipam()?.map_or(Ok(None), |ipam| ipam.text("type"))
    }

    /// `dns`: name servers that this plugin's result shall carry.
    pub fn dns(&self) -> Result<Option<Dns>, Error> {
        Dns::from_key(&self.keys(), "dns")
    }
}

fn requested_ips(keys: &Object<'_>) -> Result<Vec<IpAddr>, Error> {
    keys.list("ips", |value, path| {
        let text = value.as_str().unwrap_or_default();
        requested_ip(text).ok_or_else(|| {
            let msg = format!("{path}: {value} is not an IP address");
            Error::new(Code::InvalidConfig, msg)
        })
    })
}

/// An address that a caller asks for: `10.0.0.5` or `10.0.0.5/24`. The prefix
/// length is only checked: that of the address is the allocator's to say.
pub fn requested_ip(text: &str) -> Option<IpAddr> {
    let (address, length) = text.split_once('/').unwrap_or((text, "0"));
    let address = IpAddr::from_str(address).ok()?;
    let most = if address.is_ipv6() { 128 } else { 32 };
    length.parse::<u8>().ok().filter(|length| *length <= most).map(|_| address)
}
