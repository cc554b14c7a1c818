//! The command line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::installed::BIN_DIRECTORY;
use super::{bgp, conflist, export_router, install, ipam, nodes, status, teardown, trace};
use crate::node;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Help(&'static str),
    Version,
    Sync,
    Plan,
    Teardown,
    ExportRouter,
    ExportBgp(bgp::Request),
    /// In this directory, else that of the configuration.
    CheckNodes(Option<PathBuf>),
    ImportNodes(nodes::Target),
    Ipam,
    Status,
    /// From and to.
    Trace(IpAddr, IpAddr),
    /// An address or container, and an interface.
    Release(String, Option<String>),
    Install(install::Request),
    Uninstall(install::Request),
}

/// The command line, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) action: Action,
    /// `--conf FILE`.
    pub(super) conf: Option<PathBuf>,
    /// `-o json`.
    pub(super) json: bool,
}

const HELP: &str = "\
weft - pod networking with no daemon

Usage: weft COMMAND [--conf FILE]

Commands act on every network in /etc/cni/net.d that has the plugin `routing`,
or on the one in FILE.

  sync               Bring this node's kernel to the state that the node map asks for
  plan               Print what sync would change, as ip and bridge commands
  teardown           Remove devices, routes, tables and caches; pods and leases stay
  status             Print how this node, its peers and ranges stand
  trace SRC DST      Print which way a packet goes from this node, and why
  export router      Print the routes that the physical network's router misses
  export bird | frr  Print the BGP configuration that replaces them
  nodes check        Print what is wrong with the node map
  nodes import       Write the node map from `kubectl get nodes -o json`
  ipam               Print ranges and leases of host-local
  ipam release       Free an address whose interface is gone
  install            Put the executables, a node map, a conflist where runtimes read them
  uninstall          Remove them again
  version            Print versions
  help               Print this, or with a command, what it does in full

Exit status: 0 done or nothing to do, 1 error, 2 (plan) there are changes.
";

const SYNC: &str = "\
Usage: weft sync [--conf FILE]

Compares what the node map and the network's configuration ask for with what the
kernel holds, changes what differs, and prints each change as the command that
would make it. Run again it changes nothing. Every ADD, GC and STATUS of the
plugin `routing` does the same; run it by hand after a change of the
configuration or of the node map to have it at once.

Also frees orphaned leases of the plugin `veth`: those whose interface is gone.

Exit status 1 also where part of the node map could not be used, a change was
refused, or another program's route is in the way. What no sync can better, such
as a peer without an address of the tunnel's family, is a note on standard error
and no failure.

Whoever runs it may say so in WEFT_TRIGGER, for `weft status` to tell.
";

const PLAN: &str = "\
Usage: weft plan [--conf FILE]

Prints what sync would change, and changes nothing. Exit status 2 if there is
something to change.
";

impl Arguments {
    /// Parses the words after the program's name.
    pub(super) fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut words = Words::read(words)?;
        if words.help {
            let action = Action::Help(help_on(&words.names)?);
            return Ok(Self { action, conf: None, json: false });
        }
        let conf = words.option("--conf")?.map(PathBuf::from);
        let action = words.action(conf.as_deref())?;
        let json = matches!(action, Action::Ipam | Action::Status) && words.json()?;
        words.refuse_rest()?;
        Ok(Self { action, conf, json })
    }
}

/// Options that come with a value, and those that come without.
const VALUED: [&str; 9] =
    ["--conf", "-o", "--peer", "--as", "--router-as", "--bin", "--conf-dir", "--map", "--map-dir"];
const FLAGS: [&str; 2] = ["--router", "--replace-foreign"];

/// The command line by its parts, which are taken out as they are understood.
#[derive(Debug, Default)]
struct Words {
    names: Vec<String>,
    options: Vec<(String, String)>,
    help: bool,
}

