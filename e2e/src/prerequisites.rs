//! What tests need of the machine.

use std::process::Command;
use std::sync::OnceLock;

use crate::process;

/// What every lab executes, and with what tests look into it.
const PROGRAMS: [&str; 9] =
    ["unshare", "nsenter", "setpriv", "ip", "bridge", "nft", "ping", "ss", "tcpdump"];

/// Ends a test as skipped where no lab can be started, or where one of these programs is
/// missing; `CI=true` makes that a failure ([`testing::need`]).
#[macro_export]
macro_rules! needs_lab {
    ($($program:expr),*) => {{
        ::testing::need!($crate::permitted());
        $(::testing::need!(::testing::program($program));)*
    }};
}

/// Whether this process can start a lab; the error says why not.
pub fn permitted() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(look).clone()
}

fn look() -> Result<(), String> {
    testing::programs(&PROGRAMS)?;
    if testing::is_privileged() {
        return Ok(());
    }
    let mut probe = Command::new("unshare");
    probe
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"])
        .args(["mount", "-n", "-t", "proc", "proc", "/proc"]);
    let output = process::run(&mut probe).map_err(|error| format!("{error:#}"))?;
    match output.success() {
        true => Ok(()),
        false => Err(format!("no user namespaces here: {}", output.stderr.trim())),
    }
}
