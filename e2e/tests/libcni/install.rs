//! `weft install` and `weft uninstall`: what is there after them, after a refusal, and
//! after a run that was killed.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::{Families, Lab, Node, Output, Place, Spread, Step, Topology, conf};
use serde_json::{Value, json};

use crate::{CONFLIST, prepare};

/// The names of the executable.
const NAMES: [&str; 5] = ["veth", "host-local", "routing", "loopback", "weft"];

/// What is installed, from where.
const INPUT: [&str; 4] = ["--map", "/run/in/nodes.json", "--conf", "/run/in/10-pods.conflist"];

const BIN: &str = "/opt/cni/bin";
const TRACE: &str = "/run/trace";

/// A node with an /opt of its own; in /run/in are the lesson's map and conflist, in
/// /run/new the executable, and in /run/old another version of it.
struct Stage {
    lab: Lab,
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::start(Topology::nodes(1, Spread::Shared(1), Families::V4, Families::V4))?;
        let stage = Stage { lab };
        let node = stage.node();
        prepare(node)?;
        node.run_ok(&["rm", "-r", "/etc/weft", "/etc/cni"])?;
        node.write_file("/run/in/nodes.json", conf::NODES)?;
        node.write_file("/run/in/10-pods.conflist", conf::TUNNEL)?;
        Ok(stage)
    }

    fn node(&self) -> &Node {
        &self.lab.nodes()[0]
    }

    /// Runs `weft WORDS` of a version, after `wrapper`.
    fn run(&self, wrapper: &[String], version: &str, words: &[&str]) -> Result<Output> {
        let mut argv = wrapper.to_vec();
        argv.push(format!("/run/{version}/weft"));
        argv.extend(words.iter().map(ToString::to_string));
        self.node().run(&argv)
    }

    /// `weft COMMAND` with the map, the conflist and `more`; it has to succeed.
    fn weft(&self, version: &str, command: &str, more: &[&str]) -> Result<String> {
        self.run(&[], version, &[&[command], &INPUT[..], more].concat())?.ok()
    }

    /// Every file of the three directories: path, type, mode, size, links and where a
    /// symbolic one leads. No two files here that differ have the same size.
    fn listing(&self) -> Result<String> {
        self.node().sh("find /opt/cni/bin /etc/cni /etc/weft -mindepth 1 ! -type d \
             -printf '%p %y %m %s %n %l\\n' 2>/dev/null | sort")
    }

    /// The reference plugins, a symbolic link and a conflist by those names, as another
    /// program's installation leaves them.
    fn foreign(&self) -> Result<()> {
        self.node().sh(
            "rm -rf /opt/cni /etc/cni /etc/weft; mkdir -p /opt/cni/bin /etc/cni/net.d
             cp /usr/lib/cni/host-local /opt/cni/bin
             ln -s /usr/lib/cni/loopback /opt/cni/bin/loopback
             cp /usr/lib/cni/bridge /opt/cni/bin",
        )?;
        self.node().write_file(CONFLIST, foreign_conflist().to_string())
    }
}

fn foreign_conflist() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "bridge", "ipam": { "type": "host-local", "subnet": "10.9.0.0/24" } } ] })
}

/// What VERSION of an installed plugin says.
fn version(place: &Place, plugin: &str) -> Result<Output> {
    place.command(&[format!("{BIN}/{plugin}")]).env("CNI_COMMAND", "VERSION").stdin("{}").output()
}

/// Asserts that everything is there and works.
fn assert_installed(node: &Node) -> Result<()> {
    for plugin in &NAMES[..4] {
        let output = version(node, plugin)?;
        assert!(output.success() && output.stdout.contains("1.1.0"), "{plugin}: {output}");
    }
    node.run_ok(&[format!("{BIN}/weft"), "version".into()])?;
    assert_eq!(node.read_file(CONFLIST)?, conf::TUNNEL);
    assert_eq!(node.read_file("/etc/weft/nodes.d/nodes.json")?, conf::NODES);
    Ok(())
}

