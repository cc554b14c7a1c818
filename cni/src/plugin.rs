//! What a plugin is, and what a call gives it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::{AddResult, Code, Error, Object, Version};

/// One interface of one container in one network. The network's name is in
/// [`Network`]; the three together are the key of all state (spec 0.4.0 on).
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Container and interface.
    pub key: AttachmentKey,
    /// Path of the container's network namespace; absent on a late DEL.
    pub netns: Option<PathBuf>,
    /// CNI_ARGS: `K=V;K=V`.
    pub args: BTreeMap<String, String>,
}

/// Container and interface, as `cni.dev/valid-attachments` lists them too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentKey {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// The configuration of the network: what came on standard input.
#[derive(Clone, Debug)]
pub struct Network {
    /// `cniVersion`.
    pub version: Version,
    /// `name`.
    pub name: String,
    /// The whole object, for keys of the plugin's own and for delegation.
    pub config: Map<String, Value>,
    /// `prevResult`, whatever version it came in; none on GC and STATUS, and none
    /// on a DEL that brings an unreadable one.
    pub prev_result: Option<AddResult>,
    /// CNI_PATH: where plugins are looked for.
    pub path: Vec<PathBuf>,
}

impl Network {
    /// The configuration's keys.
    pub fn keys(&self) -> Object<'_> {
        Object::root(&self.config)
    }

    /// The result of the plugins before this one, for a plugin that cannot work
    /// without: code 7 if there is none.
    pub fn require_prev_result(&self) -> Result<&AddResult, Error> {
        self.prev_result.as_ref().ok_or_else(|| {
            let msg = "prevResult: missing; this plugin must stand after one that makes an \
                       interface in the list of plugins, and CHECK needs the result of ADD";
            Error::new(Code::InvalidConfig, msg)
        })
    }
}

/// A plugin: what it does at each verb. Input is validated as far as the
/// protocol defines it before any method is called.
pub trait Plugin {
    /// Makes the attachment, or changes it after an earlier plugin.
    fn add(&self, attachment: &Attachment, network: &Network) -> Result<AddResult, Error>;
    /// Fails if something of this plugin's in the attachment is missing or wrong.
    fn check(&self, attachment: &Attachment, network: &Network) -> Result<(), Error>;
    /// Removes what is there of the attachment; nothing there is success.
    fn del(&self, attachment: &Attachment, network: &Network) -> Result<(), Error>;
    /// Removes what belongs to this network and to no attachment in `valid`.
    fn gc(&self, valid: &[AttachmentKey], network: &Network) -> Result<(), Error>;
    /// Fails (50, 51) if an ADD could not be served.
    fn status(&self, network: &Network) -> Result<(), Error>;
    /// Whether [`crate::run`] shall refuse a call for the namespace that the process
    /// runs in, before the plugin is called. Not for an IPAM, which never looks at the
    /// path; nor for a plugin that has both namespaces open anyway and asks
    /// [`crate::own_netns`] itself, as the first look into /proc costs 50 µs.
    fn enters_netns(&self) -> bool {
        true
    }
}
