//! The ways between nodes, in the lab, by weft's own executables: which way packets
//! go, which address they show, what they may be large, what is refused.

mod advertisements;
mod cluster;
mod guard;
mod hybrid;
mod look;
mod loops;
mod masquerade;
mod matrix;
mod spoof;
mod switch;
mod wire;
