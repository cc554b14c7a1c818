//! weft: pod networking with no daemon.
//!
//! One executable under several names. As `veth`, `routing`, `host-local` or
//! `loopback` it is a CNI plugin; as `weft` the operator's command.

mod addresses_in_use;
mod attachment;
mod budget;
mod command;
mod failure;
mod forwarding;
mod ipam;
mod loopback;
mod node;
mod orphans;
mod routing;
mod state_dir;
mod trace;
mod veth;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use cni::Plugin;

/// musl's own allocator maps, and gives back, a region for each size of object:
/// in a process that lives for a millisecond that is half of its page faults.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The plugins, by the names that they are installed under.
const PLUGINS: [(&str, &dyn Plugin); 4] = [
    ("veth", &veth::Veth),
    ("host-local", &ipam::StandaloneHostLocal),
    ("routing", &routing::Routing),
    ("loopback", &loopback::Loopback),
];

fn main() -> ExitCode {
    start_log();
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match PLUGINS.iter().find(|(plugin, _)| *plugin == name) {
        Some((name, plugin)) => {
            trace::begin(name);
            let code = cni::run(*plugin);
            trace::end();
            code
        }
        None => command::run(),
    }
}

/// Warnings go to standard error, which runtimes keep; WEFT_LOG=debug says more.
fn start_log() {
    let env = env_logger::Env::new().filter_or("WEFT_LOG", "warn");
    let format = |f: &mut env_logger::fmt::Formatter, record: &log::Record| {
        use std::io::Write;
        let level = match record.level() {
            log::Level::Warn => "warning".to_owned(),
            level => level.as_str().to_lowercase(),
        };
        writeln!(f, "weft: {level}: {}", record.args())
    };
    env_logger::Builder::from_env(env).format(format).init();
}
