//! One attachment: what ADD tells is what the kernel holds, in every version.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::{Chain, Cluster, Family, PingOptions, Place, Pod, conf, weft_bin_dir};
use serde_json::{Value, json};

use crate::{assert_ping, matching, only};

/// The name of a host end: `veth` and 11 hexadecimal digits.
fn is_host_end(name: &str) -> bool {
    let digits = name.strip_prefix("veth").unwrap_or_default();
    digits.len() == 11 && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

/// The result's interface with or without a sandbox.
fn interface(result: &Value, in_pod: bool) -> Result<&Value> {
    let mut interfaces = result["interfaces"].as_array().into_iter().flatten();
    let has_sandbox =
        |interface: &Value| interface["sandbox"].as_str().is_some_and(|s| !s.is_empty());
    interfaces.find(|interface| has_sandbox(interface) == in_pod).context("no such interface")
}

/// Asserts what the pod's kernel holds for a result.
fn assert_pod_end(pod: &Pod, result: &Value, address: &str, gateway: &str) -> Result<()> {
    let told = interface(result, true)?;
    assert_eq!((&told["name"], &told["sandbox"]), (&json!("eth0"), &json!(pod.netns())));
    let links = pod.json(&["ip", "-j", "-d", "address", "show", "eth0"])?;
    let link = only(&links);
    assert_eq!((&link["mtu"], &link["operstate"]), (&json!(1450), &json!("UP")));
    assert_eq!(link["address"], told["mac"]);
    let octets: Vec<u8> = address.split('.').map(str::parse).collect::<Result<_, _>>()?;
    let mac: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    assert_eq!(told["mac"], json!(format!("0a:58:{}", mac.join(":"))));
    let addresses = matching(&link["addr_info"], &[("family", "inet")]);
    let [held] = addresses[..] else { panic!("{addresses:?}") };
    assert_eq!((&held["local"], &held["prefixlen"]), (&json!(address), &json!(24)));
    assert_eq!(held["noprefixroute"], true, "{held}");

    let routes = pod.json(&["ip", "-j", "-4", "route", "show", "table", "main"])?;
    let on_link = matching(&routes, &[("dst", gateway), ("dev", "eth0"), ("scope", "link")]);
    let default = matching(&routes, &[("dst", "default"), ("gateway", gateway), ("dev", "eth0")]);
    assert_eq!((on_link.len(), default.len()), (1, 1), "{routes}");
    assert_eq!(routes.as_array().map(Vec::len), Some(2), "{routes}");
    let neighbours = pod.json(&["ip", "-j", "neigh", "show", "dev", "eth0"])?;
    let neighbour = only(&neighbours);
    assert_eq!(neighbour["dst"], json!(gateway));
    assert_eq!(neighbour["lladdr"], interface(result, false)?["mac"]);
    assert_eq!(neighbour["state"], json!(["PERMANENT"]));
    Ok(())
}

/// Asserts what the host's kernel holds for a result.
fn assert_host_end(pod: &Pod, result: &Value, address: &str, gateway: &str) -> Result<()> {
    let (node, told) = (pod.node(), interface(result, false)?);
    let name = told["name"].as_str().context("no name")?;
    assert!(is_host_end(name), "{name}");
    let links = node.json(&["ip", "-j", "-d", "address", "show", name])?;
    let link = only(&links);
    assert_eq!((&link["mtu"], &link["operstate"]), (&json!(1450), &json!("UP")));
    assert_eq!(link["address"], told["mac"]);
    let alias = link["ifalias"].as_str().context("no ifalias")?;
    for word in ["pods", pod.id(), "eth0", pod.netns()] {
        assert!(alias.split_whitespace().any(|part| part.contains(word)), "{word} in {alias:?}");
    }
    assert!(link["group"].as_str().is_some_and(|group| group != "default"), "{link}");
    let addresses = matching(&link["addr_info"], &[("family", "inet")]);
    let [held] = addresses[..] else { panic!("{addresses:?}") };
    assert_eq!((&held["local"], &held["prefixlen"]), (&json!(gateway), &json!(32)));
    assert_eq!(node.sysctl(&format!("net/ipv6/conf/{name}/accept_ra"))?, "0");
    let routes = node.json(&["ip", "-j", "-d", "route", "show", "proto", "88"])?;
    let to_pod = matching(&routes, &[("dst", address), ("dev", name), ("scope", "link")]);
    assert_eq!(to_pod.len(), 1, "{routes}");
    let neighbours = node.json(&["ip", "-j", "neigh", "show", "dev", name])?;
    let entry = matching(&neighbours, &[("dst", address)]);
    let [entry] = entry[..] else { panic!("{neighbours}") };
    assert_eq!(entry["lladdr"], interface(result, true)?["mac"]);
    assert_ne!(entry["state"], json!(["PERMANENT"]), "it may be relearned");
    Ok(())
}

fn conflist_of(version: &str) -> Result<Value> {
    let mut conflist: Value = conf::TUNNEL.parse()?;
    conflist["cniVersion"] = json!(version);
    conflist.as_object_mut().context("no object")?.remove("cniVersions");
    Ok(conflist)
}

#[test]
fn the_result_is_what_the_kernel_holds_in_every_version() -> Result<()> {
    e2e::needs_lab!();
    let mut cluster = Cluster::lesson(conf::TUNNEL)?;
    for (number, version) in ["0.4.0", "1.0.0", "1.1.0"].into_iter().enumerate() {
        cluster.set_conflist(&conflist_of(version)?)?;
        let (pod, result) = cluster.pod_with_result("worker1", &format!("pod-{number}"))?;
        let address = format!("10.0.1.{}", number + 2);
        assert_eq!(result["cniVersion"], json!(version));
        let ip = only(&result["ips"]);
        assert_eq!(
            (&ip["address"], &ip["gateway"]),
            (&json!(format!("{address}/24")), &json!("10.0.1.1"))
        );
        assert_eq!(ip["version"], if version == "0.4.0" { json!("4") } else { Value::Null });
        let pod_end =
            &result["interfaces"][ip["interface"].as_u64().context("interface")? as usize];
        assert_eq!(pod_end, interface(&result, true)?);
        for in_pod in [true, false] {
            let mtu = &interface(&result, in_pod)?["mtu"];
            // 1.0.0 has no such field by the specification; libcni's type for it has.
            assert_eq!(*mtu, if version == "0.4.0" { Value::Null } else { json!(1450) });
        }
        assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(2));
        assert_pod_end(&pod, &result, &address, "10.0.1.1")?;
        assert_host_end(&pod, &result, &address, "10.0.1.1")?;
        let chain = cluster.chain("worker1")?;
        chain.check(&pod, "eth0")?;
        chain.status()?;
    }
    Ok(())
}

