//! The lease directory of one network.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::{AttachmentKey, Code, Error};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{
    FileStat, Mode, UtimensatFlags, fstat, fstatat, futimens, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::boot::{Boot, Mark};
use crate::lock::{Lock, Wait, lock};
use crate::notes::{Noted, Notes, Origin, hash};
use crate::range::{Range, RangeSet, canonical};

/// Our own directory beside the leases. Go's file walk comes here too; nothing
/// here can be taken for a lease but a lease that is just being written.
const OWN: &str = ".weft";
const INDEX: &str = "index";
const NEW_INDEX: &str = "index.new";
const NEW_LEASE: &str = "lease.new";
/// Between container ID and interface in a lease, as the reference plugin writes it.
const BREAK: &str = "\r\n";
/// A lease is shorter; what is longer is none.
const MOST: u64 = 4096;

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Container and interface.
    Attachment(AttachmentKey),
    /// A container; old versions of the reference plugin did not write the interface.
    Container(String),
    /// Nobody: the file is empty or holds only NULs, as a power cut leaves it.
    Nobody,
    /// Whoever wrote something that is no lease.
    Unknown,
}

impl Holder {
    fn parse(content: &[u8]) -> Self {
        let Ok(text) = std::str::from_utf8(content) else { return Self::Unknown };
        let text = text.trim();
        if text.bytes().all(|byte| byte == 0) {
            return Self::Nobody;
        }
        let (id, ifname) = match text.split_once(BREAK) {
            Some((id, ifname)) => (id, Some(ifname)),
            None => (text, None),
        };
        match ifname {
            _ if !is_container_id(id) => Self::Unknown,
            None => Self::Container(id.to_owned()),
            Some(ifname) if ifname.contains(['\r', '\n', '\0']) => Self::Unknown,
            Some(ifname) => {
                Self::Attachment(AttachmentKey { container_id: id.into(), ifname: ifname.into() })
            }
        }
    }

    /// The lease's content.
    fn content(&self) -> Option<String> {
        match self {
            Self::Attachment(key) => Some(format!("{}{BREAK}{}", key.container_id, key.ifname)),
            Self::Container(id) => Some(id.clone()),
            Self::Nobody | Self::Unknown => None,
        }
    }

    fn hash(&self) -> Option<u64> {
        self.content().map(|content| hash(content.as_bytes()))
    }

    /// The container's ID.
    pub(crate) fn container_id(&self) -> Option<&str> {
        match self {
            Self::Attachment(key) => Some(&key.container_id),
            Self::Container(id) => Some(id),
            Self::Nobody | Self::Unknown => None,
        }
    }
}

/// The characters of a container ID in every version of the spec that names them.
fn is_container_id(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A lease, read.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) address: IpAddr,
    pub(crate) holder: Holder,
    pub(crate) origin: Origin,
    /// Time since it was made, by the wall clock: to be shown, never acted on.
    pub(crate) age: Option<Duration>,
    /// Inode and last change of the file: another lease of the same holder has others.
    version: (u64, i64, i64),
}

impl Held {
    /// Whether this and `other`, read at another time, are one lease that was there all along.
    fn is(&self, other: &Self) -> bool {
        (self.address, self.version) == (other.address, other.version)
            && self.holder == other.holder
    }
}

/// The lease directory, locked for as long as this lives.
pub(crate) struct Store {
    path: PathBuf,
    dir: OwnedFd,
    /// [`OWN`], or why it cannot be had.
    own: nix::Result<OwnedFd>,
    boot: Boot,
    notes: Notes,
    /// The notes are in the directory and not only in memory.
    kept: bool,
    /// The notes are complete, as far as we know.
    intact: bool,
    /// The directory lacks the seal.
    changed: bool,
    _lock: Lock,
}

