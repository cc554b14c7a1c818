//! ADD made to fail, or killed, at each of its system calls in turn.
//!
//! strace(1) counts a process's calls of each name and makes one of them fail, or
//! kills the process there. Whatever the step, a failed ADD leaves nothing, and after
//! a killed one DEL, and GC, find and remove everything.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Lab, Node, Pod, Step};
use serde_json::{Value, json};

use crate::call::{Call, failure, host_ends, leases, settled, veth_config};

/// System calls that can fail for reasons outside of the process, and how.
const FAULTS: [(&str, &str); 32] = [
    ("openat", "EMFILE"),
    ("read", "EIO"),
    ("pread64", "EIO"),
    ("write", "ENOSPC"),
    ("pwrite64", "ENOSPC"),
    ("ftruncate", "ENOSPC"),
    ("socket", "ENOMEM"),
    ("bind", "ENOMEM"),
    ("setsockopt", "ENOPROTOOPT"),
    ("sendto", "ENOBUFS"),
    ("sendmsg", "ENOBUFS"),
    ("recvfrom", "ENOBUFS"),
    ("recvmsg", "ENOBUFS"),
    ("setns", "EPERM"),
    ("fcntl", "ENOLCK"),
    ("flock", "ENOLCK"),
    ("mkdir", "ENOSPC"),
    ("mkdirat", "ENOSPC"),
    ("linkat", "ENOSPC"),
    ("rename", "ENOSPC"),
    ("renameat", "ENOSPC"),
    ("renameat2", "ENOSPC"),
    ("unlink", "EIO"),
    ("unlinkat", "EIO"),
    ("utimensat", "EIO"),
    ("memfd_create", "ENOMEM"),
    ("getdents64", "EIO"),
    ("readlink", "EIO"),
    ("statx", "EIO"),
    ("newfstatat", "EIO"),
    ("fstatfs", "EIO"),
    ("uname", "EFAULT"),
];

/// Where the trace of a run is, on the node.
const TRACE: &str = "/run/trace";

/// What is done to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Fail,
    Kill,
}

/// A plugin whose ADD is harmed, on a node with one pod.
struct Victim<'a> {
    node: &'a Node,
    pod: &'a Pod,
    plugin: &'static str,
    config: Value,
    add: Call,
    del: Call,
    gc: Call,
    /// What is there before the ADD, by [`Victim::traces`].
    clean: String,
}

impl<'a> Victim<'a> {
    fn new(node: &'a Node, pod: &'a Pod, plugin: &'static str, config: Value) -> Result<Self> {
        let call = |verb: &str, config: &Value| Call::new(plugin, verb, pod, config);
        let mut valid = config.clone();
        valid["cni.dev/valid-attachments"] = json!([]);
        let (add, del, gc) = (call("ADD", &config)?, call("DEL", &config)?, call("GC", &valid)?);
        Ok(Self { node, pod, plugin, config, add, del, gc, clean: String::new() })
    }

    fn check(&self, result: &Value) -> Result<()> {
        let config = with_prev(&self.config, result);
        Call::new(self.plugin, "CHECK", self.pod, &config)?.ok(self.node).map(drop)
    }

    /// The system calls of a whole ADD from the first that is the plugin's own.
    fn steps(&self) -> Result<Vec<Step>> {
        let add = self.add.clone().wrapper(&["strace", "-o", TRACE]);
        add.ok(self.node)?;
        let text = self.node.read_file(TRACE)?;
        self.del.ok(self.node)?;
        let steps = Step::of(&text, |line| line.starts_with("read(0,"));
        ensure!(steps.len() > 20, "no system calls in the trace:\n{text}");
        Ok(steps)
    }

    /// Links, routes, neighbours, leases: what an attachment is made of.
    fn traces(&self) -> Result<String> {
        let script = format!(
            "ip -o link show | sed 's/ state [A-Z]*//'; ip route; ip -6 route
             ip -o addr; nsenter --net={pod} ip -o link; nsenter --net={pod} ip -o addr",
            pod = self.pod.netns()
        );
        // Duplicate address detection ends by itself.
        let listing = self.node.sh(&script)?.replace(" tentative", "");
        Ok(format!("{listing}{:?}", leases(self.node)))
    }

