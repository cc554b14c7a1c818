//! Netlink: messages, attributes, and a blocking socket that sends in batches.

mod attribute;
mod message;
mod socket;

pub use attribute::{Attribute, Attributes};
pub use message::Message;
pub use socket::{Refusal, Reply, Rtnetlink, Socket};
