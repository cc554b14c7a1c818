//! The machine that a run was made on.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

/// One line: processors, their model, kernel, memory, load at the start.
pub(crate) fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, key: &str| -> String {
        let text = read(path);
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name");
    let memory = field("/proc/meminfo", "MemTotal");
    let kilobytes: f64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!(
        "{cores} cores of {model}, Linux {}, {:.0} GiB; load {load} at the start",
        read("/proc/sys/kernel/osrelease").trim(),
        kilobytes / (1 << 20) as f64,
    )
}

/// Version of the reference plugins' Debian package, if they are that.
pub(crate) fn reference_version() -> String {
    let query = ["--show", "--showformat=${Version}", "containernetworking-plugins"];
    let output = Command::new("dpkg-query").args(query).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}
