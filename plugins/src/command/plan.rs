//! What `weft sync` would do, as `weft plan` and `weft status` show it.

use anyhow::Result;
use kernel::Rtnetlink;

use super::conflist::RoutingNetwork;
use super::orphans;
use crate::routing::sync::{self, Outcome};

/// The changes between nodes, and the orphaned leases to be freed.
pub(super) fn plan(network: &RoutingNetwork, host: &mut Rtnetlink) -> Result<Outcome> {
    let mut outcome = sync::plan(&network.config, host)?;
    match orphans::list(network) {
        Ok(orphans) => outcome.add(orphans),
        Err(error) => outcome.failures.push(format!("{error:#}")),
    }
    Ok(outcome)
}
