//! A full neighbour table: the kernel has one for each family, and all network namespaces
//! share it (`gc_thresh3`, 1,024 entries).

use anyhow::{Result, ensure};
use e2e::{Cluster, Families, Family, Lab, PingOptions, Topology, conf, ping};

/// Shell: fills the table of IPv6 with entries that are too young to be reclaimed, and
/// fails unless it is full then.
const FILL: &str = r"
entries() {
    seq $1 $2 | sed 's/.*/neigh replace fd00:44::1:& lladdr 02:00:00:00:00:07 dev eth0 nud reachable/'
}
entries 1 1100 | ip -6 -force -batch - >/dev/null 2>&1 || true
! entries 1101 1101 | ip -6 -batch - 2>&1
";

#[test]
#[ignore = "fills a table that all namespaces share, so that packets of other tests are lost"]
fn a_full_table_fails_no_add() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::start(Topology::lesson(Families::Both, Families::Both))?;
    let cluster = Cluster::new(lab, &conf::TUNNEL.parse()?)?;
    cluster.sync_all()?;
    let (worker1, other) = (cluster.node("worker1")?, cluster.node("worker2")?);
    let chain = cluster.chain("worker1")?;
    let pod = worker1.pod("pod")?;
    // The kernel reclaims entries from the age of five seconds.
    let refused = other.sh(FILL)?;
    ensure!(refused.contains("No buffer space"), "the table is not full: {refused}");
    chain.add(&pod, "eth0")?;
    let warned = chain.take_log();
    let warned = warned.iter().any(|run| run.stderr.contains("neighbour table is full"));
    ensure!(warned, "nothing is said of the missing entry");

    other.sh("ip -6 neigh flush dev eth0")?;
    let result = ping(worker1, pod.addr(Family::V6)?, &PingOptions::default())?;
    ensure!(result.all(), "{}", result.output);
    Ok(())
}