    fn assert_clean(&self) -> Result<()> {
        let now = self.traces()?;
        ensure!(now == self.clean, "something is left:\n{now}\nbefore:\n{}", self.clean);
        Ok(())
    }

    /// The ADD works as if nothing had happened, and DEL undoes it.
    fn works(&self) -> Result<()> {
        let result = self.add.ok(self.node).context("the ADD that follows")?;
        self.check(&result).context("CHECK of the ADD that follows")?;
        self.del
            .ok(self.node)
            .context("DEL of the ADD that follows")
            .and_then(|_| self.assert_clean())
    }

    /// ADD with a fault; whatever comes of it must be put right.
    fn harm(&self, step: &Step, harm: Harm, by_gc: bool) -> Result<()> {
        let output = self.add.clone().wrapper(&strace(step, harm)).run(self.node)?;
        let line = &step.line;
        let cleanup = if by_gc { &self.gc } else { &self.del };
        let unprinted = line.starts_with("write(1,");
        let aborted = line.starts_with("setns(") && output.status.code().is_none();
        match output.status.code() {
            // The step does not matter to this ADD: then it has to be a whole one.
            Some(0) => {
                let result =
                    serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
                self.check(&result).context("CHECK of an ADD that worked")?;
                cleanup.ok(self.node)?;
            }
            Some(1) if !unprinted => {
                failure(&output)?;
                self.assert_clean().with_context(|| output.to_string())?;
                cleanup.ok(self.node)?;
            }
            // Nobody was told of the result; or there is no way back to the host.
            _ if harm == Harm::Kill || unprinted || aborted => {
                self.status_frees_leases().with_context(|| output.to_string())?;
                cleanup.ok(self.node).with_context(|| output.to_string())?;
            }
            _ => bail!("neither done nor refused: {output}"),
        }
        self.assert_clean().with_context(|| format!("after {output}"))?;
        self.works()
    }

    /// Without a DEL, STATUS frees the leases of an ADD that came to no interface.
    fn status_frees_leases(&self) -> Result<()> {
        Call::new(self.plugin, "STATUS", self.pod, &self.config)?.ok(self.node)?;
        let (ends, left) = (host_ends(self.node)?, leases(self.node));
        ensure!(left.is_empty() == ends.is_empty(), "leases {left:?}, host ends {ends:?}");
        Ok(())
    }

    /// Harms every `nth` step; all with WEFT_SOAK.
    fn harm_all(&self, harm: Harm, nth: usize) -> Result<()> {
        let steps = chosen(&self.steps()?, harm, nth);
        let mut failures = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            if let Err(error) = self.harm(step, harm, i % 2 == 1) {
                failures.push(format!("== {harm:?} at {} {}: {error:#}", step.number, step.line));
                self.del.run(self.node)?;
            }
        }
        let count = failures.len();
        ensure!(failures.is_empty(), "{count} of {} steps:\n{}", steps.len(), failures.join("\n"));
        Ok(())
    }
}

/// Every `nth` of the steps that can be harmed; all of them with WEFT_SOAK.
fn chosen(steps: &[Step], harm: Harm, nth: usize) -> Vec<Step> {
    let nth = if std::env::var_os("WEFT_SOAK").is_some() { 1 } else { nth };
    let can_be_harmed = |step: &&Step| match harm {
        Harm::Fail => FAULTS.iter().any(|(name, _)| *name == step.name),
        Harm::Kill => step.name != "exit_group",
    };
    steps.iter().filter(can_be_harmed).step_by(nth).cloned().collect()
}