impl Words {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut read = Self::default();
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (word.as_str(), None),
            };
            match name {
                "-h" | "--help" => read.help = true,
                "-V" | "--version" => read.names.push("version".to_owned()),
                name if VALUED.contains(&name) => {
                    let value = value.or_else(|| words.next());
                    let value = value.with_context(|| format!("{name} needs a value"))?;
                    read.options.push((name.to_owned(), value));
                }
                name if FLAGS.contains(&name) => read.options.push((word, String::new())),
                "-" => read.names.push(word),
                name if name.starts_with('-') => bail!("{word} is no option; see weft help"),
                _ => read.names.push(word),
            }
        }
        if read.names.first().is_some_and(|name| name == "help") {
            read.names.remove(0);
            read.help = true;
        }
        Ok(read)
    }

    /// Takes every value of an option.
    fn options(&mut self, name: &str) -> Vec<String> {
        let (taken, rest) = self.options.drain(..).partition(|(option, _)| option == name);
        self.options = rest;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    fn option(&mut self, name: &str) -> Result<Option<String>> {
        let mut values = self.options(name);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => bail!("{name} is there more than once"),
        }
    }

    /// Takes the next word.
    fn name(&mut self) -> Option<String> {
        (!self.names.is_empty()).then(|| self.names.remove(0))
    }

    fn number(&mut self, option: &str, default: u32) -> Result<u32> {
        let Some(text) = self.option(option)? else { return Ok(default) };
        let number = text.parse().ok().filter(|&number| number != 0);
        number.with_context(|| format!("{option}: {text:?} is no AS number"))
    }

    /// Takes a flag.
    fn flag(&mut self, name: &str) -> bool {
        !self.options(name).is_empty()
    }

    fn action(&mut self, conf: Option<&Path>) -> Result<Action> {
        let Some(name) = self.name() else { bail!("a command is needed\n\n{HELP}") };
        Ok(match name.as_str() {
            "sync" => Action::Sync,
            "plan" => Action::Plan,
            "teardown" => Action::Teardown,
            "version" => Action::Version,
            "export" => self.export()?,
            "nodes" => self.nodes()?,
            "ipam" => self.ipam()?,
            "status" => Action::Status,
            "trace" => {
                let mut end = |what| {
                    let word = self.name().with_context(|| format!("trace {what} which address?"));
                    address(&word?)
                };
                Action::Trace(end("from")?, end("to")?)
            }
            "install" => {
                let replace_foreign = self.flag("--replace-foreign");
                Action::Install(self.install(conf, replace_foreign)?)
            }
            "uninstall" => Action::Uninstall(self.install(conf, false)?),
            other => bail!("{other:?} is no command; see weft help"),
        })
    }

    fn install(&mut self, conf: Option<&Path>, replace_foreign: bool) -> Result<install::Request> {
        let bin = self.option("--bin")?.unwrap_or_else(|| BIN_DIRECTORY.to_owned());
        let map = self.option("--map")?.map(PathBuf::from);
        let map = self.goes_to(map, "--map", node::NODES_DIR)?;
        let conf = conf.map(Path::to_owned);
        let conflist = self.goes_to(conf, "--conf", conflist::DIRECTORY)?;
        Ok(install::Request { bin: bin.into(), map, conflist, replace_foreign })
    }

    /// A file and the directory that it goes to: that of `OPTION-dir`, else `default`.
    fn goes_to(
        &mut self,
        file: Option<PathBuf>,
        option: &str,
        default: &str,
    ) -> Result<Option<(PathBuf, PathBuf)>> {
        let dir = self.option(&format!("{option}-dir"))?;
        match (file, dir) {
            (None, Some(_)) => bail!("{option}-dir means nothing without {option}"),
            (file, dir) => Ok(file.map(|file| {
                let dir = dir.unwrap_or_else(|| default.to_owned());
                (file, dir.into())
            })),
        }
    }

    fn json(&mut self) -> Result<bool> {
        match self.option("-o")?.as_deref() {
            None => Ok(false),
            Some("json") => Ok(true),
            Some(other) => bail!("-o: {other:?} is no format; there is json"),
        }
    }

    fn nodes(&mut self) -> Result<Action> {
        match self.name().as_deref() {
            Some("check") => Ok(Action::CheckNodes(self.name().map(PathBuf::from))),
            Some("import") => Ok(Action::ImportNodes(match self.name() {
                None => nodes::Target::Configured,
                Some(dash) if dash == "-" => nodes::Target::StandardOutput,
                Some(dir) => nodes::Target::Directory(PathBuf::from(dir)),
            })),
            _ => bail!("nodes what? check or import; see weft help nodes"),
        }
    }

    fn ipam(&mut self) -> Result<Action> {
        match self.name().as_deref() {
            None => Ok(Action::Ipam),
            Some("release") => {
                let what = self.name().context("release what? an address or a container")?;
                Ok(Action::Release(what, self.name()))
            }
            Some(other) => bail!("ipam {other:?} is no command; see weft help ipam"),
        }
    }

    fn export(&mut self) -> Result<Action> {
        let daemon = match self.name().as_deref() {
            Some("router") => return Ok(Action::ExportRouter),
            Some("bird") => bgp::Daemon::Bird,
            Some("frr") => bgp::Daemon::Frr,
            _ => bail!("export what? router, bird or frr; see weft help export"),
        };
        let peers = self.options("--peer");
        let peers = peers.iter().map(|text| peer(text)).collect::<Result<Vec<IpAddr>>>()?;
        let nodes_as = self.number("--as", bgp::NODES_AS)?;
        let router_as = self.number("--router-as", bgp::ROUTER_AS)?;
        let node = self.name();
        let whose = match (self.flag("--router"), node) {
            (true, Some(node)) => bail!("either --router or node {node:?}, not both"),
            (true, None) => bgp::Whose::Router,
            (false, Some(node)) => bgp::Whose::Node(node),
            (false, None) => bgp::Whose::ThisNode,
        };
        if whose == bgp::Whose::Router && !peers.is_empty() {
            bail!("--peer means nothing with --router, to whom the nodes are peers");
        }
        if nodes_as == router_as {
            bail!("--as and --router-as must differ: the sessions are external BGP");
        }
        Ok(Action::ExportBgp(bgp::Request { daemon, whose, peers, nodes_as, router_as }))
    }

    /// Fails on what no command took.
    fn refuse_rest(&self) -> Result<()> {
        if let Some(name) = self.names.first() {
            bail!("{name:?} is one word too many; see weft help");
        }
        match self.options.first() {
            Some((option, _)) => bail!("{option} means nothing to this command; see weft help"),
            None => Ok(()),
        }
    }
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().ok().with_context(|| format!("{text:?} is not an IP address"))
}

