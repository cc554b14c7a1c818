//! The operator's command from outside: what it prints, and its exit status.

use anyhow::{Context, Result, ensure};
use e2e::weft_bin_dir;
use e2e::{
    Chain, Families, Family, Lab, NODE_MAP, Node, Output, PingOptions, Spread, Topology, ping,
};
use serde_json::{Value, json};

/// Seconds for the answer to a ping that is to be answered, on a busy machine too.
const PATIENCE: f32 = 10.0;

const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

fn conflist(mode: &str) -> Value {
    let mut routing = json!({ "type": "routing", "routingMode": mode });
    if mode == "native" {
        routing["ipv4NativeRoutingCIDR"] = json!("10.0.0.0/8");
        routing["ipv6NativeRoutingCIDR"] = json!("fd10::/16");
    }
    let veth = json!({ "type": "veth", "ipam": { "type": "host-local" } });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [veth, routing] })
}

/// Runs `weft WORDS` with this on standard input.
fn weft_with(node: &Node, words: &[&str], stdin: &str) -> Result<Output> {
    let weft = weft_bin_dir()?.join("weft");
    let mut command = vec![weft.as_os_str()];
    command.extend(words.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    node.command(&command).stdin(stdin).output()
}

fn weft(node: &Node, words: &[&str]) -> Result<Output> {
    weft_with(node, words, "")
}

/// Its standard output, where it ends with this status.
fn says(node: &Node, status: i32, words: &[&str]) -> Result<String> {
    let output = weft(node, words)?;
    ensure!(output.status.code() == Some(status), "weft {words:?}: {output}");
    Ok(output.stdout)
}

fn json_of(node: &Node, words: &[&str]) -> Result<Value> {
    let text = says(node, 0, words)?;
    let mut whole: Value = serde_json::from_str(&text).context(text)?;
    Ok(whole["networks"][0].take())
}

fn configured(lab: &Lab, mode: &str) -> Result<()> {
    lab.each_node(|node| node.write_file(CONFLIST, conflist(mode).to_string()))
}

#[test]
fn every_command_has_help_and_refuses_what_it_does_not_know() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    for words in [
        &["help"][..],
        &["help", "status"],
        &["help", "trace"],
        &["help", "ipam"],
        &["help", "nodes"],
        &["help", "export"],
        &["help", "install"],
        &["export", "router", "--help"],
        &["sync", "-h"],
    ] {
        assert!(says(node, 0, words)?.contains("Usage: weft"), "{words:?}");
    }
    for words in [
        &["staus"][..],
        &["status", "-o", "yaml"],
        &["status", "-o"],
        &["sync", "-o", "json"],
        &["trace", "10.0.1.2"],
        &["trace", "10.0.1.2", "pod"],
        &["trace", "10.0.1.2", "fd10::2", "--conf", CONFLIST],
        &["nodes"],
        &["ipam", "free"],
        &["ipam", "release"],
        &["plan", "everything"],
        &["status", "--conf", "/nowhere"],
        &["status", "--router"],
    ] {
        let output = weft(node, words)?;
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output}");
        assert!(output.stderr.starts_with("weft: ") && output.stdout.is_empty(), "{output}");
    }
    Ok(())
}

#[test]
fn nodes_check_names_what_is_wrong_and_where() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    let text = says(node, 0, &["nodes", "check"])?;
    assert!(text.contains("3 node(s)") && text.contains("0 problem(s)"), "{text}");

    let mut map = lab.topology().node_map();
    map["nodes"][2]["podCIDRs"] = json!(["10.0.1.128/25"]);
    map["nodes"][0].as_object_mut().context("a record")?.remove("podCIDRs");
    lab.write_node_map(&map)?;
    let text = says(node, 1, &["nodes", "check"])?;
    assert!(text.contains(NODE_MAP) && text.contains("worker2") && text.contains("overlaps"));
    assert!(text.contains("control-plane: has no pod range yet"), "{text}");
    assert!(text.contains("2 quarantined"), "{text}");

    node.write_file("/run/map/a.json", "{ torn")?;
    assert!(says(node, 1, &["nodes", "check", "/run/map"])?.contains("/run/map/a.json"));
    assert!(weft(node, &["nodes", "check", "/run/none"])?.stderr.contains("/run/none"));
    Ok(())
}

