//! Leases whose interface is gone, and for which no DEL ever comes: STATUS, GC and `weft sync`
//! free them, and no others.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Chain, Lab, Lines, Node, Place, Pod, Running, weft_bin_dir};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::call::{Call, REFERENCE, host_ends, leases, settled, veth_config};

/// Leases of the network, in the node's view.
const LEASES: &str = "/var/lib/cni/networks/pods";
/// A range that is in no node map.
const SUBNET: &str = "10.9.0.0/24";

/// Within how many STATUS calls one gets through, on a machine that is busy besides.
const TICKS_MOST: usize = 50;

/// What frees leases without a DEL.
#[derive(Clone, Copy, Debug)]
enum Tick {
    Status,
    Gc,
    Sync,
}

const TICKS: [Tick; 3] = [Tick::Status, Tick::Gc, Tick::Sync];

/// A node with a network, and its configuration.
struct Stage<'a> {
    node: &'a Node,
    config: Value,
    /// CNI_PATH of `veth`.
    path: String,
}

impl<'a> Stage<'a> {
    /// With the node's own ranges, or others. STATUS looks for orphans for a short time.
    fn new(lab: &'a Lab, ipam: Value) -> Result<Self> {
        e2e::go_first()?;
        let node = lab.node("worker1")?;
        let mut config = veth_config();
        config["ipam"] = ipam;
        let conflist = json!({ "cniVersion": "1.1.0", "name": "pods", "plugins": [
            { "type": "veth", "ipam": config["ipam"] }, { "type": "routing" } ] });
        Chain::new(node, conflist, &[]).install()?;
        Ok(Self { node, config, path: weft_bin_dir()?.display().to_string() })
    }

    fn call(&self, verb: &str, pod: &Pod) -> Result<Call> {
        let mut call = Call::new("veth", verb, pod, &self.config)?;
        call.set("CNI_PATH", &self.path);
        Ok(call)
    }

    /// A pod with an interface.
    fn pod(&self, name: &str) -> Result<Pod> {
        let pod = self.node.pod(name)?;
        self.call("ADD", &pod)?.ok(self.node)?;
        Ok(pod)
    }

    /// A pod whose ADD is killed when it has a lease and enters the namespace, where the
    /// interface is made.
    fn killed(&self, name: &str) -> Result<Pod> {
        let pod = self.node.pod(name)?;
        let add = self.call("ADD", &pod)?.wrapper(&at_the_namespace("KILL"));
        let (before, ends) = (leases(self.node), host_ends(self.node)?);
        let output = add.run(self.node)?;
        ensure!(output.status.code().is_none_or(|code| code == 137), "{output}");
        ensure!(leases(self.node).len() > before.len(), "it came to no lease: {output}");
        assert_eq!(host_ends(self.node)?, ends);
        Ok(pod)
    }

    /// One tick; GC is told that the attachments of `valid` are.
    fn tick(&self, tick: Tick, valid: &[&Pod]) -> Result<()> {
        let pod = valid.first().context("a pod")?;
        match tick {
            Tick::Status => self.status(pod),
            Tick::Gc => {
                let valid: Vec<Value> = valid
                    .iter()
                    .map(|pod| json!({ "containerID": pod.id(), "ifname": "eth0" }))
                    .collect();
                let mut config = self.config.clone();
                config["cni.dev/valid-attachments"] = valid.into();
                let mut call = Call::new("veth", "GC", pod, &config)?;
                call.set("CNI_PATH", &self.path);
                call.ok(self.node).map(drop)
            }
            Tick::Sync => self.weft("sync", 0).map(drop),
        }
    }

    /// STATUS, until one is not cut off by its limit: the next tick completes the work.
    fn status(&self, pod: &Pod) -> Result<()> {
        for _ in 0..TICKS_MOST {
            let output = self.call("STATUS", pod)?.run(self.node)?;
            ensure!(output.success(), "{output}");
            if !["cut off", "not known within"].iter().any(|text| output.stderr.contains(text)) {
                return Ok(());
            }
        }
        bail!("{TICKS_MOST} STATUS calls were all cut off");
    }

