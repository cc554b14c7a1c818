//! `lab`: nodes, router and pods on this machine, to try things by hand.

mod demo;

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use e2e::{Families, Lab, Spread, Topology};

const HELP: &str = "\
lab - nodes, a router and the physical networks between them, in namespaces

usage:
  lab run [OPTIONS] [-- COMMAND...]   build a lab, run COMMAND or a shell, take it all down
  lab exec NODE[/POD] [-- COMMAND...] inside `lab run`: run COMMAND or a shell on a node
  lab pod NODE NAME                   inside `lab run`: make a pod's network namespace
  lab topology                        inside `lab run`: print the topology again
  lab demo [STEP]                     the lesson, with pods and real captures, or one step of it
  lab help                            this text

options of run:
  --lesson          control-plane, worker1 and worker2 on three networks (the default)
  --nodes N         N nodes (2 to 250) instead, named node1, node2 ...
  --per-link M      with --nodes: M nodes on each physical network (default 1)
  --dual, --ipv6    IPv4 and IPv6, or IPv6 alone, for nodes and pods (default IPv4)
  --mtu BYTES       MTU of the physical networks (default 1500)
  --outside         a host behind the router that is no node

COMMAND runs on this machine, not on a node; `lab exec` finds the lab by the variable
LAB in its environment. The router is the node called `router`. Each node has a /run,
/etc and /var/lib of its own; the node map is in /etc/weft/nodes.d/nodes.json.
Needs root, or a machine that allows user namespaces.

  lab run --dual -- sh -c 'lab exec worker1 -- ping -c 1 192.168.44.128'
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", ref rest @ ..] => run(rest),
        ["exec", node, ref rest @ ..] => exec(node, rest),
        ["pod", node, name] => make_pod(node, name),
        ["demo"] => demo::run(None).map(|()| ExitCode::SUCCESS),
        ["demo", step] => {
            parse_step(step).and_then(|step| demo::run(Some(step))).map(|()| ExitCode::SUCCESS)
        }
        ["topology"] => Inside::find().map(|inside| inside.print()),
        [] | ["help" | "--help" | "-h", ..] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(anyhow::anyhow!("unknown command {words:?}; `lab help` lists the commands")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn parse_step(step: &str) -> Result<usize> {
    step.parse().with_context(|| format!("demo {step}: not the number of a step"))
}

/// Builds the lab, runs the command with the lab in its environment, and ends it.
fn run(words: &[&str]) -> Result<ExitCode> {
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let topology = parse_topology(&words[..end])?;
    let command = words.get(end + 1..).unwrap_or_default();
    let lab = Lab::start(topology)?;
    let inside = Inside::of(&lab);
    let status = if command.is_empty() {
        inside.print();
        println!("\nThe lab lives until this shell ends. `lab exec NODE` enters a node.");
        let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_string());
        inside.start(&[&shell])?
    } else {
        inside.start(command)?
    };
    drop(lab);
    Ok(exit_code(status))
}

fn parse_topology(words: &[&str]) -> Result<Topology> {
    let (mut nodes, mut per_link, mut families, mut mtu) = (None, 1, Families::V4, None);
    let mut outside = false;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || -> Result<u32> {
            let value = words.next().with_context(|| format!("{word} needs a number"))?;
            value.parse().with_context(|| format!("{word} {value}: not a number"))
        };
        match *word {
            "--lesson" => nodes = None,
            "--nodes" => nodes = Some(number()?),
            "--per-link" => per_link = number()?,
            "--dual" => families = Families::Both,
            "--ipv6" => families = Families::V6,
            "--mtu" => mtu = Some(number()?),
            "--outside" => outside = true,
            _ => bail!("unknown option {word:?}; `lab help` lists the options"),
        }
    }
    let mut topology = match nodes {
        None => Topology::lesson(families, families),
        Some(count @ 2..=250) => {
            let spread =
                if per_link == 1 { Spread::Own } else { Spread::Shared(per_link as usize) };
            Topology::nodes(count as usize, spread, families, families)
        }
        Some(count) => bail!("--nodes {count}: a lab has 2 to 250 nodes"),
    };
    if outside {
        topology = topology.with_outside(families);
    }
    Ok(match mtu {
        Some(mtu) => topology.with_mtu(mtu),
        None => topology,
    })
}