/// What strace is told to do to the step.
fn strace(step: &Step, harm: Harm) -> Vec<String> {
    let errno = FAULTS.iter().find(|(call, _)| *call == step.name).map_or("EIO", |(_, e)| *e);
    match harm {
        Harm::Fail => step.harmed(&format!("error={errno}"), TRACE),
        Harm::Kill => step.harmed("signal=KILL", TRACE),
    }
}

fn with_prev(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

fn veth(nth: usize, harm: Harm) -> Result<()> {
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let mut victim = Victim::new(node, &pod, "veth", veth_config())?;
    // Once, for what the host needs for all pods.
    victim.add.ok(node)?;
    victim.del.ok(node)?;
    victim.clean = victim.traces()?;
    assert!(host_ends(node)?.is_empty() && leases(node).is_empty(), "{}", victim.clean);
    victim.harm_all(harm, nth)
}

#[test]
fn veth_add_fails_at_each_step() -> Result<()> {
    e2e::needs_lab!("strace");
    veth(5, Harm::Fail)
}

#[test]
fn veth_add_killed_at_each_step() -> Result<()> {
    e2e::needs_lab!("strace");
    veth(11, Harm::Kill)
}

/// `routing` ADD on a node that has nothing between nodes yet, harmed at each step:
/// the next ADD brings everything.
fn routing(nth: usize, harm: Harm) -> Result<()> {
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let result = Call::new("veth", "ADD", &pod, &veth_config())?.ok(node)?;
    let mut config = veth_config();
    config["type"] = json!("routing");
    let config = with_prev(&config, &result);
    let victim = Victim::new(node, &pod, "routing", config)?;
    let weft = e2e::weft_bin_dir()?.join("weft").display().to_string();
    let conflist = json!({ "cniVersion": "1.1.0", "name": "pods", "plugins": [
        { "type": "veth", "ipam": { "type": "host-local" } }, { "type": "routing" } ] });
    node.write_file("/etc/cni/net.d/10-pods.conflist", conflist.to_string())?;
    let teardown = || node.run_ok(&[weft.as_str(), "teardown"]);
    let steps = victim.steps()?;
    let whole = victim.traces()?;
    let mut failures = Vec::new();
    for step in &chosen(&steps, harm, nth) {
        teardown()?;
        let outcome = victim.harm_sync(step, harm, &whole);
        failures.extend(outcome.err().map(|error| format!("== at {}: {error:#}", step.line)));
    }
    ensure!(failures.is_empty(), "{} of them:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

impl Victim<'_> {
    /// ADD of a plugin that keeps nothing for an attachment, harmed; the next one has to
    /// reach `whole`.
    fn harm_sync(&self, step: &Step, harm: Harm, whole: &str) -> Result<()> {
        let output = self.add.clone().wrapper(&strace(step, harm)).run(self.node)?;
        let unprinted = step.line.starts_with("write(1,");
        match output.status.code() {
            Some(0) => {}
            Some(1) if !unprinted => drop(failure(&output)?),
            _ if harm == Harm::Kill || unprinted || step.name == "setns" => {}
            _ => bail!("neither done nor refused: {output}"),
        }
        self.del.ok(self.node).with_context(|| output.to_string())?;
        self.add.ok(self.node).with_context(|| format!("after {output}"))?;
        let now = self.traces()?;
        ensure!(
            without_indices(&now) == without_indices(whole),
            "after {output}\n{now}\nnot\n{whole}"
        );
        Ok(())
    }
}

/// Listings without interface numbers, sorted: a device made anew has another number.
fn without_indices(listing: &str) -> Vec<String> {
    let word = |line: &str| line.split_once(": ").map_or(line, |(_, rest)| rest).to_owned();
    let mut lines: Vec<String> = listing.lines().map(word).collect();
    lines.sort();
    lines
}

#[test]
fn routing_add_fails_at_each_step() -> Result<()> {
    e2e::needs_lab!("strace");
    routing(9, Harm::Fail)
}

#[test]
fn routing_add_killed_at_each_step() -> Result<()> {
    e2e::needs_lab!("strace");
    routing(17, Harm::Kill)
}