impl Store {
    /// Opens and locks the directory `path`, and makes it if there is none and
    /// `create` is given; else that is `None`, as is a lock that is not waited for.
    /// Leases from before this boot are gone afterwards.
    pub(crate) fn open(
        path: &Path,
        create: bool,
        boot: Boot,
        wait: Wait,
    ) -> Result<Option<Self>, Error> {
        let failed = |what: &str, error: &dyn Display| {
            Error::new(Code::Io, format!("cannot {what} {}: {error}", path.display()))
        };
        if create && !path.is_dir() {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(path);
            made.map_err(|error| failed("make the lease directory", &error))?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = match nix::fcntl::open(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) if !create => return Ok(None),
            Err(error) => return Err(failed("open the lease directory", &error)),
        };
        let lock_path = path.join("lock").display().to_string();
        // The mode is the reference plugin's, as is creating what is only read.
        let mode = Mode::from_bits_truncate(0o750);
        let file = open_in(&dir, "lock", OFlag::O_RDONLY | OFlag::O_CREAT, mode)
            .map_err(|error| Error::new(Code::Io, format!("cannot open {lock_path}: {error}")))?;
        let Some(lock) = lock(file, &lock_path, wait)? else { return Ok(None) };
        let own = own_directory(&dir);
        let old = own.as_ref().ok().and_then(open_index);
        let (notes, kept, intact, changed) = match old {
            Some(notes) if notes.boot == boot.id && is_sealed(&dir, &notes) => {
                (notes, true, true, false)
            }
            old => {
                let scan = scan(&dir, &boot, old.as_ref())
                    .map_err(|error| failed("read the lease directory", &error))?;
                let (notes, kept) = write_notes(&own, &boot, &scan)
                    .map_err(|error| failed("index the lease directory", &error))?;
                (notes, kept, scan.complete, true)
            }
        };
        let path = path.to_owned();
        let store = Self { path, dir, own, boot, notes, kept, intact, changed, _lock: lock };
        Ok(Some(store))
    }

    /// Reads the directory anew, after the notes have been found wrong.
    fn rescan(&mut self) -> Result<(), Error> {
        self.changed = true;
        let scan = scan(&self.dir, &self.boot, None).map_err(|e| self.io("read", "", &e))?;
        let written = write_notes(&self.own, &self.boot, &scan);
        (self.notes, self.kept) = written.map_err(|error| self.io("index", "", &error))?;
        self.intact = scan.complete;
        Ok(())
    }

    /// Compares the notes with the names in the directory, and reads it anew if they differ: somebody who
    /// removes a lease by hand while a verb runs takes no lock, and the verb's seal
    /// covers that up.
    pub(crate) fn verify_notes(&mut self) -> Result<(), Error> {
        let names = lease_names(&self.dir).map_err(|error| self.io("read", "", &error))?;
        let equal = self.notes.are_exactly(&names).map_err(|error| self.index_error(&error))?;
        if equal { Ok(()) } else { self.rescan() }
    }

    /// Addresses that `key` holds by its own leases, and those that its container
    /// holds by leases that name no interface.
    pub(crate) fn held_by(
        &mut self,
        key: &AttachmentKey,
    ) -> Result<(Vec<IpAddr>, Vec<IpAddr>), Error> {
        let exact = self.held(&Holder::Attachment(key.clone()))?;
        let any = self.held(&Holder::Container(key.container_id.clone()))?;
        Ok((exact, any))
    }

    fn held(&mut self, holder: &Holder) -> Result<Vec<IpAddr>, Error> {
        let Some(hash) = holder.hash() else { return Ok(Vec::new()) };
        let (right, all) = self.read_noted(hash, holder)?;
        if all {
            return Ok(right);
        }
        // Somebody has been here without touching the directory's times.
        self.rescan()?;
        self.read_noted(hash, holder).map(|(right, _)| right)
    }

    /// The addresses noted under `hash` that `holder` does hold, and whether that is all of them.
    fn read_noted(&self, hash: u64, holder: &Holder) -> Result<(Vec<IpAddr>, bool), Error> {
        let found = self.notes.find(hash).map_err(|error| self.index_error(&error))?;
        let mut right = Vec::new();
        for address in &found {
            if self.read(*address)?.is_some_and(|held| held.holder == *holder) {
                right.push(*address);
            }
        }
        let all = right.len() == found.len();
        Ok((right, all))
    }

