//! The files of host-local: leases, `last_reserved_ip`, the index, `resolv.conf`.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use cni::{Attachment, AttachmentKey, Error, Network, Plugin, Version};
use ipam_host_local::{Host, HostLocal, Sight};
use serde_json::{Value, json};

const PAGE: usize = 4096;
/// Between two files of the input: the record separator of ASCII.
const SEPARATOR: u8 = 0x1e;
const INDEX: &str = ".weft/index";
/// Who adds and deletes.
const OURS: &str = "new";

/// Files between separators, each a line with its name and then its content. A name that begins
/// with `!` is a lease that we wrote in this boot, with `~` one of an earlier boot. The
/// index is written as [`write_index`] says, and believed if it is one.
pub(crate) fn check(data: &[u8]) {
    let place = Place::new();
    for record in data.split(|byte| *byte == SEPARATOR).take(24) {
        let end = record.iter().position(|byte| *byte == b'\n').unwrap_or(record.len());
        let (name, content) = record.split_at(end);
        let Ok(name) = std::str::from_utf8(name) else { continue };
        place.write(name, content.get(1..).unwrap_or_default());
    }
    place.believe_index();
    exercise(&place);
}

/// A lease directory of its own for each input.
struct Place {
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let thread = format!("{:?}", std::thread::current().id());
        let root = base.join(format!("weft-fuzz-{}-{thread}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("pods/.weft")).expect("a temporary directory");
        fs::write(root.join("boot_id"), "this-boot").expect("a temporary file");
        Self { root }
    }

    fn leases(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Writes a file; a name that no file can have is passed over.
    fn write(&self, name: &str, content: &[u8]) {
        if name == "resolv.conf" {
            return fs::write(self.root.join(name), content).expect("a temporary file");
        }
        if name == INDEX {
            return write_index(&self.leases().join(INDEX), content);
        }
        let (name, time) = match (name.strip_prefix('!'), name.strip_prefix('~')) {
            (Some(name), _) => (name, Some(written())),
            (_, Some(name)) => (name, Some(SystemTime::UNIX_EPOCH - Duration::from_secs(3))),
            _ => (name, None),
        };
        if name.contains(['/', '\0']) {
            return;
        }
        let Ok(mut file) = File::create(self.leases().join(name)) else { return };
        file.write_all(content).expect("a temporary file");
        if let Some(time) = time {
            file.set_times(FileTimes::new().set_modified(time)).expect("a temporary file");
        }
    }

    /// Gives the directory the time that the index names as its seal.
    fn believe_index(&self) {
        let Ok(index) = fs::read(self.leases().join(INDEX)) else { return };
        let text = String::from_utf8_lossy(index.get(..PAGE).unwrap_or(&index)).into_owned();
        let seal = text.lines().find_map(|line| line.strip_prefix("seal -")?.parse().ok());
        // Farther back than the index itself goes filesystems refuse.
        let Some(seal) = seal.filter(|seal| *seal < 1 << 31) else { return };
        let time = SystemTime::UNIX_EPOCH - Duration::from_secs(seal);
        let dir = File::open(self.leases()).expect("a temporary directory");
        dir.set_times(FileTimes::new().set_modified(time)).expect("a temporary directory");
    }

    /// Names, contents and modification times of what may be leases.
    fn files(&self) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(self.leases()).expect("a temporary directory") {
            let entry = entry.expect("a temporary directory");
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(content) = fs::read(entry.path()) else { continue };
            let time = entry.metadata().and_then(|meta| meta.modified()).expect("a file");
            files.insert(name, (content, time));
        }
        files
    }

    fn network(&self) -> Network {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "test",
            "ipam": {
                "type": "host-local", "dataDir": self.root,
                "ranges": [[{ "subnet": "10.1.2.0/28" }], [{ "subnet": "fd00::/64" }]],
            },
        });
        let resolv = self.root.join("resolv.conf");
        if resolv.exists() {
            config["ipam"]["resolvConf"] = json!(resolv);
        }
        let Value::Object(config) = config else { unreachable!() };
        let (version, name) = (Version::LATEST, "pods".to_owned());
        Network { version, name, config, prev_result: None, path: Vec::new() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// An index: the number of its pages, what it starts with up to an empty line, and then
/// patches of a page, a place in it (two bytes), a length and so many bytes.
fn write_index(path: &Path, content: &[u8]) {
    let Some((pages, content)) = content.split_first() else { return };
    let end = content.windows(2).position(|two| two == b"\n\n").map_or(content.len(), |at| at + 1);
    let (head, patches) = content.split_at(end);
    let mut patches = patches.get(1..).unwrap_or_default();
    let file = File::create(path).expect("a temporary file");
    file.set_len(u64::from(*pages) * PAGE as u64).expect("a temporary file");
    file.write_all_at(head, 0).expect("a temporary file");
    while let [page, high, low, length, rest @ ..] = patches {
        let at = usize::from(*page) * PAGE + usize::from(u16::from_be_bytes([*high, *low])) % PAGE;
        let (bytes, rest) = rest.split_at(rest.len().min((*length).into()));
        file.write_all_at(bytes, at as u64).expect("a temporary file");
        patches = rest;
    }
}

/// The modification time that host-local gives to its leases in this boot.
fn written() -> SystemTime {
    static TIME: OnceLock<SystemTime> = OnceLock::new();
    *TIME.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("weft-fuzz-mark-{}", std::process::id()));
        fs::create_dir_all(&root).expect("a temporary directory");
        fs::write(root.join("boot_id"), "this-boot").expect("a temporary file");
        let place = Place { root };
        let result = plugin(&place).add(&attachment(), &place.network()).expect("an empty range");
        let lease = place.leases().join(result.ips[0].address.ip().to_string());
        fs::metadata(lease).and_then(|meta| meta.modified()).expect("the lease")
    })
}

