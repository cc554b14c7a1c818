//! What real callers send, message for message.

use std::thread;

use anyhow::{Context, Result};
use e2e::{
    Chain, CniError, Families, Family, Lab, PingOptions, Runtime, Topology, ping, weft_bin_dir,
};
use serde_json::{Value, json};

use crate::call::{host_ends, in_use, leases};

fn pods(version: &Value) -> Value {
    let mut conflist = json!({ "name": "pods", "plugins": [
        { "type": "veth", "ipam": { "type": "host-local" },
          "capabilities": { "aliases": true, "portMappings": true, "bandwidth": true } },
        { "type": "routing",
          "capabilities": { "io.kubernetes.cri.pod-annotations": true, "portMappings": true } } ] });
    for (key, value) in version.as_object().into_iter().flatten() {
        conflist[key] = value.clone();
    }
    conflist
}

fn loopback() -> Value {
    json!({ "cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{ "type": "loopback" }] })
}

/// containerd 2.x: `lo` and `eth0` at the same time, its structs' own key names, CNI_ARGS
/// in any order, DEL with an empty CNI_NETNS once the namespace is gone, STATUS all along.
#[test]
fn containerd() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let bins = weft_bin_dir()?;
    let conflist = pods(&json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"] }));
    let mut arguments = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "default"),
        ("K8S_POD_NAME", "web-0"),
        ("K8S_POD_INFRA_CONTAINER_ID", "9f0c"),
        ("K8S_POD_UID", "6e3fc4a5-5b8e-4d6a-9a55-1c5d0b9f0c11"),
    ];
    for number in 0..4 {
        arguments.rotate_left(number);
        let with_arguments = |conflist: &Value| {
            let chain = Chain::new(node, conflist.clone(), &[&bins]);
            arguments.iter().fold(chain, |chain, (key, value)| chain.arg(key, value))
        };
        // go-cni's structs have no JSON names, so Go writes their fields' own (types.go).
        let mapping =
            json!([{ "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" }]);
        let eth0 = with_arguments(&conflist)
            .capability("portMappings", mapping)
            .capability("bandwidth", json!({ "IngressRate": 0, "EgressRate": 34_359_738_368_u64 }))
            .capability("io.kubernetes.cri.pod-annotations", json!({ "a": "b" }));
        let lo = with_arguments(&loopback());
        let pod = node.pod(&format!("pod-{number}"))?;
        eth0.status()?;
        let (lo_result, result) = thread::scope(|scope| {
            let lo_add = scope.spawn(|| lo.add(&pod, "lo"));
            let status = scope.spawn(|| eth0.status());
            let eth0_add = eth0.add(&pod, "eth0");
            status.join().map_err(|_| ())??;
            Ok::<_, Failed>((lo_add.join().map_err(|_| ())??, eth0_add?))
        })?;
        assert_eq!(lo_result["interfaces"][0]["name"], "lo", "{lo_result}");
        assert_eq!(lo_result["cniVersion"], "0.3.1");
        assert_eq!(result["cniVersion"], "1.1.0");
        let index = result["ips"][0]["interface"].as_u64().context("no interface")?;
        let interface = &result["interfaces"][usize::try_from(index)?];
        assert_eq!(interface["name"], "eth0", "{result}");
        assert_eq!(interface["sandbox"], pod.netns());
        assert!(ping(&pod, "127.0.0.1".parse()?, &PingOptions::default())?.all());
        pod.delete()?;
        for (chain, ifname) in [(&eth0, "eth0"), (&lo, "lo")] {
            chain.del_with(Runtime { container: pod.id(), netns: "", ifname })?;
            chain.del_with(Runtime { container: pod.id(), netns: "", ifname })?;
        }
        assert_eq!(host_ends(node)?, [""; 0]);
        assert_eq!(leases(node), [""; 0]);
    }
    Ok(())
}

/// What goes wrong in a thread of the caller's.
#[derive(Debug)]
struct Failed(String);

impl From<()> for Failed {
    fn from((): ()) -> Self {
        Self("a thread panicked".to_owned())
    }
}

