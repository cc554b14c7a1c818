//! Directories, processes and random numbers for the tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use cni::{AddResult, Attachment, AttachmentKey, Error, Network, Object, Plugin, Version};
use ipam_host_local::{Host, HostLocal, Sight};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// Our standalone plugin.
pub(crate) fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_host-local").into()
}

/// The reference plugin, where Debian's package containernetworking-plugins has it.
pub(crate) fn reference() -> Result<PathBuf, String> {
    testing::program("/usr/lib/cni/host-local")
}

/// A directory that goes with the test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("host-local-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The lease directory of network `pods`.
    pub(crate) fn leases(&self) -> PathBuf {
        self.0.join("pods")
    }

    /// A copy, all times included.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        let mut from = self.0.clone().into_os_string();
        from.push("/.");
        assert!(Command::new("cp").arg("-a").arg(from).arg(&copy.0).status().unwrap().success());
        copy
    }

    /// Names and contents of the files beside our own notes and the lock.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let Ok(entries) = fs::read_dir(self.leases()) else { return BTreeMap::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| name != ".weft" && name != "lock");
        names
            .map(|name| (name.clone(), fs::read_to_string(self.leases().join(name)).unwrap()))
            .collect()
    }

    /// As `files`, without `last_reserved_ip`.
    pub(crate) fn held(&self) -> BTreeMap<String, String> {
        let mut files = self.files();
        files.retain(|name, _| !name.starts_with("last"));
        files
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.leases()).unwrap();
        fs::write(self.leases().join(name), content).unwrap();
    }

    /// Everything that a later run could tell apart: names, contents, times of marks. Of the index's
    /// random seal only whether the directory bears it.
    pub(crate) fn state(&self) -> Vec<(PathBuf, i64, Vec<u8>)> {
        let (_, seal) = unsealed(fs::read(self.leases().join(".weft/index")).unwrap_or_default());
        let mut found = Vec::new();
        let mut left = vec![self.0.clone()];
        while let Some(path) = left.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            let is_seal = seal.as_deref() == Some(&format!("seal {}", meta.mtime()));
            let mark = if is_seal { -1 } else { meta.mtime().min(0) };
            found.push((path.strip_prefix(&self.0).unwrap().into(), mark, unsealed(content).0));
            if meta.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        found.sort();
        found
    }
}

/// What a file contains beside an index's line with the seal, and that line.
fn unsealed(mut content: Vec<u8>) -> (Vec<u8>, Option<String>) {
    if !content.starts_with(b"#weft lease index") {
        return (content, None);
    }
    let Some(start) = content.windows(6).position(|bytes| bytes == b"\nseal ") else {
        return (content, None);
    };
    let start = start + 1;
    let length = content[start..].iter().position(|byte| *byte == b'\n').unwrap();
    let line = content.drain(start..start + length).collect();
    (content, Some(String::from_utf8(line).unwrap()))
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A configuration of network `pods` with these `ranges`.
pub(crate) fn config(dir: &Dir, ranges: Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "test",
        "ipam": { "type": "host-local", "dataDir": dir.0, "ranges": ranges },
    })
}

/// The environment of a call.
pub(crate) fn environment(command: &mut Command, verb: &str, id: &str, ifname: &str, args: &str) {
    command.env_clear().envs([
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", id),
        ("CNI_IFNAME", ifname),
        ("CNI_NETNS", "/none"),
        ("CNI_PATH", "/none"),
        ("CNI_ARGS", args),
        ("PATH", "/usr/bin:/bin"),
    ]);
}

/// What a call printed, if anything; `Err` where it failed.
pub(crate) type Outcome = Result<Value, Value>;

pub(crate) fn call(program: &Path, verb: &str, id: &str, config: &Value) -> Outcome {
    let mut command = Command::new(program);
    environment(&mut command, verb, id, "eth0", "");
    finish(command, config)
}

/// Runs `command` with `config` on its standard input.
pub(crate) fn finish(mut command: Command, config: &Value) -> Outcome {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A child that is killed before it reads breaks the pipe.
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if output.status.success() { Ok(value) } else { Err(value) }
}

/// The addresses of a result, without prefix length.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    let text = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    ips.iter().map(text).collect()
}

pub(crate) fn network(config: &Value) -> Network {
    Network {
        version: Version::V1_1_0,
        name: config["name"].as_str().unwrap().into(),
        config: config.as_object().unwrap().clone(),
        prev_result: None,
        path: Vec::new(),
    }
}

/// Container IDs that tests judge by must be of one test only: processes of other tests
/// count as work on their containers.
pub(crate) fn key(id: &str) -> AttachmentKey {
    AttachmentKey { container_id: id.into(), ifname: "eth0".into() }
}

pub(crate) fn attachment(id: &str) -> Attachment {
    Attachment { key: key(id), netns: None, args: BTreeMap::new() }
}

pub(crate) fn no_ranges(_: &Object<'_>) -> Result<Vec<IpNetwork>, Error> {
    Ok(Vec::new())
}

/// A look that finds nothing.
pub(crate) fn nothing_in_use() -> Sight<'static> {
    Sight {
        interface_lives: None,
        has_pod_route: Box::new(|_| false),
        address_in_use: Box::new(|_| false),
    }
}

/// A host on which every address is in use.
pub(crate) fn host() -> Host<'static> {
    Host::new(&no_ranges, &Sight::blind)
}

pub(crate) fn add(host: Host<'_>, id: &str, config: &Value) -> Result<AddResult, Error> {
    HostLocal { host }.add(&attachment(id), &network(config))
}

/// The address that container `id` gets.
pub(crate) fn add_one(host: Host<'_>, id: &str, config: &Value) -> Result<String, Error> {
    add(host, id, config).map(|result| result.ips[0].address.ip().to_string())
}

pub(crate) fn del(id: &str, config: &Value) {
    HostLocal { host: host() }.del(&attachment(id), &network(config)).unwrap();
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
