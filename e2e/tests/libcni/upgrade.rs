//! weft replaced while pods come and go.

use anyhow::{Context, Result, ensure};
use e2e::{Lab, Section, conf};
use serde_json::{Value, json};

use crate::client::{Libcni, go};
use crate::{assert_as_before, attached, install, installed};

/// Pods that are made and removed at a time.
const PODS: usize = 6;

#[test]
fn pods_come_and_go_while_weft_is_replaced() -> Result<()> {
    e2e::needs_lab!("strip");
    testing::need!(go());
    let upgrades = if std::env::var_os("WEFT_SOAK").is_some() { 200 } else { 50 };
    let lab = installed(Lab::lesson()?, &conf::TUNNEL.parse()?)?;
    let node = lab.node("worker1")?;
    let cni = Libcni::new(node)?;
    let (first, _) = attached(&cni, node, "first")?;
    cni.del(&first)?;
    first.delete()?;
    let pods = (0..PODS).map(|i| node.pod(&format!("pod-{i}")));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let before = node.snapshot()?;
    let executables = node.run_ok(&["ls", "-A", "/opt/cni/bin"])?;
    let inside: Vec<_> = pods.iter().map(|pod| pod.snapshot()).collect::<Result<_>>()?;

    let namespaces: Vec<&str> = pods.iter().map(|pod| pod.netns()).collect();
    let mut storm = cni.storm(&namespaces)?;
    let mut said = storm.lines()?;
    said.until("begun")?;
    // The conflists differ in what is said, not in what is asked for: no pod is moved.
    let mut conflist: Value = conf::TUNNEL.parse()?;
    for turn in 0..upgrades {
        let version = ["old", "new"][turn % 2];
        conflist["from"] = json!(version);
        install(node, version, &conflist)?;
    }
    install(node, "new", &conf::TUNNEL.parse()?)?;
    drop(storm.stdin()?);
    let said = said.rest()?;
    ensure!(storm.wait()?.success());
    let (last, failures) = said.split_last().context("the storm said nothing")?;
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let made: usize = last.strip_prefix("made ").context(last.clone())?.parse()?;
    assert!(made > 2 * PODS, "{made} pods are no storm");
    eprintln!("{upgrades} upgrades, {made} pods");

    let files = [Section::Files];
    assert_as_before(&before, &node.snapshot()?);
    assert_eq!(node.run_ok(&["ls", "-A", "/opt/cni/bin"])?, executables);
    for (pod, inside) in pods.iter().zip(inside) {
        inside.without(&files).assert_same(&pod.snapshot()?.without(&files));
    }
    Ok(())
}
