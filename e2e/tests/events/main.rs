//! What happens to clusters, and how a node that runs no daemon gets over it: every
//! event with traffic running, by every trigger that there is.
//!
//! `WEFT_SOAK=1` runs the long ones at full count; `WEFT_SEED` repeats random ones.

mod cluster_events;
mod concurrent;
mod damage;
mod edits;
mod event;
mod fast_path;
mod kill;
mod last_sync;
mod leftovers;
mod nodes;
mod odd_config;
mod rolling;
mod scale;
mod stage;
mod traffic;
mod units;
mod waits;