#[test]
fn nodes_import_writes_one_whole_file_or_none() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    let kubernetes_node = |name: &str, ip: &str, range: Option<&str>| {
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
                "spec": { "podCIDR": range, "podCIDRs": range.map(|range| vec![range]) },
                "status": { "addresses": [{ "type": "InternalIP", "address": ip },
                                          { "type": "Hostname", "address": name }] } })
    };
    let list = |nodes: &[Value]| json!({ "apiVersion": "v1", "kind": "List", "items": nodes });
    let good = [
        kubernetes_node("worker1", "192.168.211.128", Some("10.0.1.0/24")),
        kubernetes_node("worker2", "192.168.44.128", Some("10.0.2.0/24")),
        kubernetes_node("worker3", "192.168.44.129", None),
    ];
    let import = |document: &Value, target: &[&str]| {
        weft_with(node, &[&["nodes", "import"], target].concat(), &document.to_string())
    };
    let before = node.read_file(NODE_MAP)?;
    let twins = [good[0].clone(), kubernetes_node("twin", "192.168.9.9", Some("10.0.1.0/24"))];
    for (document, says) in [
        (list(&[]), "no node"),
        (list(&good[2..]), "not imported"),
        (list(&twins), "overlaps"),
        (json!("nodes"), "standard input"),
    ] {
        let output = import(&document, &[])?;
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains(says), "{says}: {output}");
        assert_eq!(node.read_file(NODE_MAP)?, before, "a refused import changed the map");
    }
    let output = import(&list(&good), &["-"])?;
    assert_eq!(node.read_file(NODE_MAP)?, before, "with - nothing is written");
    assert!(import(&list(&good), &[])?.success());
    assert_eq!(node.read_file(NODE_MAP)?, output.stdout);
    assert_eq!(output.stdout.lines().count(), 1, "{output}");
    assert!(says(node, 0, &["nodes", "check"])?.contains("2 node(s), 1 without"));
    assert!(import(&list(&good), &[])?.stdout.contains("unchanged"));

    // Another file that says something else of the same nodes.
    node.write_file(
        "/etc/weft/nodes.d/by-hand.json",
        json!({ "nodes": [
        { "name": "old", "addresses": ["192.168.44.200"], "podCIDRs": ["10.0.9.0/24"] } ] })
        .to_string(),
    )?;
    let clash = kubernetes_node("new", "192.168.44.201", Some("10.0.9.0/24"));
    let before = node.read_file(NODE_MAP)?;
    let output = import(&list(&[good[0].clone(), clash]), &[])?;
    assert!(output.stderr.contains("by-hand.json"), "{output}");
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert_eq!(node.read_file(NODE_MAP)?, before);
    let left = node.run_ok(&["ls", "-A", "/etc/weft/nodes.d"])?;
    assert_eq!(left, "by-hand.json\nnodes.json\n", "something is left over");
    Ok(())
}

#[test]
fn ipam_shows_leases_and_releases_only_dead_ones() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    assert!(says(node, 0, &["ipam"])?.contains("1/254 allocated from 10.0.1.0/24"));
    let pod = node.pod("pod-a")?;
    Chain::new(node, conflist("tunnel"), &[&weft_bin_dir()?]).add(&pod, "eth0")?;
    let address = pod.addr(Family::V4)?.to_string();
    let text = says(node, 0, &["ipam"])?;
    assert!(text.contains("2/254 allocated from 10.0.1.0/24"), "{text}");
    let line = text.lines().find(|line| line.contains(&address)).context(text.clone())?;
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[1], words[2], words[4]), ("pod-a", "eth0", "alive"), "{line}");
    assert!(words[3].ends_with('s'), "an age in seconds: {line}");
    for what in [address.as_str(), "pod-a"] {
        let output = weft(node, &["ipam", "release", what])?;
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("lives"), "{output}");
    }
    assert_eq!(weft(node, &["ipam", "release", "10.0.1.99"])?.status.code(), Some(1));
    let leases = json_of(node, &["ipam", "-o", "json"])?["leases"].take();
    assert_eq!(leases.as_array().map(Vec::len), Some(2), "{leases}");
    assert_eq!((&leases[0]["alive"], &leases[0]["container"]), (&json!(true), &json!("pod-a")));

    // The pod's end takes the host's with it.
    pod.run_ok(&["ip", "link", "del", "eth0"])?;
    assert!(says(node, 0, &["ipam"])?.contains("gone"));
    assert_eq!(weft(node, &["ipam", "release", "pod-a", "eth1"])?.status.code(), Some(1));
    assert!(says(node, 0, &["ipam", "release", "pod-a", "eth0"])?.contains(&address));
    assert!(says(node, 0, &["ipam"])?.contains("no leases"));
    Ok(())
}

