//! A sync that is killed at any system call leaves nothing that the next cannot
//! bring in order.

use anyhow::{Result, ensure};
use e2e::{Families, Topology};
use serde_json::{Value, json};

use crate::stage::Stage;

/// Every so many system calls without WEFT_SOAK.
const STEP: usize = 9;

#[test]
fn a_sync_is_killed_at_every_system_call() -> Result<()> {
    let step = if std::env::var_os("WEFT_SOAK").is_some() { 1 } else { STEP };
    let topology = Topology::lesson(Families::V4, Families::Both);
    let mut stage = Stage::without_pods(topology, json!({}))?;
    // From nothing, and from another device with other entries and another mode.
    let before = [None, Some((json!({ "vni": 9, "mtu": 1300, "ipMasq": false }), "weft.9"))];
    for before in before {
        let mut kills = 0;
        for when in (1..).step_by(step) {
            restore(&mut stage, before.as_ref().map(|(keys, _)| keys))?;
            stage.configure(0, json!({}))?;
            if !killed_at(&stage, when)? {
                break;
            }
            kills += 1;
            stage.weft(0, &["sync"])?.ok()?;
            ensure!(stage.is_converged(0)?, "killed at system call {when}");
            let state = stage.state(0, &["weft.1"])?;
            let fresh = fresh(&mut stage)?;
            ensure!(state == fresh, "killed at {when}: is\n{state}\nshall be\n{fresh}");
            if let Some((_, device)) = &before {
                let left = stage.node(0).run(&["ip", "link", "show", device])?;
                ensure!(!left.success(), "killed at {when}: {left}");
            }
        }
        println!("killed {kills} times, at every {step}th system call");
        ensure!(kills * step > 100, "a sync makes more system calls than that");
    }
    Ok(())
}

/// Puts the node in the state that the sync starts from.
fn restore(stage: &mut Stage, keys: Option<&Value>) -> Result<()> {
    stage.weft(0, &["teardown"])?.ok()?;
    if let Some(keys) = keys {
        stage.configure(0, keys.clone())?;
        stage.weft(0, &["sync"])?.ok()?;
    }
    Ok(())
}

fn fresh(stage: &mut Stage) -> Result<String> {
    stage.weft(0, &["teardown"])?.ok()?;
    stage.weft(0, &["sync"])?.ok()?;
    stage.state(0, &["weft.1"])
}

/// Whether a sync lived long enough to make system call number `when`, and was killed at it.
fn killed_at(stage: &Stage, when: usize) -> Result<bool> {
    let weft = stage.bin.join("weft").display().to_string();
    let inject = format!("inject=all:signal=KILL:when={when}");
    let run = stage.node(0).run(&["strace", "-o", "/dev/null", "-e", &inject, &weft, "sync"])?;
    // strace ends by the signal that its child ended by.
    if run.success() {
        return Ok(false);
    }
    use std::os::unix::process::ExitStatusExt;
    ensure!(run.status.signal() == Some(9) || run.status.code() == Some(137), "{run}");
    Ok(true)
}