#[test]
fn five_names_one_file_map_and_conflist() -> Result<()> {
    e2e::needs_lab!("strip");
    let stage = Stage::new()?;
    let said = stage.weft("new", "install", &[])?;
    assert!(said.contains(CONFLIST) && said.contains("host-local"), "{said}");
    assert_installed(stage.node())?;
    let listing = stage.listing()?;
    let links: Vec<&str> = listing.lines().filter(|line| line.starts_with(BIN)).collect();
    assert!(links.len() == 5 && links.iter().all(|line| line.contains(" f 755 ")), "{listing}");
    assert!(links.iter().all(|line| line.ends_with(" 5 ")), "not one file: {listing}");
    assert_eq!(listing.lines().count(), 7, "{listing}");
    assert!(stage.weft("new", "install", &[])?.contains("unchanged"));
    assert_eq!(stage.listing()?, listing, "a second run is not the first one again");

    // Another version, by itself, from its own place.
    stage.weft("old", "install", &[])?;
    assert_ne!(stage.listing()?, listing);
    stage.weft("new", "install", &[])?;
    assert_eq!(stage.listing()?, listing);
    stage.node().run_ok(&[format!("{BIN}/weft"), "install".into()])?;
    assert_eq!(stage.listing()?, listing);

    let alone = stage.run(&[], "new", &["uninstall"])?;
    assert!(alone.success() && alone.stderr.contains(CONFLIST), "no warning: {alone}");
    stage.weft("new", "uninstall", &[])?;
    assert_eq!(stage.listing()?, "");
    assert!(stage.weft("new", "uninstall", &[])?.contains("nothing was there"));
    Ok(())
}

