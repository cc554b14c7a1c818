//! Processes, and what they print. Nothing waits for one without a limit, and the error
//! at the limit names the command, where it ran, and what it had printed.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::holder::Holder;

/// How long a process may take to end, or to print what is waited for, unless
/// [`crate::Cmd::limit`] says otherwise.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long a killed process may take to end.
const KILLED: Duration = Duration::from_secs(10);

/// How much of its input the error of a command that did not end shows.
const SHOWN_INPUT: usize = 4000;

/// Gives this thread, and what it starts, priority over all else on the processors, where
/// the machine's root may: the limits on STATUS are on what weft does and waits for.
pub fn go_first() -> Result<()> {
    let thread = nix::unistd::gettid().to_string();
    run(Command::new("renice").args(["--priority", "-20", "--pid", &thread])).map(drop)
}

/// What a finished command said.
#[derive(Clone, Debug)]
pub struct Output {
    what: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, invalid UTF-8 replaced.
    pub stderr: String,
    /// From just before the process was started (inside the namespaces, where no user
    /// namespace is in the way) to its end.
    pub wall: Duration,
}

impl Output {
    /// Whether the exit status was 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The standard output of a command that has to have succeeded.
    pub fn ok(self) -> Result<String> {
        if !self.success() {
            bail!("{self}");
        }
        Ok(self.stdout)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (out, err) = (self.stdout.trim_end(), self.stderr.trim_end());
        write!(f, "{}: {}\nstdout: {out}\nstderr: {err}", self.what, self.status)
    }
}

/// Runs a command of this machine, in no place, to its end: with empty standard input,
/// within [`LIMIT`] and whatever its exit status.
pub fn run(command: &mut Command) -> Result<Output> {
    run_within(LIMIT, command)
}

/// The same with another limit.
pub fn run_within(limit: Duration, command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = spawn(command)?;
    running.limit = limit;
    running.output(&[])
}

/// Starts a command of this machine, in no place, with its standard streams as they are
/// set. Each wait for it takes at most [`LIMIT`].
pub fn spawn(command: &mut Command) -> Result<Running> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let what = words.join(" ");
    let started = Instant::now();
    let child = command.process_group(0).spawn();
    Running::new(child.map(|child| (child, started)), what, LIMIT, None)
}

/// A command that runs on; killed, with all of its process group, when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: Ended,
    started: Instant,
    /// The command and its place.
    what: String,
    limit: Duration,
    /// The lab that it runs in. A lab ends when the last of its processes is reaped, so it
    /// must not end before this value.
    holder: Option<Arc<Holder>>,
}

impl Running {
    /// A child that leads a process group, and when it was started: whatever it starts is
    /// killed with it, and an interrupt typed at the terminal does not reach it.
    pub(crate) fn new(
        child: io::Result<(Child, Instant)>,
        what: String,
        limit: Duration,
        holder: Option<Arc<Holder>>,
    ) -> Result<Running> {
        let (mut child, started) = child.with_context(|| what.clone())?;
        match Ended::of(&child) {
            Ok(ended) => Ok(Running { child, ended, started, what, limit, holder }),
            Err(error) => {
                let _ = child.kill();
                Err(error).context(what)
            }
        }
    }

    /// Takes the pipe to its standard input; dropping it is its end of file.
    pub fn stdin(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().with_context(|| format!("{}: stdin is taken", self.what))
    }

