//! Results as JSON, in the shape of each protocol version.
//!
//! Three shapes exist: `ip4` and `ip6` (to 0.2.0), `ips` with a `version` each
//! (0.3.0 to 0.4.0), `ips` without (from 1.0.0). What a shape cannot say is left
//! out, as libcni's conversion does.

use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::{AddResult, Code, Dns, Error, Interface, IpConfig, Object, Route, Version};

impl AddResult {
    /// The result in the shape of `version`.
    ///
    /// # Errors
    /// Up to 0.2.0 a result must have an address; libcni refuses one without too.
    pub fn to_json(&self, version: Version) -> Result<Value, Error> {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.as_str().into());
        if version <= Version::V0_2_0 {
            self.write_families(version, &mut object)?;
        } else {
            self.write_lists(version, &mut object);
        }
        // Up to 0.4.0 libcni always writes the key, and callers of that time rely on it.
        if version <= Version::V0_4_0 || self.dns != Dns::default() {
            object.insert("dns".into(), self.dns.to_json());
        }
        Ok(Value::Object(object))
    }

    fn write_families(
        &self,
        version: Version,
        object: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        for (key, is_v6) in [("ip4", false), ("ip6", true)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv6() == is_v6) else {
                continue;
            };
            let mut family = Map::new();
            family.insert("ip".into(), ip.address.to_string().into());
            put_address(&mut family, "gateway", ip.gateway);
            let routes = self.routes.iter().filter(|route| route.dst.is_ipv6() == is_v6);
            let bare = |route: &Route| Route { gw: route.gw, ..Route::to(route.dst) }.to_json();
            put_list(&mut family, "routes", routes.map(bare));
            object.insert(key.into(), Value::Object(family));
        }
        if object.contains_key("ip4") || object.contains_key("ip6") {
            return Ok(());
        }
        Err(Error::new(
            Code::InvalidConfig,
            format!(
                "the result has no address, and cniVersion {version} cannot say that: \
                 use cniVersion 0.3.0 or later"
            ),
        ))
    }

    fn write_lists(&self, version: Version, object: &mut Map<String, Value>) {
        put_list(object, "interfaces", self.interfaces.iter().map(|i| i.to_json(version)));
        put_list(object, "ips", self.ips.iter().map(|ip| ip.to_json(version)));
        put_list(object, "routes", self.routes.iter().map(|route| route.to_json()));
    }

    /// Reads a result: `prevResult`, or what a delegate printed. Its own
    /// `cniVersion` says in which shape; a result without one is in `default`, the
    /// configuration's version.
    ///
    /// # Errors
    /// Code 1 for a version that we do not speak, code 7 naming the key for a
    /// value of the wrong kind.
    pub fn from_json(value: &Value, default: Version) -> Result<Self, Error> {
        Self::from_object(&Object::of(value, String::new())?, default)
    }

    /// As [`Self::from_json`], for a result inside a larger document.
    pub fn from_object(object: &Object<'_>, default: Version) -> Result<Self, Error> {
        let version = object.text("cniVersion")?.map_or(Ok(default), Version::from_str);
        let version = version.map_err(|error| error.context(object.path_of("cniVersion")))?;
        let mut result =
            Self { dns: Dns::from_key(object, "dns")?.unwrap_or_default(), ..Self::default() };
        if version <= Version::V0_2_0 {
            for key in ["ip4", "ip6"] {
                if let Some(family) = object.object(key)? {
                    result.ips.push(IpConfig {
                        address: required_cidr(&family, "ip")?,
                        gateway: address(&family, "gateway")?,
                        interface: None,
                    });
                    result.routes.extend(family.list("routes", Route::from_json)?);
                }
            }
        } else {
            result.interfaces = object.list("interfaces", Interface::from_json)?;
            result.ips = object.list("ips", IpConfig::from_json)?;
            result.routes = object.list("routes", Route::from_json)?;
        }
        Ok(result)
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("name".into(), self.name.as_str().into());
        put_text(&mut object, "mac", &self.mac);
        put_text(&mut object, "sandbox", &self.sandbox);
        // 1.0.0 does not define these three, but libcni keeps them there.
        if version >= Version::V1_0_0 {
            put_number(&mut object, "mtu", self.mtu);
            put_text(&mut object, "socketPath", &self.socket_path);
            put_text(&mut object, "pciID", &self.pci_id);
        }
        Value::Object(object)
    }

    fn from_json(value: &Value, path: String) -> Result<Self, Error> {
        let object = Object::of(value, path)?;
        let text = |key| Ok(object.string(key)?.unwrap_or_default().to_owned());
        Ok(Self {
            name: text("name")?,
            mac: text("mac")?,
            mtu: number_over_0(&object, "mtu")?,
            sandbox: text("sandbox")?,
            socket_path: text("socketPath")?,
            pci_id: text("pciID")?,
        })
    }
}

