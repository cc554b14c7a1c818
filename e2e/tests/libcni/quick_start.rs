//! README, "Use it": what it says a reader types, typed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Block, Lab, Node, blocks, run_within};

use crate::client::{executable, go};

/// How long the build of a release may take.
const BUILD: Duration = Duration::from_secs(1800);

/// Builds the release before a node is entered, which has no way to what cargo fetches from.
fn build(root: &Path) -> Result<()> {
    run_within(BUILD, &mut Command::new(root.join("hack/build.sh")))?.ok().map(drop)
}

/// A node with an /opt of its own, and a directory whose `cnitool` is the client.
fn prepare(node: &Node) -> Result<String> {
    let client = executable()?.display().to_string();
    node.sh(&format!(
        "mount -n -t tmpfs -o mode=755 opt /opt; mkdir /run/bin; ln -s {client} /run/bin/cnitool"
    ))?;
    let path = std::env::var("PATH").context("PATH")?;
    Ok(format!("/run/bin:{path}"))
}

#[test]
fn readme() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(go());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    build(root)?;
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let path = prepare(node)?;
    let mut said = String::new();
    for block in blocks("README.md", "## Use it")? {
        match block {
            Block::Commands(script) => {
                let script = format!("cd {}\n{script}", root.display());
                said += &node.command(&["sh", "-e"]).env("PATH", &path).stdin(script).ok()?;
            }
            file @ Block::File { .. } => file.follow(node)?,
        }
    }
    for expected in ["installed", "\"ips\"", "1 received", "weft.1"] {
        ensure!(said.contains(expected), "nothing of {expected} in what was said:\n{said}");
    }
    Ok(())
}