#[test]
fn check_tells_what_of_its_attachment_is_gone() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let breaks: [(&str, bool, &str); 6] = [
        ("address", true, "ip address flush dev eth0"),
        ("default", true, "ip route del default"),
        ("link", true, "ip link set eth0 down"),
        ("gateway", true, "ip link del eth0"),
        ("route", false, "ip route del $(ip -4 route show proto 88 | tail -n 1)"),
        ("lease", false, "rm /var/lib/cni/networks/pods/10.*"),
    ];
    let chain = cluster.chain("worker1")?;
    for (what, in_pod, command) in breaks {
        let pod = cluster.pod("worker1", &format!("pod-{what}"))?;
        chain.check(&pod, "eth0")?;
        let place: &Place = if in_pod { &pod } else { pod.node() };
        place.sh(command)?;
        let error = chain.check(&pod, "eth0").expect_err(what);
        assert_eq!(error.plugin, "veth", "{what}: {error}");
        assert!(!error.msg.contains("not found"), "{error}");
        cluster.remove("worker1", &pod)?;
    }
    // What is between nodes is no attachment's.
    let pod = cluster.pod("worker1", "pod-a")?;
    pod.node().sh("ip link del weft.1")?;
    chain.check(&pod, "eth0")?;
    Ok(())
}

/// A directory of plugins in which `host-local` is another file than `veth`.
struct Copies(PathBuf);

