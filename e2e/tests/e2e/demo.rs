//! `lab demo`: that it runs, prints what the lesson says, and fails where it does not hold.

use std::process::{Command, Output};

use anyhow::Result;
use e2e::weft_bin_dir;

fn demo(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("demo").args(words).env("WEFT_BIN_DIR", weft_bin_dir()?);
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[test]
fn the_whole_lesson() -> Result<()> {
    let output = demo(&[])?;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let expected = [
        "\"routingMode\": \"tunnel\"",
        "10.0.1.2/24",
        "2 packets transmitted, 2 received",
        "148 bytes on the wire",
        "192.168.211.128 > 192.168.44.128 ttl 64",
        " > 8472",
        "VNI 1",
        "0a:58:0a:00:01:00 > 0a:58:0a:00:02:00",
        "10.0.1.2 > 10.0.2.2 ttl 63",
        "pods: nothing to do",
        "\"routingMode\": \"native\"",
        "ip link del weft.1",
        "2 packets transmitted, 0 received",
        "98 bytes on the wire",
        "ip route add 10.0.2.0/24 via 192.168.44.128",
        "2 packets transmitted, 2 received",
    ];
    let mut rest = text.as_str();
    for part in expected {
        let Some(at) = rest.find(part) else { panic!("no {part:?} in the rest:\n{rest}") };
        rest = &rest[at + part.len()..];
    }
    Ok(())
}

#[test]
fn one_step_alone_and_none_that_is_not_there() -> Result<()> {
    let second = demo(&["2"])?;
    let text = said(&second);
    assert!(second.status.success(), "{text}");
    assert!(text.contains("Step 2") && !text.contains("Step 1") && !text.contains("Step 3"));
    for wrong in ["0", "99", "two"] {
        let output = demo(&[wrong])?;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    }
    Ok(())
}

#[test]
fn a_step_that_does_not_hold_is_an_error() -> Result<()> {
    // A tunnel that nobody sets up.
    let empty = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
    std::fs::create_dir_all(&empty)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    let output = command.args(["demo", "1"]).env("WEFT_BIN_DIR", &empty).output()?;
    std::fs::remove_dir(&empty)?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("failed to find plugin"), "{}", said(&output));
    Ok(())
}