    /// Writes the lease of `address`, whole or not at all. `false` if it is taken.
    pub(crate) fn lease(&mut self, address: IpAddr, key: &AttachmentKey) -> Result<bool, Error> {
        let name = address.to_string();
        let holder = Holder::Attachment(key.clone());
        let content = holder.content().unwrap_or_default();
        if content.len() as u64 >= MOST {
            let msg = format!("container ID and interface name together exceed {MOST} bytes");
            return Err(Error::new(Code::InvalidEnvironment, msg));
        }
        let linked = self.link_lease(&name, content.as_bytes());
        self.changed = true;
        match linked {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                if !self.notes.is_taken(address).map_err(|error| self.index_error(&error))? {
                    // The notes did not have it; the seal may still be whole, and
                    // they are not to be changed under it.
                    self.rescan()?;
                    let noted = self.notes.set_taken(address, true);
                    noted.map_err(|error| self.index_error(&error))?;
                }
                return Ok(false);
            }
            Err(error) => return Err(self.io("write the lease", &name, &error)),
        }
        let noted = Noted { hash: hash(content.as_bytes()), address, origin: Origin::Ours };
        self.intact &= matches!(self.notes.insert(&noted), Ok(true));
        Ok(true)
    }

    fn link_lease(&self, name: &str, content: &[u8]) -> nix::Result<()> {
        let own = self.own.as_ref().map_err(|error| *error)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mode = Mode::from_bits_truncate(0o600);
        let mut file = match open_in(own, NEW_LEASE, flags, mode) {
            Err(Errno::EEXIST) => {
                // A process was killed here. The file may by now be a lease as well.
                unlinkat(own, NEW_LEASE, UnlinkatFlags::NoRemoveDir)?;
                open_in(own, NEW_LEASE, flags, mode)?
            }
            opened => opened?,
        };
        let written = file
            .write_all(content)
            .map_err(errno)
            .and_then(|()| futimens(&file, &TimeSpec::UTIME_OMIT, &seconds(self.boot.written)))
            .and_then(|()| linkat(own, NEW_LEASE, &self.dir, name, AtFlags::empty()));
        // The lease counts from its link on. The other name, if it stays, goes next time.
        let _ = unlinkat(own, NEW_LEASE, UnlinkatFlags::NoRemoveDir);
        written
    }

    /// Removes the lease of `address` if `holder` still has it.
    pub(crate) fn release(&mut self, address: IpAddr, holder: &Holder) -> Result<bool, Error> {
        match self.read(address)? {
            Some(now) if now.holder == *holder => self.remove(&now).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Removes a lease that was read before, perhaps without the lock since, if it is the same.
    pub(crate) fn release_unchanged(&mut self, held: &Held) -> Result<bool, Error> {
        match self.read(held.address)? {
            Some(now) if now.is(held) => self.remove(&now).map(|()| true),
            _ => Ok(false),
        }
    }

    fn remove(&mut self, held: &Held) -> Result<(), Error> {
        let name = held.address.to_string();
        self.changed = true;
        match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(self.io("remove the lease", &name, &error)),
        }
        if let Some(hash) = held.holder.hash() {
            self.intact &= self.notes.remove(hash, held.address).is_ok();
        }
        Ok(())
    }

    /// The lease of `address`; `None` if there is none.
    pub(crate) fn read(&self, address: IpAddr) -> Result<Option<Held>, Error> {
        let name = address.to_string();
        let (content, meta) = match read_file(&self.dir, &name) {
            Ok(Some(found)) => found,
            Ok(None) | Err(Errno::ENOENT | Errno::ELOOP) => return Ok(None),
            Err(error) => return Err(self.io("read the lease", &name, &error)),
        };
        let origin = match self.boot.mark(meta.mtime()) {
            Mark::Written => Origin::Ours,
            Mark::Seen | Mark::Earlier | Mark::None => Origin::Other,
        };
        let version = (meta.ino(), meta.ctime(), meta.ctime_nsec());
        let holder = Holder::parse(&content);
        Ok(Some(Held { address, holder, origin, age: age(&meta), version }))
    }

    /// Every lease that the notes have.
    pub(crate) fn noted(&self) -> Result<Vec<Noted>, Error> {
        self.notes.all().map_err(|error| self.index_error(&error))
    }

    /// The address to try next, of `set`, after that of the last ADD.
    pub(crate) fn next_free(
        &self,
        set: &RangeSet,
        last: Option<IpAddr>,
    ) -> Result<Option<IpAddr>, Error> {
        for stretch in set.round_robin(last) {
            let free = self.notes.first_free(&stretch).map_err(|error| self.index_error(&error))?;
            if free.is_some() {
                return Ok(free);
            }
        }
        Ok(None)
    }

    /// How many addresses of `range` are taken, the gateway included.
    pub(crate) fn taken(&self, range: &Range) -> Result<u128, Error> {
        self.notes.count(range).map_err(|error| self.index_error(&error))
    }

    /// The address that the last ADD got from range set `set`.
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let (content, _) = read_file(&self.dir, &last_reserved_name(set)).ok()??;
        std::str::from_utf8(&content).ok()?.parse().ok().map(canonical)
    }

    /// Notes the address that range set `set` has given. It only says where the next ADD
    /// starts, so failure is no more than a warning.
    pub(crate) fn set_last_reserved(&mut self, set: usize, address: IpAddr) {
        let name = last_reserved_name(set);
        self.changed = true;
        let text = address.to_string();
        let mode = Mode::from_bits_truncate(0o600);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        // Not truncated at opening: ext4 would start writing to disk at close.
        let written = open_in(&self.dir, name.as_str(), flags, mode).and_then(|file| {
            file.write_all_at(text.as_bytes(), 0).map_err(errno)?;
            file.set_len(text.len() as u64).map_err(errno)
        });
        if let Err(error) = written {
            log::warn!("cannot write {}: {error}", self.path.join(name).display());
        }
    }

    /// Ends the use of the store: the notes are declared complete if they are.
    pub(crate) fn close(mut self) {
        self.seal();
    }

    /// The same, and [`state`] at that moment.
    pub(crate) fn close_with_state(mut self) -> Option<String> {
        self.seal();
        fstat(&self.dir).ok().map(|stat| state_text(&stat))
    }

    fn seal(&mut self) {
        if !(self.changed && self.kept && self.intact) {
            return;
        }
        let seal = seconds(self.notes.seal);
        let flags = UtimensatFlags::NoFollowSymlink;
        if let Err(error) = utimensat(&self.dir, ".", &TimeSpec::UTIME_OMIT, &seal, flags) {
            log::warn!("cannot mark {} as indexed: {error}", self.path.display());
        }
        self.changed = false;
    }

    /// The directory, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, what: &str, name: &str, error: &dyn Display) -> Error {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        let mut msg = format!("cannot {what} {}: {error}", path.display());
        if let Err(error) = self.own {
            msg.push_str(&format!(" ({}: {error})", self.path.join(OWN).display()));
        }
        Error::new(Code::Io, msg)
    }

    fn index_error(&self, error: &dyn Display) -> Error {
        self.io("read the lease index", OWN, error)
    }
}

