//! A plugin as its caller sees it: what stands on standard output, and the exit
//! status. The plugin is `examples/probe.rs`, which `cargo test` builds.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn probe() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.ancestors().nth(2).expect("target/PROFILE");
    target.join("examples/probe")
}

fn command(verb: &str) -> Command {
    let mut command = Command::new(probe());
    command.env_clear().envs([
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "A=1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(mut command: Command, stdin: &str) -> Output {
    let mut child = command.spawn().expect("cargo builds examples with all tests");
    // A plugin that fails over its environment need not read.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    child.wait_with_output().expect("a child of ours")
}

fn config(keys: Value) -> String {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "probe" });
    let all = config.as_object_mut().expect("an object");
    all.extend(keys.as_object().expect("an object").clone());
    config.to_string()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// The one JSON value on standard output.
#[track_caller]
fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&output.stdout)))
}

#[track_caller]
fn assert_fails(output: &Output, code: u32) -> Value {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = answer(output);
    assert_eq!(error["code"], code, "{error}");
    assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    error
}

#[track_caller]
fn assert_silent_success(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn add_prints_the_result_in_the_configurations_version() {
    let output = run(command("ADD"), &config(json!({ "cniVersion": "0.4.0" })));
    assert!(output.status.success(), "{output:?}");
    let expected = json!({
        "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.1.2.3/24" }], "dns": {},
    });
    assert_eq!(answer(&output), expected);
    assert_eq!(stderr(&output), "eth0");
}

#[test]
fn a_result_that_the_version_cannot_say_is_an_error() {
    let empty = json!({ "cniVersion": "0.2.0", "prevResult": { "cniVersion": "1.0.0" } });
    let error = assert_fails(&run(command("ADD"), &config(empty)), 7);
    assert_eq!(error["cniVersion"], "0.2.0");
}

#[test]
fn verbs_without_a_result_print_nothing() {
    let keys = json!({ "prevResult": {}, "cni.dev/attachments": null });
    for verb in ["CHECK", "DEL", "GC", "STATUS"] {
        assert_silent_success(&run(command(verb), &config(keys.clone())));
    }
}

#[test]
fn errors_are_one_object_in_one_line_and_never_speak_of_not_found() {
    let keys = json!({ "do": "fail", "prevResult": {}, "cni.dev/attachments": [] });
    for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        let error = assert_fails(&run(command(verb), &config(keys.clone())), 100);
        let expected = json!({
            "cniVersion": "1.1.0", "code": 100, "msg": "link eth0 missing", "details": "ENODEV",
        });
        assert_eq!(error, expected);
    }
}