impl IpConfig {
    fn to_json(self, version: Version) -> Value {
        let mut object = Map::new();
        if version <= Version::V0_4_0 {
            let family = if self.address.is_ipv6() { "6" } else { "4" };
            object.insert("version".into(), family.into());
        }
        put_number(&mut object, "interface", self.interface);
        object.insert("address".into(), self.address.to_string().into());
        put_address(&mut object, "gateway", self.gateway);
        Value::Object(object)
    }

    fn from_json(value: &Value, path: String) -> Result<Self, Error> {
        let object = Object::of(value, path)?;
        let index = object.integer("interface", 0, u32::MAX.into())?;
        Ok(Self {
            address: required_cidr(&object, "address")?,
            gateway: address(&object, "gateway")?,
            interface: index.and_then(|index| usize::try_from(index).ok()),
        })
    }
}

impl Route {
    /// A route to `dst` with nothing else said.
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// libcni writes the attributes of 1.1.0 into results from 0.3.0 on.
    fn to_json(self) -> Value {
        let mut object = Map::new();
        object.insert("dst".into(), self.dst.to_string().into());
        put_address(&mut object, "gw", self.gw);
        put_number(&mut object, "mtu", self.mtu);
        put_number(&mut object, "advmss", self.advmss);
        put_number(&mut object, "priority", self.priority);
        put_number(&mut object, "table", self.table);
        put_number(&mut object, "scope", self.scope);
        Value::Object(object)
    }

    /// Reads a route; `path` names it in errors. Also IPAM configurations write
    /// their `routes` so.
    pub fn from_json(value: &Value, path: String) -> Result<Self, Error> {
        let object = Object::of(value, path)?;
        let scope = object.integer("scope", 0, u8::MAX.into())?;
        Ok(Self {
            dst: required_cidr(&object, "dst")?,
            gw: address(&object, "gw")?,
            mtu: number_over_0(&object, "mtu")?,
            advmss: number_over_0(&object, "advmss")?,
            priority: number_over_0(&object, "priority")?,
            table: number(&object, "table")?,
            scope: scope.and_then(|scope| u8::try_from(scope).ok()),
        })
    }
}

impl Dns {
    fn to_json(&self) -> Value {
        let mut object = Map::new();
        put_list(
            &mut object,
            "nameservers",
            self.nameservers.iter().map(|text| text.as_str().into()),
        );
        put_text(&mut object, "domain", &self.domain);
        put_list(&mut object, "search", self.search.iter().map(|text| text.as_str().into()));
        put_list(&mut object, "options", self.options.iter().map(|text| text.as_str().into()));
        Value::Object(object)
    }

    /// The `dns` of a configuration or result under `key`; `{}` is an empty one.
    pub fn from_key(object: &Object<'_>, key: &str) -> Result<Option<Self>, Error> {
        let Some(dns) = object.object(key)? else { return Ok(None) };
        let strings = |key| Ok(dns.strings(key)?.into_iter().map(str::to_owned).collect());
        Ok(Some(Self {
            nameservers: strings("nameservers")?,
            domain: dns.string("domain")?.unwrap_or_default().to_owned(),
            search: strings("search")?,
            options: strings("options")?,
        }))
    }
}

/// An address with its prefix length. [`IpNetwork`] alone would also take an
/// address without one and an IPv4 netmask, which no other plugin understands.
struct Cidr(IpNetwork);

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (_, length) = text.split_once('/').ok_or(())?;
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        text.parse().map(Self).map_err(|_| ())
    }
}

fn required_cidr(object: &Object<'_>, key: &str) -> Result<IpNetwork, Error> {
    match object.parse(key, "an address with a prefix length, like 10.0.0.2/24")? {
        Some(Cidr(network)) => Ok(network),
        None => Err(Error::new(Code::InvalidConfig, format!("{}: missing", object.path_of(key)))),
    }
}

fn address(object: &Object<'_>, key: &str) -> Result<Option<IpAddr>, Error> {
    object.parse(key, "an IP address")
}

fn number(object: &Object<'_>, key: &str) -> Result<Option<u32>, Error> {
    let number = object.integer(key, 0, u32::MAX.into())?;
    Ok(number.and_then(|number| u32::try_from(number).ok()))
}

/// Go plugins hold these in plain integers, where 0 is "not given".
fn number_over_0(object: &Object<'_>, key: &str) -> Result<Option<u32>, Error> {
    Ok(number(object, key)?.filter(|number| *number != 0))
}

fn put_text(object: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        object.insert(key.into(), text.into());
    }
}

fn put_number<T: Into<Value>>(object: &mut Map<String, Value>, key: &str, number: Option<T>) {
    if let Some(number) = number {
        object.insert(key.into(), number.into());
    }
}

fn put_address(object: &mut Map<String, Value>, key: &str, address: Option<IpAddr>) {
    if let Some(address) = address {
        object.insert(key.into(), address.to_string().into());
    }
}

fn put_list(object: &mut Map<String, Value>, key: &str, items: impl Iterator<Item = Value>) {
    let items: Vec<_> = items.collect();
    if !items.is_empty() {
        object.insert(key.into(), Value::Array(items));
    }
}
