//! Configurations that changed under living pods, or are odd: what still goes, and what is said.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stage::{Stage, conflist};

const HIT: usize = 1;
const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

fn with_veth(keys: Value) -> Value {
    let mut whole = conflist(json!({}));
    whole["plugins"][0] = keys;
    whole
}

fn host_ends(stage: &Stage) -> Result<usize> {
    let links = stage.node(HIT).run_ok(&["ip", "-o", "link", "show", "type", "veth"])?;
    Ok(links.lines().filter(|line| line.contains(": veth")).count())
}

fn leases(stage: &Stage) -> Result<String> {
    stage.node(HIT).sh("cd /var/lib/cni/networks/pods && ls | grep '^10' || true")
}

/// Runtimes take the configuration from its file as it is now, and repeat a DEL that fails
/// for ever.
#[test]
fn a_container_goes_though_its_ipam_plugin_is_in_the_configuration_no_more() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = Stage::new(json!({}))?;
    let ends = host_ends(&stage)?;
    let chain = &mut stage.chains[HIT];
    chain.set_conflist(with_veth(json!({ "type": "veth" })));
    let pod = stage.pods[HIT].clone();
    stage.chains[HIT].del(&pod, "eth0")?;
    ensure!(host_ends(&stage)? + 1 == ends, "the link is there");
    ensure!(!leases(&stage)?.is_empty(), "nobody was told to release it");
    stage.chains[HIT].set_conflist(conflist(json!({})));
    stage.chains[HIT].gc(&[]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    ensure!(leases(&stage)?.is_empty(), "{}", leases(&stage)?);
    Ok(())
}

#[test]
fn gc_removes_links_though_the_ipam_plugin_is_missing() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = Stage::new(json!({}))?;
    let ends = host_ends(&stage)?;
    stage.node(HIT).sh(&format!("rm -f {}/*", e2e::RESULTS))?;
    for (name, ipam) in [("lost", json!({ "type": "nosuch" })), ("stray", Value::Null)] {
        stage.pod(HIT, name)?;
        ensure!(host_ends(&stage)? == ends + 1);
        stage.node(HIT).sh(&format!("rm -f {}/*", e2e::RESULTS))?;
        stage.chains[HIT].set_conflist(with_veth(json!({ "type": "veth", "ipam": ipam })));
        let errors =
            stage.chains[HIT].gc(&[("pod", "eth0")]).err().context("GC without an IPAM plugin")?;
        ensure!(errors.iter().any(|error| error.plugin == "veth" && error.code == 7), "{errors:?}");
        ensure!(host_ends(&stage)? == ends, "the link is there");
        stage.chains[HIT].set_conflist(conflist(json!({})));
        stage.node(HIT).sh(&format!("umount -n /run/netns/{name}; rm /run/netns/{name}"))?;
    }
    Ok(())
}

#[test]
fn status_tells_a_wrong_configuration_from_a_node_that_is_not_ready() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = Stage::new(json!({}))?;
    let bad = [
        conflist(json!({ "vni": 0 })),
        conflist(json!({ "nodesDir": "nodes.d" })),
        with_veth(json!({ "type": "veth" })),
        with_veth(json!({ "type": "veth", "ipam": { "type": "host-local", "nodesDir": "." } })),
        with_veth(
            json!({ "type": "veth", "ipam": { "type": "host-local", "subnet": "10.9.0.0" } }),
        ),
    ];
    for whole in bad {
        let context = whole.to_string();
        stage.chains[HIT].set_conflist(whole);
        let error = stage.chains[HIT].status().err().with_context(|| context.clone())?;
        ensure!(error.code == 7, "{context}: {error}");
    }
    let elsewhere = json!({ "nodes": [{ "name": "a", "addresses": ["192.0.2.1"], "podCIDRs": ["10.9.0.0/24"] }] });
    stage.chains[HIT].set_conflist(conflist(elsewhere));
    let error = stage.chains[HIT].status().err().context("not a node of the map")?;
    ensure!(error.code == 50, "{error}");
    Ok(())
}

#[test]
fn the_command_tells_what_is_odd_and_goes_on() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    for (name, text) in [
        ("01-broken.conflist", "{ torn".to_owned()),
        (
            "02-odd.conflist",
            json!({ "name": 5, "plugins": [{ "type": 7 }, "routing"] }).to_string(),
        ),
        ("03-bridge.conf", json!({ "name": "../x", "type": "bridge", "ipam": [] }).to_string()),
    ] {
        node.write_file(&format!("/etc/cni/net.d/{name}"), text)?;
    }
    let mut whole =
        conflist(json!({ "ipv4NativeCIDR": "10.0.0.0/8", "links": ["192.168.211.7/24"] }));
    whole["plugins"][0]["ipMasq"] = json!(true);
    node.write_file(CONFLIST, whole.to_string())?;
    for words in [&["sync"][..], &["status"]] {
        let output = stage.weft(HIT, words)?;
        ensure!(output.success(), "{output}");
        for part in [
            "weft: warning: /etc/cni/net.d/01-broken.conflist",
            "10-pods.conflist: plugins[1].ipv4NativeCIDR: routing has no such key",
            "10-pods.conflist: plugins[0].ipMasq: veth has no such key",
            "plugins[1].links: 192.168.211.7/24 is taken as 192.168.211.0/24",
        ] {
            ensure!(output.stderr.contains(part), "{part:?}: {output}");
        }
        ensure!(
            !output.stderr.contains("warn:") && !output.stderr.contains("odd.conflist"),
            "{output}"
        );
    }

    node.sh("echo 0 >/proc/sys/net/ipv4/ip_forward")?;
    let output = stage.weft(HIT, &["plan"])?;
    let command = "sysctl -w net/ipv4/ip_forward=1";
    ensure!(output.status.code() == Some(2) && output.stdout.contains(command), "{output}");
    let output = stage.weft(HIT, &["sync"])?.ok()?;
    ensure!(output.contains(command) && node.sysctl("net/ipv4/ip_forward")? == "1");
    ensure!(stage.is_converged(HIT)?);

    ensure!(stage.weft(HIT, &["help", "help"])?.ok()?.contains("Usage: weft COMMAND"));
    let output = stage.weft(HIT, &["nodes", "check", "/run/none"])?;
    ensure!(output.stderr.matches("No such file").count() == 1, "{output}");
    let output = stage.weft(HIT, &["export", "bird", "worker2", "--as", "65000"])?;
    ensure!(!output.stderr.contains("this node's"), "{output}");
    node.write_file(CONFLIST, conflist(json!({})).to_string().replace("pods", "../pods"))?;
    let output = stage.weft(HIT, &["sync"])?;
    ensure!(
        output.status.code() == Some(1) && output.stderr.contains("name: \"../pods\""),
        "{output}"
    );
    Ok(())
}
