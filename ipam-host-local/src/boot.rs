//! Which boot a lease belongs to.
//!
//! A lease carries the boot that it was made in as its modification time: a time
//! before 1970, computed from the boot's id. The kernel's clock is never before
//! 1970 (settimeofday(2) refuses it), so no file gets such a time but by us, and
//! the mark is in the inode: it is there, or the lease is not, also after a power
//! cut. It is a mark, not a time; no clock is believed anywhere.

use std::path::Path;

use cni::{Code, Error};

use crate::notes::hash;

/// This boot: its id, and the marks of its leases.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    /// boot_id of the kernel.
    pub(crate) id: String,
    /// Mark of a lease that we wrote in this boot.
    pub(crate) written: i64,
    /// Mark of a lease that the reference plugin wrote, in this boot or earlier,
    /// and that we saw in this boot.
    pub(crate) seen: i64,
}

/// What a lease's mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// We wrote it in this boot.
    Written,
    /// It was there when we first looked in this boot.
    Seen,
    /// We wrote or saw it in an earlier boot.
    Earlier,
    /// No mark: the reference plugin wrote it, at whatever time.
    None,
}

impl Boot {
    /// Reads the id from `path` (`/proc/sys/kernel/random/boot_id`). Fails with 5.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let id = std::fs::read_to_string(path).map_err(|error| {
            Error::new(Code::Io, format!("cannot read {}: {error}", path.display()))
        })?;
        Ok(Self::new(id.trim()))
    }

    fn new(id: &str) -> Self {
        // 29 bits of the id and one of kind: every filesystem with signed 32-bit seconds
        // can hold the mark. Two boots share a mark once in 5·10⁸.
        let base = (hash(id.as_bytes()) >> 35) << 1;
        let mark = |kind: u64| -2 - (base | kind) as i64;
        Self { id: id.to_owned(), written: mark(0), seen: mark(1) }
    }

    /// What the modification time `seconds` of a lease says.
    pub(crate) fn mark(&self, seconds: i64) -> Mark {
        if seconds >= 0 {
            Mark::None
        } else if seconds == self.written {
            Mark::Written
        } else if seconds == self.seen {
            Mark::Seen
        } else {
            Mark::Earlier
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_boots_apart() {
        let boot = Boot::new("6e3fc4a5-5b8e-4d6a-9a55-1c5d0b9f0c11");
        let next = Boot::new("0b0e2d0c-43a7-4f4e-8c77-5d2d1f7a3e92");
        for mark in [boot.written, boot.seen, next.written, next.seen] {
            assert!((i64::from(i32::MIN)..0).contains(&mark));
        }
        assert_eq!(boot.mark(boot.written), Mark::Written);
        assert_eq!(boot.mark(boot.seen), Mark::Seen);
        assert_eq!(boot.mark(next.written), Mark::Earlier);
        assert_eq!(boot.mark(next.seen), Mark::Earlier);
        assert_eq!(boot.mark(0), Mark::None);
        assert_eq!(boot.mark(1_700_000_000), Mark::None);
    }
}