/// What tells whether anything was made or removed in the directory `path`: another text then.
/// `None` where there is none.
pub(crate) fn state(path: &Path) -> Option<String> {
    nix::sys::stat::stat(path).ok().map(|stat| state_text(&stat))
}

fn state_text(stat: &FileStat) -> String {
    let FileStat { st_dev, st_ino, st_ctime, st_ctime_nsec, .. } = stat;
    format!("{st_dev}:{st_ino} {st_ctime}.{st_ctime_nsec:09}")
}

/// What a look at every file of the directory found.
struct Scan {
    leases: Vec<Noted>,
    /// Addresses whose names are taken by what is no lease.
    blocked: Vec<IpAddr>,
    /// Every file could be looked at. What could not may be a lease next time.
    complete: bool,
}

/// Reads the directory, removes what is left of earlier boots and of power cuts, and
/// marks leases of unknown age as seen in this boot. `old` saves reading leases again whose
/// mark says that they have not changed since.
fn scan(dir: &OwnedFd, boot: &Boot, old: Option<&Notes>) -> io::Result<Scan> {
    let known = old.map(known).unwrap_or_default();
    let mut found = Scan { leases: Vec::new(), blocked: Vec::new(), complete: true };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty())?;
    for entry in listing.iter() {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let Some(address) = lease_address(name) else { continue };
        match look_at(dir, name, boot, known.get(&address).and_then(Option::as_ref)) {
            Ok(Look::Lease(hash, origin)) => found.leases.push(Noted { hash, address, origin }),
            Ok(Look::Blocked) => found.blocked.push(address),
            Ok(Look::Free) | Err(Errno::ENOENT) => {}
            Err(error) => {
                log::warn!("{name} counts as taken: {error}");
                found.blocked.push(address);
                found.complete = false;
            }
        }
    }
    Ok(found)
}

