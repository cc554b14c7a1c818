//! The process that holds a lab's namespaces, and how they vanish with it.
//!
//! A lab is one PID namespace. Its PID 1 reads from a pipe whose other end only
//! this process has; when this process ends, however it ends, the pipe ends, PID 1
//! exits, the kernel kills every process of the namespace, and with the last
//! process and the last mount view go all network namespaces. Nothing is cleaned
//! up by code that might not run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::process::{self, Running};

const HOLDER_SCRIPT: &str = include_str!("holder.sh");
const NODE_SCRIPT: &str = include_str!("node.sh");

/// The running holder; dropping it ends the lab and waits until its last process is gone.
#[derive(Debug)]
pub(crate) struct Holder {
    unshare: Mutex<Running>,
    stdin: Mutex<Option<ChildStdin>>,
    /// `/proc/PID` of PID 1, seen from here.
    proc: PathBuf,
    /// Whether the lab lives in a user namespace of its own.
    pub(crate) userns: bool,
}

impl Holder {
    /// Starts the holder and the holding process of each named node; the map gives
    /// each node's PID inside the lab.
    pub(crate) fn start(names: &[&str]) -> Result<(Holder, HashMap<String, u32>)> {
        let userns = !testing::is_privileged();
        let mut unshare = process::spawn(&mut holder_command(userns, names))?;
        let stdin = unshare.stdin()?;
        let hint = if userns {
            "; without CAP_SYS_ADMIN a lab needs user namespaces (sysctl user.max_user_namespaces)"
        } else {
            ""
        };
        match read_ready(&mut unshare, names.len()) {
            Ok((outside, pids)) => {
                let (unshare, stdin) = (Mutex::new(unshare), Mutex::new(Some(stdin)));
                let proc = PathBuf::from(format!("/proc/{outside}"));
                Ok((Holder { unshare, stdin, proc, userns }, pids))
            }
            Err(error) => {
                drop(stdin);
                unshare.kill();
                let said = unshare.stderr_lines().and_then(|mut lines| lines.rest());
                let said = said.map_or_else(|error| error.to_string(), |lines| lines.join("\n"));
                Err(error.context(format!("the lab does not start: {said}{hint}")))
            }
        }
    }

    /// `/proc/PID` of a process inside the lab, as a path of this process.
    pub(crate) fn inside(&self, pid: u32) -> PathBuf {
        self.proc.join("root/proc").join(pid.to_string())
    }

    /// `/proc/PID` of the lab's PID 1.
    pub(crate) fn proc(&self) -> &Path {
        &self.proc
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let stdin = self.stdin.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(stdin.take());
        let unshare = self.unshare.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without a panic, which would end the process if there is one already.
        if let Err(error) = unshare.wait() {
            eprintln!("the lab does not end: {error:#}");
        }
    }
}

fn holder_command(userns: bool, names: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    if userns {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--net", "--uts"])
        .args(["sh", "-c", HOLDER_SCRIPT, "sh"])
        .args(names)
        .env("NODE_SCRIPT", NODE_SCRIPT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Reads "holder PID" and one "ready NAME PID" a node from the holder's standard output.
fn read_ready(unshare: &mut Running, nodes: usize) -> Result<(u32, HashMap<String, u32>)> {
    let mut lines = unshare.lines()?;
    let mut outside = None;
    let mut pids = HashMap::new();
    while let Some(line) = lines.next_line()? {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["holder", pid] => outside = Some(pid.parse()?),
            ["ready", name, pid] => {
                pids.insert(name.to_string(), pid.parse()?);
            }
            ["failed", name] => bail!("node {name} cannot be set up"),
            _ => bail!("the holder said {line:?}"),
        }
        if let (Some(outside), true) = (outside, pids.len() == nodes) {
            return Ok((outside, pids));
        }
    }
    bail!("the holder ended")
}
