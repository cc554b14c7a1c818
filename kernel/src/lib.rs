//! The Linux kernel's networking, as far as weft uses it: rtnetlink, nf_tables,
//! network namespaces, sysctls. It knows nothing of CNI.
//!
//! Requests are typed values ([`Route`], [`Neighbour`], [`FdbEntry`], …) that
//! turn into netlink messages and print as the `ip` or `bridge` words that say
//! the same, so that what is planned, what failed and what is there all read
//! alike. Messages go out in batches, one system call for many.

pub mod address;
mod error;
pub mod interface;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nexthop;
pub mod nft;
#[cfg(any(test, fuzzing))]
pub mod replies;
pub mod route;
pub mod sysctl;
pub mod uapi;

pub use error::{Error, Result};
pub use netlink::Rtnetlink;

/// A hardware address.
pub type MacAddress = [u8; 6];

/// `mac` as `aa:bb:cc:dd:ee:ff`.
pub fn format_mac(mac: &MacAddress) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
