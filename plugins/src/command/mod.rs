//! `weft`: the operator's command.

mod arguments;
mod bgp;
mod bird;
mod conflist;
mod export_router;
mod frr;
mod hints;
mod in_the_way;
mod install;
mod installed;
mod ipam;
mod nodes;
mod orphans;
mod plan;
mod print;
mod status;
mod teardown;
mod trace;

use std::process::ExitCode;

use anyhow::{Result, bail};
use kernel::Rtnetlink;
use serde_json::Value;

use crate::node;
use crate::routing::record;
use crate::routing::sync::{Outcome, sync};
use arguments::{Action, Arguments};
use conflist::RoutingNetwork;

/// Exit status of `plan` where there are changes.
const CHANGES: u8 = 2;

/// Serves the command line.
pub(crate) fn run() -> ExitCode {
    // A word that is not UTF-8 is refused like any other that means nothing.
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let outcome = Arguments::parse(words).and_then(|arguments| act(&arguments));
    outcome.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

fn act(arguments: &Arguments) -> Result<ExitCode> {
    let read = || conflist::networks(arguments.conf.as_deref());
    match &arguments.action {
        Action::Help(text) => {
            print!("{text}");
            Ok(ExitCode::SUCCESS)
        }
        Action::Version => {
            println!("weft {}", env!("CARGO_PKG_VERSION"));
            println!("CNI protocol versions supported: {}", cni::Version::list());
            Ok(ExitCode::SUCCESS)
        }
        Action::Sync => {
            let networks = read()?;
            give_hints(arguments, &networks);
            for_each(&networks, sync_one)
        }
        Action::Plan => {
            let networks = read()?;
            give_hints(arguments, &networks);
            for_each(&networks, plan_one)
        }
        Action::ExportRouter => for_each(&read()?, export_router::run),
        Action::ExportBgp(request) => match &read()?[..] {
            [network] => bgp::run(request, network),
            networks => bail!(
                "{} networks are configured and one daemon's configuration is printed; name one \
                 with --conf",
                networks.len()
            ),
        },
        Action::CheckNodes(Some(dir)) => nodes::check_directory(dir),
        Action::CheckNodes(None) => for_each(&read()?, nodes::check_network),
        Action::ImportNodes(target) => nodes::import(target, read),
        Action::Ipam if arguments.json => print_json(&ipam_networks(arguments)?, ipam::json, &[]),
        Action::Ipam => {
            ipam_networks(arguments)?.iter().try_for_each(ipam::show)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Release(what, interface) => release(arguments, what, interface.as_deref()),
        Action::Trace(source, destination) => {
            for_each(&read()?, |network| trace::run(*source, *destination, network))
        }
        Action::Status if arguments.json => {
            let networks = read()?;
            let left = leftovers(arguments, &networks);
            print_json(&networks, status::json, &[("leftovers", left.into())])
        }
        Action::Status => {
            let networks = read()?;
            give_hints(arguments, &networks);
            for_each(&networks, status::show)
        }
        Action::Install(request) => install::install(request),
        Action::Uninstall(request) => install::uninstall(request),
        Action::Teardown => teardown::run(arguments),
    }
}

/// What was synced on this node and is in no conflist any more; nobody would ever take it
/// away.
fn leftovers(arguments: &Arguments, networks: &[RoutingNetwork]) -> Vec<String> {
    if arguments.conf.is_some() {
        return Vec::new();
    }
    let is_left = |name: &String| networks.iter().all(|network| network.config.network != *name);
    record::all().into_iter().map(|(name, _)| name).filter(is_left).collect()
}

/// Tells of what is probably not meant as it is.
fn give_hints(arguments: &Arguments, networks: &[RoutingNetwork]) {
    for network in networks {
        let file = network.file.display();
        network.hints.iter().for_each(|hint| eprintln!("weft: warning: {file}: {hint}"));
    }
    for name in leftovers(arguments, networks) {
        eprintln!(
            "weft: note: network {name} is on this node, but in no conflist; if it is no longer \
             used, run `weft teardown`, then `weft sync`"
        );
    }
}

/// Handles every network with `routing`; one that fails does not keep the others
/// from their turn.
fn for_each(
    networks: &[RoutingNetwork],
    handle: impl Fn(&RoutingNetwork) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut failed = Vec::new();
    for network in networks {
        match handle(network) {
            Ok(outcome) if outcome != ExitCode::SUCCESS => code = outcome,
            Ok(_) => {}
            Err(error) => failed.push(format!("network {}: {error:#}", network.config.network)),
        }
    }
    if failed.is_empty() { Ok(code) } else { bail!("{}", failed.join("\nweft: ")) }
}

/// The networks whose IPAM plugin is `host-local`.
fn ipam_networks(arguments: &Arguments) -> Result<Vec<RoutingNetwork>> {
    let mut networks = conflist::networks(arguments.conf.as_deref())?;
    networks.retain(|network| network.host_local.is_some());
    if networks.is_empty() {
        bail!("no network with the plugin \"routing\" here has the IPAM plugin host-local");
    }
    Ok(networks)
}

/// Prints what `describe` says of every network, and `more`, as one JSON document.
fn print_json(
    networks: &[RoutingNetwork],
    describe: impl Fn(&RoutingNetwork) -> Result<Value>,
    more: &[(&str, Value)],
) -> Result<ExitCode> {
    let described = networks.iter().map(describe).collect::<Result<Vec<Value>>>()?;
    let mut document = serde_json::json!({ "networks": described });
    for (key, value) in more {
        document[*key] = value.clone();
    }
    print::print(&format!("{document:#}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn release(arguments: &Arguments, what: &str, interface: Option<&str>) -> Result<ExitCode> {
    let mut released = 0;
    for network in ipam_networks(arguments)? {
        released += ipam::release(&network, what, interface)?;
    }
    match released {
        0 => bail!("{what}: nothing is leased to it; weft ipam lists the leases"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn sync_one(network: &RoutingNetwork) -> Result<ExitCode> {
    // Leases need no node map, so they are freed even where the sync fails.
    let freed = orphans::free(network);
    let synced = sync(&network.config, &mut Rtnetlink::open()?);
    let (mut outcome, error) = match synced {
        Ok(outcome) => (outcome, None),
        Err(error) => (Outcome::default(), Some(error)),
    };
    match freed {
        Ok(freed) => outcome.add(freed),
        Err(error) => outcome.failures.push(format!("{error:#}")),
    }
    if error.is_none() || outcome.count + outcome.failures.len() > 0 {
        report(&network.config.network, &outcome, "nothing was left to do", "change(s) made:");
    }
    if let Some(error) = error {
        return Err(error.into());
    }
    match outcome.problems.len() + outcome.failures.len() {
        0 => Ok(ExitCode::SUCCESS),
        count => bail!("{count} warning(s), see above; everything else is done"),
    }
}

fn plan_one(network: &RoutingNetwork) -> Result<ExitCode> {
    let outcome = plan::plan(network, &mut Rtnetlink::open()?)?;
    report(&network.config.network, &outcome, "nothing to do", "change(s) to make:");
    let own_ranges = node::pod_ranges(&network.config.network, &network.config.source)?;
    for (chain, commands) in in_the_way::in_the_way(&own_ranges)? {
        println!("  # {chain} drops what no rule before accepts; to let pods through:");
        commands.iter().for_each(|command| println!("  #   {command}"));
    }
    let code = if outcome.changes.is_empty() { 0 } else { CHANGES };
    Ok(ExitCode::from(code))
}

fn report(network: &str, outcome: &Outcome, none: &str, some: &str) {
    for warning in outcome.problems.iter().chain(&outcome.failures) {
        eprintln!("weft: warning: {warning}");
    }
    for note in &outcome.notes {
        eprintln!("weft: note: {note}");
    }
    match outcome.changes.len() {
        0 => println!("{network}: {none}"),
        count => println!("{network}: {count} {some}"),
    }
    for change in &outcome.changes {
        println!("  {change}");
    }
}
