//! host-local: address management with one file per leased address.
//!
//! A drop-in for the reference plugin of that name: the same keys, files and
//! results; either can be swapped for the other under live pods. Where it differs on
//! purpose is listed in docs/host-local.md.
//!
//! # The files
//!
//! In `<dataDir>/<network>`, as the reference plugin has them: a file per lease,
//! named by the address, `<container ID>\r\n<interface>` in it;
//! `last_reserved_ip.<range set>`, where the next ADD starts; `lock`, taken with
//! flock(2) around everything. Beside them `.weft`, with an index of the leases.
//!
//! A lease is written under another name in `.weft` and linked into place: it is
//! there whole or not at all. Nothing waits for the disk, because no lease outlives its
//! boot: what a power cut tears is of a boot that is over.
//!
//! # Which boot
//!
//! A lease of ours carries the boot as its modification time, a time before 1970
//! that no clock can give it, set before it is linked into place (module `boot`). So the
//! mark is of one piece with the lease, whatever happens to the index. Leases of the
//! reference plugin get such a mark when they are first seen, and go with that boot. One without a
//! mark may be of this boot: it lives until space has run out and nothing on the
//! host refers to its address.
//!
//! # Constant cost
//!
//! The index says which addresses a container holds and which are free, in a few pages whatever
//! the number of leases (module `notes`). It has to be known whether it is complete, since the other
//! binary may have written in the meantime. For that the directory is sealed: the
//! last thing a verb does under the lock is to set the directory's modification time to
//! the index's seal, again a time before 1970. Whoever makes or removes a file in
//! the directory, and a verb of ours that is killed half-way has done so too, has the kernel put the
//! time of day there. No seal, no belief: then the directory is read as a
//! whole, once, and the index made anew. The index is changed only while the seal is
//! broken. Unlike comparing times, this does not depend on how fine they are.
//!
//! What the index says is verified all the same where it counts: a lease is read
//! before it is removed, and linking fails where there is one.
//!
//! # Taking back
//!
//! A lease of this boot is freed without a DEL if it is dead (module `reclaim`): no CNI
//! plugin works on its container, which its environment in /proc would show (module `making`), nothing
//! on the host refers to its address, and `veth`'s interface, if it can be named, is gone. Dead leases are
//! freed when a range set has no address left; those whose interface is known to be gone, orphans,
//! whenever [`HostLocal::free_orphans`] is called. The evidence is looked for anew each time, and
//! processes before addresses: a plugin that has just ended has left an interface by then.
//! GC frees what the runtime's list lacks, except of containers that are being worked on or whose
//! interface lives.

mod boot;
mod config;
mod lock;
mod making;
mod notes;
mod plugin;
mod range;
mod reclaim;
mod resolv;
mod store;

pub use config::OwnRanges;
pub use lock::{Lock, Wait, lock};
pub use plugin::{Host, HostLocal, Lease, Orphans, Usage};
pub use range::{Range, RangeSet};
pub use reclaim::{InterfaceLives, OfAddress, Sight};
