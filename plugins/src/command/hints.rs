//! What in a plugin's keys is probably not meant so. A plugin must put up with keys that it
//! does not know; whoever wrote them may want to know that nobody does.

use cni::Object;
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::routing::config as routing;
use crate::veth;

/// Keys that the specification gives a meaning, in every plugin.
const OF_ALL: [&str; 7] =
    ["type", "name", "cniVersion", "capabilities", "args", "runtimeConfig", "prevResult"];

/// What to say of `plugin`, where it is one of ours.
pub(super) fn of(plugin: &Object) -> Vec<String> {
    let (kind, known): (_, &[&str]) = match plugin.text("type") {
        Ok(Some("routing")) => ("routing", &routing::KEYS),
        Ok(Some("veth")) => ("veth", &veth::KEYS),
        _ => return Vec::new(),
    };
    let is_known = |name: &str| {
        let mut all = known.iter().chain(&OF_ALL);
        name.contains('/') || all.any(|key| key.eq_ignore_ascii_case(name))
    };
    let unknown = plugin.names().filter(|name| !is_known(name));
    let unknown = unknown.map(|name| {
        format!("{}: {kind} has no such key, and does nothing with it", plugin.path_of(name))
    });
    let cidrs = routing::CIDR_KEYS.iter().filter(|_| kind == "routing");
    unknown.chain(cidrs.flat_map(|key| host_bits(plugin, key))).collect()
}

fn host_bits(plugin: &Object, key: &str) -> Vec<String> {
    let texts: Vec<&str> = match plugin.get(key) {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        Some(value) => value.as_str().into_iter().collect(),
        None => Vec::new(),
    };
    let networks = texts.into_iter().filter_map(|text| text.parse::<IpNetwork>().ok());
    let with_bits = networks.filter(|network| network.ip() != network.network());
    let path = plugin.path_of(key);
    let say = |n: IpNetwork| format!("{path}: {n} is taken as {}/{}", n.network(), n.prefix());
    with_bits.map(say).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hints(plugin: Value) -> Vec<String> {
        of(&Object::of(&plugin, "plugins[1]".to_owned()).expect("an object"))
    }

    #[test]
    fn keys_that_nobody_reads_are_named() {
        let plugin = json!({
            "type": "routing", "routingmode": "tunnel", "cni.dev/attachments": [],
            "capabilities": {}, "tunnelport": 1, "ipv4NativeCIDR": "10.0.0.0/8" });
        let said = hints(plugin);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("plugins[1].ipv4NativeCIDR: routing has no"), "{said:?}");
        let said = hints(json!({ "type": "veth", "ipam": {}, "ipMasq": true, "MTU": 1400 }));
        assert!(said.len() == 1 && said[0].contains("ipMasq"), "{said:?}");
        assert!(hints(json!({ "type": "portmap", "snat": true })).is_empty());
    }

    #[test]
    fn host_bits_are_told() {
        let said = hints(json!({
            "type": "routing", "ipv4NativeRoutingCIDR": "10.0.0.1/8",
            "links": ["192.168.1.0/24", "192.168.2.7/24"] }));
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "plugins[1].ipv4NativeRoutingCIDR: 10.0.0.1/8 is taken as 10.0.0.0/8");
    }

    #[test]
    fn the_keys_are_those_of_the_documentation() {
        let readme = include_str!("../../../README.md");
        for key in routing::KEYS.iter().chain(&veth::KEYS) {
            assert!(readme.contains(&format!("`{key}`")), "{key} is not in README.md");
        }
    }
}
