//! The nf_tables rules of the plugins against real packets, in private network
//! namespaces. The executable has no library, so its builders of tables, which
//! depend on nothing but `kernel`, are compiled into this test.

#![allow(missing_docs)]

mod lab;
mod spoof;

#[path = "../../src/veth/spoof_check.rs"]
mod spoof_check;
