//! Properties that hold for any input.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;

use cni::{
    AddResult, Call, Dns, Error, Interface, IpConfig, Network, Route, Version, reject_unknown_args,
};
use ipnetwork::IpNetwork;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn network() -> impl Strategy<Value = IpNetwork> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(address, length)| {
        let most = if address.is_ipv6() { 128 } else { 32 };
        IpNetwork::new(address, length.min(most)).expect("a valid length")
    })
}

fn interface() -> impl Strategy<Value = Interface> {
    let text = any::<String>;
    let numbers = option::of(1..=u32::MAX);
    (text(), text(), numbers, text(), text(), text()).prop_map(
        |(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        },
    )
}

fn ip() -> impl Strategy<Value = IpConfig> {
    (network(), option::of(any::<IpAddr>()), option::of(0..1000usize))
        .prop_map(|(address, gateway, interface)| IpConfig { address, gateway, interface })
}

fn route() -> impl Strategy<Value = Route> {
    let number = || option::of(1..=u32::MAX);
    let gw = option::of(any::<IpAddr>());
    let scope = option::of(any::<u8>());
    (network(), gw, number(), number(), number(), option::of(any::<u32>()), scope).prop_map(
        |(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        },
    )
}

fn dns() -> impl Strategy<Value = Dns> {
    let texts = || vec(any::<String>(), 0..3);
    (texts(), any::<String>(), texts(), texts()).prop_map(
        |(nameservers, domain, search, options)| Dns { nameservers, domain, search, options },
    )
}

fn result() -> impl Strategy<Value = AddResult> {
    (vec(interface(), 0..4), vec(ip(), 0..5), vec(route(), 0..5), dns())
        .prop_map(|(interfaces, ips, routes, dns)| AddResult { interfaces, ips, routes, dns })
}

/// What `version` can say of `result`; `None` if it cannot say anything.
fn sayable(result: &AddResult, version: Version) -> Option<AddResult> {
    match version {
        Version::V1_0_0 | Version::V1_1_0 => Some(result.clone()),
        Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => {
            let mut said = result.clone();
            for interface in &mut said.interfaces {
                interface.mtu = None;
                interface.socket_path.clear();
                interface.pci_id.clear();
            }
            Some(said)
        }
        Version::V0_1_0 | Version::V0_2_0 => {
            let mut said = AddResult { dns: result.dns.clone(), ..AddResult::default() };
            for is_v4 in [true, false] {
                let first = result.ips.iter().find(|ip| ip.address.is_ipv4() == is_v4);
                let Some(first) = first else { continue };
                said.ips.push(IpConfig { interface: None, ..*first });
                let routes = result.routes.iter().filter(|route| route.dst.is_ipv4() == is_v4);
                said.routes
                    .extend(routes.map(|route| Route { gw: route.gw, ..Route::to(route.dst) }));
            }
            (!said.ips.is_empty()).then_some(said)
        }
    }
}

/// Any JSON, three levels deep at most, rich in what the protocol's values look like.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        network().prop_map(|network| network.to_string().into()),
        any::<IpAddr>().prop_map(|address| address.to_string().into()),
        prop::sample::select(&Version::ALL[..]).prop_map(|version| version.as_str().into()),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(key(), inner, 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

const KEYS: [&str; 41] = [
    "cniVersion",
    "name",
    "type",
    "prevResult",
    "runtimeConfig",
    "args",
    "cni",
    "ipam",
    "dns",
    "ips",
    "mac",
    "interfaces",
    "routes",
    "ip4",
    "ip6",
    "ip",
    "address",
    "gateway",
    "interface",
    "dst",
    "gw",
    "mtu",
    "advmss",
    "priority",
    "table",
    "scope",
    "sandbox",
    "socketPath",
    "pciID",
    "nameservers",
    "domain",
    "search",
    "options",
    "version",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "containerID",
    "ifname",
    "code",
    "msg",
    "details",
];

fn key() -> impl Strategy<Value = String> {
    let known = prop::sample::select(&KEYS[..]);
    prop_oneof![
        4 => known.clone().prop_map(str::to_owned),
        1 => known.prop_map(str::to_uppercase),
        1 => any::<String>(),
    ]
}

fn environment() -> impl Strategy<Value = Vec<(&'static str, OsString)>> {
    const VERBS: [&str; 6] = ["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"];
    let bytes = || vec(any::<u8>(), 0..20).prop_map(OsString::from_vec);
    let likely = |text: &'static [&'static str]| prop_oneof![3 => prop::sample::select(text).prop_map(OsString::from), 1 => bytes()];
    (
        prop_oneof![9 => prop::sample::select(&VERBS[..]).prop_map(OsString::from), 1 => bytes()],
        likely(&["c1", "", "-"]),
        likely(&["/run/netns/c1", ""]),
        likely(&["eth0", "", "a/b"]),
        likely(&["", "A=1;B=", "IgnoreUnknown=1;A=2", "="]),
        likely(&["/opt/cni/bin", ""]),
    )
        .prop_map(|(verb, id, netns, ifname, args, path)| {
            vec![
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", ifname),
                ("CNI_ARGS", args),
                ("CNI_PATH", path),
            ]
        })
}

