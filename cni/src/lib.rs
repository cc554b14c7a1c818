//! The Container Network Interface protocol, seen from a plugin.
//!
//! A plugin is an executable: a verb and an attachment arrive in the
//! environment, the network configuration on standard input, and one JSON value
//! leaves on standard output. This crate turns that into typed calls on a
//! [`Plugin`] and back. It knows nothing of the kernel or of networking.

mod error;
mod json;
mod plugin;
mod result;
mod version;

pub use error::{Code, Error};
pub use json::Object;
pub use plugin::{Attachment, AttachmentKey, Network, Plugin};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use version::Version;