fn plugin(place: &Place) -> HostLocal<'static> {
    let host = Host::new(&|_| Ok(Vec::new()), &Sight::blind);
    HostLocal { host: Host { boot_id: place.root.join("boot_id"), ..host } }
}

fn attachment() -> Attachment {
    let key = AttachmentKey { container_id: OURS.into(), ifname: "eth0".into() };
    Attachment { key, netns: None, args: BTreeMap::new() }
}

fn exercise(place: &Place) {
    let (plugin, network, ours) = (plugin(place), place.network(), attachment());
    let before = place.files();
    let _ = is_fit(plugin.status(&network));
    is_fit(plugin.usage(&network)).expect("usage");
    is_fit(plugin.leases(&network)).expect("leases");
    if let Ok(result) = is_fit(plugin.add(&ours, &network)) {
        for ip in &result.ips {
            let held = before.get(&ip.address.ip().to_string());
            assert!(held.is_none_or(is_nobodys), "{} was leased to {held:?}", ip.address);
        }
        is_fit(plugin.check(&ours, &network)).expect("CHECK after ADD");
        is_fit(plugin.add(&ours, &network)).expect_err("a second ADD");
        // The second is for leases of the container's that name no interface: as in the
        // reference plugin they count where there are no others.
        is_fit(plugin.del(&ours, &network)).expect("DEL after ADD");
        is_fit(plugin.del(&ours, &network)).expect("a second DEL");
        is_fit(plugin.check(&ours, &network)).expect_err("CHECK after DEL");
    }
    is_fit(plugin.del(&ours, &network)).expect("DEL");
    others_remain(&before, &place.files());
    let keep = AttachmentKey { container_id: "a".into(), ifname: "eth0".into() };
    is_fit(plugin.gc(&[keep], &network)).expect("GC");
    let left = is_fit(plugin.leases(&network)).expect("leases after GC");
    // One: whether a lease is dead costs a look at every process.
    if let Some(lease) = left.first() {
        let _ = is_fit(plugin.release(&network, lease.address));
    }
}

/// Files that say that somebody else has the address, and files that are no leases, are left alone.
fn others_remain(
    before: &BTreeMap<String, (Vec<u8>, SystemTime)>,
    after: &BTreeMap<String, (Vec<u8>, SystemTime)>,
) {
    for (name, file) in before {
        let is_address = name.parse::<IpAddr>().is_ok();
        let of_ours = String::from_utf8_lossy(&file.0).trim().starts_with(OURS);
        if name.starts_with("last_reserved_ip.") || is_address && (is_nobodys(file) || of_ours) {
            continue;
        }
        assert_eq!(after.get(name).map(|f| &f.0), Some(&file.0), "{name} was touched");
    }
}

/// Torn by a power cut, or of an earlier boot.
fn is_nobodys((content, time): &(Vec<u8>, SystemTime)) -> bool {
    let is_blank =
        std::str::from_utf8(content).is_ok_and(|text| text.trim().bytes().all(|byte| byte == 0));
    is_blank || *time < SystemTime::UNIX_EPOCH && *time != written()
}

/// The outcome; an error must be fit for callers and operators.
fn is_fit<T>(outcome: Result<T, Error>) -> Result<T, Error> {
    if let Err(error) = &outcome {
        assert!(![0, 999].contains(&error.code), "{error}");
        let text = error.to_json(Version::LATEST).to_string();
        assert!(!text.contains("not found"), "{text}");
    }
    outcome
}
