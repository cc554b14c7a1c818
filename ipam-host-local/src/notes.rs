//! The notes: an index of the leases, so that no verb has to read them all.
//!
//! A file `index` in the hidden directory `.weft` beside the leases. It starts with
//! `#`, which no container ID does, so the reference plugin, which deletes every
//! file whose content is the container's ID, can never take it for a lease.
//!
//! ```text
//! page 0        text: format, boot id, seal, pages of directory and table
//! directory     16-byte entries: number of an address block, plus 1; 0 = unused
//! table         32-byte slots, hashed by the lease's content: hash, address, state
//! bitmaps       one page for each directory entry: which of its 32,768 addresses
//!               are taken
//! ```
//!
//! They are a hint: whether they can be believed is [`crate::store`]'s to say.
//! Numbers are little-endian; the file never leaves the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use crate::range::{Range, Stretch, from_number, number};

const PAGE: usize = 4096;
const FORMAT: &str = "#weft lease index 1";
const SLOT: usize = 32;
const SLOTS: usize = PAGE / SLOT;
const ENTRY: usize = 16;
const ENTRIES: usize = PAGE / ENTRY;
/// log2 of the addresses of a block: a page of bits.
const BLOCK_BITS: u32 = 15;
/// Pages that one lookup reads at most in a table that is as it should be: slots
/// are at most half full, and 128 to a page.
const PROBES: u64 = 4;

/// Where a slot's lease comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// We wrote it in this boot.
    Ours = 1,
    /// The reference plugin wrote it.
    Other = 2,
}

/// State of a slot that had a lease.
const GONE: u8 = 3;

/// A lease as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// [`hash`] of the lease's content.
    pub(crate) hash: u64,
    /// The address leased.
    pub(crate) address: IpAddr,
    /// Who wrote it.
    pub(crate) origin: Origin,
}

/// An index file, open.
#[derive(Debug)]
pub(crate) struct Notes {
    file: File,
    directory: u64,
    table: u64,
    /// Blocks that have a bitmap, in the order of the bitmaps.
    blocks: Vec<u128>,
    /// The boot in which the file was made.
    pub(crate) boot: String,
    /// Modification time of the lease directory while the notes are complete.
    pub(crate) seal: i64,
}

impl Notes {
    /// Reads the head of an index file. Fails on anything that is none of ours.
    pub(crate) fn open(file: File) -> io::Result<Self> {
        let head = read_page(&file, 0)?;
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a lease index");
        let text = String::from_utf8_lossy(&head);
        let mut lines = text.lines();
        if lines.next() != Some(FORMAT) {
            return Err(bad());
        }
        let mut value = |key| lines.next().and_then(|line| line.strip_prefix(key)).ok_or_else(bad);
        let boot = value("boot ")?.to_owned();
        let seal = value("seal ")?.parse().map_err(|_| bad())?;
        let directory: u64 = value("directory ")?.parse().map_err(|_| bad())?;
        let table: u64 = value("table ")?.parse().map_err(|_| bad())?;
        let length = file.metadata()?.len();
        if table == 0 || directory == 0 || directory.max(table) > length / PAGE as u64 {
            return Err(bad());
        }
        let mut notes = Self { file, directory, table, blocks: Vec::new(), boot, seal };
        notes.blocks = notes.read_blocks()?;
        if notes.bitmap_at(notes.blocks.len()) != length {
            return Err(bad());
        }
        Ok(notes)
    }

