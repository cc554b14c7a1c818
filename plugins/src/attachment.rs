//! An attachment's traces on the host: the name and alias of its host end, and
//! the lock held while it is made or removed.
//!
//! The name is derived, so that DEL and GC find the host end with no saved state.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsFd;
use std::path::Path;

use cni::{Attachment, AttachmentKey, Code, Error};
use kernel::link::{HOST_END_GROUP_REMOVED, HOST_END_GROUPS, Link};
use kernel::netns::Netns;
use kernel::{MacAddress, Rtnetlink};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::failure::refused;
use crate::state_dir;

/// Protocol number of the host's routes to its pods. The routes between nodes have another
/// one, so that neither `routing` nor a BGP export takes these for its own.
pub(crate) const POD_ROUTE_PROTOCOL: u8 = 88;

/// File whose bytes are the locks of attachments.
const LOCKS: &str = "attachments.lock";
/// First word of the alias of every host end.
const ALIAS_MARK: &str = "weft";
/// Bits of the hash that the host end's name holds.
const NAME_BITS: u32 = 44;
/// Longest alias that the kernel keeps (IFALIASZ less its NUL).
const ALIAS_BYTES: usize = 255;

/// The three names that an attachment is known by, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u64);

impl Id {
    /// FNV-1a with 64 bits (draft-eastlake-fnv) over the names, each closed by
    /// a zero byte, then the finalizer of MurmurHash3, as FNV alone hardly
    /// spreads the last bytes to the high bits.
    pub(crate) fn of(network: &str, key: &AttachmentKey) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for name in [network, &key.container_id, &key.ifname] {
            for byte in name.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self(hash ^ (hash >> 33))
    }

    /// Name of the host end: `veth` and the highest 44 bits in hexadecimal.
    pub(crate) fn host_end(self) -> String {
        format!("veth{:011x}", self.0 >> (64 - NAME_BITS))
    }

    /// MAC of the host end: locally administered, unicast.
    pub(crate) fn host_mac(self) -> MacAddress {
        let [_, _, _, a, b, c, d, e] = self.0.to_be_bytes();
        [0x0e, a, b, c, d, e]
    }

    /// MAC of a pod whose addresses give none.
    pub(crate) fn pod_mac(self) -> MacAddress {
        let [_, _, _, a, b, c, d, e] = self.0.to_be_bytes();
        [0x0a, a, b, c, d, e]
    }

    /// Takes the attachment's lock, waiting for another run that makes or removes
    /// the same attachment: a runtime that restarts may ask for the second while
    /// the first still runs.
    pub(crate) fn lock(self) -> Result<Lock, Error> {
        loop {
            let file = lock_file()?;
            fcntl(file.as_fd(), FcntlArg::F_OFD_SETLKW(&lock_range(self.byte(), 1)))
                .map_err(|e| lock_error(&e))?;
            if state_dir::is_in_place(&file, LOCKS) {
                return Ok(Lock { _file: file });
            }
        }
    }

    /// Whether another run makes or removes the attachment right now.
    pub(crate) fn is_busy(self) -> Result<bool, Error> {
        is_locked(self.byte(), 1)
    }

    /// The byte of the lock file that stands for the attachment. Byte locks need no file
    /// for each attachment that somebody would have to remove, and end with the process.
    fn byte(self) -> u64 {
        self.0 >> 2
    }
}

fn is_locked(first: u64, count: u64) -> Result<bool, Error> {
    let mut range = lock_range(first, count);
    let file = lock_file()?;
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range)).map_err(|e| lock_error(&e))?;
    Ok(i32::from(range.l_type) != libc::F_UNLCK)
}

fn lock_range(first: u64, count: u64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: first as i64,
        l_len: count as i64,
        l_pid: 0,
    }
}

/// The lock of an attachment, held until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn lock_file() -> Result<File, Error> {
    state_dir::open_lock(Path::new(LOCKS))
}

/// Removes the locks' file, unless one of them is held.
pub(crate) fn remove_locks() -> Result<(), Error> {
    let file = lock_file()?;
    // No length is all of it, however long it grows.
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock_range(0, 0))) {
        Ok(_) => state_dir::remove(LOCKS),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(()),
        Err(error) => Err(lock_error(&error)),
    }
}

fn lock_error(error: &Errno) -> Error {
    let path = state_dir::path(LOCKS);
    Error::new(Code::Io, format!("cannot lock the attachment in {}: {error}", path.display()))
}