/// What old notes have of each address: nothing where they have two leases of it.
fn known(old: &Notes) -> HashMap<IpAddr, Option<Noted>> {
    let mut known = HashMap::new();
    for lease in old.all().unwrap_or_default() {
        known.entry(lease.address).and_modify(|known| *known = None).or_insert(Some(lease));
    }
    known
}

/// Addresses that files in the directory have for names.
fn lease_names(dir: &OwnedFd) -> nix::Result<Vec<IpAddr>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        names.extend(entry?.file_name().to_str().ok().and_then(lease_address));
    }
    Ok(names)
}

enum Look {
    Lease(u64, Origin),
    Blocked,
    Free,
}

fn look_at(dir: &OwnedFd, name: &str, boot: &Boot, known: Option<&Noted>) -> nix::Result<Look> {
    let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !is_regular(&stat) {
        return Ok(Look::Blocked);
    }
    let mark = boot.mark(stat.st_mtime);
    if stat.st_size == 0 || mark == Mark::Earlier {
        unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
        return Ok(Look::Free);
    }
    let origin = if mark == Mark::Written { Origin::Ours } else { Origin::Other };
    if let Some(known) = known.filter(|known| mark != Mark::None && known.origin == origin) {
        return Ok(Look::Lease(known.hash, origin));
    }
    let Some((content, _)) = read_file(dir, name)? else { return Ok(Look::Blocked) };
    let holder = Holder::parse(&content);
    let hash = match holder.hash() {
        Some(hash) => hash,
        None if holder == Holder::Nobody => {
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
            return Ok(Look::Free);
        }
        None => return Ok(Look::Blocked),
    };
    if mark == Mark::None {
        let flags = UtimensatFlags::NoFollowSymlink;
        let marked = utimensat(dir, name, &TimeSpec::UTIME_OMIT, &seconds(boot.seen), flags);
        if let Err(error) = marked {
            log::warn!("cannot mark {name} as a lease of this boot: {error}");
        }
    }
    Ok(Look::Lease(hash, origin))
}

/// Writes the notes of `scan`, in memory if the directory does not take them: nothing
/// but the cost of the next verb depends on them.
fn write_notes(own: &nix::Result<OwnedFd>, boot: &Boot, scan: &Scan) -> io::Result<(Notes, bool)> {
    let seal = new_seal();
    let write = |file| Notes::write(file, &boot.id, seal, &scan.leases, &scan.blocked);
    let kept = own.as_ref().map_err(|error| (*error).into()).and_then(|own| {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC;
        let file = open_in(own, NEW_INDEX, flags, Mode::from_bits_truncate(0o600))?;
        let notes = write(file)?;
        renameat(own, NEW_INDEX, own, INDEX)?;
        Ok::<_, io::Error>(notes)
    });
    match kept {
        Ok(notes) => Ok((notes, true)),
        Err(error) => {
            log::warn!("the lease index is not kept: {error}");
            if let Ok(own) = own {
                // It may be what fills the disk; if it cannot go, the next run tries.
                let _ = unlinkat(own, NEW_INDEX, UnlinkatFlags::NoRemoveDir);
            }
            let memory = memfd_create("lease-index", MFdFlags::MFD_CLOEXEC)?;
            Ok((write(File::from(memory))?, false))
        }
    }
}