    /// Writes an index of `leases` into the empty `file`; the addresses of `blocked` are taken by
    /// something else than a lease.
    pub(crate) fn write(
        file: File,
        boot: &str,
        seal: i64,
        leases: &[Noted],
        blocked: &[IpAddr],
    ) -> io::Result<Self> {
        let addresses = || leases.iter().map(|lease| lease.address).chain(blocked.iter().copied());
        let mut blocks: Vec<u128> = addresses().map(block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        // Room to double before it is made anew.
        let directory = (blocks.len() * 2).div_ceil(ENTRIES).max(1);
        let table = (leases.len() * 2).div_ceil(SLOTS) + 1;
        let mut image = Image::new(directory, table, blocks.len());
        let head =
            format!("{FORMAT}\nboot {boot}\nseal {seal}\ndirectory {directory}\ntable {table}\n");
        image.put(0, head.as_bytes());
        for (i, block) in blocks.iter().enumerate() {
            image.put(PAGE + i * ENTRY, &(block + 1).to_le_bytes());
        }
        for address in addresses() {
            if let Ok(i) = blocks.binary_search(&block(address)) {
                image.set_bit((1 + directory + table + i) * PAGE, bit(number(address)));
            }
        }
        for lease in leases {
            image.put_slot((1 + directory) * PAGE, table, lease);
        }
        file.write_all_at(&image.bytes, 0)?;
        let (directory, table) = (directory as u64, table as u64);
        Ok(Self { file, directory, table, blocks, boot: boot.to_owned(), seal })
    }

    /// Addresses of leases whose content may have `hash`.
    pub(crate) fn find(&self, hash: u64) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for page in self.probe(hash) {
            let bytes = self.table_page(page)?;
            let slots = bytes.chunks_exact(SLOT);
            found.extend(
                slots.clone().filter_map(read_slot).filter(|s| s.hash == hash).map(|s| s.address),
            );
            if slots.into_iter().any(|slot| state(slot) == 0) {
                break;
            }
        }
        Ok(found)
    }

