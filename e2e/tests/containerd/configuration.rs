//! What containerd makes of /etc/cni/net.d, and which plugins it calls.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{RESULTS, conf, with_routing_keys};
use serde_json::{Value, json};

use crate::cri::Client;
use crate::daemon::{Daemon, TRACE};
use crate::stage::{Stage, prerequisites};

/// Waits until containerd has taken note of a change in its configuration directory,
/// which it tells nobody.
fn eventually(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition()? {
        ensure!(Instant::now() < end, "{what}: not in half a minute");
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn network_is_ready(client: &Client) -> Result<bool> {
    let conditions = client.conditions()?;
    let network = conditions.iter().find(|condition| condition.kind == "NetworkReady");
    Ok(network.context("no NetworkReady")?.status)
}

/// The verbs that weft's plugins were called with so far.
fn calls(daemon: &Daemon) -> Result<BTreeSet<(String, String)>> {
    let mut calls = BTreeSet::new();
    for line in daemon.node().read_file(TRACE)?.lines() {
        // When, process, plugin, verb, phase (WEFT_TRACE).
        if let [_, _, plugin, verb, ..] = line.split(' ').collect::<Vec<_>>()[..] {
            calls.insert((plugin.to_owned(), verb.to_owned()));
        }
    }
    Ok(calls)
}

fn pairs(plugins: &[&str], verbs: &[&str]) -> BTreeSet<(String, String)> {
    let all = plugins.iter().flat_map(|plugin| verbs.iter().map(move |verb| (plugin, verb)));
    all.map(|(plugin, verb)| ((*plugin).to_owned(), (*verb).to_owned())).collect()
}

#[test]
fn containerd_calls_add_and_del_alone_in_version_1_0_0() -> Result<()> {
    testing::need!(prerequisites());
    let stage = Stage::lesson(conf::TUNNEL)?;
    let daemon = &stage.daemons[0];
    let version = daemon.node().run_ok(&["containerd", "--version"])?;
    testing::applies!(version.contains(" 1."), "asserted of containerd 1.x; this is {version}");
    let client = daemon.client()?;
    ensure!(network_is_ready(&client)?);
    let plugins = ["loopback", "routing", "veth"];
    let pod = client.run("a")?;
    assert_eq!(calls(daemon)?, pairs(&plugins, &["ADD"]));
    let cached = daemon.node().read_file(&format!("{RESULTS}/pods-{}-eth0", pod.id))?;
    let cached: Value = serde_json::from_str(&cached)?;
    assert_eq!(cached["result"]["cniVersion"], "1.0.0", "{cached}");
    let arguments: BTreeSet<&str> = cached["cniArgs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|arg| arg[0].as_str())
        .collect();
    let expected = [
        "IgnoreUnknown",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_NAME",
        "K8S_POD_NAMESPACE",
        "K8S_POD_UID",
    ];
    assert_eq!(arguments, BTreeSet::from(expected), "{cached}");
    client.exec(&pod, &["ping", "-c", "1", "-W", "5", "127.0.0.1"])?;
    ensure!(network_is_ready(&client)?);
    client.remove(&pod.id)?;
    assert_eq!(calls(daemon)?, pairs(&plugins, &["ADD", "DEL"]));
    stage.assert_as_before()
}

#[test]
fn a_changed_conflist_is_used_and_a_torn_one_is_recovered_from() -> Result<()> {
    testing::need!(prerequisites());
    let mut stage = Stage::lesson(conf::TUNNEL)?;
    let client = stage.daemons[0].client()?;
    let mtu = |client: &Client, pod| client.exec(pod, &["cat", "/sys/class/net/eth0/mtu"]);
    let first = client.run("first")?;
    assert_eq!(mtu(&client, &first)?.trim(), "1450");
    // By rename within the directory, as an editor or an installer does.
    stage.cluster.set_conflist(&with_routing_keys(conf::TUNNEL, &json!({ "mtu": 1300 }))?)?;
    eventually("the new conflist", || Ok(client.cni_config()?.contains("1300")))?;
    let second = client.run("second")?;
    for pod in [&first, &second] {
        assert_eq!(mtu(&client, pod)?.trim(), "1300");
    }
    // The first name in the directory is the one that counts (max_conf_num = 1).
    let torn = "/etc/cni/net.d/05-torn.conflist";
    stage.daemons[0].node().write_file(torn, &conf::TUNNEL[..60])?;
    eventually("the torn conflist", || Ok(!network_is_ready(&client)?))?;
    let error = client.run_sandbox("none").expect_err("no network");
    ensure!(format!("{error:#}").contains("cni"), "{error:#}");
    stage.daemons[0].node().run_ok(&["rm", torn])?;
    eventually("the good one again", || network_is_ready(&client))?;
    client.run("third")?;
    // The pod that failed, too, waits to be stopped, as kubelet does.
    let pods = client.list()?;
    ensure!(pods.len() == 4, "{pods:?}");
    pods.iter().try_for_each(|pod| client.remove(&pod.id))?;
    stage.cluster.set_conflist(&conf::TUNNEL.parse()?)?;
    stage.assert_as_before()
}
