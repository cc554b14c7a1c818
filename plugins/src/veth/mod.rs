//! `veth`: a veth pair between the container and the host, the pod routed by its
//! own /32 (/128): no bridge, and no ARP on the data path.

mod add;
mod check;
mod config;
mod plan;
mod remove;
pub(crate) mod spoof_check;

use cni::{AddResult, Attachment, AttachmentKey, Error, Network, Plugin};

use crate::ipam::Ipam;
pub(crate) use config::KEYS;

/// The plugin.
pub(crate) struct Veth;

impl Plugin for Veth {
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error> {
        add::add(attachment, network)
    }

    fn check(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        check::check(attachment, network)
    }

    fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error> {
        remove::del(attachment, network)
    }

    fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error> {
        remove::gc(valid, network)
    }

    fn status(&self, network: &Network) -> Result<(), Error> {
        Ipam::of(network)?.status(network)
    }

    fn enters_netns(&self) -> bool {
        false
    }
}