    fn weft(&self, word: &str, status: i32) -> Result<String> {
        let weft = weft_bin_dir()?.join("weft").display().to_string();
        let output = self.node.run(&[weft.as_str(), word])?;
        ensure!(output.status.code() == Some(status), "{output}");
        Ok(output.stdout)
    }

    fn check(&self, pod: &Pod, result: &Value) -> Result<()> {
        let mut config = self.config.clone();
        config["prevResult"] = result.clone();
        Call::new("veth", "CHECK", pod, &config)?.ok(self.node).map(drop)
    }
}

/// strace's command line that has a signal sent to what enters a network namespace first.
fn at_the_namespace(signal: &str) -> Vec<String> {
    let inject = format!("inject=setns:signal={signal}:when=1");
    let words = ["strace", "-e", "trace=setns", "-e", &inject];
    words.map(str::to_owned).to_vec()
}

fn of_the_node() -> Value {
    json!({ "type": "host-local" })
}

fn of_a_subnet() -> Value {
    json!({ "type": "host-local", "subnet": SUBNET })
}

/// containerd before 2.0 sends no DEL for a pod whose ADD it did not see the end of.
#[test]
fn the_leases_of_a_killed_add_are_freed() -> Result<()> {
    e2e::needs_lab!("strace");
    let lab = Lab::lesson_dual()?;
    settled(lab.node("worker1")?)?;
    let stage = Stage::new(&lab, of_the_node())?;
    let living = stage.pod("living")?;
    stage.weft("sync", 0)?;
    let held = leases(stage.node);
    assert_eq!(held.len(), 2, "{held:?}");
    for tick in TICKS {
        let pod = stage.killed(&format!("{tick:?}").to_lowercase())?;
        let lost: Vec<String> =
            leases(stage.node).into_iter().filter(|lease| !held.contains(lease)).collect();
        assert_eq!(lost.len(), 2, "{lost:?}");
        // Called by another interface plugin, it knows nothing of interfaces.
        let mut other = stage.config.clone();
        other["type"] = json!("ptp");
        Call::new("host-local", "STATUS", &living, &other)?.ok(stage.node)?;
        assert_eq!(leases(stage.node).len(), 4);
        let plan = stage.weft("plan", 2)?;
        let status = stage.weft("status", 0)?;
        for lease in &lost {
            ensure!(plan.contains(&format!("weft ipam release {lease}\n")), "{plan}");
        }
        ensure!(status.contains("2 change(s) to make"), "{status}");
        assert_eq!(leases(stage.node).len(), 4, "the plan has done something");
        stage.tick(tick, &[&living])?;
        assert_eq!(leases(stage.node), held, "{tick:?}");
        stage.weft("plan", 0)?;
        // The DEL that may come all the same, and the pod that is made in its place.
        stage.call("DEL", &pod)?.ok(stage.node)?;
        assert_eq!(leases(stage.node), held, "{tick:?}");
    }
    Ok(())
}

#[test]
fn the_lease_of_an_interface_that_vanished_is_freed() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    settled(lab.node("worker1")?)?;
    let stage = Stage::new(&lab, of_the_node())?;
    let living = stage.pod("living")?;
    let held = leases(stage.node);
    for tick in TICKS {
        let pod = stage.pod(&format!("{tick:?}").to_lowercase())?;
        stage.tick(tick, &[&living, &pod])?;
        assert_eq!(leases(stage.node).len(), 4, "{tick:?}");
        // With the namespace, or by hand.
        match tick {
            Tick::Status => pod.run_ok(&["ip", "link", "del", "eth0"]).map(drop)?,
            Tick::Gc | Tick::Sync => pod.delete()?,
        }
        let known = [&living, &pod];
        let valid = &known[..2 - usize::from(matches!(tick, Tick::Gc))];
        wait_for_host_ends(stage.node, 1)?;
        stage.tick(tick, valid)?;
        assert_eq!(leases(stage.node), held, "{tick:?}");
    }
    // GC believes the runtime that the attachment is valid.
    let pod = stage.pod("valid")?;
    pod.run_ok(&["ip", "link", "del", "eth0"])?;
    stage.tick(Tick::Gc, &[&living, &pod])?;
    assert_eq!(leases(stage.node).len(), 4);
    Ok(())
}

