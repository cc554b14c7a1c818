//! The systemd units in `conf/systemd`: well formed, and not so tight that a sync
//! cannot do its work. systemd judges them by what it has for that, without running.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{Place, Running, run, weft_bin_dir};
use serde_json::json;

use crate::stage::Stage;

const UNITS: [&str; 3] = ["weft-sync.service", "weft-sync.path", "weft-sync.timer"];
const HIT: usize = 1;

fn unit(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/systemd").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The words of a setting of the service.
fn setting(key: &str) -> Result<Vec<String>> {
    let text = unit("weft-sync.service")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let line = line.with_context(|| format!("no {key} in the service"))?;
    Ok(line.split_whitespace().map(str::to_owned).collect())
}

/// Puts the executables where the service expects them, in the node's view alone.
pub(crate) fn install(node: &Place, bin: &Path) -> Result<()> {
    let (view, bin) = ("/run/weft-bin", bin.display());
    node.sh(&format!(
        "mkdir {view}; mount -n --bind {bin} {view}; mount -n -t tmpfs opt /opt
         mkdir -p /opt/cni/bin; mount -n --move {view} /opt/cni/bin; rmdir {view}"
    ))
    .map(drop)
}

/// The capabilities that the service keeps, as setpriv's list of the bounding set.
pub(crate) fn kept_capabilities() -> Result<String> {
    let kept = setting("CapabilityBoundingSet")?;
    let kept =
        kept.iter().map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    Ok(format!("-all{}", kept.collect::<String>()))
}

/// What the service starts, with no other capabilities than `kept`.
pub(crate) fn start_command(kept: &str) -> Result<Vec<String>> {
    let confined = ["setpriv", "--no-new-privs", "--inh-caps", "-all", "--bounding-set", kept];
    let confined = confined.into_iter().map(str::to_owned);
    Ok(confined.chain(setting("ExecStart")?).collect())
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Result<()> {
    testing::need!(testing::program("systemd-analyze"));
    let dir = std::env::temp_dir().join(format!("weft-units-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let weft = weft_bin_dir()?.join("weft").display().to_string();
    let mut paths: Vec<PathBuf> = Vec::new();
    for name in UNITS {
        let path = dir.join(name);
        // It verifies that what is started is there.
        fs::write(&path, unit(name)?.replace("/opt/cni/bin/weft", &weft))?;
        paths.push(path);
    }
    let analyze = |words: &[&str], paths: &[PathBuf]| -> Result<String> {
        let output = run(Command::new("systemd-analyze").args(words).args(paths))?;
        ensure!(output.success(), "{output}");
        Ok(output.stderr)
    };
    let said = analyze(&["verify", "--man=no", "--generators=no"], &paths);
    let safe =
        analyze(&["security", "--offline=true", "--threshold=35", "--no-pager"], &paths[..1]);
    fs::remove_dir_all(&dir)?;
    ensure!(said?.is_empty(), "systemd-analyze verify has something to say");
    safe.map(drop)
}

/// The service's capabilities are enough for all that a sync does.
#[test]
fn the_services_capabilities_are_enough() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let sync = |kept: &str| node.run(&start_command(kept)?);
    let _kept = leave_leases(node)?;
    node.sh("ip link set eth0 mtu 1400; ip link del weft.1; nft flush ruleset
        echo 0 >/proc/sys/net/ipv4/ip_forward; rm -r /run/weft")?;
    let refused = sync("-all")?;
    ensure!(!refused.success(), "it needs no capability at all: {refused}");
    sync(&kept_capabilities()?)?.ok()?;
    let shown = stage.pods[HIT].run_ok(&["ip", "link", "show", "eth0"])?;
    ensure!(shown.contains("mtu 1350 "), "{shown}");
    ensure!(node.sysctl("net/ipv4/ip_forward")? == "1");
    let leases = node.leases("pods");
    ensure!(!leases.contains(&ORPHAN.into()), "the orphan is still there: {leases:?}");
    ensure!(leases.contains(&IN_USE.into()), "it does not see other processes: {leases:?}");
    ensure!(stage.is_converged(HIT)?);
    stage.traffic().map(drop)
}

/// Address of a lease that nobody uses.
const ORPHAN: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);
/// Address of a lease that is used in a namespace that only its process leads to.
const IN_USE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 78);

/// Makes two leases of which no interface is known, and that process.
fn leave_leases(node: &Place) -> Result<Running> {
    let script =
        format!("ip link set lo up; ip address add {IN_USE}/32 dev lo; echo ready; exec sleep 600");
    let mut user = node.spawn(&["unshare", "--net", "sh", "-ec", &script])?;
    user.lines()?.until("ready")?;
    let leases = [ORPHAN, IN_USE].map(|address| {
        format!("printf 'another\\r\\neth0' >/var/lib/cni/networks/pods/{address}\n")
    });
    node.sh(&leases.concat())?;
    Ok(user)
}

/// And so are its system calls.
#[test]
fn the_services_system_calls_are_enough() -> Result<()> {
    e2e::needs_lab!("strace", "systemd-analyze");
    let mut allowed = BTreeSet::new();
    for word in setting("SystemCallFilter")? {
        allow(&word, &mut allowed)?;
    }
    let stage = Stage::new(json!({}))?;
    let node = stage.node(HIT);
    let _kept = leave_leases(node)?;
    node.sh("ip link set eth0 mtu 1400; ip link del weft.1; nft flush ruleset; rm -r /run/weft")?;
    let weft = stage.bin.join("weft").display().to_string();
    node.run_ok(&["strace", "-f", "-qq", "-o", "/run/calls", &weft, "sync"])?;
    let calls = node.read_file("/run/calls")?;
    let names = calls.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('('));
    let names: BTreeSet<&str> = names.map(|(name, _)| name).collect();
    for name in ["setns", "sendto", "unlinkat"] {
        ensure!(names.contains(name), "no {name}: {names:?}");
    }
    // RestrictNamespaces refuses setns(2) with any other kind, and with none.
    let mut entered = calls.lines().filter(|line| line.contains("setns("));
    ensure!(entered.all(|line| line.contains("CLONE_NEWNET)")), "another namespace is entered");
    let refused: Vec<_> = names.iter().filter(|name| !allowed.contains(**name)).collect();
    ensure!(refused.is_empty(), "the service may not call {refused:?}");
    Ok(())
}

/// Adds a system call, or those of a set and of the sets in it.
fn allow(word: &str, allowed: &mut BTreeSet<String>) -> Result<()> {
    if !word.starts_with('@') {
        allowed.insert(word.to_owned());
        return Ok(());
    }
    let text =
        run(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", word]))?.ok()?;
    let items = text.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
    items.filter(|line| !line.is_empty()).try_for_each(|word| allow(word, allowed))
}
