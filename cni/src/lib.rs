//! The Container Network Interface protocol, seen from a plugin.
//!
//! A plugin is an executable: a verb and an attachment arrive in the
//! environment, the network configuration on standard input, and one JSON value
//! leaves on standard output. This crate turns that into typed calls on a
//! [`Plugin`] and back. It knows nothing of the kernel or of networking.
//!
//! [`run`] is a plugin's whole `main`. [`Call::parse`] and
//! [`AddResult::from_json`], which read what comes from outside, touch nothing of
//! the process.

mod args;
mod call;
mod config;
mod convert;
pub mod delegate;
mod error;
mod json;
mod plugin;
mod result;
mod run;
mod version;

pub use args::reject_unknown_args;
pub use call::{Call, Environment, Verb, check_network_name};
pub use config::requested_ip;
pub use error::{Code, Error};
pub use json::Object;
pub use plugin::{Attachment, AttachmentKey, Network, Plugin};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use run::{own_netns, run};
pub use version::Version;
