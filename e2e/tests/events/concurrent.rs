//! Syncs, ADDs, DELs and STATUSes at once.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use e2e::Family;
use serde_json::json;

use crate::stage::Stage;

const HIT: usize = 1;
const PODS: usize = 6;

/// Two loops of syncs, one of STATUS, a storm of ADDs and DELs, and somebody who keeps
/// flushing: no error, no deadlock, no lease is freed under its pod, and in the end nothing is
/// missing.
#[test]
fn syncs_adds_and_status_at_once() -> Result<()> {
    e2e::needs_lab!();
    let rounds = if std::env::var_os("WEFT_SOAK").is_some() { 40 } else { 3 };
    let stage = Stage::new(json!({}))?;
    let (over, syncs, ticks) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let living: Mutex<HashSet<IpAddr>> = Mutex::default();
    let started = Instant::now();
    let until_over = |count: &AtomicUsize, work: &dyn Fn() -> Result<()>| -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            work()?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let sync = || until_over(&syncs, &|| stage.weft(HIT, &["sync"])?.ok().map(drop));
    let status = || {
        e2e::go_first()?;
        until_over(&ticks, &|| stage.timely_status(HIT))
    };
    let none = AtomicUsize::new(0);
    let damage = || {
        until_over(&none, &|| {
            stage.node(HIT).sh("ip -4 neigh flush dev weft.1 nud permanent; nft delete table inet weft_87_tunnel || true
            bridge fdb flush dev weft.1; ip -6 route flush proto 87")?;
            Ok(())
        })
    };
    thread::scope(|scope| -> Result<()> {
        let loops =
            [scope.spawn(sync), scope.spawn(sync), scope.spawn(status), scope.spawn(damage)];
        let storm = |number: usize| {
            let (stage, living) = (&stage, &living);
            move || -> Result<()> {
                for round in 0..rounds {
                    let pod = stage.pod(HIT, &format!("storm{number}-{round}"))?;
                    let address = pod.addr(Family::V4)?;
                    let living = || living.lock().unwrap_or_else(PoisonError::into_inner);
                    ensure!(living().insert(address), "{address} is another pod's as well");
                    stage.chains[HIT].check(&pod, "eth0")?;
                    let lease = format!("/var/lib/cni/networks/pods/{address}");
                    let holder = stage.node(HIT).read_file(&lease)?;
                    ensure!(holder == format!("{}\r\neth0", pod.id()), "{address}: {holder}");
                    living().remove(&address);
                    stage.remove(HIT, &pod)?;
                }
                Ok(())
            }
        };
        let pods: Vec<_> = (0..PODS).map(|number| scope.spawn(storm(number))).collect();
        let join = |thread: thread::ScopedJoinHandle<Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let stormed: Vec<Result<()>> = pods.into_iter().map(join).collect();
        over.store(true, Ordering::Relaxed);
        let looped: Vec<Result<()>> = loops.into_iter().map(join).collect();
        stormed.into_iter().chain(looped).collect()
    })?;
    let (syncs, ticks) = (syncs.load(Ordering::Relaxed), ticks.load(Ordering::Relaxed));
    let pods = PODS * rounds;
    let took = started.elapsed();
    println!("{pods} ADDs and DELs, {syncs} syncs, {ticks} STATUSes in {took:.1?}");
    ensure!(syncs > 1 && ticks > 1, "they were not at once");
    stage.weft(HIT, &["sync"])?.ok()?;
    ensure!(stage.is_converged(HIT)?);
    let left = stage.node(HIT).leases("pods").len();
    ensure!(left == 2, "{left} leases of the pod that stays");
    stage.traffic().map(drop)
}