/// Waits until `count` host ends are left: the kernel takes a namespace apart some time after
/// its last user has gone.
fn wait_for_host_ends(node: &Node, count: usize) -> Result<()> {
    node.wait_until("host ends go with their pods", Duration::from_secs(20), || {
        Ok((host_ends(node)?.len() == count).then_some(()))
    })
}

/// An ADD that is stopped between its lease and its interface.
struct Stopped {
    strace: Running,
    output: Lines,
    /// Open to the end, for who writes to it.
    _trace: Lines,
}

impl Stopped {
    fn new(stage: &Stage, pod: &Pod) -> Result<Self> {
        // The process ID in the node's view, for the signal that lets it go on.
        let script = "echo $$ >/run/strace.pid; exec \"$@\"";
        let mut words = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
        words.extend(at_the_namespace("STOP"));
        let mut strace = stage.call("ADD", pod)?.wrapper(&words).spawn(stage.node)?;
        let (output, mut trace) = (strace.lines()?, strace.stderr_lines()?);
        trace.until("--- stopped by SIGSTOP ---")?;
        Ok(Self { strace, output, _trace: trace })
    }

    /// Lets it go on to its end; its result.
    fn go_on(mut self, node: &Place) -> Result<Value> {
        let children = "pid=$(cat /run/strace.pid); cat /proc/$pid/task/$pid/children";
        node.sh(&format!("kill -CONT $({children})"))?;
        let mut text = String::new();
        while let Some(line) = self.output.next_line()? {
            text += &line;
        }
        let status = self.strace.wait()?;
        ensure!(status.success(), "ADD: {status}: {text}");
        serde_json::from_str(&text).context(text)
    }
}

#[test]
fn a_pod_that_is_being_made_keeps_its_lease() -> Result<()> {
    e2e::needs_lab!("strace");
    let lab = Lab::lesson()?;
    let stage = Stage::new(&lab, of_a_subnet())?;
    let node = stage.node;
    let living = stage.pod("living")?;
    let pod = node.pod("being-made")?;
    let add = Stopped::new(&stage, &pod)?;
    let held = leases(node);
    assert_eq!(held, ["10.9.0.2", "10.9.0.3"]);
    for tick in TICKS {
        stage.tick(tick, &[&living])?;
        assert_eq!(leases(node), held, "{tick:?}");
    }
    ensure!(!stage.weft("plan", 0)?.contains("release"));
    // Where the process cannot be seen its lock can.
    let unseen = ["unshare", "--pid", "--fork", "--mount-proc"];
    stage.call("STATUS", &living)?.wrapper(&unseen).ok(node)?;
    assert_eq!(leases(node), held);
    // And where somebody has removed the lock the process can.
    node.sh("rm /run/weft/attachments.lock")?;
    for tick in TICKS {
        stage.tick(tick, &[&living])?;
        assert_eq!(leases(node), held, "{tick:?}");
    }
    let result = add.go_on(node)?;
    assert_eq!(result["ips"][0]["address"], "10.9.0.3/24", "{result}");
    stage.check(&pod, &result)?;
    for tick in [Tick::Status, Tick::Sync] {
        stage.tick(tick, &[&living])?;
        assert_eq!(leases(node), held, "{tick:?}");
    }
    Ok(())
}

