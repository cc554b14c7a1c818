//! podman on a node of the lab, with all that it keeps in places of the node's own.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Lab, Node, run, weft_bin_dir};
use nix::fcntl::{Flock, FlockArg};

/// Shell: directories of the node's own where podman would use the machine's, plugins
/// where the documents say they are, and an image `busybox`. What podman is told beside
/// the quick start is owed to the lab: no systemd, no privilege to raise limits, no overlay.
const SET_UP: &str = r#"
mount -n -t tmpfs opt /opt
mkdir -p /opt/cni/bin
ln -t /opt/cni/bin/ -s "$BIN"/*
mount -n -t tmpfs shm /dev/shm
mount -n -t tmpfs -o mode=1777 tmp /var/tmp
rm -rf /etc/containers /var/lib/containers
mkdir -p /etc/containers/containers.conf.d
cat >/etc/containers/containers.conf.d/00-lab.conf <<END
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
END
cat >/etc/containers/storage.conf <<END
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
image=/var/tmp/image
mkdir -p $image/bin $image/etc
cp /bin/busybox $image/bin
for applet in sh sleep httpd ping wget ip; do ln -s busybox $image/bin/$applet; done
tar -C $image -c . | podman import --quiet - busybox
rm -r $image
"#;

/// The first version that runs no CNI plugins.
const WITHOUT_CNI: u32 = 5;

/// How long other tests of this machine may keep podman.
const TURN: Duration = Duration::from_secs(600);

/// Where podman 4 puts its control groups, whichever the hierarchy.
const CGROUPS: &str = "libpod_parent";

/// What podman needs.
pub(crate) fn prerequisites() -> Result<(), String> {
    e2e::permitted()?;
    testing::machine_root()?;
    testing::programs(&["podman", "conmon", "runc", "busybox"])
}

/// podman's version where that has no CNI any more.
pub(crate) fn without_cni() -> Result<Option<String>> {
    let version = run(Command::new("podman").arg("--version"))?.ok()?.trim().to_owned();
    let number = version.strip_prefix("podman version ").and_then(|rest| rest.split('.').next());
    let number: u32 = number.and_then(|text| text.parse().ok()).with_context(|| version.clone())?;
    Ok((number >= WITHOUT_CNI).then_some(version))
}

/// The right to run podman, one test of this machine at a time: control groups are the machine's, not a
/// node's. Given back with the control groups removed.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for the turn.
    pub(crate) fn take() -> Result<Turn> {
        let lock = File::open("/usr/bin/podman").context("/usr/bin/podman")?;
        let (sender, turn) = channel();
        thread::spawn(move || sender.send(Flock::lock(lock, FlockArg::LockExclusive)));
        let lock = turn.recv_timeout(TURN);
        let lock = lock.with_context(|| format!("/usr/bin/podman is locked for {TURN:?}"))?;
        let lock = lock.map_err(|(_, error)| error)?;
        Ok(Turn { _lock: lock })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in hierarchies {
            remove_empty(&hierarchy.path().join(CGROUPS));
        }
    }
}

/// Removes a control group and all below that have no processes.
fn remove_empty(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// A node with podman.
#[derive(Debug)]
pub(crate) struct Host<'a> {
    node: &'a Node,
    _turn: &'a Turn,
}

impl<'a> Host<'a> {
    /// Sets podman up.
    pub(crate) fn start(node: &'a Node, turn: &'a Turn) -> Result<Host<'a>> {
        let bin = weft_bin_dir()?;
        node.command(&["sh", "-e"]).env("BIN", bin).stdin(SET_UP).ok()?;
        Ok(Host { node, _turn: turn })
    }

    /// The node.
    pub(crate) fn node(&self) -> &'a Node {
        self.node
    }

    /// Runs podman with words as a shell splits them; it has to succeed.
    pub(crate) fn podman(&self, words: &str) -> Result<String> {
        self.node.sh(&format!("podman {words}"))
    }

    /// Runs the `weft` command; it has to succeed.
    pub(crate) fn weft(&self, words: &[&str]) -> Result<String> {
        self.node.run_ok(&[&["/opt/cni/bin/weft"], words].concat())
    }

    /// The address that podman says a container has.
    pub(crate) fn address(&self, container: &str) -> Result<IpAddr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let said = self.podman(&format!("inspect --format '{format}' {container}"))?;
        said.trim().parse().with_context(|| format!("{container}: address {said:?}"))
    }

    /// Ends every container's processes where they are and reboots the node.
    pub(crate) fn power_cut(&self, lab: &Lab) -> Result<()> {
        // Containers' monitors first: they would write down how the container ended.
        self.node.sh(
            "pids=$(podman ps --format '{{.Pid}}'); pkill -KILL conmon; kill -KILL $pids
             for mount in $(sed -n 's/^[^ ]* \\(\\/var\\/lib\\/containers[^ ]*\\) .*/\\1/p' /proc/mounts | sort -r); do
                 umount -n -l $mount
             done",
        )?;
        lab.reboot(self.node)
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // A container that a failed test left would keep its control groups.
        let _ = self.podman("pod rm --all --force --time 0");
        let _ = self.podman("rm --all --force --time 0");
    }
}
