//! Running another plugin, such as an IPAM, as part of our own call.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::is_same_file;
use crate::{AddResult, Code, Error, Network, Verb};

/// The executable of plugin `type_name`: the first file of that name in the
/// directories of CNI_PATH.
///
/// # Errors
/// Code 7 if `type_name` is no plain file name or no directory holds such a file,
/// code 4 if CNI_PATH is not set.
pub fn find(type_name: &str, path: &[PathBuf]) -> Result<PathBuf, Error> {
    // A path would run any file of the host with the caller's privilege.
    if matches!(type_name, "" | "." | "..") || type_name.contains(['/', '\\', '\0']) {
        let msg = format!("plugin type {type_name:?} is not valid: it must be a plain file name");
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    if path.is_empty() {
        let msg = format!("CNI_PATH is not set, so plugin {type_name:?} cannot be looked for");
        return Err(Error::new(Code::InvalidEnvironment, msg));
    }
    path.iter().map(|dir| dir.join(type_name)).find(|file| file.is_file()).ok_or_else(|| {
        let dirs: Vec<_> = path.iter().map(|dir| dir.to_string_lossy()).collect();
        let msg = format!(
            "plugin {type_name:?} is in none of the directories of CNI_PATH ({}): \
             install it there, or correct the type in the configuration",
            dirs.join(", ")
        );
        Error::new(Code::InvalidConfig, msg)
    })
}

/// Whether `program` is the file that this process runs, under whatever name: the
/// plugin can then be called without starting a process.
pub fn is_own_executable(program: &Path) -> bool {
    is_same_file(program, Path::new("/proc/self/exe"))
}

/// ADD by `program`, with the environment of this process and the whole
/// configuration of `network`.
///
/// # Errors
/// The delegate's own error, code and all; 102 if it failed without one or printed
/// no result; 5 if it could not be started.
pub fn add(program: &Path, network: &Network) -> Result<AddResult, Error> {
    let stdout = execute(program, Verb::Add, network)?;
    let name = program.display();
    let value: Value = serde_json::from_slice(&stdout).map_err(|error| {
        let msg = format!("{name} ADD succeeded but did not print a result: {error}");
        Error::new(Code::Delegate, msg).with_details(excerpt(&stdout))
    })?;
    AddResult::from_json(&value, network.version).map_err(|error| {
        let error = Error { code: Code::Delegate as u32, ..error };
        error.context(format_args!("{name} ADD printed an invalid result"))
    })
}

/// Any verb without a result (CHECK, DEL, GC, STATUS) by `program`, as [`add`].
/// Also a DEL in the midst of an ADD, to undo what the delegate did.
pub fn call(program: &Path, verb: Verb, network: &Network) -> Result<(), Error> {
    execute(program, verb, network).map(drop)
}

/// What the delegate printed, if it succeeded.
fn execute(program: &Path, verb: Verb, network: &Network) -> Result<Vec<u8>, Error> {
    let failed = |error: io::Error| {
        Error::new(Code::Io, format!("cannot run plugin {}: {error}", program.display()))
    };
    let config = serde_json::to_vec(&network.config).map_err(|error| failed(error.into()))?;
    let child = start(program, verb).map_err(failed)?;
    let output = converse(child, &config).map_err(failed)?;
    if output.status.success() { Ok(output.stdout) } else { Err(failure(program, verb, &output)) }
}

/// How long to wait for an installer that is writing the file: as long as libcni
/// waits for the plugins that it starts.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_STEP: Duration = Duration::from_millis(20);

/// Starts the delegate in our environment, as we received it. Its standard output
/// is a pipe of its own, so that even a delegate that outlives us cannot hold ours
/// open, which would keep our caller waiting.
///
/// A delegate does outlive us if we are killed: tying its life to ours takes
/// PR_SET_PDEATHSIG between fork and exec, which cannot be done in safe code.
fn start(program: &Path, verb: Verb) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.env("CNI_COMMAND", verb.as_str());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match command.spawn() {
            // An upgrade that writes the executable in place holds it open for
            // writing meanwhile (ETXTBSY), and no event says when it is done.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(BUSY_STEP);
            }
            done => return done,
        }
    }
}

/// Writes the configuration and reads the answer at the same time: a delegate may
/// print more than a pipe holds before it reads everything, or read nothing at all.
fn converse(mut child: Child, config: &[u8]) -> io::Result<Output> {
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        let write = move || {
            // A delegate that fails early need not read; its own error says why.
            stdin.map(|mut stdin| stdin.write_all(config)).transpose().ok();
        };
        std::thread::Builder::new().spawn_scoped(scope, write)?;
        child.wait_with_output()
    })
}

/// The delegate's error object, else its words under our code.
fn failure(program: &Path, verb: Verb, output: &Output) -> Error {
    let object = serde_json::from_slice(&output.stdout).ok();
    if let Some(error) = object.as_ref().and_then(Error::from_json) {
        return error.context(format_args!("{} {verb}", program.display()));
    }
    let msg = format!("{} {verb} failed without an error object", program.display());
    let said = excerpt(&output.stdout);
    let how = output.status.to_string();
    let details = if said.is_empty() { how } else { format!("{how}; it printed: {said}") };
    Error::new(Code::Delegate, msg).with_details(details)
}

/// The beginning of what a program printed, enough for a log.
fn excerpt(printed: &[u8]) -> String {
    const LIMIT: usize = 1000;
    let text = String::from_utf8_lossy(printed);
    text.trim().chars().take(LIMIT).collect()
}
