//! The lab: weft's nodes, router and pods in network namespaces on one machine, and
//! what tests need to drive plugins in them and to look at the packets between them.
//!
//! ```no_run
//! use e2e::{Chain, Family, Lab, PingOptions, ping, weft_bin_dir};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::lesson()?;
//! let worker1 = lab.node("worker1")?;
//! let conflist = serde_json::json!({
//!     "cniVersion": "1.0.0", "name": "pods",
//!     "plugins": [{ "type": "veth", "ipam": { "type": "host-local" } }, { "type": "routing" }],
//! });
//! let chain = Chain::new(worker1, conflist, &[&weft_bin_dir()?]);
//! let pod = worker1.pod("pod-a")?;
//! chain.add(&pod, "eth0")?;
//! let capture = lab.router().capture("net44", "udp port 8472")?;
//! ping(&pod, lab.node("worker2")?.address(Family::V4)?, &PingOptions::default())?;
//! for packet in capture.stop()? {
//!     println!("{}", packet.frame()?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A lab works as root, and as an ordinary user where user namespaces are allowed
//! ([`permitted`]). Everything in it ends with the process that made it, even one
//! that is killed. Nothing of the machine is touched: a node has a /run, /etc and
//! /var/lib of its own (the last two with links to what the machine has there);
//! every other directory is the machine's, and `/sys` shows its devices.

mod bgp;
mod bins;
mod capture;
mod chain;
mod cluster;
mod holder;
mod lab;
mod packet;
mod place;
mod pod;
mod prerequisites;
mod process;
mod quick_start;
mod snapshot;
mod strace;
mod topology;
mod traffic;
mod wait;

pub use bgp::Daemon;
pub use bins::weft_bin_dir;
pub use capture::Capture;
pub use chain::{Chain, CniError, Invocation, RESULTS, Runtime};
pub use cluster::{Cluster, conf, with_routing_keys};
pub use lab::{Lab, NODE_MAP, Node};
pub use packet::{
    Arp, Frame, Icmp, Ip, Layer, Mac, Packet, Payload, Tcp, Transport, Udp, VXLAN_PORTS, Vxlan,
    read_pcap,
};
pub use place::{Cmd, Place};
pub use pod::Pod;
pub use prerequisites::permitted;
pub use process::{LIMIT, Lines, Output, Running, go_first, run, run_within, spawn};
pub use quick_start::{Block, blocks};
pub use snapshot::{Section, Snapshot};
pub use strace::Step;
pub use topology::{Families, Family, Host, Link, Spread, Topology};
pub use traffic::{Bulk, PingOptions, PingResult, ping, tcp_bulk, tcp_for};
pub use wait::Monitor;
