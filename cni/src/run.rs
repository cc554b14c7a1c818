//! The process around a plugin: environment and standard input in, one JSON value
//! and an exit status out.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::call::{Request, error_version};
use crate::{Attachment, Call, Code, Error, Plugin, Verb, Version};

/// Serves the call that the process was started for: validates it, hands it to
/// `plugin`, prints the result or the error object.
///
/// Exit status 0 is success, 1 failure. Without CNI_COMMAND, started by hand,
/// it says on standard error what it is, and succeeds.
pub fn run(plugin: &dyn Plugin) -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    if std::env::var_os("CNI_COMMAND").is_none_or(|verb| verb.is_empty()) {
        // Nobody is there to tell if standard error is closed.
        let _ = introduce(&mut io::stderr());
        return ExitCode::SUCCESS;
    }
    let mut stdin = Vec::new();
    match serve(plugin, &mut stdin) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => match print(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::error!("cannot write the result to standard output: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            if let Err(write) = print(&error.to_json(error_version(&stdin))) {
                log::error!("{error} (and standard output cannot be written: {write})");
            }
            ExitCode::FAILURE
        }
    }
}

fn introduce(to: &mut impl Write) -> io::Result<()> {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    writeln!(to, "{name}: a CNI plugin of weft {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(to, "CNI protocol versions supported: {}", Version::list())
}

fn serve(plugin: &dyn Plugin, stdin: &mut Vec<u8>) -> Result<Option<Value>, Error> {
    let request = Request::parse(&|name| std::env::var_os(name))?;
    let read = io::stdin().lock().read_to_end(stdin);
    match read {
        Err(error) if request.verb != Verb::Version => {
            let msg = format!("cannot read the network configuration from standard input: {error}");
            return Err(Error::new(Code::Io, msg));
        }
        _ => {}
    }
    dispatch(plugin, request.with_config(stdin)?)
}

fn dispatch(plugin: &dyn Plugin, call: Call) -> Result<Option<Value>, Error> {
    match call {
        Call::Add(attachment, network) => {
            refuse_own_netns(plugin, &attachment)?;
            plugin.add(&attachment, &network)?.to_json(network.version).map(Some)
        }
        Call::Check(attachment, network) => {
            refuse_own_netns(plugin, &attachment)?;
            plugin.check(&attachment, &network).map(|()| None)
        }
        Call::Del(mut attachment, network) => {
            // ADD refused it, so nothing of ours is in it; a DEL must succeed all the
            // same, and must not take the host's interfaces for the container's.
            if refuse_own_netns(plugin, &attachment).is_err() {
                log::warn!("CNI_NETNS is the plugin's own network namespace: left alone");
                attachment.netns = None;
            }
            plugin.del(&attachment, &network).map(|()| None)
        }
        Call::Gc(valid, network) => plugin.gc(&valid, &network).map(|()| None),
        Call::Status(network) => plugin.status(&network).map(|()| None),
        Call::Version(version) => {
            let supported = Version::ALL.map(Version::as_str);
            Ok(Some(json!({ "cniVersion": version, "supportedVersions": supported })))
        }
    }
}

/// Fails with 8 if CNI_NETNS is the namespace that this process runs in: the
/// container's interface would be made among the host's, over the host's `eth0`.
fn refuse_own_netns(plugin: &dyn Plugin, attachment: &Attachment) -> Result<(), Error> {
    let Some(netns) = attachment.netns.as_deref().filter(|_| plugin.enters_netns()) else {
        return Ok(());
    };
    match is_same_file(netns, Path::new("/proc/self/ns/net")) {
        true => own_netns(netns),
        false => Ok(()),
    }
}

/// What is to be said where CNI_NETNS, `netns`, is the namespace that this process
/// runs in: code 8, or nothing where CNI_NETNS_OVERRIDE allows it.
pub fn own_netns(netns: &Path) -> Result<(), Error> {
    let allowed = std::env::var("CNI_NETNS_OVERRIDE").unwrap_or_default();
    if allowed == "1" || allowed.eq_ignore_ascii_case("true") {
        return Ok(());
    }
    Err(Error::new(
        Code::InvalidNetns,
        format!(
            "CNI_NETNS {} is the network namespace that the plugin itself runs in; \
             it must be the container's",
            netns.display()
        ),
    ))
}

/// Whether both paths lead to one file. A path that leads nowhere is no file's.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Set by whoever writes to standard output first: it must hold one value only.
static ANSWERED: AtomicBool = AtomicBool::new(false);

fn print(answer: &Value) -> io::Result<()> {
    if ANSWERED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut line = answer.to_string();
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// Tells the caller of a bug in the form that it understands, and exits.
fn report_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    log::error!("internal error at {place}: {text}");
    let error = Error::new(Code::Internal, format!("internal error, please report it: {text}"))
        .with_details(format!("at {place} in weft {}", env!("CARGO_PKG_VERSION")));
    // Nothing is left to do about a standard output that cannot be written.
    let _ = print(&error.to_json(Version::LATEST));
    std::process::exit(1);
}