    /// Takes the pipe from its standard output, for a thread that reads it to the end;
    /// see [`Running::lines`] for one that waits for what is printed.
    pub fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().with_context(|| format!("{}: stdout is taken", self.what))
    }

    /// Takes its standard output as lines. Once they are dropped, it prints to a broken pipe.
    pub fn lines(&mut self) -> Result<Lines> {
        let pipe = OwnedFd::from(self.stdout()?);
        Ok(Lines::new(pipe, self.what.clone(), self.limit))
    }

    /// Takes its standard error as lines.
    pub fn stderr_lines(&mut self) -> Result<Lines> {
        let pipe = self.child.stderr.take();
        let pipe = pipe.with_context(|| format!("{}: stderr is taken", self.what))?;
        Ok(Lines::new(OwnedFd::from(pipe), self.what.clone(), self.limit))
    }

    /// Its process ID as this process sees it (nsenter's, for an ordinary user's lab).
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; kills it at the limit, which is then the error.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if !self.ended.within(self.limit)? {
            self.kill();
            bail!("{}", self.too_long());
        }
        self.child.wait().with_context(|| self.what.clone())
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if !self.ended.within(Duration::ZERO)? {
            return Ok(None);
        }
        self.child.wait().map(Some).with_context(|| self.what.clone())
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        killpg(pid(&self.child), signal).with_context(|| format!("{}: {signal}", self.what))
    }

    /// Gives it `input` and waits for its end. What it has printed until then is its
    /// output: a daemon that it leaves behind may keep the pipes open.
    pub(crate) fn output(mut self, input: &[u8]) -> Result<Output> {
        let mut stdin = Input::new(self.child.stdin.take(), input)?;
        let mut stdout = Printed::new(self.child.stdout.take().map(OwnedFd::from));
        let mut stderr = Printed::new(self.child.stderr.take().map(OwnedFd::from));
        let end = self.started + self.limit;
        let in_time = loop {
            let left = end.saturating_duration_since(Instant::now());
            let fds = [Some(self.ended.poll_fd()), stdin.fd(), stdout.fd(), stderr.fd()];
            let [ended, hungry, printed, complained] = ready(fds, left)?;
            if ended || left.is_zero() {
                break ended;
            }
            if hungry {
                stdin.write();
            }
            if printed {
                stdout.read()?;
            }
            if complained {
                stderr.read()?;
            }
        };
        if !in_time {
            self.kill();
        }
        let (stdout, stderr) = (stdout.rest()?, stderr.rest()?);
        if !in_time {
            let (out, err) = (stdout.trim_end(), stderr.trim_end());
            bail!("{}{}\nstdout: {out}\nstderr: {err}", self.too_long(), shown(input));
        }
        let wall = self.ended.when().saturating_duration_since(self.started);
        let status = self.child.wait().with_context(|| self.what.clone())?;
        Ok(Output { what: self.what.clone(), status, stdout, stderr, wall })
    }

    fn too_long(&self) -> String {
        format!("{}: still running after {:?}; killed", self.what, self.limit)
    }

    /// Kills it and what it started, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Once it has ended, what it left behind is meant to stay.
        if matches!(self.ended.within(Duration::ZERO), Ok(false)) {
            // nsenter waits for the command it started and has to reap it: an orphan that
            // the outer init does not reap would keep the lab's PID namespace alive.
            let nsenter = self.holder.as_ref().is_some_and(|holder| holder.userns);
            if nsenter && kill_children(self.child.id()) {
                let _ = self.ended.within(KILLED);
            }
            // Not reaped yet, so its number is still its own.
            let _ = killpg(pid(&self.child), Signal::SIGKILL);
        }
        match self.ended.within(KILLED) {
            Ok(true) => drop(self.child.wait()),
            _ => eprintln!("{}: killed, and still there after {KILLED:?}", self.what),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills the children of a process; whether there were any.
fn kill_children(pid: u32) -> bool {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<i32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    for child in &children {
        let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
    }
    !children.is_empty()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// The input at the end of an error, where there was one.
fn shown(input: &[u8]) -> String {
    if input.is_empty() {
        return String::new();
    }
    let text = String::from_utf8_lossy(input);
    let cut: String = text.chars().take(SHOWN_INPUT).collect();
    format!("\nstdin: {}{}", cut.trim_end(), if cut.len() < text.len() { " …" } else { "" })
}

/// Which of some file descriptors can be read or written now, or have reached their end;
/// waits for one.
fn ready<const N: usize>(fds: [Option<PollFd>; N], left: Duration) -> Result<[bool; N]> {
    // Rounded up: a rest of less than a millisecond would be asked for again and again.
    let round = u128::from(!left.is_zero());
    let timeout = PollTimeout::try_from(left.as_millis() + round).unwrap_or(PollTimeout::MAX);
    let mut asked: Vec<PollFd> = fds.iter().flatten().cloned().collect();
    match poll(&mut asked, timeout) {
        Err(Errno::EINTR) => return Ok([false; N]),
        result => result.context("poll")?,
    };
    let mut answers = asked.iter().map(|fd| fd.any().unwrap_or_default());
    Ok(fds.map(|fd| fd.is_some() && answers.next().unwrap_or_default()))
}

/// The end of a child, as something to poll.
#[derive(Debug)]
struct Ended {
    /// Has reached its end when the child has.
    stream: UnixStream,
    watcher: Option<JoinHandle<Instant>>,
    when: Option<Instant>,
}

impl Ended {
    fn of(child: &Child) -> io::Result<Ended> {
        let (stream, open) = UnixStream::pair()?;
        let pid = pid(child);
        let watch = move || {
            // The child is not reaped, so that its number stays its own.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
            let when = Instant::now();
            drop(open);
            when
        };
        let watcher = thread::Builder::new().spawn(watch)?;
        Ok(Ended { stream, watcher: Some(watcher), when: None })
    }

    fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)
    }

    /// Whether the child has ended, or does so within a time.
    fn within(&self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let [ended] = ready([Some(self.poll_fd())], left)?;
            if ended || left.is_zero() {
                return Ok(ended);
            }
        }
    }

    /// When the child ended, which it has.
    fn when(&mut self) -> Instant {
        if let Some(watcher) = self.watcher.take() {
            self.when = watcher.join().ok();
        }
        self.when.unwrap_or_else(Instant::now)
    }
}

