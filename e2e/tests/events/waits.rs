//! Nobody waits without end: not for a lock, nor for a map that is read slowly.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{NODE_MAP, Node};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::stage::{DEADLINE, Stage, Trigger};

/// How long a sync waits for the lock (docs/convergence.md).
const LOCK_LIMIT: Duration = Duration::from_secs(30);

const HIT: usize = 1;
const LOCK: &str = "/run/weft/sync.lock";

/// Does work that waits for the lock in vain.
fn patient<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let outcome = work()?;
    let took = started.elapsed();
    // The rest of the work takes milliseconds.
    let limits = LOCK_LIMIT..LOCK_LIMIT + Duration::from_secs(2);
    ensure!(limits.contains(&took), "it waited for {took:?}");
    Ok(outcome)
}

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
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let holder = stopped_holder(node)?;
    node.sh("ip route del unreachable 10.0.1.0/24; ip route del 10.0.2.0/24")?;
    // Nobody else has repaired it, and nobody waits: GC, too, would fail after a wait.
    e2e::go_first()?;
    stage.timely_status(HIT)?;
    stage.chains[HIT].gc(&[("pod", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    ensure!(!stage.is_converged(HIT)?);

    let pod = node.pod("late")?;
    thread::scope(|scope| -> Result<()> {
        let sync = scope.spawn(|| patient(|| stage.weft(HIT, &["sync"])));
        let teardown = scope.spawn(|| patient(|| stage.weft(HIT, &["teardown"])));
        let add = patient(|| Ok(stage.chains[HIT].add(&pod, "eth0").err()))?;
        let add = add.context("ADD without the lock")?;
        ensure!(add.plugin == "routing" && add.code == 11, "{add}");
        for run in [sync, teardown] {
            let output = run.join().map_err(|_| anyhow::anyhow!("a thread died"))??;
            ensure!(output.status.code() == Some(1), "{output}");
            ensure!(output.stderr.contains(LOCK), "{output}");
        }
        ensure!(add.msg.contains(LOCK) && add.msg.contains("for 30 s"), "{add}");
        Ok(())
    })?;
    node.sh(&format!("kill -KILL {holder}"))?;
    stage.chains[HIT].del(&pod, "eth0")?;
    stage.chains[HIT].add(&pod, "eth0")?;
    ensure!(stage.is_converged(HIT)?);
    Ok(())
}

/// A lock's file that is removed by whoever had the lock is no lock any more.
#[test]
fn a_lock_that_was_removed_is_not_believed() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let held = File::options().read(true).write(true).open(node.path(LOCK))?;
    let held = Flock::lock(held, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
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
        drop(held);
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
    e2e::needs_lab!("perl");
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
    stage.chains[HIT].take_log();
    e2e::go_first()?;
    stage.timely_status(HIT)?;
    let said: Vec<String> =
        stage.chains[HIT].take_log().into_iter().map(|run| run.stderr).collect();
    for part in ["sync did not finish within", "whether addresses are left was not known within"] {
        ensure!(said.iter().any(|text| text.contains(part)), "{part}: {said:?}");
    }
    holder.signal(Signal::SIGKILL)?;
    holder.wait()?;
    ensure!(!stage.is_converged(HIT)?, "the map was not slow");
    stage.trigger(HIT, Trigger::Status)?;
    ensure!(stage.is_converged(HIT)?);
    Ok(())
}
