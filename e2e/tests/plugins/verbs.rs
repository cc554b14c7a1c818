//! Every verb of every plugin as the protocol asks (CNI spec 1.1.0, "Section 2").

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Lab, Node, Pod, weft_bin_dir};
use serde_json::{Value, json};

use crate::call::{Call, REFERENCE, changes, host_ends, leases, settled, veth_config};

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

/// Configuration of each plugin, those that are chained with a result before them.
fn config_of(plugin: &str, result: &Value) -> Value {
    match plugin {
        "loopback" => json!({ "cniVersion": "1.1.0", "name": "pods", "type": "loopback" }),
        "host-local" => with(veth_config(), "type", json!("ptp")),
        "routing" => {
            with(with(veth_config(), "type", json!("routing")), "prevResult", result.clone())
        }
        _ => veth_config(),
    }
}

const PLUGINS: [&str; 4] = ["loopback", "host-local", "veth", "routing"];

/// An attachment by `plugin`, or by `veth` where that plugin needs one before it.
fn attach(plugin: &str, node: &Node, pod: &Pod) -> Result<Value> {
    let before = match plugin {
        "routing" => Call::new("veth", "ADD", pod, &veth_config())?.ok(node)?,
        _ => Value::Null,
    };
    Call::new(plugin, "ADD", pod, &config_of(plugin, &before))?.ok(node)
}

#[test]
fn del_succeeds_whatever_is_missing() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    node.sh("touch /run/netns/plain; mkdir /run/netns/directory; mkfifo /run/netns/fifo")?;
    let garbage = json!({ "ips": "none", "interfaces": 7 });
    let variants: [(&str, &str, &str, Value); 9] = [
        ("as ADD was", "", "", Value::Null),
        ("no namespace", "CNI_NETNS", "", Value::Null),
        ("namespace gone", "CNI_NETNS", "/run/netns/gone", Value::Null),
        ("plain file", "CNI_NETNS", "/run/netns/plain", Value::Null),
        ("directory", "CNI_NETNS", "/run/netns/directory", Value::Null),
        ("fifo", "CNI_NETNS", "/run/netns/fifo", Value::Null),
        ("own namespace", "CNI_NETNS", "/proc/self/ns/net", Value::Null),
        ("arguments that ADD refused", "CNI_ARGS", "COLOUR=red;x", Value::Null),
        ("unreadable prevResult", "", "", garbage),
    ];
    for plugin in PLUGINS {
        for (i, (name, key, value, previous)) in variants.iter().enumerate() {
            let pod = node.pod(&format!("{plugin}-{i}"))?;
            let never = Call::new(plugin, "DEL", &pod, &config_of(plugin, &Value::Null))?;
            never.ok(node).with_context(|| format!("{plugin}: DEL before any ADD"))?;
            attach(plugin, node, &pod)?;
            let config = with(config_of(plugin, &Value::Null), "prevResult", previous.clone());
            let mut del = Call::new(plugin, "DEL", &pod, &config)?;
            if !key.is_empty() {
                del.set(key, value);
            }
            for time in ["first", "second"] {
                let said = del.ok(node).with_context(|| format!("{plugin}, {name}, {time}"))?;
                assert_eq!(said, Value::Null, "{plugin}, {name}: DEL prints nothing");
            }
            if plugin == "routing" {
                Call::new("veth", "DEL", &pod, &veth_config())?.ok(node)?;
            }
            assert_eq!(host_ends(node)?, [""; 0], "{plugin}, {name}");
            assert_eq!(leases(node), [""; 0], "{plugin}, {name}");
        }
    }
    Ok(())
}

/// The map, the lease directory and the IPAM plugin may be gone by the time of DEL.
#[test]
fn del_needs_no_map() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    for damage in [
        "rm -r /etc/weft",
        "mkdir -p /etc/weft/nodes.d; echo '{' >/etc/weft/nodes.d/nodes.json",
        "rm -r /var/lib/cni/networks",
        "rm -rf /run/weft",
        "rm -r /var/lib/cni/networks/pods/.weft",
    ] {
        lab_map(node)?;
        let pod = node.pod("pod-a")?;
        attach("routing", node, &pod)?;
        node.sh(damage)?;
        for plugin in ["routing", "veth"] {
            let del = Call::new(plugin, "DEL", &pod, &config_of(plugin, &Value::Null))?;
            del.ok(node).with_context(|| format!("{plugin} after {damage}"))?;
        }
        assert_eq!(host_ends(node)?, [""; 0], "{damage}");
        assert_eq!(leases(node), [""; 0], "{damage}");
        pod.delete()?;
    }
    Ok(())
}

fn lab_map(node: &Node) -> Result<()> {
    let host = node.host();
    let addresses: Vec<String> = host.addresses.iter().map(|a| a.ip().to_string()).collect();
    let ranges: Vec<String> = host.pod_ranges.iter().map(ToString::to_string).collect();
    let map = json!({ "name": host.name, "addresses": addresses, "podCIDRs": ranges });
    node.write_file(e2e::NODE_MAP, map.to_string())
}