impl From<CniError> for Failed {
    fn from(error: CniError) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// CRI-O: VERSION of every plugin at each change of the configuration, STATUS until it
/// succeeds, GC once at start, CHECK right after every ADD, and of all pods after its restart.
#[test]
fn cri_o() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let map = node.read_file(e2e::NODE_MAP)?;
    let conflist = pods(&json!({ "cniVersion": "1.1.0" }));
    let chain = Chain::new(node, conflist, &[&weft_bin_dir()?])
        .arg("IgnoreUnknown", "1")
        .arg("K8S_POD_NAME", "web-0");
    for answer in chain.versions()? {
        let supported = answer["supportedVersions"].as_array().context("no versions")?;
        assert!(supported.contains(&json!("1.1.0")), "{answer}");
    }
    node.sh(&format!("rm {}", e2e::NODE_MAP))?;
    assert_eq!(chain.status().expect_err("no map, no node").code, 50);
    node.write_file(e2e::NODE_MAP, map)?;
    chain.status()?;
    chain.gc(&[]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let pods = [node.pod("one")?, node.pod("two")?];
    for pod in &pods {
        chain.add(pod, "eth0")?;
        chain.check(pod, "eth0")?;
    }
    // A restart: pods are checked, and whatever it does not know is collected.
    for pod in &pods {
        chain.check(pod, "eth0")?;
    }
    chain.gc(&[("one", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    chain.check(&pods[0], "eth0")?;
    assert_eq!(host_ends(node)?.len(), 1);
    assert_eq!(leases(node).len(), 2);
    // Its cache lost with the namespace, DEL still finds everything.
    node.sh(&format!("rm -r {}", e2e::RESULTS))?;
    chain.del_with(Runtime { container: "one", netns: "", ifname: "eth0" })?;
    assert_eq!(host_ends(node)?, [""; 0]);
    assert_eq!(leases(node), [""; 0]);
    Ok(())
}

/// podman 4: version 0.4.0, `aliases` as a map, and of the result a MAC that parses and
/// an interface for each address (libnetwork/cni/run.go).
#[test]
fn podman() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::start(Topology::lesson(Families::Both, Families::Both))?;
    let node = lab.node("worker1")?;
    let conflist = pods(&json!({ "cniVersion": "0.4.0" }));
    let chain = Chain::new(node, conflist, &[&weft_bin_dir()?])
        .own_version("1.0.0")
        .arg("IgnoreUnknown", "1")
        .arg("K8S_POD_NAMESPACE", "web")
        .capability("aliases", json!({ "pods": ["web", "9f0c"] }));
    let pod = node.pod("9f0cdeadbeef")?;
    let result = chain.add(&pod, "eth0")?;
    assert_eq!(result["cniVersion"], "0.4.0");
    let stdin = chain.take_log().remove(0).stdin;
    assert_eq!(stdin["runtimeConfig"]["aliases"]["pods"][0], "web");
    let sandboxed = |interface: &&Value| interface["sandbox"] == pod.netns();
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    let inside = interfaces.iter().find(sandboxed).context("none in the sandbox")?;
    let mac = inside["mac"].as_str().context("no MAC")?;
    assert_eq!(mac.split(':').filter(|part| u8::from_str_radix(part, 16).is_ok()).count(), 6);
    let [v4, v6] = result["ips"].as_array().context("no ips")?.as_slice() else {
        panic!("not an address of each family: {result}")
    };
    for (ip, version) in [(v4, "4"), (v6, "6")] {
        assert_eq!(ip["interface"], 1, "{result}");
        assert_eq!(ip["version"], version, "{result}");
    }
    assert!(result["dns"].is_object(), "{result}");
    chain.check(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    assert_eq!(leases(node), [""; 0]);
    Ok(())
}

/// Multus: another network's interface in a pod that has `eth0` and a default route.
#[test]
fn multus() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    let bins = weft_bin_dir()?;
    let first = Chain::new(node, pods(&json!({ "cniVersion": "1.0.0" })), &[&bins]);
    let second = json!({ "cniVersion": "0.3.1", "name": "second", "plugins": [
        { "type": "veth", "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }],
          "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]] } } ] });
    let second = Chain::new(node, second, &[&bins])
        .arg("IgnoreUnknown", "true")
        .arg("K8S_POD_NAME", "web-0");
    let pod = node.pod("pod-a")?;
    first.add(&pod, "eth0")?;
    let default = |family: &str| pod.run_ok(&["ip", family, "route", "show", "default"]);
    let before = [default("-4")?, default("-6")?];
    let routes = node.run_ok(&["ip", "route"])?;
    let result = second.add(&pod, "net1")?;
    assert_eq!([default("-4")?, default("-6")?], before, "the default route is another's");
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/24", "{result}");
    in_use(&pod, "fd77::2")?;
    in_use(node, "fd77::1")?;
    for (address, family) in [("10.77.0.2", Family::V4), ("fd77::2", Family::V6)] {
        let answered = ping(node, address.parse()?, &PingOptions::default())?;
        assert!(answered.all(), "{}", answered.output);
        assert!(ping(node, pod.addr(family)?, &PingOptions::default())?.all());
    }
    // The second network's own gateway and subnet are reached by its interface.
    assert!(ping(&pod, "10.77.0.1".parse()?, &PingOptions::default())?.all());
    let way = pod.run_ok(&["ip", "route", "get", "10.77.0.9"])?;
    assert!(way.contains("dev net1"), "{way}");
    first.check(&pod, "eth0")?;
    second.del(&pod, "net1")?;
    assert_eq!([default("-4")?, default("-6")?], before);
    assert_eq!(node.run_ok(&["ip", "route"])?, routes);
    first.check(&pod, "eth0")?;
    assert!(ping(node, pod.addr(Family::V4)?, &PingOptions::default())?.all());
    first.del(&pod, "eth0")?;
    Ok(())
}