/// Somebody at work on the leases is not waited for.
#[test]
fn status_does_not_wait_for_the_lock() -> Result<()> {
    e2e::needs_lab!("strace");
    let lab = Lab::lesson()?;
    let stage = Stage::new(&lab, of_a_subnet())?;
    let living = stage.pod("living")?;
    stage.killed("killed")?;
    let lock = File::open(stage.node.path(&format!("{LEASES}/lock")))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let output = stage.call("STATUS", &living)?.run(stage.node)?;
    ensure!(output.success() && output.wall < Duration::from_secs(1), "{output}");
    ensure!(output.stderr.is_empty(), "it was cut off: {output}");
    assert_eq!(leases(stage.node).len(), 2);
    drop(lock);
    stage.tick(Tick::Status, &[&living])?;
    assert_eq!(leases(stage.node).len(), 1);
    Ok(())
}

/// A pod of the reference `bridge` in the same network, as after a change of the plugin.
fn bridge_pod(node: &Node, name: &str) -> Result<Pod> {
    let pod = node.pod(name)?;
    let config = json!({ "cniVersion": "1.0.0", "name": "pods", "type": "bridge",
        "bridge": "br0", "isGateway": true, "ipam": of_a_subnet() });
    let bridge = format!("{REFERENCE}/bridge");
    let mut add = Call::new(&bridge, "ADD", &pod, &config)?;
    add.set("CNI_PATH", REFERENCE);
    add.ok(node)?;
    Ok(pod)
}

#[test]
fn pods_of_another_plugin_keep_their_leases() -> Result<()> {
    e2e::needs_lab!("/usr/lib/cni/bridge");
    let lab = Lab::lesson()?;
    let stage = Stage::new(&lab, of_a_subnet())?;
    let node = stage.node;
    let pods = [bridge_pod(node, "one")?, bridge_pod(node, "two")?, bridge_pod(node, "three")?];
    let living = stage.pod("living")?;
    // Without the interface, as old versions wrote it, and as no version did.
    node.sh(&format!("printf two >{LEASES}/10.9.0.3; echo someone, three >{LEASES}/10.9.0.4"))?;
    // Nothing in the host's own namespace knows of them.
    node.sh("ip neighbour flush all dev br0")?;
    let known = node.run_ok(&["ip", "neighbour", "show", "dev", "br0"])?;
    assert!(!known.contains("10.9.0."), "{known}");
    let held = leases(node);
    assert_eq!(held, ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5"]);
    for tick in [Tick::Status, Tick::Sync, Tick::Status] {
        stage.tick(tick, &[&living])?;
        assert_eq!(leases(node), held, "{tick:?}");
    }
    pods.iter().try_for_each(Pod::delete)?;
    wait_for_host_ends(node, 1)?;
    // Only of the first is it known which interface it had.
    stage.tick(Tick::Status, &[&living])?;
    assert_eq!(leases(node), &held[1..]);
    Ok(())
}

/// Another plugin called `host-local`, with a lease for each of two pods.
const FOREIGN: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
case $CNI_CONTAINERID in living) ip=10.9.0.2 ;; *) ip=10.9.0.3 ;; esac
printf '%s\r\n%s' "$CNI_CONTAINERID" "$CNI_IFNAME" >/var/lib/cni/networks/pods/$ip
echo "{ \"cniVersion\": \"1.1.0\", \"ips\": [{ \"address\": \"$ip/24\" }] }"
"#;