#[test]
fn check_holds_after_add_and_fails_for_each_thing_removed() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let end = "$(ip -o link show type veth | sed -n 's/^[0-9]*: \\(veth[0-9a-f]*\\)@.*/\\1/p')";
    let inside = "nsenter --net=/run/netns/pod-a";
    let removals = [
        (format!("{inside} ip link set eth0 down"), "eth0"),
        (format!("{inside} ip address del 10.0.1.2/24 dev eth0"), "10.0.1.2/24"),
        (format!("{inside} ip address flush dev eth0 scope global"), "eth0"),
        (format!("{inside} ip link set eth0 down; {inside} ip link set eth0 name other0"), "eth0"),
        (format!("{inside} ip link del eth0"), "eth0"),
        (format!("{inside} ip route del default"), "default route"),
        (format!("{inside} ip -6 route del default"), "default route"),
        (format!("ip link set {end} down"), "veth"),
        (format!("ip link del {end}"), "eth0"),
        ("ip route del 10.0.1.2".to_owned(), "10.0.1.2"),
        ("ip -6 route del fd10:0:0:1::2".to_owned(), "fd10:0:0:1::2"),
        ("rm /var/lib/cni/networks/pods/10.0.1.2".to_owned(), "10.0.1.2"),
    ];
    for (removal, says) in removals {
        node.sh("rm -rf /var/lib/cni/networks")?;
        let pod = node.pod("pod-a")?;
        let result = attach("veth", node, &pod)?;
        let check = Call::new("veth", "CHECK", &pod, &with(veth_config(), "prevResult", result))?;
        let before = node.snapshot()?;
        let said = check.ok(node).with_context(|| format!("before {removal}"))?;
        assert_eq!(said, Value::Null);
        assert_eq!(changes(&before, &node.snapshot()?), "", "CHECK changes nothing");
        node.sh(&removal).with_context(|| removal.clone())?;
        let failure = check.fails(node).with_context(|| removal.clone())?;
        ensure!(failure.code == 101, "{removal}: {failure:?}");
        ensure!(failure.msg.contains(says), "{removal}: {failure:?}");
        Call::new("veth", "DEL", &pod, &veth_config())?.ok(node)?;
        pod.delete()?;
    }
    Ok(())
}

#[test]
fn check_of_loopback_and_host_local() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let pod = node.pod("pod-a")?;
    for plugin in ["loopback", "host-local"] {
        let result = attach(plugin, node, &pod)?;
        for previous in [Value::Null, result] {
            let config = with(config_of(plugin, &Value::Null), "prevResult", previous);
            Call::new(plugin, "CHECK", &pod, &config)?.ok(node)?;
        }
    }
    pod.sh("ip link set lo down")?;
    node.sh("rm /var/lib/cni/networks/pods/10.0.1.2 /var/lib/cni/networks/pods/fd*")?;
    for (plugin, says) in [("loopback", "lo"), ("host-local", "pod-a")] {
        let check = Call::new(plugin, "CHECK", &pod, &config_of(plugin, &Value::Null))?;
        let failure = check.fails(node)?;
        assert!(failure.code == 101 && failure.msg.contains(says), "{failure:?}");
    }
    Ok(())
}