impl Drop for Copies {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Copies {
    fn new() -> Result<Copies> {
        let bin = weft_bin_dir()?;
        let dir = std::env::temp_dir().join(format!("weft-copies-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let copies = Copies(dir);
        for name in ["veth", "host-local"] {
            fs::copy(bin.join(name), copies.dir().join(name))?;
        }
        fs::hard_link(copies.dir().join("veth"), copies.dir().join("routing"))?;
        Ok(copies)
    }

    fn dir(&self) -> &Path {
        &self.0
    }
}

/// A result without what differs between any two attachments.
fn shape(result: &Value, address: &str) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        interface["mac"] = Value::Null;
        if interface["sandbox"].is_null() {
            interface["name"] = Value::Null;
        } else {
            interface["sandbox"] = Value::Null;
        }
    }
    result["ips"][0]["address"] =
        json!(result["ips"][0]["address"].as_str().map(|text| text.replace(address, "ADDRESS")));
    result
}

#[test]
fn an_executed_host_local_gives_what_the_one_in_process_gives() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let node = cluster.node("worker1")?;
    let copies = Copies::new()?;
    let (_near, in_process) = cluster.pod_with_result("worker1", "pod-near")?;
    let executed_chain = Chain::new(node, conf::TUNNEL.parse()?, &[copies.dir()]);
    let pod = node.pod("pod-far")?;
    let executed = executed_chain.add(&pod, "eth0")?;
    assert_eq!(shape(&executed, "10.0.1.3"), shape(&in_process, "10.0.1.2"));
    assert_pod_end(&pod, &executed, "10.0.1.3", "10.0.1.1")?;
    assert_host_end(&pod, &executed, "10.0.1.3", "10.0.1.1")?;
    let leases = node.path("/var/lib/cni/networks/pods");
    let lease = fs::read_to_string(leases.join("10.0.1.3"))?;
    assert_eq!(lease, "pod-far\r\neth0");
    assert_eq!(fs::read_to_string(leases.join("10.0.1.2"))?, "pod-near\r\neth0");
    executed_chain.check(&pod, "eth0")?;
    // Either takes over from the other.
    let chain = cluster.chain("worker1")?;
    chain.check(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    assert!(!leases.join("10.0.1.3").exists());
    Ok(())
}

#[test]
fn loopback_brings_lo_up_alone_and_in_a_chain() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let node = cluster.node("worker1")?;
    let bin = weft_bin_dir()?;
    let is_up = |pod: &Pod| -> Result<bool> {
        let links = pod.json(&["ip", "-j", "link", "show", "lo"])?;
        let flags = only(&links)["flags"].as_array().context("flags")?.contains(&json!("UP"));
        Ok(flags)
    };
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let conflist = json!({ "cniVersion": version, "name": "cni-loopback",
            "plugins": [{ "type": "loopback" }] });
        let chain = Chain::new(node, conflist, &[&bin]);
        let pod = node.pod(&format!("pod-{version}"))?;
        assert!(!is_up(&pod)?);
        let result = chain.add(&pod, "lo")?;
        assert!(is_up(&pod)?);
        let v4 = result["ips"].as_array().into_iter().flatten();
        assert_eq!(v4.filter(|ip| ip["address"] == "127.0.0.1/8").count(), 1, "{result}");
        assert_ping(&pod, "127.0.0.1".parse()?, &PingOptions::default())?;
        chain.check(&pod, "lo")?;
        pod.run_ok(&["ip", "link", "set", "lo", "down"])?;
        assert_eq!(chain.check(&pod, "lo").expect_err("lo is down").plugin, "loopback");
        chain.del(&pod, "lo")?;
        pod.delete()?;
        chain.del(&pod, "lo")?;
    }
    // Chained, it leaves the result alone.
    let mut conflist: Value = conf::TUNNEL.parse()?;
    let plugins = conflist["plugins"].as_array_mut().context("plugins")?;
    plugins.push(json!({ "type": "loopback" }));
    let chain = Chain::new(node, conflist, &[&bin]);
    let pod = node.pod("pod-chained")?;
    let result = chain.add(&pod, "eth0")?;
    assert!(is_up(&pod)?);
    let address = pod.addr(Family::V4)?.to_string();
    assert_pod_end(&pod, &result, &address, "10.0.1.1")?;
    chain.check(&pod, "eth0")?;
    Ok(())
}
