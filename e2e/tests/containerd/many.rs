//! Many pods at the same time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use anyhow::{Result, ensure};
use e2e::{Family, conf};

use crate::cri::Pod;
use crate::daemon::Daemon;
use crate::stage::{Stage, assert_reaches, prerequisites, serve, soak};

/// Does `work` for each item at the same time.
fn all_at_once<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        let ended = running.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

#[test]
fn many_pods_a_node_are_made_and_removed_at_the_same_time() -> Result<()> {
    testing::need!(prerequisites());
    let count = if soak() { 50 } else { 10 };
    let stage = Stage::lesson(conf::TUNNEL)?;
    let all: Vec<(&Daemon, String)> = stage
        .daemons
        .iter()
        .flat_map(|daemon| (0..count).map(move |number| (daemon, format!("pod-{number}"))))
        .collect();
    let pods = all_at_once(&all, |(daemon, name)| daemon.client()?.run(name))?;
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(addresses.len(), all.len(), "{pods:?}");
    let (near, far) = pods.split_at(count);
    for (daemon, pods) in stage.daemons.iter().zip([near, far]) {
        let range = daemon.node().pod_range(Family::V4)?;
        ensure!(pods.iter().flat_map(|pod| &pod.addresses).all(|one| range.contains(*one)));
        let client = daemon.client()?;
        pods.iter().try_for_each(|pod| serve(&client, pod))?;
    }
    let pairs: Vec<(&Daemon, &Pod, &Pod)> = near
        .iter()
        .zip(far.iter().rev())
        .flat_map(|(near, far)| [(&stage.daemons[0], near, far), (&stage.daemons[1], far, near)])
        .collect();
    all_at_once(&pairs, |(daemon, from, to)| assert_reaches(&daemon.client()?, from, to))?;
    let made: Vec<(&Daemon, &Pod)> = all.iter().map(|(daemon, _)| *daemon).zip(&pods).collect();
    all_at_once(&made, |(daemon, pod)| daemon.client()?.remove(&pod.id))?;
    stage.assert_as_before()
}