#[test]
fn what_is_not_ours_is_refused_or_kept_and_put_back() -> Result<()> {
    e2e::needs_lab!("strip", "/usr/lib/cni/ptp");
    let stage = Stage::new()?;
    stage.foreign()?;
    let before = stage.listing()?;
    let refused = stage.run(&[], "new", &[&["install"], &INPUT[..]].concat())?;
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    for path in [&format!("{BIN}/host-local"), &format!("{BIN}/loopback"), CONFLIST] {
        assert!(refused.stderr.contains(path), "{path}: {refused}");
    }
    assert!(refused.stderr.contains("--replace-foreign"), "{refused}");
    assert_eq!(stage.listing()?, before);
    assert!(!stage.node().path("/etc/weft").exists(), "a refusal made a directory");

    stage.weft("new", "install", &["--replace-foreign"])?;
    assert_installed(stage.node())?;
    let installed = stage.listing()?;
    // An upgrade is none of the foreign files' business.
    stage.weft("old", "install", &[])?;
    stage.weft("new", "install", &["--replace-foreign"])?;
    assert_eq!(stage.listing()?, installed);
    // No runtime takes the saved ones for anything.
    let saved = installed.lines().filter(|line| line.contains(".before-weft ")).count();
    assert_eq!(saved, 3, "{installed}");
    let networks = stage.node().run_ok(&["find", "/etc/cni/net.d", "-name", "*.conf*"])?;
    assert!(networks.contains(CONFLIST), "{networks}");

    // What another program puts there again is what has to come back.
    stage.node().sh("cp /usr/lib/cni/ptp /opt/cni/bin/.x
         mv /opt/cni/bin/.x /opt/cni/bin/host-local")?;
    let refused = stage.run(&[], "new", &["install"])?;
    assert!(refused.stderr.contains("host-local"), "{refused}");
    let said = stage.weft("new", "uninstall", &[])?;
    assert!(said.contains("another program's by now"), "{said}");
    let kept = stage.listing()?;
    assert!(kept.contains("host-local.before-weft"), "{kept}");
    stage.node().sh("cd /opt/cni/bin; mv host-local.before-weft host-local")?;
    assert_eq!(stage.listing()?, before);
    Ok(())
}

#[test]
fn what_nobody_could_use_is_refused_before_anything_changes() -> Result<()> {
    e2e::needs_lab!("strip");
    let stage = Stage::new()?;
    let node = stage.node();
    stage.weft("old", "install", &[])?;
    let before = stage.listing()?;
    let file = |name: &str, content: &str| node.write_file(&format!("/run/bad/{name}"), content);
    file("torn.conflist", "{ \"name\":")?;
    file("foreign.conflist", &foreign_conflist().to_string())?;
    file("10-pods.conflist.new", conf::TUNNEL)?;
    let mode = json!({ "name": "n", "plugins": [{ "type": "routing", "routingMode": "up" }] });
    file("mode.conflist", &mode.to_string())?;
    let nameless = json!({ "plugins": [{ "type": "veth", "ipam": { "type": "host-local" } }] });
    file("nameless.conflist", &nameless.to_string())?;
    file("empty.json", "{\"nodes\":[]}")?;
    file("twin.json", conf::NODES)?;
    for (option, name, says) in [
        ("--conf", "torn.conflist", "is not JSON"),
        ("--conf", "foreign.conflist", "neither veth nor routing"),
        ("--conf", "10-pods.conflist.new", ".conflist"),
        ("--conf", "mode.conflist", "routingMode"),
        ("--conf", "nameless.conflist", "name"),
        ("--conf", "missing.conflist", "/run/bad/missing.conflist"),
        ("--map", "empty.json", "/run/bad/empty.json"),
        // The same nodes as in nodes.json.
        ("--map", "twin.json", "conflict"),
    ] {
        let path = format!("/run/bad/{name}");
        let output = stage.run(&[], "new", &["install", option, &path])?;
        assert_eq!(output.status.code(), Some(1), "{name}: {output}");
        assert!(output.stderr.contains(says), "{says}: {output}");
        assert_eq!(stage.listing()?, before, "{name}");
    }
    node.sh("cd /opt/cni/bin; rm loopback; mkdir loopback")?;
    let before = stage.listing()?;
    let output = stage.run(&[], "new", &["install", "--replace-foreign"])?;
    assert!(output.stderr.contains("is a directory"), "{output}");
    assert_eq!(stage.listing()?, before);
    for words in [&["install", "--conf-dir", "/run"][..], &["uninstall", "--replace-foreign"]] {
        assert_eq!(stage.run(&[], "new", words)?.status.code(), Some(1), "{words:?}");
    }
    Ok(())
}

#[test]
fn executables_are_replaced_while_they_run() -> Result<()> {
    e2e::needs_lab!("strip");
    let stage = Stage::new()?;
    let node = stage.node();
    stage.weft("old", "install", &[])?;
    let mut waiting =
        node.command(&[format!("{BIN}/veth")]).env("CNI_COMMAND", "VERSION").spawn()?;
    let mut stdin = waiting.stdin()?;
    stage.weft("new", "install", &[])?;
    assert!(waiting.ended()?.is_none(), "it did not wait for its input");
    stdin.write_all(b"{}")?;
    drop(stdin);
    assert!(waiting.wait()?.success(), "the running one was disturbed");

    // Whoever starts a plugin meanwhile gets the old one or the new one.
    let done = AtomicBool::new(false);
    let upgrades = || -> Result<()> {
        for turn in 0..10 {
            stage.weft(["old", "new"][turn % 2], "install", &[])?;
        }
        Ok(())
    };
    let calls = || -> Result<usize> {
        let mut calls = 0;
        while !done.load(Ordering::Relaxed) {
            for plugin in &NAMES[..4] {
                version(node, plugin)?.ok()?;
                calls += 1;
            }
            let conflist = node.read_file(CONFLIST)?;
            ensure!(conflist == conf::TUNNEL, "{conflist}");
        }
        Ok(calls)
    };
    let (upgraded, called) = thread::scope(|scope| {
        let called = scope.spawn(calls);
        // Two at a time: the second waits for the first.
        let other = scope.spawn(upgrades);
        let upgraded = upgrades();
        let other = other.join();
        done.store(true, Ordering::Relaxed);
        (upgraded.and(other.unwrap_or_else(|_| anyhow::bail!("panicked"))), called.join())
    });
    upgraded?;
    let called = called.map_err(|_| anyhow::anyhow!("panicked"))??;
    assert!(called >= 20, "{called} calls are no test");
    assert_installed(node)
}

/// A system call that can change a file.
fn changes_files(step: &Step) -> bool {
    let names = ["mkdir", "fchmod", "write", "fsync", "linkat", "link", "rename", "unlink"];
    names.contains(&step.name.as_str()) || step.line.contains("O_CREAT")
}

/// What must be so after an install that was killed anywhere: each name stands for a
/// whole file (none is missing in an upgrade), another program's file is still there, and
/// the conflist comes last.
fn assert_nothing_lost(stage: &Stage, sizes: &[u64], reference: &str, upgrade: bool) -> Result<()> {
    let listing = stage.listing()?;
    let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split(' ').collect()).collect();
    let find = |path: &str| lines.iter().find(|line| line[0] == path);
    for name in NAMES {
        let Some(line) = find(&format!("{BIN}/{name}")) else {
            ensure!(!upgrade, "{name} is gone:\n{listing}");
            continue;
        };
        let whole = sizes.iter().any(|size| line[3] == size.to_string());
        ensure!(line[1] == "l" || whole, "{name} is not whole:\n{listing}");
    }
    for line in reference.lines() {
        let (path, rest) = line.split_once(' ').context("a path")?;
        let is = |words: &Vec<&str>| {
            [1, 3, 5].map(|i| words[i]) == {
                let rest: Vec<&str> = rest.split(' ').collect();
                [0, 2, 4].map(|i| rest[i])
            }
        };
        let saved = format!("{path}.before-weft");
        ensure!(
            find(path).is_some_and(is) || find(&saved).is_some_and(is),
            "{path} is lost:\n{listing}"
        );
    }
    if stage.node().read_file(CONFLIST)? == conf::TUNNEL {
        assert_installed(stage.node()).context("the conflist came before the others")?;
    }
    Ok(())
}

