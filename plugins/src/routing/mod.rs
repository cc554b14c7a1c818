//! `routing`: everything between nodes. Chained after an interface plugin, it
//! brings this node's kernel to the state that the node map asks for.

mod clash;
pub(crate) mod config;
pub(crate) mod desired;
pub(crate) mod device;
mod difference;
pub(crate) mod firewall;
pub(crate) mod held;
mod host;
pub(crate) mod masquerade;
mod observed;
mod peer_guard;
mod pods;
pub(crate) mod record;
pub(crate) mod stamp;
pub(crate) mod survey;
pub(crate) mod sync;
pub(crate) mod teardown;

use cni::{AddResult, Attachment, AttachmentKey, Code, Error, Network, Plugin};
use kernel::Rtnetlink;

use crate::attachment::Namespaces;
use crate::budget::{SYNC_STATUS, within};
use crate::failure::refused;
use crate::trace::phase;
use config::Config;
use record::Trigger;

/// The plugin.
pub(crate) struct Routing;

impl Plugin for Routing {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        phase("parse");
        let mut result = network.require_prev_result()?.clone();
        let config = Config::read(network)?;
        let mut host = Rtnetlink::open().map_err(refused)?;
        let namespaces = Namespaces::open(attachment, &host)?;
        let mtu = sync::ensure(&config, &mut host)?;
        phase("sync check");
        pods::adjust_attachment(attachment, &namespaces, &mut result, mtu, &mut host)?;
        phase("mtu");
        Ok(result)
    }

    /// Nothing of an attachment is this plugin's, and drift between nodes is no
    /// reason to fail one: `weft plan` reports it.
    fn check(&self, _attachment: &Attachment, network: &Network) -> Result<(), Error> {
        network.require_prev_result()?;
        Config::read(network).map(drop)
    }

    /// What is between nodes serves the other pods and the host too.
    fn del(&self, _attachment: &Attachment, _network: &Network) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&self, _valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        sync::repair(&Config::read(network)?, Trigger::Gc)
    }

    /// Also the tick by which drift is repaired where a runtime asks for it every
    /// few seconds (the spec lets nobody rely on that).
    fn status(&self, network: &Network) -> Result<(), Error> {
        let config = Config::read(network)?;
        let work = move || sync::repair(&config, Trigger::Status);
        let Some(repaired) = within(SYNC_STATUS, work) else {
            log::warn!(
                "sync did not finish within {} ms and was cut off; the next ADD or `weft sync` \
                 completes it",
                SYNC_STATUS.as_millis()
            );
            return Ok(());
        };
        repaired.map_err(|error| {
            let msg = format!("no pod can be connected to other nodes: {}", error.msg);
            Error::new(Code::Unavailable, msg).with_details(error.details)
        })
    }

    fn enters_netns(&self) -> bool {
        false
    }
}
