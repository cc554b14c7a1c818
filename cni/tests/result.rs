//! Results in the shape of each version, against documents written by hand.

use cni::{AddResult, Code, Version};
use serde_json::{Value, json};

fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "veth1", "mac": "0a:58:0a:00:00:02", "mtu": 1450 },
            { "name": "eth0", "mac": "0a:58:0a:00:00:03", "mtu": 1450, "sandbox": "/run/netns/a",
              "socketPath": "/s", "pciID": "0000:00:01.0" },
        ],
        "ips": [
            { "address": "10.0.0.3/24", "gateway": "10.0.0.1", "interface": 1 },
            { "address": "10.0.9.3/24", "interface": 1 },
            { "address": "fd00::3/64", "gateway": "fd00::1", "interface": 1 },
        ],
        "routes": [
            { "dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "advmss": 1360, "priority": 10,
              "table": 0, "scope": 0 },
            { "dst": "::/0" },
        ],
        "dns": { "nameservers": ["10.0.0.53"], "domain": "a.test", "search": ["b.test"],
                 "options": ["ndots:5"] },
    })
}

fn parse(value: &Value) -> AddResult {
    AddResult::from_json(value, Version::LATEST).expect("valid")
}

fn to(version: Version) -> Value {
    parse(&full()).to_json(version).expect("has addresses")
}

#[test]
fn from_1_0_0_nothing_is_lost() {
    assert_eq!(to(Version::V1_1_0), full());
    let mut expected = full();
    expected["cniVersion"] = "1.0.0".into();
    assert_eq!(to(Version::V1_0_0), expected);
}

#[test]
fn from_0_3_0_to_0_4_0_addresses_carry_their_family() {
    for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
        let mut expected = full();
        expected["cniVersion"] = version.as_str().into();
        expected["interfaces"] = json!([
            { "name": "veth1", "mac": "0a:58:0a:00:00:02" },
            { "name": "eth0", "mac": "0a:58:0a:00:00:03", "sandbox": "/run/netns/a" },
        ]);
        for (i, family) in ["4", "4", "6"].into_iter().enumerate() {
            expected["ips"][i]["version"] = family.into();
        }
        assert_eq!(to(version), expected);
    }
}

#[test]
fn to_0_2_0_the_first_address_of_each_family_remains() {
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "ip4": { "ip": "10.0.0.3/24", "gateway": "10.0.0.1",
                     "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }] },
            "ip6": { "ip": "fd00::3/64", "gateway": "fd00::1", "routes": [{ "dst": "::/0" }] },
            "dns": full()["dns"],
        });
        assert_eq!(to(version), expected);
    }
}

#[test]
fn an_empty_result_is_short_and_impossible_to_0_2_0() {
    for version in Version::ALL {
        match AddResult::default().to_json(version) {
            Ok(value) if version <= Version::V0_4_0 => {
                assert_eq!(value, json!({ "cniVersion": version.as_str(), "dns": {} }));
            }
            Ok(value) => assert_eq!(value, json!({ "cniVersion": version.as_str() })),
            Err(error) => {
                assert!(version <= Version::V0_2_0, "{version}: {error}");
                assert_eq!(error.code, Code::InvalidConfig as u32);
            }
        }
    }
    assert!(AddResult::default().to_json(Version::V0_2_0).is_err());
}

#[test]
fn what_go_programs_write_for_nothing_is_nothing() {
    let value = json!({
        "CNIVERSION": "", "Interfaces": [{ "Name": "eth0", "mac": null, "mtu": 0 }],
        "ips": [{ "Address": "10.0.0.2/24", "gateway": "", "interface": null, "version": "4" }],
        "routes": null, "dns": {}, "unknown": [1],
    });
    let result = parse(&value);
    assert_eq!(result.interfaces[0].name, "eth0");
    assert_eq!(result.interfaces[0].mtu, None);
    assert_eq!(result.ips[0].gateway, None);
    assert_eq!(result.ips[0].interface, None);
    assert_eq!(parse(&json!({ "dns": null, "ips": [] })), AddResult::default());
}

#[test]
fn broken_values_are_named() {
    for (value, key) in [
        (json!({ "ips": [{}] }), "ips[0].address"),
        (json!({ "ips": [{ "address": "10.0.0.1" }] }), "ips[0].address"),
        (json!({ "ips": [{ "address": "10.0.0.1/33" }] }), "ips[0].address"),
        (json!({ "ips": [{ "address": "10.0.0.1/255.0.0.0" }] }), "ips[0].address"),
        (json!({ "ips": [{ "address": "10.0.0.1/+8" }] }), "ips[0].address"),
        (json!({ "ips": [{ "address": "10.0.0.1/8", "gateway": "x" }] }), "ips[0].gateway"),
        (json!({ "ips": [{ "address": "10.0.0.1/8", "interface": -1 }] }), "ips[0].interface"),
        (json!({ "ips": [{ "address": "10.0.0.1/8", "interface": 1.5 }] }), "ips[0].interface"),
        (json!({ "routes": [{ "dst": "::/0" }, { "dst": "" }] }), "routes[1].dst"),
        (json!({ "routes": [{ "dst": "::/0", "scope": 256 }] }), "routes[0].scope"),
        (json!({ "interfaces": [1] }), "interfaces[0]"),
        (json!({ "dns": { "search": [1] } }), "dns.search[0]"),
        (json!({ "cniVersion": "0.2.0", "ip6": { "ip": 1 } }), "ip6.ip"),
        (json!({ "cniVersion": "2.0.0" }), "cniVersion"),
    ] {
        let error = AddResult::from_json(&value, Version::LATEST).expect_err("broken");
        assert!(error.msg.starts_with(&format!("{key}: ")), "{value}: {error}");
    }
}
