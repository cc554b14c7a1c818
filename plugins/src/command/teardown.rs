//! `weft teardown`: networks that are configured, and those of which only work is left.

use std::process::ExitCode;

use anyhow::{Result, bail};
use kernel::Rtnetlink;

use super::arguments::Arguments;
use super::conflist;
use crate::routing::record;
use crate::routing::sync::{lock, remove_lock};
use crate::routing::teardown::{Marks, teardown};
use crate::{attachment, state_dir, veth};

pub(super) const HELP: &str = "\
Usage: weft teardown [--conf FILE]

Removes what weft put between nodes: the VXLAN device, routes, nexthop objects,
the nf_tables tables (weft_*, the spoof check too), and /run/weft; also that of
networks that were synced since the node started and that no conflist names any
more. With --conf it removes what is of that one network, and the rest only if
there is no other. Pods keep their interfaces, addresses and leases, and sysctls
stay as they are. The next ADD, STATUS or sync brings it all back.
";

/// Tears down every network, or the one that is named.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut failed = Vec::new();
    for marks in networks(arguments)? {
        let torn = Rtnetlink::open()
            .map_err(anyhow::Error::from)
            .and_then(|mut host| Ok(teardown(&marks, &mut host)?));
        match torn {
            Ok(outcome) => {
                super::report(&marks.network, &outcome, "nothing was there", "thing(s) removed:")
            }
            Err(error) => failed.push(format!("network {}: {error:#}", marks.network)),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\nweft: "));
    }
    remove_shared()?;
    Ok(ExitCode::SUCCESS)
}

fn networks(arguments: &Arguments) -> Result<Vec<Marks>> {
    let conf = arguments.conf.as_deref();
    let configured = conflist::networks(conf);
    if conf.is_some() {
        return Ok(configured?.iter().map(|network| Marks::of(&network.config)).collect());
    }
    let on_record = record::all();
    let mut marks: Vec<Marks> = match configured {
        Ok(networks) => networks.iter().map(|network| Marks::of(&network.config)).collect(),
        Err(error) if on_record.is_empty() => return Err(error),
        // Whatever is wrong with the conflists, what was made is known.
        Err(error) => {
            log::warn!("{error:#}");
            Vec::new()
        }
    };
    for (network, record) in on_record {
        let left = Marks::on_record(network, record);
        // One whose number changed since has left work under both.
        if !marks.contains(&left) {
            marks.push(left);
        }
    }
    Ok(marks)
}

/// Removes what all networks share, unless there are others.
fn remove_shared() -> Result<()> {
    let _lock = lock()?;
    let others: Vec<String> = record::all().into_iter().map(|(network, _)| network).collect();
    if !others.is_empty() {
        println!("the spoof check and /run/weft stay, for network {}", others.join(", "));
        return Ok(());
    }
    if veth::spoof_check::remove()? {
        println!("removed the spoof check; the next ADD, STATUS or sync brings it back");
    }
    state_dir::remove_caches()?;
    attachment::remove_locks()?;
    // Others who wait for it see that it is gone, and make a new one.
    remove_lock()?;
    Ok(state_dir::remove_if_empty()?)
}
