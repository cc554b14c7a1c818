//! The result of an ADD, independent of the version that carries it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// What an attachment got: its interfaces, addresses, routes, and DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Every interface made, host side included.
    pub interfaces: Vec<Interface>,
    /// Addresses, each on one of `interfaces`.
    pub ips: Vec<IpConfig>,
    /// Routes inside the container.
    pub routes: Vec<Route>,
    /// Name servers for the container.
    pub dns: Dns,
}

/// An interface; strings are kept as they came, since other plugins' results
/// pass through us unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name inside its namespace.
    pub name: String,
    /// Hardware address, `aa:bb:…`; may be empty.
    pub mac: String,
    /// Bytes (since 1.1.0).
    pub mtu: Option<u32>,
    /// Path of the container's namespace; empty for the host's.
    pub sandbox: String,
    /// Socket of a userspace interface (since 1.1.0); may be empty.
    pub socket_path: String,
    /// PCI device (since 1.1.0); may be empty.
    pub pci_id: String,
}

/// An address and the gateway that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// Gateway of the subnet; implies no route.
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// A route inside the container. Only `dst` and `gw` before 1.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination; its host bits are kept as given.
    pub dst: IpNetwork,
    /// Next hop; absent means the gateway of the family's address.
    pub gw: Option<IpAddr>,
    /// Path MTU, bytes.
    pub mtu: Option<u32>,
    /// Advertised TCP segment size, bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// rtnetlink scope.
    pub scope: Option<u8>,
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers, in order of preference.
    pub nameservers: Vec<String>,
    /// Local domain; may be empty.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}
