//! The nf_tables rules of the plugins against real packets, in private network
//! namespaces. The executable has no library, so its builders of tables, which
//! depend on nothing but `kernel`, are compiled into this test.

#![allow(missing_docs)]

mod guard;
mod lab;
mod masquerading;
mod spoof;

#[path = "../../src/routing/masquerade.rs"]
mod masquerade;
#[path = "../../src/routing/peer_guard.rs"]
mod peer_guard;
#[path = "../../src/veth/spoof_check.rs"]
mod spoof_check;