#[test]
fn bad_input_is_answered_in_a_version_that_we_speak() {
    let error = assert_fails(&run(command("ADD"), "{"), 6);
    assert_eq!(error["cniVersion"], "1.1.0");
    let error = assert_fails(&run(command("ADD"), &config(json!({ "cniVersion": "9.9.9" }))), 1);
    assert_eq!(error["cniVersion"], "1.1.0");
    let error = assert_fails(&run(command("ADD"), r#"{"cniVersion":"0.3.1"}"#), 7);
    assert_eq!(error["cniVersion"], "0.3.1");
    assert_fails(&run(command("NONE"), ""), 4);
}

#[test]
fn version_never_fails() {
    let versions = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [("", "1.1.0"), ("{", "1.1.0"), (r#"{"cniVersion":"7"}"#, "7")] {
        let mut command = command("VERSION");
        command.env_remove("CNI_CONTAINERID").env("CNI_NETNS", "dummy");
        let output = run(command, stdin);
        assert!(output.status.success(), "{output:?}");
        let expected = json!({ "cniVersion": version, "supportedVersions": versions });
        assert_eq!(answer(&output), expected);
    }
    // A standard input that cannot be read is none of VERSION's business either.
    let mut unreadable = command("VERSION");
    unreadable.stdin(File::open("/").expect("a directory"));
    assert!(unreadable.output().expect("built").status.success());
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    for verb in [None, Some("")] {
        let mut command = command("");
        match verb {
            None => command.env_remove("CNI_COMMAND"),
            Some(verb) => command.env("CNI_COMMAND", verb),
        };
        let output = run(command, "");
        assert_silent_success(&output);
        assert!(
            stderr(&output).contains("probe") && stderr(&output).contains("0.4.0, 1.0.0, 1.1.0")
        );
    }
}

#[test]
fn started_by_hand_under_any_name_with_standard_error_gone_it_succeeds() {
    let mut command = command("");
    command.arg0(OsStr::from_bytes(b"\xff/\xfe"));
    command.stderr(File::create("/dev/full").expect("a device of every kernel"));
    assert_silent_success(&run(command, ""));
}

#[test]
fn unreadable_standard_input_is_an_io_error() {
    let mut command = command("ADD");
    command.stdin(File::open("/").expect("a directory"));
    assert_fails(&command.output().expect("built"), 5);
}

#[test]
fn a_standard_output_that_cannot_be_written_is_a_failure() {
    for (verb, keys) in
        [("ADD", json!({})), ("ADD", json!({ "do": "fail" })), ("VERSION", json!({}))]
    {
        let mut command = command(verb);
        command.stdout(File::create("/dev/full").expect("a device of every kernel"));
        assert_eq!(run(command, &config(keys)).status.code(), Some(1));
    }
}

#[test]
fn a_panic_is_an_error_object() {
    let keys = json!({ "do": "panic", "prevResult": {} });
    for verb in ["ADD", "CHECK", "DEL", "STATUS"] {
        let error = assert_fails(&run(command(verb), &config(keys.clone())), 999);
        assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("told to")), "{error}");
    }
}

#[test]
fn the_plugins_own_namespace_is_refused_before_anything_is_done() {
    let own = format!("/proc/{}/ns/net", std::process::id());
    for verb in ["ADD", "CHECK"] {
        let mut refused = command(verb);
        refused.env("CNI_NETNS", &own);
        // Were the plugin called, it would fail with 999.
        assert_fails(&run(refused, &config(json!({ "do": "panic", "prevResult": {} }))), 8);
        for allow in ["1", "true", "TRUE"] {
            let mut allowed = command(verb);
            allowed.env("CNI_NETNS", &own).env("CNI_NETNS_OVERRIDE", allow);
            assert!(run(allowed, &config(json!({ "prevResult": {} }))).status.success());
        }
    }
    let mut del = command("DEL");
    del.env("CNI_NETNS", &own);
    let output = run(del, &config(json!({})));
    assert_silent_success(&output);
    assert_eq!(stderr(&output), "None");
}

/// A directory that is removed again.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("cni-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a writable temporary directory");
        Self(dir)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn script(&self, name: &str, text: &str) {
        let file = self.0.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("ours");
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn delegate(dir: &Dir, verb: &str, keys: Value) -> Output {
    let mut command = command(verb);
    command.env("CNI_PATH", dir.path()).env("PATH", "/usr/bin:/bin").env("DIR", dir.path());
    let mut all = json!({ "do": "delegate", "ipam": { "type": "ipam" } });
    all.as_object_mut().expect("an object").extend(keys.as_object().expect("one").clone());
    run(command, &config(all))
}

#[test]
fn a_delegate_gets_environment_and_configuration_unchanged() {
    let dir = Dir::new("unchanged");
    dir.script("ipam", r#"env > $DIR/env; cat > $DIR/stdin; echo aside >&2; [ $CNI_COMMAND != ADD ] || echo '{"ips":[{"address":"10.9.9.9/8"}]}'"#);
    let odd = json!({ "Odd": [1, null, "ü", { "n": 18446744073709551615u64 }], "prevResult": {},
                      "cni.dev/valid-attachments": null });
    for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS"] {
        let output = delegate(&dir, verb, odd.clone());
        assert!(output.status.success(), "{output:?}");
        assert!(stderr(&output).contains("aside"));
        let got: Value =
            serde_json::from_slice(&fs::read(dir.path().join("stdin")).expect("written"))
                .expect("JSON");
        let mut expected: Value = serde_json::from_str(&config(odd.clone())).expect("ours");
        expected["do"] = "delegate".into();
        expected["ipam"] = json!({ "type": "ipam" });
        assert_eq!(got, expected);
        let env = fs::read_to_string(dir.path().join("env")).expect("written");
        for line in ["CNI_CONTAINERID=c1", "CNI_NETNS=/nowhere", "CNI_IFNAME=eth0", "CNI_ARGS=A=1"]
        {
            assert!(env.lines().any(|got| got == line), "{line} in {env}");
        }
        assert!(env.lines().any(|line| line == format!("CNI_COMMAND={verb}")), "{env}");
    }
}

#[test]
fn a_delegates_result_is_in_the_configurations_version() {
    let dir = Dir::new("version");
    dir.script("ipam", r#"echo '{"ip4":{"ip":"10.9.9.9/8"}}'"#);
    let output = delegate(&dir, "ADD", json!({ "cniVersion": "0.2.0" }));
    let expected = json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.9.9.9/8" }, "dns": {} });
    assert_eq!(answer(&output), expected);
}

#[test]
fn a_delegates_error_keeps_its_code() {
    let dir = Dir::new("error");
    dir.script("ipam", r#"echo '{"code":11,"msg":"key not found","details":"d"}'; exit 1"#);
    for verb in ["ADD", "DEL", "STATUS"] {
        let error = assert_fails(&delegate(&dir, verb, json!({})), 11);
        assert!(error["msg"].as_str().is_some_and(|msg| msg.ends_with("key missing")), "{error}");
        assert_eq!(error["details"], "d");
    }
}

#[test]
fn a_delegate_that_fails_in_its_own_words_is_quoted() {
    let dir = Dir::new("words");
    for (script, words) in [
        ("echo oh no; exit 3", vec!["oh no", "3"]),
        ("exit 3", vec!["3"]),
        ("kill -9 $$", vec!["9"]),
        (r#"echo '{"msg":"no code"}'; exit 1"#, vec!["no code"]),
    ] {
        dir.script("ipam", script);
        let error = assert_fails(&delegate(&dir, "DEL", json!({})), 102);
        for word in words {
            assert!(error.to_string().contains(word), "{error} lacks {word}");
        }
    }
}

#[test]
fn a_delegate_that_prints_no_result_has_failed() {
    let dir = Dir::new("noresult");
    for script in ["true", "echo hello", "echo '{}{}'", "echo '[]'", r#"echo '{"ips":[{}]}'"#] {
        dir.script("ipam", script);
        assert_fails(&delegate(&dir, "ADD", json!({})), 102);
    }
}

#[test]
fn neither_side_waits_for_the_other_to_read() {
    let dir = Dir::new("pipes");
    // More than a pipe holds, both ways; the first script never reads.
    let big = json!({ "big": "x".repeat(300_000) });
    dir.script("ipam", "exit 0");
    assert_silent_success(&delegate(&dir, "DEL", big.clone()));
    dir.script("ipam", "yes | head -c 300000; cat > $DIR/stdin");
    assert_silent_success(&delegate(&dir, "DEL", big));
    assert!(fs::metadata(dir.path().join("stdin")).expect("written").len() > 300_000);
}

#[test]
fn a_delegate_that_is_missing_or_no_program_is_an_error() {
    let dir = Dir::new("missing");
    let error = assert_fails(&delegate(&dir, "DEL", json!({})), 7);
    assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "{error}");
    fs::write(dir.path().join("ipam"), "").expect("writable");
    let error = assert_fails(&delegate(&dir, "DEL", json!({})), 5);
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("ipam")), "{error}");
    for bad in ["../ipam", "/bin/sh", "", ".", ".."] {
        assert_fails(&delegate(&dir, "DEL", json!({ "ipam": { "type": bad } })), 7);
    }
}

#[test]
fn the_first_directory_with_the_plugin_counts() {
    let dirs = [Dir::new("first"), Dir::new("second"), Dir::new("third")];
    fs::create_dir(dirs[0].path().join("ipam")).expect("a directory is no plugin");
    dirs[1].script("ipam", "");
    dirs[2].script("ipam", "");
    let path: Vec<_> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
    assert_eq!(cni::delegate::find("ipam", &path), Ok(dirs[1].path().join("ipam")));
}

#[test]
fn an_executable_still_being_written_is_waited_for() {
    let dir = Dir::new("busy");
    dir.script("ipam", "exit 0");
    let file = dir.path().join("ipam");
    let writer = File::options().append(true).open(&file).expect("ours");
    let busy = Command::new(&file).spawn().expect_err("the kernel refuses");
    assert_eq!(busy.kind(), std::io::ErrorKind::ExecutableFileBusy);
    let plugin = std::thread::spawn({
        let dir = Dir(dir.path().to_owned());
        move || delegate(&dir, "DEL", json!({}))
    });
    // The outcome is the same whether the plugin tries before or after this: only
    // what is exercised differs.
    std::thread::sleep(std::time::Duration::from_millis(100));
    drop(writer);
    assert_silent_success(&plugin.join().expect("no panic"));
}

#[test]
fn one_file_is_itself_under_any_name() {
    let dir = Dir::new("self");
    let own = std::env::current_exe().expect("the test's own path");
    let link = dir.path().join("host-local");
    std::os::unix::fs::symlink(&own, &link).expect("writable");
    assert!(cni::delegate::is_own_executable(&link));
    assert!(!cni::delegate::is_own_executable(Path::new("/bin/sh")));
    assert!(!cni::delegate::is_own_executable(&dir.path().join("absent")));
}