/// Another plugin after ours changes MAC, MTU and more of the interface, as it may.
#[test]
fn check_allows_what_a_later_plugin_changes() -> Result<()> {
    e2e::needs_lab!("/usr/lib/cni/tuning");
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let conflist = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "veth", "ipam": { "type": "host-local" } },
        { "type": "routing" },
        { "type": "tuning", "mac": "02:11:22:33:44:55", "mtu": 1300, "promisc": true,
          "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } } ] });
    let chain = Chain::new(node, conflist, &[&weft_bin_dir()?, Path::new(REFERENCE)]);
    let pod = node.pod("pod-a")?;
    let result = chain.add(&pod, "eth0")?;
    assert_eq!(result["interfaces"][1]["mac"], "02:11:22:33:44:55", "{result}");
    chain.check(&pod, "eth0")?;
    pod.sh("ip route add 203.0.113.0/24 via 10.0.1.1; ip route add 10.0.0.0/8 via 10.0.1.1")?;
    chain.check(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    assert_eq!(host_ends(node)?, [""; 0]);
    assert_eq!(leases(node), [""; 0]);
    Ok(())
}

#[test]
fn gc_removes_what_is_not_valid_and_nothing_else() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let (valid, old) = ("cni.dev/valid-attachments", "cni.dev/attachments");
    let kept = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    let lists = [
        (json!({ valid: kept }), 1),
        (json!({ old: kept }), 1),
        (json!({ valid: kept, old: kept }), 1),
        (json!({ valid: [], old: kept }), 1),
        (json!({ valid: [] }), 0),
        (json!({ valid: null }), 0),
        (json!({ valid: null, old: null }), 0),
        (json!({ valid: [{ "containerID": "kept", "ifname": "eth1" }] }), 0),
    ];
    for (list, left) in lists {
        let pods = [node.pod("kept")?, node.pod("stale")?];
        for pod in &pods {
            attach("veth", node, pod)?;
        }
        // Another network's attachments are not this one's to judge.
        let other = with(veth_config(), "name", json!("others"));
        let ipam = json!({ "type": "host-local", "subnet": "10.66.0.0/24" });
        let other = with(other, "ipam", ipam);
        let mut foreign = Call::new("veth", "ADD", &pods[0], &other)?;
        let mut foreign_del = Call::new("veth", "DEL", &pods[0], &other)?;
        for call in [&mut foreign, &mut foreign_del] {
            call.set("CNI_IFNAME", "net1");
        }
        foreign.ok(node)?;
        let mut config = veth_config();
        for (key, value) in list.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        for _ in 0..2 {
            Call::new("veth", "GC", &pods[0], &config)?.ok(node)?;
            assert_eq!(host_ends(node)?.len(), left + 1, "{list}");
            assert_eq!(leases(node).len(), 2 * left, "{list}");
        }
        let routing = with(config.clone(), "type", json!("routing"));
        Call::new("routing", "GC", &pods[0], &routing)?.ok(node)?;
        assert_eq!(host_ends(node)?.len(), left + 1, "{list}");
        foreign_del.ok(node)?;
        for pod in &pods {
            Call::new("veth", "DEL", pod, &veth_config())?.ok(node)?;
            pod.delete()?;
        }
    }
    for plugin in PLUGINS {
        let pod = node.pod(&format!("absent-{plugin}"))?;
        let failure =
            Call::new(plugin, "GC", &pod, &config_of(plugin, &Value::Null))?.fails(node)?;
        assert!(failure.code == 7 && failure.msg.contains(valid), "{plugin}: {failure:?}");
    }
    Ok(())
}

#[test]
fn status_and_version_of_every_plugin() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    for plugin in PLUGINS {
        for _ in 0..2 {
            let status = Call::new(plugin, "STATUS", &pod, &config_of(plugin, &Value::Null))?;
            assert_eq!(status.ok(node)?, Value::Null, "{plugin}");
        }
        let inputs: [(&[u8], &str); 7] = [
            (br#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
            (br#"{"cniVersion":"9.9.9"}"#, "9.9.9"),
            (br#"{"cniVersion":5}"#, "1.1.0"),
            (b"{}", "1.1.0"),
            (b"", "1.1.0"),
            (b"garbage", "1.1.0"),
            (b"\xff\xfe", "1.1.0"),
        ];
        for (input, version) in inputs {
            let mut call = Call::new(plugin, "VERSION", &pod, &Value::Null)?.stdin(input);
            // What libcni sets (pkg/invoke/exec.go).
            for (key, value) in [("CNI_CONTAINERID", ""), ("CNI_NETNS", "dummy")] {
                call.set(key, value);
            }
            let answer = call.ok(node).with_context(|| format!("{plugin}, {version}"))?;
            assert_eq!(answer["cniVersion"], version, "{plugin}");
            let supported = answer["supportedVersions"].as_array().context("no list")?;
            for wanted in ["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                assert!(supported.contains(&json!(wanted)), "{plugin}: {answer}");
            }
        }
    }
    Ok(())
}

/// Where space has run out, leases of the reference plugin are given back if nothing
/// refers to their address, be it in a namespace that the host has no route to.
#[test]
fn leases_of_the_reference_plugin_end_when_nothing_has_their_address() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let idle = node.pod("idle")?;
    idle.sh("ip link set lo up; ip address add 10.9.0.3/29 dev lo")?;
    node.sh("ip route add 10.9.0.4/32 dev eth0")?;
    node.sh("d=/var/lib/cni/networks/pods; mkdir -p $d
         for i in 2 3 4 5 6; do printf 'gone%s\\r\\neth0' $i >$d/10.9.0.$i; done")?;
    let ipam = json!({ "type": "host-local", "subnet": "10.9.0.0/29" });
    for (plugin, name) in [("host-local", "one"), ("veth", "two"), ("host-local", "three")] {
        let pod = node.pod(name)?;
        let config = with(config_of(plugin, &Value::Null), "ipam", ipam.clone());
        let result = Call::new(plugin, "ADD", &pod, &config)?.ok(node)?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
        ensure!(!["10.9.0.3/29", "10.9.0.4/29"].contains(&address.as_str()), "{address} is in use");
    }
    let pod = node.pod("four")?;
    let config = with(config_of("host-local", &Value::Null), "ipam", ipam);
    let failure = Call::new("host-local", "ADD", &pod, &config)?.fails(node)?;
    ensure!(failure.code == 11, "{failure:?}");
    ensure!(leases(node).iter().any(|lease| lease == "10.9.0.3"), "{:?}", leases(node));
    Ok(())
}