/// The two namespaces of an attachment.
pub(crate) struct Namespaces {
    /// That of the host.
    pub(crate) host: Netns,
    /// That which CNI_NETNS names.
    pub(crate) pod: Netns,
}

impl Namespaces {
    /// Opens both; `host` is a socket in the host's.
    ///
    /// # Errors
    /// Code 4: nothing is at the path, or no namespace. Code 8: it is the host's own.
    pub(crate) fn open(attachment: &Attachment, host: &Rtnetlink) -> Result<Self, Error> {
        let path = attachment.netns.as_deref().unwrap_or(Path::new(""));
        let invalid = |e| Error::new(Code::InvalidEnvironment, format!("CNI_NETNS: {e}"));
        let pod = Netns::open(path).map_err(invalid)?;
        let host = host.netns().map_err(refused)?;
        if pod.is(&host).map_err(refused)? {
            cni::own_netns(path)?;
        }
        Ok(Self { host, pod })
    }

    /// Runs `work` with the thread in the pod's namespace.
    pub(crate) fn in_pod<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        self.pod.run(&self.host, work).map_err(refused)
    }
}

/// An index for a new pair of links that is unlikely to be taken: 24 random bits
/// above those that the kernel gives out one after the other.
pub(crate) fn random_index() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    0x0100_0000 + (random & 0x00ff_ffff) as u32
}

/// Whether a link is the host end of one of our pairs.
pub(crate) fn is_host_end(link: &Link) -> bool {
    let is_ours = HOST_END_GROUPS.contains(&link.group) || link.group == HOST_END_GROUP_REMOVED;
    is_ours && link.kind.as_deref() == Some("veth")
}

/// Whether a link is a host end whose ADD was never finished: it gets its alias with
/// the same request that sets it up.
pub(crate) fn is_unfinished(link: &Link) -> bool {
    is_host_end(link) && link.alias.is_none() && !link.up
}

/// Whether any attachment whose host end is called `name` is made or removed right now.
pub(crate) fn is_name_busy(name: &str) -> Result<bool, Error> {
    let digits = name.strip_prefix("veth").and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match digits {
        Some(high) if high < 1 << NAME_BITS => {
            let low = 64 - NAME_BITS;
            is_locked((high << low) >> 2, 1 << (low - 2))
        }
        _ => Ok(false),
    }
}

/// What a host end's alias says: whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    /// Network.
    pub(crate) network: String,
    /// Container and interface.
    pub(crate) key: AttachmentKey,
    /// Path of the pod's namespace as the runtime gave it.
    pub(crate) netns: String,
}

impl Alias {
    /// The alias as text; a path that is too long for the kernel is left out.
    pub(crate) fn text(&self) -> String {
        let Self { network, key, netns } = self;
        let names = format!("{ALIAS_MARK} {network} {} {}", key.container_id, key.ifname);
        let whole = format!("{names} {netns}");
        if whole.len() <= ALIAS_BYTES { whole } else { names }
    }

    /// Reads an alias; `None` for one that is not ours. No name holds a space.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        if words.next()? != ALIAS_MARK {
            return None;
        }
        let network = words.next()?.to_owned();
        let container_id = words.next()?.to_owned();
        let ifname = words.next()?.to_owned();
        let netns = words.next().unwrap_or_default().to_owned();
        Some(Self { network, key: AttachmentKey { container_id, ifname }, netns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str, ifname: &str) -> AttachmentKey {
        AttachmentKey { container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn names_are_stable_across_versions() {
        let id = Id::of("pods", &key("c1", "eth0"));
        assert_eq!(id.host_end(), "veth158b2fe981a");
    }

    #[test]
    fn names_that_run_together_are_told_apart() {
        assert_ne!(Id::of("a", &key("bc", "d")), Id::of("ab", &key("c", "d")));
    }

    #[test]
    fn alias_survives_and_foreign_ones_do_not() {
        let alias = Alias {
            network: "pods".into(),
            key: key("c1", "eth0"),
            netns: "/run/netns/a b".into(),
        };
        assert_eq!(Alias::parse(&alias.text()), Some(alias));
        assert_eq!(Alias::parse("uplink to rack 4"), None);
    }

    #[test]
    fn alias_too_long_for_the_kernel_loses_its_path_alone() {
        let alias =
            Alias { network: "pods".into(), key: key("c1", "eth0"), netns: "/x".repeat(200) };
        let parsed = Alias::parse(&alias.text());
        assert_eq!(parsed, Some(Alias { netns: String::new(), ..alias }));
    }
}