/// What a command still has to read.
struct Input<'a> {
    pipe: Option<ChildStdin>,
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(pipe: Option<ChildStdin>, bytes: &'a [u8]) -> Result<Input<'a>> {
        let pipe = pipe.filter(|_| !bytes.is_empty());
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("a pipe")?;
        }
        Ok(Input { pipe, bytes })
    }

    fn fd(&self) -> Option<PollFd<'_>> {
        self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT))
    }

    /// Writes what fits. A command that does not read all of its input is no error.
    fn write(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.write(self.bytes) {
            Ok(count) => self.bytes = &self.bytes[count..],
            Err(error) if again(&error) => {}
            Err(_) => self.bytes = &[],
        }
        if self.bytes.is_empty() {
            self.pipe = None;
        }
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What a command has printed so far.
#[derive(Debug)]
struct Printed {
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Printed {
    fn new(pipe: Option<OwnedFd>) -> Printed {
        Printed { pipe: pipe.map(File::from), bytes: Vec::new() }
    }

    fn fd(&self) -> Option<PollFd<'_>> {
        self.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
    }

    /// Reads all that is in the pipe, which is not empty or has reached its end.
    fn read(&mut self) -> Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let size = fcntl(&*pipe, FcntlArg::F_GETPIPE_SZ).context("a pipe")?;
        let held = self.bytes.len();
        self.bytes.resize(held + usize::try_from(size)?, 0);
        let count = match pipe.read(&mut self.bytes[held..]) {
            Ok(0) => {
                self.pipe = None;
                0
            }
            Err(error) if !again(&error) => return Err(error).context("reading from a pipe"),
            result => result.unwrap_or_default(),
        };
        self.bytes.truncate(held + count);
        Ok(())
    }

    /// All that was printed by a command that has ended. One read is all of it: what
    /// comes after is of a process that it left behind.
    fn rest(mut self) -> Result<String> {
        let [printed] = ready([self.fd()], Duration::ZERO)?;
        if printed {
            self.read()?;
        }
        Ok(String::from_utf8_lossy(&self.bytes).into_owned())
    }
}

/// The lines that a running command prints, each waited for with the command's limit.
#[derive(Debug)]
pub struct Lines {
    printed: Printed,
    what: String,
    limit: Duration,
    /// What was read and is no answer, for errors.
    said: String,
}

impl Lines {
    fn new(pipe: OwnedFd, what: String, limit: Duration) -> Lines {
        Lines { printed: Printed::new(Some(pipe)), what, limit, said: String::new() }
    }

    /// The next line, without its end; none where the output has ended.
    pub fn next_line(&mut self) -> Result<Option<String>> {
        self.said.clear();
        self.line_until(Instant::now() + self.limit)
    }

    /// The next line that contains `text`; an error that holds all lines before where the
    /// output ends first.
    pub fn until(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + self.limit;
        self.said.clear();
        loop {
            let line = self.line_until(end).with_context(|| format!("no {text:?}"))?;
            let Some(line) = line else {
                bail!(
                    "{}: ended without {text:?}; it printed: {}",
                    self.what,
                    self.said.trim_end()
                );
            };
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// All lines to the end of the output.
    pub fn rest(&mut self) -> Result<Vec<String>> {
        let end = Instant::now() + self.limit;
        self.said.clear();
        let mut lines = Vec::new();
        while let Some(line) = self.line_until(end)? {
            lines.push(line);
        }
        Ok(lines)
    }

    fn line_until(&mut self, end: Instant) -> Result<Option<String>> {
        loop {
            let bytes = &mut self.printed.bytes;
            let at = bytes.iter().position(|byte| *byte == b'\n');
            // An end without a line feed ends a line, too.
            let last =
                || (self.printed.pipe.is_none() && !bytes.is_empty()).then(|| bytes.len() - 1);
            if let Some(at) = at.or_else(last) {
                let line: Vec<u8> = bytes.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line).trim_end().to_string();
                self.said.push_str(&line);
                self.said.push('\n');
                return Ok(Some(line));
            }
            if self.printed.pipe.is_none() {
                return Ok(None);
            }
            let left = end.saturating_duration_since(Instant::now());
            let [printed] = ready([self.printed.fd()], left)?;
            if printed {
                self.printed.read()?;
            } else if left.is_zero() {
                let (what, limit, said) = (&self.what, self.limit, self.said.trim_end());
                bail!("{what}: printed no such line within {limit:?}, but: {said}");
            }
        }
    }
}