/// Parses, and reads all that can be read of the call. Errors must be fit for the caller.
fn exercise(env: &[(&str, OsString)], stdin: &[u8]) -> Result<(), Error> {
    let lookup = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, v)| v.clone());
    match Call::parse(&lookup, stdin)? {
        Call::Add(attachment, network) | Call::Check(attachment, network) => {
            reject_unknown_args(&attachment.args, &["A"])?;
            read(&network)
        }
        Call::Del(_, network) | Call::Gc(_, network) | Call::Status(network) => read(&network),
        Call::Version(version) => {
            assert!(!version.is_empty());
            Ok(())
        }
    }
}

fn read(network: &Network) -> Result<(), Error> {
    network.runtime_mac()?;
    network.runtime_ips()?;
    network.args_ips()?;
    network.dns()?;
    cni::delegate::find(network.ipam_type()?.unwrap_or_default(), &[])?;
    network.require_prev_result()?.to_json(network.version).map(drop)
}

fn assert_fit(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        assert_ne!(error.code, 0);
        assert!(!error.msg.is_empty());
        let object = error.to_json(Version::LATEST).to_string();
        assert!(!object.contains('\n') && !object.contains("not found"), "{object}");
    }
}

proptest! {
    #[test]
    fn a_result_survives_every_version_as_far_as_it_can_say_it(result in result()) {
        for version in Version::ALL {
            match (sayable(&result, version), result.to_json(version)) {
                (None, Err(_)) => {}
                (Some(said), Ok(value)) => {
                    let text = value.to_string();
                    let value: Value = serde_json::from_str(&text).expect("own output");
                    // Its own cniVersion decides, whatever the default.
                    for default in Version::ALL {
                        prop_assert_eq!(&AddResult::from_json(&value, default), &Ok(said.clone()));
                    }
                }
                (said, value) => prop_assert!(false, "{version}: {said:?} but {value:?}"),
            }
        }
    }

    #[test]
    fn a_result_without_version_is_in_the_default(result in result()) {
        for version in Version::ALL {
            let Ok(Value::Object(mut object)) = result.to_json(version) else { continue };
            object.remove("cniVersion");
            let read = AddResult::from_json(&Value::Object(object), version);
            prop_assert_eq!(read.ok(), sayable(&result, version));
        }
    }

    #[test]
    fn any_bytes_are_a_call_or_an_error(env in environment(), stdin in vec(any::<u8>(), 0..200)) {
        assert_fit(exercise(&env, &stdin));
    }

    #[test]
    fn any_json_is_a_call_or_an_error(env in environment(), value in json_value()) {
        assert_fit(exercise(&env, value.to_string().as_bytes()));
    }

    #[test]
    fn any_value_under_any_key_is_a_call_or_an_error(
        env in environment(),
        version in prop::sample::select(&Version::ALL[..]),
        pairs in btree_map(key(), json_value(), 0..6),
    ) {
        let mut config: Map<_, _> = pairs.into_iter().collect();
        config.entry("name").or_insert_with(|| "n".into());
        config.entry("cniVersion").or_insert_with(|| version.as_str().into());
        assert_fit(exercise(&env, Value::Object(config).to_string().as_bytes()));
    }

    #[test]
    fn any_value_inside_a_result_is_read_or_refused(
        version in prop::sample::select(&Version::ALL[..]),
        result in result(),
        outer in key(),
        inner in key(),
        value in json_value(),
    ) {
        let Ok(mut object) = result.to_json(version) else { return Ok(()) };
        match object.get_mut(&outer).and_then(|list| list.get_mut(0)).and_then(Value::as_object_mut) {
            Some(item) => { item.insert(inner, value); }
            None => object[outer] = value,
        }
        let outcome = AddResult::from_json(&object, version);
        assert_fit(outcome.and_then(|result| result.to_json(Version::V1_1_0).map(drop)));
    }

    #[test]
    fn an_error_survives_as_json(code in 1..=u32::MAX, msg in any::<String>(), details in any::<String>()) {
        let error = Error { code, msg, details };
        prop_assert_eq!(Error::from_json(&error.to_json(Version::LATEST)), Some(error));
    }

    #[test]
    fn anything_is_an_error_object_or_not(value in json_value()) {
        let is_error = Error::from_json(&value).is_some();
        prop_assert!(!is_error || value.is_object());
    }
}

#[test]
fn an_error_without_a_code_is_none() {
    for value in [json!({}), json!({ "code": 0 }), json!({ "code": "7" }), json!([7]), json!(null)]
    {
        assert_eq!(Error::from_json(&value), None, "{value}");
    }
}
