//! Scripts, workflows and manifests, as the tools made for them judge.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Output, run_within};

use crate::stage::repository;

/// How long a check may take, which may have to fetch its tool.
const LIMIT: Duration = Duration::from_secs(600);

/// `hack/lint.sh` could not get a tool.
const UNAVAILABLE: i32 = 77;

fn lint(words: &[&str]) -> Result<Output> {
    run_within(LIMIT, Command::new(repository("hack/lint.sh")).args(words))
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

/// The output of a check for which the tools are here.
fn made(output: Output) -> Result<Output, String> {
    match output.status.code() {
        Some(UNAVAILABLE) => Err(said(&output)),
        _ => Ok(output),
    }
}

/// `content` with one thing changed, in a file of its own.
fn spoilt(name: &str, path: &str, from: &str, to: &str) -> Result<PathBuf> {
    let good = std::fs::read_to_string(repository(path))?;
    ensure!(good.contains(from), "{path} has no {from:?}");
    let file = std::env::temp_dir().join(format!("weft-{}-{name}", std::process::id()));
    std::fs::write(&file, good.replace(from, to))?;
    Ok(file)
}

fn is_refused(kind: &str, name: &str, change: (&str, &str, &str)) -> Result<()> {
    let (path, from, to) = change;
    let file = spoilt(name, path, from, to)?;
    let output = lint(&[kind, &file.display().to_string()]);
    std::fs::remove_file(&file)?;
    let output = output?;
    ensure!(!output.status.success(), "{to:?} passes: {}", said(&output));
    Ok(())
}

#[test]
fn shellcheck_finds_nothing() -> Result<()> {
    testing::need!(testing::program("shellcheck"));
    let output = testing::need!(made(lint(&["shell"])?));
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[test]
fn actionlint_finds_nothing() -> Result<()> {
    let output = testing::need!(made(lint(&["workflows"])?));
    ensure!(output.status.success(), "{}", said(&output));
    let change = (".github/workflows/ci.yml", "matrix.install }}", "matrix.nothing }}");
    is_refused("workflows", "workflow.yml", change)
}

#[test]
fn the_manifests_are_what_kubernetes_takes() -> Result<()> {
    let output = testing::need!(made(lint(&["manifests"])?));
    ensure!(output.status.success(), "{}", said(&output));
    for kind in ["daemonset/weft", "cronjob/weft-node-map", "role/weft-node-map"] {
        ensure!(said(&output).contains(kind), "{kind} was not looked at: {}", said(&output));
    }
    let change = ("conf/kubernetes/weft.yaml", "initContainers:", "initContainer:");
    is_refused("manifests", "manifest.yaml", change)
}
