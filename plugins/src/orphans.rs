//! Orphaned leases, whose interface is gone: STATUS frees them.

use std::time::{Duration, SystemTime};

use cni::{Error, Network};
use ipam_host_local::{HostLocal, Wait};
use kernel::Rtnetlink;

use crate::failure::refused;
use crate::state_dir;

/// Most leases that one STATUS frees, which takes it some tens of milliseconds.
const MOST: usize = 512;

/// Leases from which on STATUS does not look at each of them every time: to list as many routes takes the
/// kernel 2 to 4 ms.
const MANY: usize = 2000;

/// Leases that are looked at in a second, then: a look at 20,000, 40 ms, is good for 50 seconds.
const RATE: usize = 400;

/// Frees what STATUS finds without waiting for anybody.
pub(crate) fn tick(plugin: &HostLocal<'_>, network: &Network) -> Result<(), Error> {
    let Some(state) = plugin.state(network)? else { return Ok(()) };
    let evidence = Evidence::of(network)?;
    if evidence.holds(&state) {
        return Ok(());
    }
    let found = plugin.free_orphans(network, Wait::No, MOST)?;
    if let Some(state) = found.state.filter(|_| found.proven && found.leases >= MANY) {
        evidence.write(&state, found.leases);
    }
    Ok(())
}

/// That every lease had its pod's route, in a file that may vanish.
struct Evidence {
    file: String,
    /// The network namespace that has the routes.
    netns: String,
}

impl Evidence {
    fn of(network: &Network) -> Result<Self, Error> {
        let host = Rtnetlink::open().and_then(|host| host.netns()).map_err(refused)?;
        let (device, inode) = host.identity().map_err(refused)?;
        Ok(Self { file: format!("{}.leases", network.name), netns: format!("{device}:{inode}") })
    }

    /// Whether that was so a short time ago, with the leases that there are now.
    fn holds(&self, state: &str) -> bool {
        self.age_and_limit(state).is_some_and(|(age, limit)| age < limit)
    }

    fn age_and_limit(&self, state: &str) -> Option<(Duration, Duration)> {
        let text = String::from_utf8(state_dir::read(&self.file)?).ok()?;
        let leases = text.strip_prefix(&self.text(state))?.trim().parse::<usize>().ok()?;
        let written = state_dir::path(&self.file).metadata().ok()?.modified().ok()?;
        // A clock that was set back since says nothing.
        let age = SystemTime::now().duration_since(written).ok()?;
        Some((age, Duration::from_secs((leases / RATE) as u64)))
    }

    fn write(&self, state: &str, leases: usize) {
        let text = format!("{}{leases}\n", self.text(state));
        if let Err(error) = state_dir::write(&self.file, text.as_bytes()) {
            // The next STATUS looks again, that is all.
            log::debug!("{error}");
        }
    }

    fn text(&self, state: &str) -> String {
        format!("{state} {} ", self.netns)
    }
}