/// Where `veth` executes another IPAM plugin, the leases are that one's.
#[test]
fn the_leases_of_a_foreign_plugin_are_not_touched() -> Result<()> {
    e2e::needs_lab!("strace");
    let lab = Lab::lesson()?;
    let mut stage = Stage::new(&lab, of_a_subnet())?;
    let node = stage.node;
    let weft = weft_bin_dir()?.join("weft").display().to_string();
    node.sh(&format!("mkdir -p /run/mixed {LEASES}; cd /run/mixed; cp {weft} weft; ln weft veth"))?;
    node.write_file("/run/mixed/host-local", FOREIGN)?;
    node.sh("chmod +x /run/mixed/host-local")?;
    let own = std::mem::replace(&mut stage.path, "/run/mixed".to_owned());
    let living = stage.pod("living")?;
    let killed = stage.killed("killed")?;
    let held = leases(node);
    assert_eq!(held, ["10.9.0.2", "10.9.0.3"]);
    stage.tick(Tick::Status, &[&living])?;
    node.sh("/run/mixed/weft sync && /run/mixed/weft plan")?;
    assert_eq!(leases(node), held);
    ensure!(!node.path(&format!("{LEASES}/.weft")).exists(), "weft has looked at them");
    // With weft's own in that place they are.
    stage.path = own;
    stage.tick(Tick::Status, &[&living])?;
    assert_eq!(leases(node), ["10.9.0.2"]);
    stage.call("DEL", &killed)?.ok(node).map(drop)
}

/// With thousands of leases, a look at each of them is good for some time, while no lease
/// comes or goes.
#[test]
fn of_many_leases_each_is_looked_at_now_and_then() -> Result<()> {
    e2e::needs_lab!("strace");
    const EVIDENCE: &str = "/run/weft/pods.leases";
    let lab = Lab::lesson()?;
    let ipam = json!({ "type": "host-local", "subnet": "10.9.0.0/16" });
    let stage = Stage::new(&lab, ipam)?;
    let node = stage.node;
    let living = stage.pod("living")?;
    let addresses = |count: u32| (256..256 + count).map(|n| format!("10.9.{}.{}", n >> 8, n & 255));
    let routes = addresses(2400).map(|ip| format!("route add {ip} dev eth0 protocol 88\n"));
    node.ip_batch(&routes.collect::<String>())?;
    node.sh(&addresses(1900).map(|ip| lease_of(&ip)).collect::<String>())?;
    let weft = weft_bin_dir()?.join("weft").display().to_string();
    let status = || -> Result<()> {
        // Reads the files that are new, which may take longer than STATUS has.
        node.run_ok(&[weft.as_str(), "ipam"])?;
        let output = stage.call("STATUS", &living)?.run(node)?;
        ensure!(output.success() && output.stderr.is_empty(), "{output}");
        Ok(())
    };
    let vanish = |ip: &str| node.sh(&format!("ip route del {ip}")).map(drop);
    let lives = |ip: &str| node.path(&format!("{LEASES}/{ip}")).exists();
    status()?;
    ensure!(!node.path(EVIDENCE).exists(), "these are not many");
    vanish("10.9.1.1")?;
    status()?;
    ensure!(!lives("10.9.1.1"));

    node.sh(&addresses(2400).skip(1900).map(|ip| lease_of(&ip)).collect::<String>())?;
    status()?;
    ensure!(node.path(EVIDENCE).exists(), "nothing is remembered");
    vanish("10.9.2.1")?;
    node.sh(&format!("touch {EVIDENCE}"))?;
    status()?;
    ensure!(lives("10.9.2.1"), "all of them were looked at again");
    // Its time is over, and nothing has to happen for that.
    node.sh(&format!("touch -d '10 seconds ago' {EVIDENCE}"))?;
    status()?;
    ensure!(!lives("10.9.2.1"));

    status()?;
    vanish("10.9.3.1")?;
    node.sh(&format!("rm {EVIDENCE}"))?;
    status()?;
    ensure!(!lives("10.9.3.1"), "it is only a hint");

    status()?;
    vanish("10.9.4.1")?;
    stage.killed("killed")?;
    status()?;
    ensure!(!lives("10.9.4.1"), "a lease was made since");
    // The first pod's and all but four.
    assert_eq!(leases(node).len(), 2397);
    Ok(())
}

fn lease_of(ip: &str) -> String {
    format!("printf 'pod-{ip}\\r\\neth0' >{LEASES}/{ip}\n")
}
