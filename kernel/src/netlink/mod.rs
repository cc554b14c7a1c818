//! Netlink: messages, attributes, and a blocking socket that sends in batches.

mod attribute;
mod message;
mod socket;

pub use attribute::{Attribute, Attributes};
pub use message::Message;
#[cfg(any(test, fuzzing))]
pub(crate) use socket::{Datagram, Incoming};
pub use socket::{Refusal, Reply, Rtnetlink, Socket};
