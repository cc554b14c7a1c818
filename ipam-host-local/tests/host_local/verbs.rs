//! Each verb, as a library, where the reference plugin has no word.

use std::fs;

use cni::{AddResult, IpConfig, Plugin};
use ipam_host_local::{Host, HostLocal, Sight};
use serde_json::json;

use crate::util::{
    Dir, add, add_one, attachment, call, config, del, host, key, network, no_ranges,
    nothing_in_use, ours,
};

fn plugin() -> HostLocal<'static> {
    HostLocal { host: host() }
}

#[test]
fn dual_set_add_writes_what_the_reference_writes() {
    let dir = Dir::new();
    let ranges = json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1:2::/64", "gateway": "fd00::99" }]]);
    let mut config = config(&dir, ranges);
    config["ipam"]["routes"] =
        json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00::9", "mtu": 1400 }]);
    let resolv = dir.0.join("resolv.conf");
    fs::write(&resolv, "nameserver 10.0.0.53\nsearch example\n").unwrap();
    config["ipam"]["resolvConf"] = json!(resolv);
    let result = call(&ours(), "ADD", "a", &config).unwrap();
    let expected = json!({
        "cniVersion": "1.0.0",
        "ips": [
            { "address": "10.1.2.2/24", "gateway": "10.1.2.1" },
            { "address": "fd00:1:2::1/64", "gateway": "fd00::99" },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00::9", "mtu": 1400 }],
        "dns": { "nameservers": ["10.0.0.53"], "search": ["example"] },
    });
    assert_eq!(result, expected);
    let files: Vec<_> = dir.files().into_iter().collect();
    let expected = [
        ("10.1.2.2", "a\r\neth0"),
        ("fd00:1:2::1", "a\r\neth0"),
        ("last_reserved_ip.0", "10.1.2.2"),
        ("last_reserved_ip.1", "fd00:1:2::1"),
    ];
    assert_eq!(files, expected.map(|(name, content)| (name.into(), content.into())));
    call(&ours(), "CHECK", "a", &config).unwrap();
    call(&ours(), "DEL", "a", &config).unwrap();
    assert!(dir.held().is_empty());
    assert_eq!(call(&ours(), "CHECK", "a", &config).unwrap_err()["code"], 101);
}

#[test]
fn a_second_add_fails_also_with_a_requested_address() {
    let dir = Dir::new();
    let mut config = config(&dir, json!([[{ "subnet": "10.1.2.0/24" }]]));
    add(host(), "a", &config).unwrap();
    assert!(add(host(), "a", &config).unwrap_err().msg.contains("10.1.2.2 is leased already"));
    config["runtimeConfig"] = json!({ "ips": ["10.1.2.77"] });
    assert!(add(host(), "a", &config).unwrap_err().msg.contains("10.1.2.2 is leased already"));
    assert_eq!(dir.held().len(), 1);
}

#[test]
fn requests_that_cannot_be_met_leave_nothing_behind() {
    let dir = Dir::new();
    let mut config =
        config(&dir, json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.3.0/24" }]]));
    for ips in
        [json!(["10.9.9.9"]), json!(["10.1.3.1"]), json!(["10.1.2.5", "10.1.2.6"]), json!(["x"])]
    {
        config["runtimeConfig"] = json!({ "ips": ips });
        assert_eq!(add(host(), "a", &config).unwrap_err().code, 7, "{ips}");
        assert!(dir.held().is_empty(), "{ips}");
    }
    config["runtimeConfig"] = json!({ "ips": ["10.1.3.7/16"] });
    add(host(), "a", &config).unwrap();
    assert!(dir.held().contains_key("10.1.3.7"));
    assert_eq!(add(host(), "b", &config).unwrap_err().code, 11);
    assert_eq!(dir.held().len(), 2, "the lease of the first set stayed");
}

#[test]
fn exhaustion_counts_and_status_says_50() {
    let dir = Dir::new();
    let mut config = config(&dir, json!([[{ "subnet": "10.1.2.0/29" }]]));
    let status = || plugin().status(&network(&config));
    status().unwrap();
    for id in ["a", "b", "c", "d", "e"] {
        status().unwrap();
        add(host(), id, &config).unwrap();
    }
    let error = add(host(), "f", &config).unwrap_err();
    assert_eq!(error.code, 11);
    assert!(
        error.msg.contains("6 of 6 addresses of 10.1.2.0/29 are taken (network pods)"),
        "{error}"
    );
    let error = status().unwrap_err();
    assert_eq!(error.code, 50);
    assert!(error.msg.contains("6 of 6 addresses of 10.1.2.0/29 are taken"), "{error}");
    let usage = plugin().usage(&network(&config)).unwrap();
    assert_eq!((usage[0].taken, usage[0].size), (6, 6));
    del("c", &config);
    status().unwrap();
    assert_eq!(add_one(host(), "f", &config).unwrap(), "10.1.2.4");
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.2.0/31" }]]);
    assert_eq!(plugin().status(&network(&config)).unwrap_err().code, 7, "what is wrong is the key");
}

#[test]
fn del_needs_no_valid_ranges_and_makes_no_directory() {
    let dir = Dir::new();
    let mut config = config(&dir, json!([[{ "subnet": "10.1.2.0/24" }]]));
    del("a", &config);
    assert!(!dir.leases().exists());
    add(host(), "a", &config).unwrap();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.2.9/24" }]]);
    assert_eq!(add(host(), "b", &config).unwrap_err().code, 7);
    del("a", &config);
    assert!(dir.held().is_empty());
    del("a", &config);
}

#[test]
fn check_compares_addresses() {
    let dir = Dir::new();
    let config = config(&dir, json!([[{ "subnet": "10.1.2.0/24" }]]));
    let result = add(host(), "a", &config).unwrap();
    let check = |result: &AddResult| {
        let network = cni::Network { prev_result: Some(result.clone()), ..network(&config) };
        plugin().check(&attachment("a"), &network)
    };
    check(&result).unwrap();
    let with = |addresses: &[&str]| AddResult {
        ips: addresses
            .iter()
            .map(|a| IpConfig { address: a.parse().unwrap(), gateway: None, interface: None })
            .collect(),
        ..AddResult::default()
    };
    check(&with(&["10.1.2.2/24", "192.168.0.7/24"])).unwrap();
    assert!(check(&with(&["10.1.2.3/24"])).unwrap_err().msg.contains("10.1.2.3 is not leased"));
    assert_eq!(check(&with(&["10.1.2.2/24", "10.1.2.3/24"])).unwrap_err().code, 101);
    assert!(
        check(&with(&["10.7.2.3/24"])).unwrap_err().msg.contains("none of its leases: 10.1.2.2")
    );
}

#[test]
fn gc_frees_what_is_not_valid() {
    let dir = Dir::new();
    let config = config(&dir, json!([[{ "subnet": "10.1.2.0/24" }]]));
    for id in ["gc-a", "gc-b"] {
        add(host(), id, &config).unwrap();
    }
    dir.write("10.1.2.50", "gc-old");
    dir.write("10.1.2.51", "gc-gone");
    dir.write("10.1.2.52", "gc-b\r\nnet1");
    dir.write("10.1.2.53", "reserved for the printer");
    dir.write("notes.txt", "a");
    plugin().gc(&[key("gc-a"), key("gc-old")], &network(&config)).unwrap();
    let held: Vec<_> = dir.held().into_keys().collect();
    assert_eq!(held, ["10.1.2.2", "10.1.2.50", "10.1.2.53", "notes.txt"]);
    assert!(dir.leases().join("last_reserved_ip.0").exists() && dir.leases().join("lock").exists());
    plugin().gc(&[], &network(&config)).unwrap();
    assert_eq!(dir.held().len(), 2);
}

#[test]
fn no_ranges_means_those_of_this_node() {
    let dir = Dir::new();
    let mut config = config(&dir, json!([]));
    let own = |ipam: &cni::Object<'_>| {
        assert_eq!(ipam.text("nodeName")?, Some("worker1"));
        Ok(["fd00:5::/64", "10.5.0.0/24", "10.6.0.0/24"].map(|text| text.parse().unwrap()).into())
    };
    config["ipam"]["nodeName"] = json!("worker1");
    let result = add(Host::new(&own, &Sight::blind), "a", &config).unwrap();
    let ips: Vec<_> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(ips, ["10.5.0.2/24", "fd00:5::2/64"]);
    let none = Host::new(&no_ranges, &Sight::blind);
    assert!(add(none, "b", &config).unwrap_err().msg.contains("no podCIDRs"));
}

#[test]
fn invalid_ranges_are_refused_before_anything_is_made() {
    let dir = Dir::new();
    for ranges in [
        json!([[]]),
        json!([[{ "subnet": "10.1.2.0/24" }, { "subnet": "fd00::/64" }]]),
        json!([[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "10.1.2.0/24" }]]),
        json!([[{ "subnet": "10.1.2.0" }]]),
        json!([[{ "rangeStart": "10.1.2.5" }]]),
        json!([{ "subnet": "10.1.2.0/24" }]),
        json!({}),
    ] {
        let config = config(&dir, ranges.clone());
        let error = add(host(), "a", &config).unwrap_err();
        assert_eq!(error.code, 7, "{ranges}: {error}");
        assert!(error.msg.contains("range"), "{ranges}: {error}");
    }
    assert!(!dir.leases().exists());
    let two = json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.3.0/24" }]]);
    let mut config = config(&dir, two);
    config["cniVersion"] = json!("0.2.0");
    let error = call(&ours(), "ADD", "a", &config).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("more than one address per family"), "{error}");
}