/// A router's address: it has to be one that a node could have, too.
fn peer(text: &str) -> Result<IpAddr> {
    match text.parse::<cluster::NodeAddress>() {
        Ok(peer) if peer.prefix_len.is_none() => Ok(peer.ip),
        Ok(_) => bail!("--peer: {text:?} is not an IP address but a network"),
        Err(why) => bail!("--peer: {why}"),
    }
}

fn help_on(names: &[String]) -> Result<&'static str> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Ok(match names[..] {
        [] | ["version" | "help"] => HELP,
        ["sync"] => SYNC,
        ["plan"] => PLAN,
        ["teardown"] => teardown::HELP,
        ["export", "router"] => export_router::HELP,
        ["export", ..] => bgp::HELP,
        ["nodes", ..] => nodes::HELP,
        ["ipam", ..] => ipam::HELP,
        ["status"] => status::HELP,
        ["trace"] => trace::HELP,
        ["install" | "uninstall"] => install::HELP,
        [other, ..] => bail!("{other:?} is no command; see weft help"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_go_anywhere_and_both_ways() {
        let plan = parse("plan --conf /a").expect("good");
        assert_eq!((plan.action, plan.conf), (Action::Plan, Some(PathBuf::from("/a"))));
        assert_eq!(parse("--conf=/a plan").expect("good").conf, Some(PathBuf::from("/a")));
        assert!(parse("ipam -o json").expect("good").json);
        let release = parse("ipam release c1 eth0").expect("good").action;
        assert_eq!(release, Action::Release("c1".to_owned(), Some("eth0".to_owned())));
        assert_eq!(
            parse("nodes import -").expect("good").action,
            Action::ImportNodes(nodes::Target::StandardOutput)
        );
    }

    #[test]
    fn bgp_is_for_this_node_a_node_or_the_router() {
        let whose = |line| match parse(line).expect("good").action {
            Action::ExportBgp(request) => request.whose,
            other => panic!("{other:?}"),
        };
        assert_eq!(whose("export bird"), bgp::Whose::ThisNode);
        assert_eq!(whose("export frr --router --as 65000"), bgp::Whose::Router);
        assert_eq!(whose("export frr b --peer 10.0.0.1"), bgp::Whose::Node("b".to_owned()));
    }

    #[test]
    fn what_no_command_takes_is_refused() {
        for line in [
            "",
            "sync all",
            "sync -o json",
            "plan --peer 10.0.0.1",
            "plan --conf",
            "export",
            "export router --router",
            "export bird --as x",
            "plan --conf a --conf b",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
