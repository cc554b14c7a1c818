//! What `weft status` tells of the last sync, and when `weft sync` has failed.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use e2e::{NODE_MAP, Output};
use serde_json::{Value, json};

use crate::stage::{Stage, Trigger};

const HIT: usize = 1;
const RECORD: &str = "/run/weft/pods.last";

fn status(stage: &Stage) -> Result<Value> {
    let text = stage.weft(HIT, &["status", "-o", "json"])?.ok()?;
    let mut whole: Value = serde_json::from_str(&text).context(text)?;
    Ok(whole["networks"][0].take())
}

/// Trigger and number of changes of the last sync, and of the last that changed something.
fn last(stage: &Stage) -> Result<[(String, u64); 2]> {
    let status = status(stage)?;
    let of = |key: &str| {
        let run = &status[key];
        (
            run["trigger"].as_str().unwrap_or_default().to_owned(),
            run["changes"].as_u64().unwrap_or(99),
        )
    };
    Ok([of("lastSync"), of("lastChange")])
}

fn was(trigger: &str, changes: u64) -> (String, u64) {
    (trigger.to_owned(), changes)
}

#[test]
fn the_last_sync_is_told_by_trigger_and_changes() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let [sync, change] = last(&stage)?;
    ensure!(sync == was("weft sync", 0), "{sync:?}");
    ensure!(change.0 == "ADD" && change.1 > 10, "{change:?}");

    // The fast path writes nothing.
    let inode = || -> Result<u64> { Ok(node.path(RECORD).metadata()?.ino()) };
    let before = inode()?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(inode()? == before, "an ADD with nothing to do wrote a record");

    node.sh("ip neigh del 10.0.2.0 dev weft.1")?;
    stage.trigger(HIT, Trigger::Status)?;
    ensure!(last(&stage)? == [was("STATUS", 1), was("STATUS", 1)], "{:?}", last(&stage)?);
    stage.trigger(HIT, Trigger::Status)?;
    ensure!(last(&stage)? == [was("STATUS", 0), was("STATUS", 1)], "{:?}", last(&stage)?);
    stage.chains[HIT].gc(&[("pod", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    ensure!(last(&stage)? == [was("GC", 0), was("STATUS", 1)], "{:?}", last(&stage)?);
    node.sh("ip neigh del 10.0.2.0 dev weft.1")?;
    stage.trigger(HIT, Trigger::Sync)?;
    ensure!(last(&stage)? == [was("weft sync", 1), was("weft sync", 1)], "{:?}", last(&stage)?);
    let text = stage.weft(HIT, &["status"])?.ok()?;
    ensure!(text.contains(" ago by weft sync, 1 change(s) made, at 2"), "{text}");

    // The unit says who it is.
    let unit = include_str!("../../../conf/systemd/weft-sync.service");
    let variable = unit.lines().find_map(|line| line.strip_prefix("Environment=WEFT_TRIGGER="));
    let name = variable.context("the unit does not say who it is")?;
    let weft = stage.bin.join("weft").display().to_string();
    node.command(&[weft.as_str(), "sync"]).env("WEFT_TRIGGER", name).output()?.ok()?;
    ensure!(last(&stage)?[0] == was("weft-sync.service", 0), "{:?}", last(&stage)?);

    node.sh("rm -r /run/weft")?;
    ensure!(status(&stage)?["lastSync"].is_null());
    let text = stage.weft(HIT, &["status"])?.ok()?;
    ensure!(text.contains("last sync   never since this node started"), "{text}");
    Ok(())
}

#[test]
fn a_sync_that_failed_is_told_too() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let map = node.read_file(NODE_MAP)?;
    let mut without: Value = serde_json::from_str(&map)?;
    without["nodes"].as_array_mut().context("nodes")?.remove(HIT);
    node.write_file(NODE_MAP, without.to_string())?;
    ensure!(stage.chains[HIT].status().is_err_and(|error| error.code == 50));
    // `weft sync` does not know the node either, and the record is the last word.
    let output = stage.weft(HIT, &["status"])?;
    ensure!(output.status.code() == Some(1), "{output}");
    ensure!(!stage.weft(HIT, &["sync"])?.success());
    let output = stage.weft(HIT, &["status"])?;
    let said = "by weft sync, 0 change(s) made, 1 failure(s), at 2";
    ensure!(output.stdout.contains(said) && output.stdout.contains("no node of"), "{output}");
    node.write_file(NODE_MAP, map)?;
    stage.trigger(HIT, Trigger::Sync)?;
    ensure!(status(&stage)?["lastSync"]["failed"] == 0);
    Ok(())
}

fn sync(stage: &Stage, code: i32) -> Result<Output> {
    let output = stage.weft(HIT, &["sync"])?;
    ensure!(output.status.code() == Some(code), "not {code}: {output}");
    Ok(output)
}

#[test]
fn what_no_sync_can_better_is_no_failure() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = Stage::new(json!({}))?;
    // The nodes have no IPv6 address to send IPv6 pods' packets to.
    stage.configure(HIT, json!({ "routingMode": "native" }))?;
    let output = sync(&stage, 0)?;
    ensure!(output.stderr.contains("weft: note: node worker2 has no IPv6 address"), "{output}");
    ensure!(!output.stderr.contains("warning"), "{output}");

    // A refused change is one, and is not counted among those that were made.
    stage.configure(HIT, json!({}))?;
    sync(&stage, 0)?;
    stage.node(HIT).sh("ip route del 10.0.0.0/24; ip neigh del 10.0.2.0 dev weft.1
         ip route add 10.0.0.0/24 via 192.168.211.129 proto 99 metric 8")?;
    let output = sync(&stage, 1)?;
    ensure!(output.stdout.starts_with("pods: 1 change(s) made:\n"), "{output}");
    ensure!(!output.stdout.contains("ip route add"), "{output}");
    ensure!(output.stderr.contains("warning: `ip route add 10.0.0.0/24"), "{output}");
    let run = status(&stage)?["lastSync"].take();
    ensure!((&run["changes"], &run["failed"]) == (&json!(1), &json!(2)), "{run}");
    // The route that is in the way, and ours that was refused for it.
    let failures = run["failures"].to_string();
    ensure!(failures.contains("protocol 99") && failures.contains("ip route add 10.0.0.0/24"));
    Ok(())
}
