//! How tests skip themselves: never silently, and never in CI for want of something.
//!
//! cargo's harness cannot skip a test at run time and hides what a passing test prints.
//! A test that cannot run here says why, in a line of the file that `WEFT_SKIPPED`
//! names; `make test` prints that file at its end.
//!
//! There are two reasons, and one list for both:
//!
//! - a prerequisite is *missing* ([`need!`]): a program, a file, a right. With `CI=true`
//!   that is a failure.
//! - what the test asserts *does not apply* here ([`applies!`]), such as to another
//!   version of a program. That is never a failure.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// The variable that names the list of skipped tests.
const LIST: &str = "WEFT_SKIPPED";

/// CAP_SYS_ADMIN in the capability sets of `/proc/self/status`
/// (include/uapi/linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Gives the value of a prerequisite, a `Result`. If that is an error, the test ends
/// here: skipped, or failed with `CI=true`.
#[macro_export]
macro_rules! need {
    ($prerequisite:expr) => {
        match $crate::found($prerequisite) {
            Some(found) => found,
            None => return $crate::Outcome::skipped(),
        }
    };
}

/// Ends the test as skipped unless what it asserts applies here.
#[macro_export]
macro_rules! applies {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            $crate::record("does not apply", &format!($($reason)+));
            return $crate::Outcome::skipped();
        }
    };
}

/// What a test function returns.
pub trait Outcome {
    /// The outcome of a test that skipped itself.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// The value of a prerequisite; `None` if it is missing, which is on record then.
///
/// # Panics
/// It is missing and `CI` is `true`.
#[track_caller]
pub fn found<T, E: Display>(prerequisite: Result<T, E>) -> Option<T> {
    let error = match prerequisite {
        Ok(found) => return Some(found),
        Err(error) => one_line(&format!("{error:#}")),
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "prerequisite missing in CI: {error}"
    );
    record("missing", &error);
    None
}

/// Puts on record why the test of this thread is skipped.
///
/// # Panics
/// There is a list, and it cannot be written.
pub fn record(kind: &str, reason: &str) {
    let line = format!("{}: {kind}: {}", test(), one_line(reason));
    println!("skipped: {line}");
    if let Some(list) = std::env::var_os(LIST).map(PathBuf::from) {
        // In one write, as many processes append.
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&list)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", list.display()));
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The running test, as `BINARY NAME`: the harness names its threads after tests.
fn test() -> String {
    let binary = std::env::current_exe().ok();
    let binary = binary.as_ref().and_then(|path| path.file_name()?.to_str()).unwrap_or("?");
    // cargo appends a hash.
    let binary = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    format!("{binary} {}", std::thread::current().name().unwrap_or("?"))
}

/// An executable, by its path or from the directories of `PATH`.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Joined to a directory, an absolute path is itself.
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{name} is not installed"))
}

/// Executables, as by [`program`].
pub fn programs(names: &[&str]) -> Result<(), String> {
    names.iter().try_for_each(|name| program(name).map(drop))
}

/// Whether this process may make namespaces and what is in them.
pub fn is_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    capabilities.is_some_and(|set| set & CAP_SYS_ADMIN != 0)
}

/// The right to make namespaces and what is in them.
pub fn privilege() -> Result<(), String> {
    match is_privileged() {
        true => Ok(()),
        false => Err("needs root, or a user namespace as hack/cargo.sh makes it".to_owned()),
    }
}

/// What tests of the kernel need: that right, and the programs that look into namespaces.
pub fn kernel() -> Result<(), String> {
    privilege()?;
    programs(&["ip", "bridge", "nft"])
}

/// The machine's own root: control groups and other users' files are for nobody else.
pub fn machine_root() -> Result<(), String> {
    privilege()?;
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    match map.split_whitespace().eq(["0", "0", "4294967295"]) {
        true => Ok(()),
        false => Err("needs the machine's root, not that of a user namespace".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output};

    /// Runs one of the ignored tests below with this list and `CI`.
    fn run(test: &str, list: &std::path::Path, ci: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", &format!("tests::{test}")])
            .env(LIST, list)
            .env("CI", ci)
            .output()
            .unwrap()
    }

    #[test]
    fn what_is_missing_is_listed_and_fails_in_ci() {
        let list = std::env::temp_dir().join(format!("weft-skipped-{}", std::process::id()));
        for ci in ["", "false"] {
            assert!(run("lacks_something", &list, ci).status.success());
        }
        assert!(run("is_of_another_version", &list, "true").status.success());
        let refused = run("lacks_something", &list, "true");
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stdout);
        assert!(said.contains("prerequisite missing in CI: no such thing"), "{said}");
        let lines = std::fs::read_to_string(&list).unwrap();
        std::fs::remove_file(&list).unwrap();
        let missing = "testing tests::lacks_something: missing: no such thing\n";
        let other = "testing tests::is_of_another_version: does not apply: version 5\n";
        assert_eq!(lines, format!("{missing}{missing}{other}"));
        let unwritable = run("lacks_something", "/nonexistent/list".as_ref(), "");
        assert!(!unwritable.status.success());
    }

    #[test]
    #[ignore = "run by the test above"]
    fn lacks_something() -> Result<(), String> {
        need!(Err::<(), _>("no\nsuch thing"));
        Err("it goes on".to_owned())
    }

    #[test]
    #[ignore = "run by the test above"]
    fn is_of_another_version() {
        applies!(4 > 3, "version 3");
        assert_eq!(need!(Ok::<_, String>(7)), 7);
        applies!(4 > 5, "version {}", 5);
        panic!("it goes on");
    }

    #[test]
    fn programs_are_found_on_the_path() {
        let shell = program("sh").unwrap();
        assert_eq!(program(shell.to_str().unwrap()), Ok(shell));
        let error = programs(&["sh", "no-such-program"]).unwrap_err();
        assert_eq!(error, "no-such-program is not installed");
        assert!(program("/nonexistent/sh").is_err());
    }
}
