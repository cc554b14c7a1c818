//! `hack/rust.sh`: which toolchain it takes, and what it installs. Its project asks for a
//! Rust that no machine has, so the machine's own toolchains are too old for it.

#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A project, a home directory, and a directory of programs, removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("a directory of this test's");
    }
}

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-rust-{}-{name}", std::process::id()));
        let scratch = Self(path);
        for dir in ["hack", "bin", "home/.cargo/bin"] {
            fs::create_dir_all(scratch.0.join(dir)).expect("a new directory");
        }
        fs::write(scratch.0.join("Cargo.toml"), "rust-version = \"90.2\" # why\n").expect("a file");
        let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/rust.sh");
        symlink(real, scratch.0.join("hack/rust.sh")).expect("a new link");
        // Records what is to be installed, and installs a compiler.
        scratch.program("hack/need.sh", "echo \"$@\" >>installed\nmv later/* bin/");
        // No distribution packages anything, until a test says so.
        scratch.program("bin/apt-get", "echo apt-get \"$@\" >>installed");
        scratch.program("bin/apt-cache", "");
        scratch
    }

    fn program(&self, path: &str, script: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("a relative path")).expect("a directory");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an own file");
    }

    fn toolchain(&self, dir: &str, version: &str) {
        self.program(&format!("{dir}/cargo"), &format!("echo cargo {version}"));
        self.program(&format!("{dir}/rustc"), &format!("echo 'rustc {version} (0123 2026-01-01)'"));
    }

    /// apt's packages, each with a version.
    fn packages(&self, packages: &[(&str, &str)]) {
        let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
        let mut script = format!("case $* in\npkgnames*) printf '%s\\n' {} ;;\n", names.join(" "));
        for (name, version) in packages {
            script += &format!("'policy {name}') echo '  Candidate: {version}' ;;\n");
        }
        self.program("bin/apt-cache", &format!("{script}*) echo '  Candidate: (none)' ;;\nesac"));
    }

    /// Sources the script and says which cargo there is then.
    fn run(&self) -> Output {
        let path = std::env::var("PATH").expect("PATH");
        Command::new("sh")
            .args(["-e", "-c", ". hack/rust.sh; cargo --version"])
            .current_dir(&self.0)
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .env("HOME", self.0.join("home"))
            .env_remove("CARGO_HOME")
            .output()
            .expect("a shell")
    }

    fn takes(&self, version: &str, installed: &str) {
        let output = self.run();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), format!("cargo {version}"), "{output:?}");
        let done = fs::read_to_string(self.0.join("installed")).unwrap_or_default();
        assert_eq!(done.trim(), installed);
    }
}

#[test]
fn a_toolchain_that_is_new_enough_calls_no_package_manager() {
    let scratch = Scratch::new("there");
    scratch.toolchain("bin", "90.2.0");
    scratch.takes("90.2.0", "");
    // A nightly compiler has a suffix.
    scratch.toolchain("bin", "90.10.0-nightly");
    scratch.takes("90.10.0-nightly", "");
}

#[test]
fn rustups_toolchain_comes_before_an_older_one() {
    let scratch = Scratch::new("rustup");
    scratch.toolchain("bin", "90.1.9");
    scratch.toolchain("home/.cargo/bin", "90.3.0");
    scratch.packages(&[("rustc", "91.0.0")]);
    scratch.takes("90.3.0", "");
}

#[test]
fn the_distributions_package_is_installed_if_it_is_new_enough() {
    let rest = "gcc libc6-dev ca-certificates";
    let debian_13: &[_] = &[("rustc", "90.2.0+dfsg3-1"), ("rustc-web", "95.0.0")];
    let debian_12: &[_] = &[("rustc", "63.0.0+dfsg1-2"), ("rustc-web", "90.5.0+dfsg3-1~deb12u3")];
    let ubuntu: &[_] = &[
        ("rustc", "75.0.0"),
        ("rustc-9.99", "9.99.0"),
        ("rustc-90.9", "90.9.0+dfsg0ubuntu1"),
        ("rustc-90.10", "90.10.0+dfsg0ubuntu1"),
        ("rustc-doc", "99.0.0"),
    ];
    let cases = [("cargo", debian_13), ("cargo-web", debian_12), ("cargo-90.10", ubuntu)];
    for (package, packages) in cases {
        let scratch = Scratch::new(package);
        scratch.toolchain("bin", "63.0.0");
        scratch.toolchain("later", "90.10.0");
        scratch.packages(packages);
        scratch.takes("90.10.0", &format!("{package} {rest}"));
    }
}

#[test]
fn without_any_the_error_says_what_to_install() {
    let scratch = Scratch::new("none");
    scratch.toolchain("bin", "90.1.0");
    scratch.packages(&[("rustc", "90.1.9"), ("rustc-80.1", "80.1.0")]);
    let output = scratch.run();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for part in ["Rust 90.2 or later; found 90.1.0", "rustup toolchain install"] {
        assert!(said.contains(part), "{said}");
    }
}