/// Runs a command on a node or in a pod of the lab around us; returns only on failure.
fn exec(node: &str, rest: &[&str]) -> Result<ExitCode> {
    let words = rest.strip_prefix(&["--"]).unwrap_or(rest);
    let shell = [std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_string())];
    let mut line = Inside::find()?.enter(node)?;
    if words.is_empty() {
        line.extend(shell);
    } else {
        line.extend(words.iter().map(ToString::to_string));
    }
    let error = std::process::Command::new(&line[0]).args(&line[1..]).exec();
    Err(error).with_context(|| format!("cannot run {line:?}"))
}

fn make_pod(node: &str, name: &str) -> Result<ExitCode> {
    let script = r#"set -C; : >"/run/netns/$1" && exec unshare --net="/run/netns/$1" true"#;
    exec(node, &["--", "sh", "-c", script, "sh", name])
}

/// What a command inside `lab run` knows of the lab, passed in the variable LAB.
struct Inside {
    text: String,
    enter: HashMap<String, Vec<String>>,
}

impl Inside {
    fn of(lab: &Lab) -> Inside {
        let places = lab.nodes().iter().map(|node| &**node).chain([lab.router(), lab.switch()]);
        let words = |line: Vec<OsString>| -> Vec<String> {
            line.iter().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let enter =
            places.map(|place| (place.name().to_string(), words(place.nsenter()))).collect();
        Inside { text: lab.topology().to_string(), enter }
    }

    fn find() -> Result<Inside> {
        let lab = std::env::var("LAB").context("not inside `lab run`: LAB is not set")?;
        let lab: serde_json::Value = serde_json::from_str(&lab).context("LAB")?;
        let text = lab["text"].as_str().context("LAB has no text")?.to_string();
        Ok(Inside { text, enter: serde_json::from_value(lab["enter"].clone())? })
    }

    fn print(&self) -> ExitCode {
        println!("{}", self.text);
        ExitCode::SUCCESS
    }

    /// Runs a command of this machine with LAB set and this executable in its PATH.
    fn start(&self, argv: &[&str]) -> Result<ExitStatus> {
        let own = std::env::current_exe()?;
        let dirs = own.parent().into_iter().map(std::path::Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(dirs.chain(std::env::split_paths(&path)))?;
        let lab = serde_json::json!({ "text": self.text, "enter": self.enter });
        let mut command = std::process::Command::new(argv[0]);
        command.args(&argv[1..]).env("LAB", lab.to_string()).env("PATH", path);
        // Without a limit: it is the user's, and runs in the foreground.
        let mut child = command.spawn().with_context(|| format!("cannot run {}", argv[0]))?;
        // What is typed at the terminal is for the command; the lab ends when it does.
        let mut typed = SigSet::empty();
        typed.add(Signal::SIGINT);
        typed.add(Signal::SIGQUIT);
        typed.thread_block()?;
        Ok(child.wait()?)
    }

    /// The words that run what follows them on `NODE` or in `NODE/POD`.
    fn enter(&self, place: &str) -> Result<Vec<String>> {
        let (node, pod) = place.split_once('/').unzip();
        let node = node.unwrap_or(place);
        let names: Vec<&String> = self.enter.keys().collect();
        let line = self.enter.get(node).with_context(|| format!("no {node:?} among {names:?}"))?;
        let net = |word: &String| match (pod, word.strip_suffix("/ns/net")) {
            (Some(pod), Some(view)) => format!("{view}/root/run/netns/{pod}"),
            _ => word.clone(),
        };
        Ok(line.iter().map(net).collect())
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // As a shell reports them: 128 and the signal's number.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
