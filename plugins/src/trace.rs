//! Where a call's time goes: WEFT_TRACE=FILE appends a line for each phase to FILE.
//!
//! A line holds CLOCK_MONOTONIC at the end of the phase (nanoseconds), process ID,
//! plugin, verb, and the phase. All lines of a call are written at its end, in one
//! write to a file opened for appending, so that calls at the same time do not mix
//! and writing is no part of what is measured.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use nix::time::{ClockId, clock_gettime};

static TRACE: OnceLock<Trace> = OnceLock::new();

struct Trace {
    file: PathBuf,
    plugin: String,
    verb: String,
    /// When each phase ended, nanoseconds.
    ends: Mutex<Vec<(i64, &'static str)>>,
}

/// Begins a trace if WEFT_TRACE asks for one.
pub(crate) fn begin(plugin: &str) {
    let Some(file) = std::env::var_os("WEFT_TRACE").filter(|file| !file.is_empty()) else { return };
    let verb = std::env::var("CNI_COMMAND").unwrap_or_else(|_| "-".to_owned());
    let plugin = plugin.to_owned();
    // Called once.
    let _ = TRACE.set(Trace { file: file.into(), plugin, verb, ends: Mutex::default() });
    phase("start-up");
}

/// Notes that `phase` ends now.
pub(crate) fn phase(phase: &'static str) {
    let Some(trace) = TRACE.get() else { return };
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    if let Ok(mut ends) = trace.ends.lock() {
        ends.push((now.tv_sec() * 1_000_000_000 + now.tv_nsec(), phase));
    }
}

/// Writes what was noted. A trace that cannot be written fails no call.
pub(crate) fn end() {
    phase("answer");
    let Some(Trace { file, plugin, verb, ends }) = TRACE.get() else { return };
    let Ok(ends) = ends.lock() else { return };
    let mut lines = String::new();
    let process = std::process::id();
    for (at, phase) in ends.iter() {
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{at} {process} {plugin} {verb} {phase}");
    }
    let appended = OpenOptions::new().append(true).create(true).open(file);
    if let Err(error) = appended.and_then(|mut file| file.write_all(lines.as_bytes())) {
        log::warn!("WEFT_TRACE: {}: {error}", file.display());
    }
}