    /// Notes a lease. `false` if the index is too full and should be made anew.
    pub(crate) fn insert(&mut self, lease: &Noted) -> io::Result<bool> {
        if !self.set_taken(lease.address, true)? {
            return Ok(false);
        }
        for page in self.probe(lease.hash).take(PROBES as usize) {
            let bytes = self.table_page(page)?;
            let free = bytes.chunks_exact(SLOT).position(|slot| matches!(state(slot), 0 | GONE));
            if let Some(i) = free {
                self.file
                    .write_all_at(&slot_bytes(lease), self.table_at(page) + (i * SLOT) as u64)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets the lease of `address` whose content has `hash`.
    pub(crate) fn remove(&mut self, hash: u64, address: IpAddr) -> io::Result<()> {
        self.set_taken(address, false)?;
        for page in self.probe(hash) {
            let bytes = self.table_page(page)?;
            let mut slots = bytes.chunks_exact(SLOT);
            let is_it =
                |slot| read_slot(slot).is_some_and(|s| s.hash == hash && s.address == address);
            if let Some(i) = slots.clone().position(is_it) {
                let state_at = self.table_at(page) + (i * SLOT + SLOT - 1) as u64;
                return self.file.write_all_at(&[GONE], state_at);
            }
            if slots.any(|slot| state(slot) == 0) {
                break;
            }
        }
        Ok(())
    }

    /// Every lease.
    pub(crate) fn all(&self) -> io::Result<Vec<Noted>> {
        let mut bytes = vec![0; self.table as usize * PAGE];
        self.file.read_exact_at(&mut bytes, self.table_at(0))?;
        Ok(bytes.chunks_exact(SLOT).filter_map(read_slot).collect())
    }

    /// The first address of `stretch` that is neither taken nor the gateway.
    pub(crate) fn first_free(&self, stretch: &Stretch<'_>) -> io::Result<Option<IpAddr>> {
        let gateway = number(stretch.range.gateway);
        let mut at = stretch.from;
        while at <= stretch.to {
            let last = stretch.to.min(at | ((1 << BLOCK_BITS) - 1));
            let free = match self.bitmap_of(at >> BLOCK_BITS) {
                Some(i) => first_clear(&self.bitmap(i)?, at, last, gateway),
                None if at != gateway => Some(at),
                None => at.checked_add(1).filter(|next| *next <= last),
            };
            if let Some(free) = free {
                return Ok(Some(stretch.address(free)));
            }
            let Some(next) = last.checked_add(1) else { break };
            at = next;
        }
        Ok(None)
    }

    /// How many addresses of `range` are taken. The gateway, which nobody can have, is.
    pub(crate) fn count(&self, range: &Range) -> io::Result<u128> {
        let (start, end) = (number(range.start), number(range.end));
        let mut count = 0;
        let mut gateway_counted = !range.contains(range.gateway);
        for (i, block) in self.blocks.iter().enumerate() {
            let first = block << BLOCK_BITS;
            let last = first | ((1 << BLOCK_BITS) - 1);
            if last < start || end < first {
                continue;
            }
            let bitmap = self.bitmap(i)?;
            let taken = (start.max(first)..=end.min(last)).filter(|n| is_set(&bitmap, bit(*n)));
            count +=
                taken.inspect(|n| gateway_counted |= *n == number(range.gateway)).count() as u128;
        }
        Ok(count + u128::from(!gateway_counted))
    }

    /// Whether `addresses`, each given once, are all that are taken.
    pub(crate) fn are_exactly(&self, addresses: &[IpAddr]) -> io::Result<bool> {
        let numbers = 0..self.blocks.len();
        let mut bitmaps: Vec<_> = numbers.map(|i| self.bitmap(i)).collect::<io::Result<_>>()?;
        let places: HashMap<u128, usize> =
            self.blocks.iter().enumerate().map(|(i, block)| (*block, i)).collect();
        for address in addresses {
            let bit = bit(number(*address));
            let bitmap = places.get(&block(*address)).and_then(|i| bitmaps.get_mut(*i));
            let Some(byte) = bitmap.and_then(|bitmap| bitmap.get_mut(bit / 8)) else {
                return Ok(false);
            };
            let mask = 1 << (bit % 8);
            if *byte & mask == 0 {
                return Ok(false);
            }
            *byte &= !mask;
        }
        Ok(bitmaps.iter().flatten().all(|byte| *byte == 0))
    }

    /// Whether `address` is taken.
    pub(crate) fn is_taken(&self, address: IpAddr) -> io::Result<bool> {
        match self.bitmap_of(block(address)) {
            Some(i) => Ok(is_set(&self.bitmap(i)?, bit(number(address)))),
            None => Ok(false),
        }
    }

    /// Notes whether `address` is taken. `false` if the directory is full.
    pub(crate) fn set_taken(&mut self, address: IpAddr, taken: bool) -> io::Result<bool> {
        let wanted = block(address);
        let i = match self.bitmap_of(wanted) {
            Some(i) => i,
            None if self.blocks.len() == self.directory as usize * ENTRIES => return Ok(false),
            None => {
                let i = self.blocks.len();
                self.file.write_all_at(&[0; PAGE], self.bitmap_at(i))?;
                let entry_at = PAGE + i * ENTRY;
                self.file.write_all_at(&(wanted + 1).to_le_bytes(), entry_at as u64)?;
                self.blocks.push(wanted);
                i
            }
        };
        let bit = bit(number(address));
        let at = self.bitmap_at(i) + (bit / 8) as u64;
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at)?;
        let mask = 1 << (bit % 8);
        let new = if taken { byte[0] | mask } else { byte[0] & !mask };
        self.file.write_all_at(&[new], at)?;
        Ok(true)
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = u64> + use<> {
        let table = self.table;
        (0..table).map(move |i| (hash % table + i) % table)
    }

    fn table_at(&self, page: u64) -> u64 {
        (1 + self.directory + page) * PAGE as u64
    }

    fn table_page(&self, page: u64) -> io::Result<[u8; PAGE]> {
        read_page(&self.file, self.table_at(page))
    }

    fn bitmap_at(&self, i: usize) -> u64 {
        self.table_at(self.table) + (i * PAGE) as u64
    }

    fn bitmap(&self, i: usize) -> io::Result<[u8; PAGE]> {
        read_page(&self.file, self.bitmap_at(i))
    }

    fn bitmap_of(&self, block: u128) -> Option<usize> {
        self.blocks.iter().position(|have| *have == block)
    }

    fn read_blocks(&self) -> io::Result<Vec<u128>> {
        let mut bytes = vec![0; self.directory as usize * PAGE];
        self.file.read_exact_at(&mut bytes, PAGE as u64)?;
        let entries = bytes.chunks_exact(ENTRY).map(|entry| u128::from_le_bytes(array(entry)));
        Ok(entries.take_while(|entry| *entry != 0).map(|entry| entry - 1).collect())
    }
}

/// A whole index in memory, to be written at once.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn new(directory: usize, table: usize, bitmaps: usize) -> Self {
        Self { bytes: vec![0; (1 + directory + table + bitmaps) * PAGE] }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn set_bit(&mut self, page: usize, bit: usize) {
        if let Some(byte) = self.bytes.get_mut(page + bit / 8) {
            *byte |= 1 << (bit % 8);
        }
    }

    fn put_slot(&mut self, table_at: usize, table: usize, lease: &Noted) {
        let first = (lease.hash % table as u64) as usize * SLOTS;
        let total = table * SLOTS;
        let mut places = (0..total).map(|i| table_at + (first + i) % total * SLOT);
        let is_empty = |at: &usize| self.bytes.get(at + SLOT - 1) == Some(&0);
        if let Some(at) = places.find(is_empty) {
            self.put(at, &slot_bytes(lease));
        }
    }
}

/// FNV-1a, 64 bits, its high bits mixed into the low ones; part of the file format.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn block(address: IpAddr) -> u128 {
    number(address) >> BLOCK_BITS
}

/// Place of an address in its block.
fn bit(number: u128) -> usize {
    (number & ((1 << BLOCK_BITS) - 1)) as usize
}

fn is_set(bitmap: &[u8; PAGE], bit: usize) -> bool {
    bitmap.get(bit / 8).is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
}

/// The first of the addresses `from` to `last`, all of the bitmap's block, whose bit is clear.
fn first_clear(bitmap: &[u8; PAGE], from: u128, last: u128, gateway: u128) -> Option<u128> {
    let mut at = from;
    while at <= last {
        let bit = bit(at);
        if bit % 8 == 0 && bitmap.get(bit / 8) == Some(&0xff) {
            at = at.checked_add(8)?;
            continue;
        }
        if at != gateway && !is_set(bitmap, bit) {
            return Some(at);
        }
        at = at.checked_add(1)?;
    }
    None
}

fn read_page(file: &File, at: u64) -> io::Result<[u8; PAGE]> {
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, at)?;
    Ok(page)
}

