//! `hack/test.sh`: what it prints at its end, and its exit status.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that ends with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("a directory of this test's");
    }
}

/// hack/cargo.sh, which the script starts, enters a user namespace unless root runs it.
fn prerequisite() -> Result<(), String> {
    let output = Command::new(repository("hack/cargo.sh")).arg("--version").output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs the script with this in place of cargo, and with what an earlier run listed.
fn run(name: &str, cargo: &str) -> Output {
    let scratch = std::env::temp_dir().join(format!("weft-runner-{}-{name}", std::process::id()));
    fs::create_dir(&scratch).expect("a new directory");
    let scratch = Scratch(scratch);
    // A compiler too, which hack/rust.sh asks for its version.
    for (name, script) in [("cargo", cargo), ("rustc", "echo rustc 9.9.9")] {
        let program = scratch.0.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a new file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("an own file");
    }
    fs::write(scratch.0.join("skipped"), "of an earlier run\n").expect("a new file");
    let path = std::env::var("PATH").expect("PATH");
    Command::new(repository("hack/test.sh"))
        .args(["--", "some_test"])
        .env("PATH", format!("{}:{path}", scratch.0.display()))
        .env("CARGO_TARGET_DIR", &scratch.0)
        .output()
        .expect("the script is executable")
}

#[test]
fn what_was_skipped_is_listed_after_everything_else() {
    testing::need!(prerequisite());
    let cargo = "echo \"$@\"; for line in b a b; do echo $line >>\"$WEFT_SKIPPED\"; done; exit 7";
    let output = run("some", cargo);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "test --workspace -- some_test\nskipped: 2\n  a\n  b\n", "{output:?}");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn nothing_skipped_is_said_too() {
    testing::need!(prerequisite());
    let output = run("none", "true");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "skipped: nothing\n", "{output:?}");
    assert!(output.status.success());
}
