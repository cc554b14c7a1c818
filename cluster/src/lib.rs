//! The cluster as every node sees it: the node map, which of its nodes this
//! host is, and by which way each pair of nodes reaches each other's pods.
//!
//! Everything here is a pure function of its arguments but the reading of the
//! map ([`Map::read`], [`identity`]); nothing looks at the kernel. That is what
//! lets every node, alone, come to the same answer as its peers.

mod compact;
mod conflict;
mod identity;
mod map;
mod node;
mod own;
mod record;
mod shape;
mod vtep;
mod way;

pub use identity::{Identity, identity};
pub use map::{Map, MapError, Problem, ProblemKind, Quarantined};
pub use node::{Family, Mac, Node, NodeAddress};
pub use own::{By, Host, Own, OwnError, own_node};
pub use vtep::{pod_network_address, vtep_link_local, vtep_mac};
pub use way::{Decision, Links, Mode, Policy, Reason, Way, links_of};
