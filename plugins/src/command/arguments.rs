//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Help(&'static str),
    Version,
    Sync,
    Plan,
    Teardown,
}

/// The command line, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) action: Action,
    /// `--conf FILE`.
    pub(super) conf: Option<PathBuf>,
}

const HELP: &str = "\
weft - pod networking with no daemon

Usage: weft COMMAND [--conf FILE]

Commands act on every network in /etc/cni/net.d that has the plugin `routing`,
or on the one in FILE.

  sync      Bring this node's kernel to the state that the node map asks for
  plan      Print what sync would change, as ip and bridge commands
  teardown  Remove devices, routes and caches; pods, leases and sysctls stay
  version   Print versions
  help      Print this, or with a command, what it does in full

Exit status: 0 done or nothing to do, 1 error, 2 (plan) there are changes.
";

const SYNC: &str = "\
Usage: weft sync [--conf FILE]

Compares what the node map and the network's configuration ask for with what the
kernel holds, changes what differs, and prints each change as the command that
would make it. Run again it changes nothing. Every ADD, GC and STATUS of the
plugin `routing` does the same; run it by hand after a change of the
configuration or of the node map to have it at once.

Exit status 1 also where part of the node map could not be used.
";

const PLAN: &str = "\
Usage: weft plan [--conf FILE]

Prints what sync would change, and changes nothing. Exit status 2 if there is
something to change.
";

const TEARDOWN: &str = "\
Usage: weft teardown [--conf FILE]

Removes what weft put between nodes: the VXLAN device, routes, nexthop objects,
and /run/weft. Pods keep their interfaces, addresses and leases, and sysctls stay
as they are. The next ADD, STATUS or sync brings it all back.
";

impl Arguments {
    /// Parses the words after the program's name.
    pub(super) fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut conf = None;
        let mut names = Vec::new();
        let mut help = false;
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-h" | "--help" => help = true,
                "--conf" => match words.next() {
                    Some(file) => conf = Some(PathBuf::from(file)),
                    None => bail!("--conf needs a file"),
                },
                word if word.starts_with("--conf=") => {
                    conf = word.strip_prefix("--conf=").map(PathBuf::from);
                }
                "-V" | "--version" => names.push("version".to_owned()),
                word if word.starts_with('-') => bail!("{word} is no option; see weft help"),
                _ => names.push(word),
            }
        }
        if names.first().is_some_and(|name| name == "help") {
            names.remove(0);
            help = true;
        }
        if names.len() > 1 {
            bail!("{:?} is one word too many; see weft help", names.get(1).map_or("", |n| n));
        }
        let name = names.first().map(String::as_str);
        let action = if help { Action::Help(help_on(name)?) } else { action(name)? };
        Ok(Self { action, conf })
    }
}

fn action(name: Option<&str>) -> Result<Action> {
    Ok(match name {
        None => bail!("a command is needed\n\n{HELP}"),
        Some("sync") => Action::Sync,
        Some("plan") => Action::Plan,
        Some("teardown") => Action::Teardown,
        Some("version") => Action::Version,
        Some(other) => bail!("{other:?} is no command; see weft help"),
    })
}

fn help_on(name: Option<&str>) -> Result<&'static str> {
    Ok(match name {
        None | Some("version") => HELP,
        Some("sync") => SYNC,
        Some("plan") => PLAN,
        Some("teardown") => TEARDOWN,
        Some(other) => bail!("{other:?} is no command; see weft help"),
    })
}