fn state_of<'a>(status: &'a Value, peer: &str, family: &str) -> &'a str {
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let peer = peers.iter().find(|entry| entry["name"] == peer && entry["family"] == family);
    peer.and_then(|peer| peer["state"].as_str()).unwrap_or("not there")
}

#[test]
fn status_tells_missing_and_foreign_from_well() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    assert_eq!(state_of(&json_of(node, &["status", "-o", "json"])?, "worker2", "ipv4"), "missing");
    says(node, 0, &["sync"])?;
    let text = says(node, 0, &["status"])?;
    assert!(text.contains("worker1, by its address 192.168.211.128 on eth0"), "{text}");
    assert!(text.contains("4 of 4 well (4 tunnel ok)"), "{text}");
    assert!(text.contains("drift       none") && !text.contains('\x1b'), "{text}");

    node.sh(
        "ip route del 10.0.2.0/24; ip route add 10.0.2.0/24 via 192.168.211.129 proto 99
             ip -6 route del fd10::/64
             ip route add 10.0.0.0/24 via 192.168.211.129 proto 99 metric 32
             nft flush ruleset; nft add table inet fw
             nft 'add chain inet fw forward { type filter hook forward priority 0; policy drop; }'",
    )?;
    let status = json_of(node, &["status", "-o", "json"])?;
    assert_eq!(state_of(&status, "worker2", "ipv4"), "foreign");
    assert_eq!(state_of(&status, "worker2", "ipv6"), "ok");
    assert_eq!(state_of(&status, "control-plane", "ipv4"), "ok", "a worse route is no matter");
    assert_eq!(state_of(&status, "control-plane", "ipv6"), "missing");
    assert!(status["changes"].as_array().is_some_and(|changes| changes.len() >= 3), "{status}");
    assert_eq!(status["tables"][0]["installed"], false, "{status}");
    let text = says(node, 0, &["status"])?;
    assert!(
        text.contains("foreign (protocol 99)") && text.contains("missing or changed"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_command_against_a_firewall_lets_pods_through() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    configured(&lab, "tunnel")?;
    let mut pods = Vec::new();
    for name in ["worker1", "worker2"] {
        let node = lab.node(name)?;
        let pod = node.pod("pod")?;
        Chain::new(node, conflist("tunnel"), &[&weft_bin_dir()?]).add(&pod, "eth0")?;
        pods.push(pod);
    }
    let node = lab.node("worker1")?;
    let reach = |family, wait| -> Result<bool> {
        let options = PingOptions { wait, ..PingOptions::default() };
        Ok(ping(&pods[0], pods[1].addr(family)?, &options)?.all())
    };
    assert!(reach(Family::V4, PATIENCE)? && reach(Family::V6, PATIENCE)?);
    assert!(says(node, 0, &["status"])?.contains("none in the way"));
    node.sh(
        "nft add table inet fw
             nft 'add chain inet fw forward { type filter hook forward priority 0; policy drop; }'",
    )?;
    assert!(!reach(Family::V4, 1.0)? && !reach(Family::V6, 1.0)?);
    let status = json_of(node, &["status", "-o", "json"])?;
    let commands = status["firewalls"][0]["commands"].as_array().context("no commands")?;
    let commands: Vec<&str> = commands.iter().filter_map(Value::as_str).collect();
    for words in [&["plan"][..], &["trace", "10.0.1.2", "10.0.2.2"]] {
        let text = weft(node, words)?.stdout;
        assert!(commands.iter().all(|command| text.contains(command)), "{words:?}: {text}");
    }
    node.sh(&commands.join("\n"))?;
    assert!(reach(Family::V4, PATIENCE)? && reach(Family::V6, PATIENCE)?, "{commands:?}");
    Ok(())
}

#[test]
fn trace_follows_the_kernel_hop_by_hop() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    let from_to = ["trace", "10.0.1.5", "10.0.2.7"];
    let text = says(node, 1, &from_to)?;
    assert!(text.contains("weft sync mends it"), "{text}");
    says(node, 0, &["sync"])?;
    let text = says(node, 0, &from_to)?;
    for part in [
        "tunnel, because routingMode is tunnel",
        "10.0.2.0/24 via 10.0.2.0 dev weft.1",
        "10.0.2.0 is at 0a:58:0a:00:02:00",
        "0a:58:0a:00:02:00 is behind 192.168.44.128, VXLAN 1, UDP port 8472",
        "192.168.44.128 via 192.168.211.129 dev eth0",
        "1450 bytes, 1500 with the tunnel's headers",
        "none: the destination is a pod",
    ] {
        assert!(text.contains(part), "{part:?}: {text}");
    }
    let (_, commands) = text.split_once("To see each step:\n").context("no commands")?;
    let shown = node.sh(commands)?;
    assert!(shown.contains("0a:58:0a:00:02:00") && shown.contains("192.168.44.128"), "{shown}");
    assert!(says(node, 0, &["trace", "fd10:0:0:1::5", "fd10:0:0:2::7"])?.contains("fe80::"));
    let text = says(node, 0, &["trace", "10.0.1.5", "203.0.113.9"])?;
    assert!(text.contains("masqueraded: from a pod to the outside"), "{text}");
    node.run_ok(&["ip", "neighbour", "del", "10.0.2.0", "dev", "weft.1"])?;
    assert!(says(node, 1, &from_to)?.contains("none for 10.0.2.0"));

    configured(&lab, "native")?;
    says(node, 0, &["sync"])?;
    let text = says(node, 0, &from_to)?;
    assert!(text.contains("native, because") && text.contains("1500 bytes"), "{text}");
    assert!(text.contains("ip route add 10.0.2.0/24 via 192.168.44.128"), "{text}");
    assert!(text.contains("ip route add 10.0.1.0/24 via 192.168.211.128"), "{text}");
    Ok(())
}

