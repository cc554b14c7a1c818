//! `weft`: the operator's command.

mod arguments;
mod bgp;
mod bird;
mod conflist;
mod export_router;
mod frr;
mod in_the_way;
mod install;
mod installed;
mod ipam;
mod nodes;
mod print;
mod status;
mod trace;

use std::process::ExitCode;

use anyhow::{Result, bail};
use kernel::Rtnetlink;
use serde_json::Value;

use crate::routing::sync::{Do, Outcome, sync};
use crate::routing::teardown::teardown;
use crate::{node, state_dir, veth};
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
        Action::Sync => for_each(arguments, sync_one),
        Action::Plan => for_each(arguments, plan_one),
        Action::ExportRouter => for_each(arguments, export_router::run),
        Action::ExportBgp(request) => match &conflist::networks(arguments.conf.as_deref())?[..] {
            [network] => bgp::run(request, network),
            networks => bail!(
                "{} networks are configured and one daemon's configuration is printed; name one \
                 with --conf",
                networks.len()
            ),
        },
        Action::CheckNodes(Some(dir)) => nodes::check_directory(dir),
        Action::CheckNodes(None) => for_each(arguments, nodes::check_network),
        Action::ImportNodes(target) => {
            nodes::import(target, || conflist::networks(arguments.conf.as_deref()))
        }
        Action::Ipam if arguments.json => print_json(&ipam_networks(arguments)?, ipam::json),
        Action::Ipam => {
            ipam_networks(arguments)?.iter().try_for_each(ipam::show)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Release(what, interface) => release(arguments, what, interface.as_deref()),
        Action::Trace(source, destination) => {
            for_each(arguments, |network| trace::run(*source, *destination, network))
        }
        Action::Status if arguments.json => {
            print_json(&conflist::networks(arguments.conf.as_deref())?, status::json)
        }
        Action::Status => for_each(arguments, status::show),
        Action::Install(request) => install::install(request),
        Action::Uninstall(request) => install::uninstall(request),
        Action::Teardown => {
            let code = for_each(arguments, teardown_one)?;
            if veth::spoof_check::remove()? {
                println!("removed the spoof check; the next ADD, STATUS or sync brings it back");
            }
            state_dir::remove_all()?;
            Ok(code)
        }
    }
}

/// Handles every network with `routing`; one that fails does not keep the others
/// from their turn.
fn for_each(
    arguments: &Arguments,
    handle: impl Fn(&RoutingNetwork) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut failed = Vec::new();
    for network in conflist::networks(arguments.conf.as_deref())? {
        match handle(&network) {
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

/// Prints what `describe` says of every network as one JSON document.
fn print_json(
    networks: &[RoutingNetwork],
    describe: impl Fn(&RoutingNetwork) -> Result<Value>,
) -> Result<ExitCode> {
    let described = networks.iter().map(describe).collect::<Result<Vec<Value>>>()?;
    print::print(&format!("{:#}\n", serde_json::json!({ "networks": described })))?;
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
    let outcome = sync(&network.config, Do::Apply, &mut Rtnetlink::open()?)?;
    report(network, &outcome, "done, nothing was left to do", "change(s) made:");
    match outcome.warnings.len() {
        0 => Ok(ExitCode::SUCCESS),
        count => bail!("{count} warning(s), see above; everything else is done"),
    }
}

fn plan_one(network: &RoutingNetwork) -> Result<ExitCode> {
    let outcome = sync(&network.config, Do::Plan, &mut Rtnetlink::open()?)?;
    report(network, &outcome, "nothing to do", "change(s) to make:");
    let own_ranges = node::pod_ranges(&network.config.network, &network.config.source)?;
    for (chain, commands) in in_the_way::in_the_way(&own_ranges)? {
        println!("  # {chain} drops what no rule before accepts; to let pods through:");
        commands.iter().for_each(|command| println!("  #   {command}"));
    }
    let code = if outcome.changes.is_empty() { 0 } else { CHANGES };
    Ok(ExitCode::from(code))
}

fn teardown_one(network: &RoutingNetwork) -> Result<ExitCode> {
    let removed = teardown(&network.config, &mut Rtnetlink::open()?)?;
    let outcome = Outcome { changes: removed, ..Outcome::default() };
    report(network, &outcome, "nothing was there", "thing(s) removed:");
    Ok(ExitCode::SUCCESS)
}

fn report(network: &RoutingNetwork, outcome: &Outcome, none: &str, some: &str) {
    let name = &network.config.network;
    for warning in &outcome.warnings {
        eprintln!("weft: warning: {warning}");
    }
    match outcome.changes.len() {
        0 => println!("{name}: {none}"),
        count => println!("{name}: {count} {some}"),
    }
    for change in &outcome.changes {
        println!("  {change}");
    }
}
