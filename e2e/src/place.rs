//! Running commands inside: a node, a router or a pod is a [`Place`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;

use crate::holder::Holder;
use crate::process::{LIMIT, Output, Running};

/// The namespaces that a command runs in: a node's mount view, host name and process
/// list, and the network of the node or of one of its pods.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    holder: Arc<Holder>,
    /// `/proc/PID` of the process that holds the mount view.
    view: PathBuf,
    /// The network namespace as a path of this process.
    net: PathBuf,
}

impl Place {
    pub(crate) fn of_process(name: &str, holder: &Arc<Holder>, pid: u32) -> Place {
        let view = holder.inside(pid);
        let net = view.join("ns/net");
        Place { name: name.to_string(), holder: holder.clone(), view, net }
    }

    /// The same mount view with another network namespace, one bound at `path` in that view.
    pub(crate) fn with_net(&self, name: String, path: &str) -> Place {
        Place { name, net: self.path(path), ..self.clone() }
    }

    /// What this place is called: `worker1`, or `worker1/pod-a` for a pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace's inode, the number in `/proc/PID/ns/net`.
    pub fn netns_inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(&self.net).with_context(|| self.net.display().to_string())?.ino())
    }

    /// Runs a command to its end and returns what it said, whatever its exit status.
    /// Fails only if the command cannot be started, or is not over within [`LIMIT`].
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.command(argv).output()
    }

    /// Runs a command that has to succeed; returns its standard output. The error
    /// holds the command line, the place and everything that the command said.
    pub fn run_ok<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        self.command(argv).ok()
    }

    /// Runs a command that has to succeed and to print JSON; no output at all is
    /// `Value::Null` (`ip -j` prints nothing where there is nothing to list).
    pub fn json<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Value> {
        self.command(argv).json()
    }

    /// Feeds `script` to a shell; it has to succeed. Several steps cost one start.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.command(&["sh", "-e"]).stdin(script).ok()
    }

    /// Feeds `lines` to `ip -batch -`; every one has to succeed.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        self.command(&["ip", "-batch", "-"])
            .stdin(lines)
            .ok()
            .with_context(|| lines.to_string())?;
        Ok(())
    }

    /// Starts a command and leaves it running; it is killed when the guard is dropped.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Running> {
        self.command(argv).spawn()
    }

    /// A command with environment and standard input to be set.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Cmd<'_> {
        let argv = argv.iter().map(|word| word.as_ref().to_os_string()).collect();
        Cmd { place: self, argv, env: Vec::new(), stdin: Vec::new(), limit: LIMIT }
    }

    /// Where a file of this place's mount view is for this process. Symbolic links
    /// with absolute targets on the way lead out of the view; /run, /etc/weft,
    /// /etc/cni and /var/lib/cni hold none of the lab's making.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.view.join("root").join(inside.trim_start_matches('/'))
    }

    /// Writes a file in this place's mount view, whole or not at all (a temporary
    /// file, then a rename), and makes its directories.
    pub fn write_file(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(inside);
        let (dir, name) = path.parent().zip(path.file_name()).context("no file name")?;
        let temporary = dir.join(format!(".{}.new", name.to_string_lossy()));
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&temporary, content))
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {inside} on {}", self.name))
    }

    /// Reads a file of this place's mount view.
    pub fn read_file(&self, inside: &str) -> Result<String> {
        fs::read_to_string(self.path(inside))
            .with_context(|| format!("cannot read {inside} on {}", self.name))
    }

    /// The addresses that have a lease in a network of `host-local`'s, by its files' names.
    pub fn leases(&self, network: &str) -> Vec<IpAddr> {
        let files = fs::read_dir(self.path(&format!("/var/lib/cni/networks/{network}")));
        let names = files.into_iter().flatten().flatten().map(|file| file.file_name());
        let mut leases: Vec<IpAddr> =
            names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        leases.sort();
        leases
    }

    /// Reads a sysctl of this place's network, named by slashes: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        Ok(self.run_ok(&["cat", &format!("/proc/sys/{key}")])?.trim_end().to_string())
    }

    /// Sets sysctls of this place's network, each `(key with slashes, value)`.
    pub fn set_sysctls(&self, pairs: &[(&str, &str)]) -> Result<()> {
        let script: String =
            pairs.iter().map(|(key, value)| format!("echo {value} >/proc/sys/{key}\n")).collect();
        self.sh(&script).map(drop)
    }

    /// Starts a process inside and says when, measured right before.
    fn start(&self, mut command: Command) -> io::Result<(Child, Instant)> {
        if self.holder.userns {
            let enter = move || {
                seccompiler::apply_filter(&setgroups_does_nothing()?).map_err(io::Error::other)?;
                let started = Instant::now();
                command.spawn().map(|child| (child, started))
            };
            return in_a_thread(enter);
        }
        let namespaces = [
            (CloneFlags::CLONE_NEWNET, File::open(&self.net)?),
            (CloneFlags::CLONE_NEWUTS, File::open(self.view.join("ns/uts"))?),
            (CloneFlags::CLONE_NEWPID, File::open(self.view.join("ns/pid"))?),
            (CloneFlags::CLONE_NEWNS, File::open(self.view.join("ns/mnt"))?),
        ];
        // Looked at here, as the place's /proc does not show this process.
        let denied = setgroups_is_denied();
        // After CLONE_NEWPID the thread can start processes, but no threads.
        let enter = move || {
            unshare(CloneFlags::CLONE_FS)?;
            for (kind, file) in &namespaces {
                setns(file, *kind)?;
            }
            if denied {
                seccompiler::apply_filter(&setgroups_does_nothing()?).map_err(io::Error::other)?;
            }
            let started = Instant::now();
            command.spawn().map(|child| (child, started))
        };
        in_a_thread(enter)
    }

    /// The command as this process has to start it: itself where the starting thread
    /// enters the namespaces, through nsenter where a user namespace has to be
    /// entered too, which a process with threads may not do (setns(2)).
    fn process(&self, argv: &[OsString]) -> Command {
        if !self.holder.userns {
            let mut words = argv.iter();
            let mut command = Command::new(words.next().map_or(OsStr::new(""), |word| word));
            command.args(words);
            return command;
        }
        let mut command = Command::new("nsenter");
        command.args(self.nsenter().split_off(1)).args(argv);
        command
    }

    /// The command line that any process of the same user can put before a command to
    /// run it here, for as long as the lab lives.
    pub fn nsenter(&self) -> Vec<OsString> {
        let mut words = vec![OsString::from("nsenter")];
        if self.holder.userns {
            words.push(OsString::from("--preserve-credentials"));
            words.push(namespace("--user=", &self.holder.proc().join("ns/user")));
        }
        words.push(namespace("--mount=", &self.view.join("ns/mnt")));
        words.push(namespace("--uts=", &self.view.join("ns/uts")));
        words.push(namespace("--pid=", &self.view.join("ns/pid")));
        words.push(namespace("--net=", &self.net));
        words.push(OsString::from("--"));
        words
    }
}