#[test]
fn a_killed_install_is_completed_by_the_next() -> Result<()> {
    e2e::needs_lab!("strip", "strace", "/usr/lib/cni/bridge");
    let stage = Stage::new()?;
    let node = stage.node();
    let words = [&["install", "--replace-foreign"], &INPUT[..]].concat();
    stage.foreign()?;
    let before = stage.listing()?;
    let traced = ["strace", "-o", TRACE].map(str::to_string);
    stage.run(&traced, "new", &words)?.ok()?;
    let whole = stage.listing()?;
    let size = |path: &str| Ok::<u64, anyhow::Error>(fs::metadata(node.path(path))?.len());
    let sizes = [
        size("/run/new/weft")?,
        size("/run/old/weft")?,
        size("/opt/cni/bin/host-local.before-weft")?,
    ];
    let trace = node.read_file(TRACE)?;
    let mut steps = Step::of(&trace, |line| line.contains("/proc/self/exe"));
    steps.retain(changes_files);
    ensure!(steps.len() > 30, "no system calls in the trace:\n{trace}");
    let nth = if std::env::var_os("WEFT_SOAK").is_some() { 1 } else { 3 };
    for (i, step) in steps.iter().enumerate().step_by(nth) {
        stage.foreign()?;
        // Every other time over an older weft, which takes fewer steps.
        let upgrade = i % 2 == 1;
        if upgrade {
            stage.run(&[], "old", &["install", "--replace-foreign"])?.ok()?;
        }
        let about = || format!("killed at {}", step.line);
        let killed = stage.run(&step.harmed("signal=KILL", TRACE), "new", &words)?;
        ensure!(upgrade || !killed.success(), "not {}: {killed}", about());
        assert_nothing_lost(&stage, &sizes, &before, upgrade).with_context(about)?;
        if i % 4 < 2 {
            stage.weft("new", "install", &["--replace-foreign"]).with_context(about)?;
            let now = stage.listing()?;
            ensure!(now == whole, "{}:\n{now}\nnot\n{whole}", about());
            assert_installed(node).with_context(about)?;
        }
        stage.weft("new", "uninstall", &[]).with_context(about)?;
        let now = stage.listing()?;
        ensure!(now == before, "{}, then uninstall:\n{now}\nnot\n{before}", about());
    }
    Ok(())
}

#[test]
fn a_killed_uninstall_is_completed_by_the_next() -> Result<()> {
    e2e::needs_lab!("strip", "strace", "/usr/lib/cni/bridge");
    let stage = Stage::new()?;
    let node = stage.node();
    let words = [&["uninstall"], &INPUT[..]].concat();
    stage.foreign()?;
    let before = stage.listing()?;
    stage.weft("new", "install", &["--replace-foreign"])?;
    stage.run(&["strace", "-o", TRACE].map(str::to_string), "new", &words)?.ok()?;
    let mut steps = Step::of(&node.read_file(TRACE)?, |line| line.starts_with("flock"));
    steps.retain(changes_files);
    ensure!(steps.len() > 10, "no system calls in the trace");
    for step in &steps {
        let about = || format!("killed at {}", step.line);
        stage.weft("new", "install", &["--replace-foreign"])?;
        let killed = stage.run(&step.harmed("signal=KILL", TRACE), "new", &words)?;
        ensure!(!killed.success(), "not {}: {killed}", about());
        if node.read_file(CONFLIST)? == conf::TUNNEL {
            assert_installed(node).with_context(about)?;
        }
        stage.weft("new", "uninstall", &[]).with_context(about)?;
        let now = stage.listing()?;
        ensure!(now == before, "{}:\n{now}\nnot\n{before}", about());
    }
    Ok(())
}
