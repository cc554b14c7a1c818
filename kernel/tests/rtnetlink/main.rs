//! rtnetlink, namespaces and sysctls against the real kernel, each test in a network
//! namespace of its own. `ip -j` and `bridge -j` are the witnesses of what is there,
//! and the hands that meddle with it.

mod addresses;
mod batches;
mod links;
mod namespaces;
mod neighbours;
mod place;
mod routes;
mod sysctls;