fn own_directory(dir: &OwnedFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(dir, OWN, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            mkdirat(dir, OWN, Mode::from_bits_truncate(0o700))?;
            openat(dir, OWN, flags, Mode::empty())
        }
        opened => opened,
    }
}

fn open_index(own: &OwnedFd) -> Option<Notes> {
    let file = open_in(own, INDEX, OFlag::O_RDWR, Mode::empty()).ok()?;
    Notes::open(file).ok()
}

/// Whether nothing in the directory has been made or removed since [`Store::close`]:
/// the kernel would have set the modification time to a time after 1970.
fn is_sealed(dir: &OwnedFd, notes: &Notes) -> bool {
    notes.seal < 0 && fstat(dir).is_ok_and(|stat| stat.st_mtime == notes.seal)
}

/// A modification time before 1970 that no other index has.
fn new_seal() -> i64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish();
    -2 - (random >> 34) as i64
}

/// The address that a file name stands for, in the one spelling that Go writes.
fn lease_address(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (canonical(address) == address && address.to_string() == name).then_some(address)
}

/// Content and attributes of a regular file. `None` if it is something else.
fn read_file(dir: &OwnedFd, name: &str) -> nix::Result<Option<(Vec<u8>, Metadata)>> {
    // Not blocking, for a FIFO in the place of a file.
    let file = open_in(dir, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
    let meta = file.metadata().map_err(errno)?;
    if !meta.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(MOST).read_to_end(&mut content).map_err(errno)?;
    Ok(Some((content, meta)))
}

fn open_in(dir: impl AsFd, name: &str, flags: OFlag, mode: Mode) -> nix::Result<File> {
    openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode).map(File::from)
}

fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFREG
}

fn last_reserved_name(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

fn seconds(seconds: i64) -> TimeSpec {
    TimeSpec::new(seconds, 0)
}

/// By the time of creation; where the filesystem keeps none, by that of the last change of
/// the inode, which for a lease that is not ours is when we first saw it.
fn age(meta: &Metadata) -> Option<Duration> {
    let changed = || {
        let time = Duration::new(meta.ctime().try_into().ok()?, meta.ctime_nsec().try_into().ok()?);
        Some(SystemTime::UNIX_EPOCH + time)
    };
    let made = meta.created().ok().or_else(changed)?;
    SystemTime::now().duration_since(made).ok()
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_told_apart() {
        let attachment = Holder::Attachment(AttachmentKey {
            container_id: "a.b-1".into(),
            ifname: "eth0".into(),
        });
        for (content, holder) in [
            ("a.b-1\r\neth0", attachment.clone()),
            (" a.b-1\r\neth0\n", attachment),
            ("a.b-1\n", Holder::Container("a.b-1".into())),
            ("", Holder::Nobody),
            (" \r\n ", Holder::Nobody),
            ("\0\0\0", Holder::Nobody),
            ("reserved for the printer", Holder::Unknown),
            ("a\neth0", Holder::Unknown),
            ("#weft lease index 1", Holder::Unknown),
            ("a\r\neth0\r\nx", Holder::Unknown),
        ] {
            assert_eq!(Holder::parse(content.as_bytes()), holder, "{content:?}");
        }
        assert_eq!(Holder::parse(&[0xff, b'a']), Holder::Unknown);
    }

    #[test]
    fn only_canonical_names_are_leases() {
        for name in ["10.0.0.1", "fd00::1", "::"] {
            assert!(lease_address(name).is_some(), "{name}");
        }
        for name in [
            "010.0.0.1",
            "10.0.0",
            "FD00::1",
            "fd00:0::1",
            "::ffff:10.0.0.1",
            "lock",
            "fe80::1%eth0",
            ".weft",
        ] {
            assert!(lease_address(name).is_none(), "{name}");
        }
    }
}