#[test]
fn leases_and_release_for_the_operator() {
    let dir = Dir::new();
    let config = config(&dir, json!([[{ "subnet": "10.1.2.0/24" }]]));
    add(host(), "a", &config).unwrap();
    dir.write("10.1.2.9", "op-old");
    let lives = |key: &cni::AttachmentKey| Ok(key.container_id == "a");
    let look = || Sight { interface_lives: Some(Box::new(lives)), ..nothing_in_use() };
    let plugin = HostLocal { host: Host::new(&no_ranges, &look) };
    let leases = plugin.leases(&network(&config)).unwrap();
    let brief = leases
        .iter()
        .map(|l| (l.address.to_string(), l.container_id.as_str(), l.ours, l.interface_lives));
    let expected = [
        ("10.1.2.2".to_owned(), "a", true, Some(true)),
        ("10.1.2.9".into(), "op-old", false, None),
    ];
    assert!(brief.eq(expected), "{leases:?}");
    assert!(leases[0].age.is_some_and(|age| age.as_secs() < 100), "{leases:?}");
    let release = |address: &str| plugin.release(&network(&config), address.parse().unwrap());
    assert_eq!(release("10.1.2.2").unwrap_err().code, 11);
    assert_eq!(release("10.1.2.9").unwrap().unwrap().container_id, "op-old");
    assert_eq!(release("10.1.2.9").unwrap(), None);
    assert_eq!(dir.held().len(), 1);
}