#[test]
fn trace_asks_the_kernel_for_the_table_that_masquerades() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    configured(&lab, "tunnel")?;
    let to_outside = ["trace", "10.0.1.5", "203.0.113.9"];
    let masqueraded = "masqueraded: from a pod to the outside";
    let text = says(node, 1, &to_outside)?;
    assert!(text.contains(masqueraded), "{text}");
    assert!(text.contains("but the kernel has no table inet weft_87_masquerade"), "{text}");
    let differs = "but the kernel's table inet weft_87_masquerade is not what";
    for damage in [
        "nft insert rule inet weft_87_masquerade leaving return",
        "nft flush chain inet weft_87_masquerade from_pods",
        "nft delete table inet weft_87_masquerade; nft add table inet weft_87_masquerade",
    ] {
        says(node, 0, &["sync"])?;
        let text = says(node, 0, &to_outside)?;
        assert!(text.contains(masqueraded) && !text.contains("but the kernel"), "{text}");
        node.sh(damage)?;
        let text = says(node, 1, &to_outside)?;
        assert!(text.contains(differs), "{damage}: {text}");
    }
    says(node, 0, &["sync"])?;
    // Of a quarantined node's pods, too, the kernel shows the addresses.
    let mut map = lab.topology().node_map();
    let record = map["nodes"][2].as_object_mut().context("a record")?;
    let addresses = record.remove("addresses").context("addresses")?;
    record.insert("adresses".to_owned(), addresses);
    lab.write_node_map(&map)?;
    assert_eq!(weft(node, &["sync"])?.status.code(), Some(1), "the record is quarantined");
    let text = says(node, 0, &["trace", "10.0.1.5", "10.0.2.7"])?;
    assert!(text.contains("none: the destination is a pod"), "{text}");
    let status = json_of(node, &["status", "-o", "json"])?;
    let tables = status["tables"].as_array().context("no tables")?;
    assert!(tables.len() == 2 && tables.iter().all(|table| table["installed"] == true), "{status}");

    let mut off = conflist("tunnel");
    off["plugins"][1]["ipMasq"] = json!(false);
    node.write_file(CONFLIST, off.to_string())?;
    assert!(says(node, 1, &to_outside)?.contains(differs), "a table that should be gone");
    weft(node, &["sync"])?;
    let text = says(node, 0, &to_outside)?;
    assert!(text.contains("none: ipMasq is false") && !text.contains("nft list"), "{text}");
    Ok(())
}

#[test]
fn native_peers_on_one_link_need_no_router() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::start(Topology::nodes(2, Spread::Shared(2), Families::V4, Families::V4))?;
    let node = lab.node("node1")?;
    configured(&lab, "native")?;
    says(node, 0, &["sync"])?;
    let text = says(node, 0, &["trace", "10.0.1.5", "10.0.2.7"])?;
    assert!(text.contains("node2 is on the same link") && !text.contains("ip route add"), "{text}");
    let status = json_of(node, &["status", "-o", "json"])?;
    assert_eq!(state_of(&status, "node2", "ipv4"), "ok");
    Ok(())
}
