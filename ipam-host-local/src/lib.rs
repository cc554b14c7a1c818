//! host-local: address management with one file per leased address.
//!
//! A drop-in for the reference plugin of that name: the same keys, files and results; either can
//! be swapped for the other under live pods. docs/host-local.md lists where it
//! differs on purpose.

mod boot;
mod config;
mod lock;
mod making;
mod notes;
mod plugin;
mod range;
mod resolv;
mod store;

pub use config::OwnRanges;
pub use plugin::{Host, HostLocal, InterfaceLives, Lease, Usage};
pub use range::{Range, RangeSet};