fn state(slot: &[u8]) -> u8 {
    slot.last().copied().unwrap_or(0)
}

fn read_slot(slot: &[u8]) -> Option<Noted> {
    let origin = match state(slot) {
        1 => Origin::Ours,
        2 => Origin::Other,
        _ => return None,
    };
    let (hash, rest) = slot.split_at_checked(8)?;
    let (address, _) = rest.split_at_checked(16)?;
    let address = from_number(u128::from_le_bytes(array(address)), true);
    Some(Noted { hash: u64::from_le_bytes(array(hash)), address, origin })
}

fn slot_bytes(lease: &Noted) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&lease.hash.to_le_bytes());
    slot[8..24].copy_from_slice(&number(lease.address).to_le_bytes());
    slot[SLOT - 1] = lease.origin as u8;
    slot
}

/// The first `N` bytes; zeros where there are fewer.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(bytes) {
        *to = *from;
    }
    array
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::range::RangeSet;

    fn empty() -> Notes {
        of(&[], &[])
    }

    fn of(leases: &[Noted], blocked: &[IpAddr]) -> Notes {
        let file = File::from(memfd_create("notes", MFdFlags::empty()).unwrap());
        Notes::write(file, "boot", -5, leases, blocked).unwrap()
    }

    fn noted(n: u128, ipv4: bool) -> Noted {
        let base = if ipv4 { "10.0.255.250" } else { "fd00::7ff0" }.parse().unwrap();
        let address = from_number(number(base) + n, ipv4);
        // Few different hashes, so that they meet on pages.
        Noted { hash: (n % 7) as u64, address, origin: Origin::Ours }
    }

    #[test]
    fn the_head_is_read_back_and_junk_refused() {
        let notes = of(&[noted(1, true)], &[]);
        let read = Notes::open(notes.file.try_clone().unwrap()).unwrap();
        assert_eq!((read.boot.as_str(), read.seal), ("boot", -5));
        assert_eq!(read.all().unwrap(), [noted(1, true)]);
        for junk in ["", "#weft lease index 2\n", "10.0.0.1"] {
            let file = File::from(memfd_create("junk", MFdFlags::empty()).unwrap());
            file.write_all_at(junk.as_bytes(), 0).unwrap();
            file.set_len(PAGE as u64).unwrap();
            assert!(Notes::open(file).is_err(), "{junk}");
        }
    }

    #[test]
    fn an_index_that_lacks_pages_is_refused() {
        let max = u64::MAX;
        let whole = of(&[noted(1, true)], &[]);
        let (directory, table) = (whole.directory, whole.table);
        let length = whole.file.metadata().unwrap().len();
        for (directory, table, length) in [
            (max, table, length),
            (directory, max, length),
            (max / PAGE as u64, table, length),
            (directory, 1 << 40, length),
            (directory, table, length - PAGE as u64),
        ] {
            let Notes { file, .. } = of(&[noted(1, true)], &[]);
            let head =
                format!("{FORMAT}\nboot boot\nseal -5\ndirectory {directory}\ntable {table}\n");
            file.write_all_at(head.as_bytes(), 0).unwrap();
            file.set_len(length).unwrap();
            assert!(Notes::open(file).is_err(), "{head} in {length} bytes");
        }
        assert!(Notes::open(whole.file).is_ok());
    }

    #[test]
    fn a_full_table_asks_to_be_made_anew_and_loses_nothing() {
        let mut notes = empty();
        let leases: Vec<_> = (0..5000).map(|n| Noted { hash: 3, ..noted(n, true) }).collect();
        let fit = leases.iter().take_while(|lease| notes.insert(lease).unwrap()).count();
        assert_eq!(fit, SLOTS, "an empty index has a table of one page");
        assert_eq!(notes.find(3).unwrap().len(), fit);
        let mut anew = of(&leases, &[]);
        assert_eq!(anew.find(3).unwrap().len(), leases.len());
        // One hash for all of them: too much for the pages that a lookup should read.
        assert!(!anew.insert(&Noted { hash: 3, ..noted(9000, true) }).unwrap());
        assert!(anew.insert(&Noted { hash: 50, ..noted(9001, true) }).unwrap());
    }

    #[test]
    fn a_full_directory_asks_to_be_made_anew() {
        let mut notes = empty();
        let spread = |n: u128| Noted { address: from_number(n << 20, false), ..noted(n, false) };
        let mut fits = |n: &u128| notes.set_taken(spread(*n).address, true).unwrap();
        let fit = (1..1000).take_while(&mut fits).count();
        assert_eq!(fit, ENTRIES);
        let leases: Vec<_> = (1..1000).map(spread).collect();
        assert_eq!(of(&leases, &[]).all().unwrap().len(), 999);
    }

    proptest! {
        /// Whatever comes and goes, the index answers as a plain map does.
        #[test]
        fn answers_as_a_map(steps in vec((0u128..40, any::<bool>(), any::<bool>()), 0..120), gateway in 0u128..45) {
            let mut notes = empty();
            let mut map: BTreeMap<IpAddr, Noted> = BTreeMap::new();
            for (n, ipv4, insert) in steps {
                let lease = noted(n, ipv4);
                if insert && !map.contains_key(&lease.address) {
                    prop_assert!(notes.insert(&lease).unwrap());
                    map.insert(lease.address, lease);
                } else if !insert {
                    notes.remove(lease.hash, lease.address).unwrap();
                    map.remove(&lease.address);
                }
            }
            let rebuilt = of(&map.values().copied().collect::<Vec<_>>(), &[]);
            for notes in [&notes, &rebuilt] {
                let mut all = notes.all().unwrap();
                all.sort_by_key(|lease| lease.address);
                prop_assert_eq!(&all, &map.values().copied().collect::<Vec<_>>());
                for hash in 0..8 {
                    let mut found = notes.find(hash).unwrap();
                    found.sort();
                    let expected: Vec<_> = map.values().filter(|l| l.hash == hash).map(|l| l.address).collect();
                    prop_assert_eq!(found, expected);
                }
                for ipv4 in [true, false] {
                    let at = |n| noted(n, ipv4).address;
                    let subnet = if ipv4 { "10.0.0.0/15" } else { "fd00::/64" }.parse().unwrap();
                    let range = Range::new(subnet, Some(at(2)), Some(at(38)), Some(at(gateway))).unwrap();
                    let set = RangeSet::new(vec![range.clone()]).unwrap();
                    let free = |n: &u128| *n != gateway && !map.contains_key(&at(*n));
                    let stretch = set.round_robin(None)[0];
                    prop_assert_eq!(notes.first_free(&stretch).unwrap(), (2..=38).find(free).map(at));
                    let taken = (2..=38).filter(|n| !free(n)).count() as u128;
                    prop_assert_eq!(notes.count(&range).unwrap(), taken);
                    prop_assert_eq!(notes.is_taken(at(5)).unwrap(), map.contains_key(&at(5)));
                }
            }
        }
    }
}
