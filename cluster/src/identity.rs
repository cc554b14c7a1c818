//! Whether the map's directory is still the one that was read, told without
//! opening a file of it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::map::{MapError, is_map_file};

/// Up to this many files are looked at one by one; in a larger directory only
/// the directory itself is, so that the cost does not grow with the cluster.
const FILES: usize = 16;

/// File times are those of the last timer tick, so an edit in the tick of the
/// one before it leaves no trace. A second is more than any tick (250 Hz: 4 ms)
/// and covers file systems that keep whole seconds.
const YOUNG: Duration = Duration::from_secs(1);

/// What a map directory looked like: its inode and modification time and, while
/// there are at most 16 files, each one's name, inode, size, modification and
/// change time, hashed; and those names, by which it is looked at again without
/// being listed. Written as 32 hexadecimal digits and the names, a slash before each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    hash: u128,
    /// None where there are more than 16.
    names: Vec<String>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.hash)?;
        self.names.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let digits = parts.next().unwrap_or_default();
        let all_digits = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u128::from_str_radix(digits, 16).ok().filter(|_| all_digits);
        let hash = number.ok_or_else(|| format!("{digits:?} is not 32 hexadecimal digits"))?;
        Ok(Self { hash, names: parts.map(str::to_owned).collect() })
    }
}

impl Identity {
    /// Whether `dir` still looks like this at time `now`, and is not so young that it proves
    /// nothing. As long as the directory itself is unchanged, so are the names in it.
    pub fn holds(&self, dir: &Path, now: SystemTime) -> bool {
        let hash = fs::metadata(dir).map(|directory| hash(dir, &directory, &self.names, now));
        matches!(hash, Ok(Ok(Some(hash))) if hash == self.hash)
    }
}

/// The identity of map directory `dir` at time `now`; `None` where the directory
/// or a file changed less than a second before or after `now`, or is just
/// changing, or a file's name is no line of text: then the same identity would not
/// prove the same content.
///
/// Links are followed, as a mounted Kubernetes ConfigMap is made of them. In a
/// directory of more than 16 files an edit in place goes unnoticed; replacing a
/// file (rename) never does.
pub fn identity(dir: &Path, now: SystemTime) -> Result<Option<Identity>, MapError> {
    let cannot = |error| MapError::unreadable(dir, &error);
    let directory = fs::metadata(dir).map_err(cannot)?;
    let names = first_files(dir).map_err(cannot)?;
    let names = if names.len() > FILES { Vec::new() } else { names };
    let text = |name: OsString| name.into_string().ok().filter(|name| !name.contains('\n'));
    let Some(mut names) = names.into_iter().map(text).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    names.sort_unstable();
    Ok(hash(dir, &directory, &names, now)?.map(|hash| Identity { hash, names }))
}

fn hash(
    dir: &Path,
    directory: &Metadata,
    names: &[String],
    now: SystemTime,
) -> Result<Option<u128>, MapError> {
    if is_young(directory, now) {
        return Ok(None);
    }
    let mut hash = Fnv128::default();
    hash.add_metadata(directory);
    for name in names {
        let file = dir.join(name);
        let metadata = match fs::metadata(&file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MapError::unreadable(&file, &error)),
        };
        if is_young(&metadata, now) {
            return Ok(None);
        }
        hash.add(name.as_bytes());
        hash.add_metadata(&metadata);
    }
    Ok(Some(hash.finish()))
}

/// The names of the map files in `dir`, at most one more than are looked at.
fn first_files(dir: &Path) -> std::io::Result<Vec<OsString>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if is_map_file(&name) {
            files.push(name);
        }
        if files.len() > FILES {
            break;
        }
    }
    Ok(files)
}

/// Changed less than a second from `now`. Times further in the future are those
/// of a clock that was set back; an edit now would change them.
fn is_young(metadata: &Metadata, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let near = |seconds: i64, nanoseconds: i64| {
        let whole = Duration::from_secs(seconds.max(0).unsigned_abs());
        let time = whole + Duration::from_nanos(nanoseconds.max(0).unsigned_abs());
        now.abs_diff(time) < YOUNG
    };
    near(metadata.mtime(), metadata.mtime_nsec()) || near(metadata.ctime(), metadata.ctime_nsec())
}

/// The 128-bit FNV-1a hash (draft-eastlake-fnv), which needs no key and is the
/// same in every run.
struct Fnv128(u128);

impl Default for Fnv128 {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv128 {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u128::from(*byte);
            self.0 = self.0.wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    fn add_metadata(&mut self, of: &Metadata) {
        for number in [of.dev(), of.ino(), of.size()] {
            self.add(&number.to_le_bytes());
        }
        for time in [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()] {
            self.add(&time.to_le_bytes());
        }
    }

    fn finish(&self) -> u128 {
        self.0
    }
}
