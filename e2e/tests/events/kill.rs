//! A sync that is killed at any system call leaves nothing that the next cannot
//! bring in order.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use e2e::{Families, Topology};
use serde_json::{Value, json};

use crate::stage::{Stage, difference};

/// Every so many system calls without WEFT_SOAK.
const STEP: usize = 9;

#[test]
fn a_sync_is_killed_at_every_system_call() -> Result<()> {
    let step = if std::env::var_os("WEFT_SOAK").is_some() { 1 } else { STEP };
    let topology = Topology::lesson(Families::V4, Families::Both);
    let mut stage = Stage::without_pods(topology, json!({}))?;
    // From nothing, and from another device with other entries.
    let before = [None, Some((json!({ "vni": 9, "mtu": 1300, "ipMasq": false }), "weft.9"))];
    for before in before {
        let keys = before.as_ref().map(|(keys, _)| keys);
        restore(&mut stage, keys)?;
        let calls = system_calls(&stage)?;
        ensure!(calls.len() > 100, "a sync makes more system calls than {calls:?}");
        let mut kills = 0;
        for call in calls.iter().skip(1).step_by(step) {
            let context = || format!("killed at {call}");
            restore(&mut stage, keys)?;
            // How often it reads depends on how the kernel cuts its answers.
            if !kill_at(&stage, call)? {
                continue;
            }
            kills += 1;
            stage.weft(0, &["sync"])?.ok().with_context(context)?;
            ensure!(stage.is_converged(0)?, "{}", context());
            let state = stage.state(0, &["weft.1"])?;
            let fresh = fresh(&stage)?;
            ensure!(state == fresh, "{}: {}", context(), difference(&fresh, &state));
            if let Some((_, device)) = &before {
                let left = stage.node(0).run(&["ip", "link", "show", device])?;
                ensure!(!left.success(), "{}: {left}", context());
            }
        }
        println!("killed {kills} times, at every {step}th of {} system calls", calls.len());
        ensure!(kills * step * 10 > calls.len() * 9, "hardly ever killed");
    }
    Ok(())
}

/// Puts the node in the state that the sync starts from, and configures what it is
/// to come to.
fn restore(stage: &mut Stage, keys: Option<&Value>) -> Result<()> {
    stage.weft(0, &["teardown"])?.ok()?;
    if let Some(keys) = keys {
        stage.configure(0, keys.clone())?;
        stage.weft(0, &["sync"])?.ok()?;
    }
    stage.configure(0, json!({}))
}

fn fresh(stage: &Stage) -> Result<String> {
    stage.weft(0, &["teardown"])?.ok()?;
    stage.weft(0, &["sync"])?.ok()?;
    stage.state(0, &["weft.1"])
}

/// The system calls of a sync, each as strace's name of it and how many of that name
/// there were until then, which is what `when` counts.
fn system_calls(stage: &Stage) -> Result<Vec<String>> {
    let weft = stage.bin.join("weft").display().to_string();
    stage.node(0).run_ok(&["strace", "-o", "/run/calls", &weft, "sync"])?;
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut calls = Vec::new();
    for line in stage.node(0).read_file("/run/calls")?.lines() {
        let name = line.split('(').next().unwrap_or_default();
        if name.is_empty() || name.contains(' ') {
            continue;
        }
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        calls.push(format!("{name}:signal=KILL:when={count}"));
    }
    Ok(calls)
}

/// Runs a sync and kills it at a system call; false if it made no such call.
fn kill_at(stage: &Stage, call: &str) -> Result<bool> {
    let weft = stage.bin.join("weft").display().to_string();
    let inject = format!("inject={call}");
    let run = stage.node(0).run(&["strace", "-o", "/dev/null", "-e", &inject, &weft, "sync"])?;
    if run.success() {
        return Ok(false);
    }
    // strace ends by the signal that its child ended by.
    ensure!(run.status.signal() == Some(9) || run.status.code() == Some(137), "{call}: {run}");
    Ok(true)
}
