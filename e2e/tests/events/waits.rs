//! Nobody waits without end: not for a lock, nor for a map that is read slowly.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{NODE_MAP, Node};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::stage::{DEADLINE, Stage, Trigger};

const HIT: usize = 1;
const LOCK: &str = "/run/weft/sync.lock";

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !holds()? {
        ensure!(Instant::now() < end, "{what}: not so after {DEADLINE:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A process on the node that has the lock and is stopped.
fn stopped_holder(node: &Node) -> Result<String> {
    node.sh(&format!(
        "sh -c 'exec 9>>{LOCK}; flock 9; echo $$ >/run/holder.new; mv /run/holder.new /run/holder
            kill -STOP $$' >/dev/null 2>&1 </dev/null &"
    ))?;
    wait_until("the holder runs", || Ok(node.path("/run/holder").exists()))?;
    let pid = node.read_file("/run/holder")?.trim().to_owned();
    let state = format!("/proc/{pid}/status");
    wait_until("the holder is stopped", || {
        Ok(node.sh(&format!("cat {state}"))?.contains("T (stopped)"))
    })?;
    Ok(pid)
}

#[test]
fn a_stopped_process_has_the_lock() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let holder = stopped_holder(node)?;
    node.sh("ip route del unreachable 10.0.1.0/24; ip route del 10.0.2.0/24")?;
    // Nobody else has repaired it, and nobody waits.
    let started = Instant::now();
    stage.trigger(HIT, Trigger::Status)?;
    stage.chains[HIT].gc(&[("pod", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    ensure!(started.elapsed() < Duration::from_secs(10), "STATUS and GC: {:?}", started.elapsed());
    ensure!(!stage.is_converged(HIT)?);

    let pod = node.pod("late")?;
    thread::scope(|scope| -> Result<()> {
        let sync = scope.spawn(|| stage.weft(HIT, &["sync"]));
        let teardown = scope.spawn(|| stage.weft(HIT, &["teardown"]));
        let add = stage.chains[HIT].add(&pod, "eth0").err().context("ADD without the lock")?;
        ensure!(add.plugin == "routing" && add.code == 11, "{add}");
        for run in [sync, teardown] {
            let output = run.join().map_err(|_| anyhow::anyhow!("a thread died"))??;
            ensure!(output.status.code() == Some(1), "{output}");
            ensure!(output.stderr.contains(LOCK), "{output}");
        }
        ensure!(add.msg.contains(LOCK) && add.msg.contains("for 30 s"), "{add}");
        Ok(())
    })?;
    ensure!(started.elapsed() > Duration::from_secs(29), "nobody waited");
    node.sh(&format!("kill -KILL {holder}"))?;
    stage.chains[HIT].del(&pod, "eth0")?;
    stage.chains[HIT].add(&pod, "eth0")?;
    ensure!(stage.is_converged(HIT)?);
    Ok(())
}

/// A lock's file that is removed by whoever had the lock is no lock any more.
#[test]
fn a_lock_that_was_removed_is_not_believed() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let held = File::options().read(true).write(true).open(node.path(LOCK))?;
    held.lock()?;
    let inode = held.metadata()?.ino();
    thread::scope(|scope| -> Result<()> {
        let sync = scope.spawn(|| stage.weft(HIT, &["sync"]));
        let waits = || {
            let locks = std::fs::read_to_string("/proc/locks")?;
            let end = format!(":{inode}");
            let is_waiter = |line: &str| {
                line.contains("->") && line.split_whitespace().any(|word| word.ends_with(&end))
            };
            Ok(locks.lines().any(is_waiter))
        };
        wait_until("the sync waits", waits)?;
        node.sh(&format!("rm {LOCK}"))?;
        held.unlock()?;
        sync.join().map_err(|_| anyhow::anyhow!("a thread died"))??.ok()?;
        Ok(())
    })?;
    let made = node.path(LOCK).metadata().context("nobody has made the lock anew")?;
    ensure!(made.ino() != inode);
    Ok(())
}

/// Opening the map takes until somebody gives up a lease on the file (fcntl(2), F_SETLEASE):
/// the plugins say what they know when their time is over.
#[test]
fn a_status_is_over_in_time_however_slow_the_map_is() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    node.sh("rm /run/weft/pods.stamp; ip route del 10.0.2.0/24")?;
    // F_SETLEASE is 1024, F_WRLCK 1; whoever breaks it sends SIGIO.
    let script = format!(
        "$SIG{{IO}} = 'IGNORE'; open(F, '+<', '{NODE_MAP}') or die; \
         fcntl(F, 1024, 1) or die \"$!\"; $| = 1; print \"held\\n\"; sleep 3600"
    );
    let mut holder = node.spawn(&["perl", "-e", &script])?;
    holder.lines()?.until("held")?;
    let started = Instant::now();
    stage.chains[HIT].status()?;
    ensure!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    let said: Vec<String> =
        stage.chains[HIT].take_log().into_iter().map(|run| run.stderr).collect();
    for part in ["no sync was done within", "whether addresses are left was not known within"] {
        ensure!(said.iter().any(|text| text.contains(part)), "{part}: {said:?}");
    }
    holder.signal(Signal::SIGKILL)?;
    holder.wait()?;
    ensure!(!stage.is_converged(HIT)?, "the map was not slow");
    stage.trigger(HIT, Trigger::Status)?;
    ensure!(stage.is_converged(HIT)?);
    Ok(())
}