/// Namespaces and filters belong to a thread: this one is made for them and ends with `work`.
fn in_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(io::Error::other("the entering thread panicked")))
}

/// Whether this process, root or not, is in a user namespace of an ordinary user.
fn setgroups_is_denied() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// A seccomp filter that makes setgroups(2) succeed without doing anything. An ordinary
/// user's namespace forbids the call (user_namespaces(7)), but tcpdump and daemons insist
/// on it before they drop privileges, even to what they already are.
fn setgroups_does_nothing() -> io::Result<BpfProgram> {
    let rules = [(libc::SYS_setgroups, Vec::new())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

fn namespace(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

fn line<S: AsRef<OsStr>>(argv: &[S]) -> String {
    let words: Vec<_> = argv.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    words.join(" ")
}

/// A command about to be run in a [`Place`].
#[derive(Debug)]
#[must_use = "a command does nothing until it is run"]
pub struct Cmd<'a> {
    place: &'a Place,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Cmd<'_> {
    /// Adds to the environment, which is otherwise this process's own.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_os_string(), value.as_ref().to_os_string()));
        self
    }

    /// Sets standard input, which is otherwise empty.
    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_vec();
        self
    }

    /// Sets how long it may take, which is otherwise [`LIMIT`]. A command that takes
    /// longer is killed, which is an error. After [`Cmd::spawn`] it is how long each wait
    /// for the command may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the command to its end, whatever its exit status. What it leaves behind, such
    /// as a daemon, is not waited for.
    pub fn output(self) -> Result<Output> {
        let input = if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() };
        self.start(input)?.output(&self.stdin)
    }

    /// Runs the command, which has to succeed; returns its standard output.
    pub fn ok(self) -> Result<String> {
        self.output()?.ok()
    }

    /// Runs the command as [`Place::json`] does.
    pub fn json(self) -> Result<Value> {
        let what = line(&self.argv);
        let text = self.ok()?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{what} prints no JSON: {text}"))
    }

    /// Starts the command with all three standard streams as pipes.
    pub fn spawn(self) -> Result<Running> {
        let mut running = self.start(Stdio::piped())?;
        if !self.stdin.is_empty() {
            let mut pipe = running.stdin()?;
            thread::spawn(move || pipe.write_all(&self.stdin));
        }
        Ok(running)
    }

    fn start(&self, stdin: Stdio) -> Result<Running> {
        let mut command = self.place.process(&self.argv);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("{}: {}", self.place.name, line(&self.argv));
        command.process_group(0);
        let holder = Some(self.place.holder.clone());
        Running::new(self.place.start(command), what, self.limit, holder)
    }
}
