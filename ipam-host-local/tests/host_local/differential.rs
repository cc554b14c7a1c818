//! The same calls to the reference plugin alone and to a mixture of it and ours, each on a
//! directory of its own: results and files must be the same after every call.
//!
//! What is left out differs on purpose, see docs/host-local.md: a second ADD with a requested
//! address, DEL where some leases of a container name no interface, several requested addresses of one set, DEL with invalid ranges, empty files.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::util::{Dir, Outcome, Random, environment, finish, ours, reference};

/// Calls with one configuration, before a new directory is begun.
const CALLS: u64 = 40;

#[test]
fn mixed_binaries_do_what_the_reference_does() {
    let go = testing::need!(reference());
    let soak = std::env::var_os("WEFT_SOAK").is_some();
    let calls = number("WEFT_DIFF_OPS").unwrap_or(if soak { 50_000 } else { 800 });
    let random_seed = || RandomState::new().build_hasher().finish();
    let seed = number("WEFT_DIFF_SEED").unwrap_or_else(random_seed);
    eprintln!("WEFT_DIFF_SEED={seed} WEFT_DIFF_OPS={calls}");
    let mut random = Random(seed);
    let mut outcomes = BTreeMap::new();
    for sequence in 0..calls.div_ceil(CALLS) {
        let mut pair = Pair::new(&mut random, go.clone());
        for call in 0..CALLS {
            let what = pair.step(&mut random);
            pair.compare(&format!("seed {seed}, sequence {sequence}, call {call}: {what}"));
            let kind = what.split_whitespace().next().unwrap_or_default().to_owned();
            *outcomes.entry((kind, pair.ok())).or_insert(0) += 1;
        }
    }
    eprintln!("{outcomes:?}");
    for verb in ["ADD", "CHECK"] {
        for ok in [true, false] {
            assert!(outcomes.contains_key(&(verb.into(), ok)), "no {verb} with success={ok}");
        }
    }
}

/// What people write, and what they should not: `ipam` keys and CNI_ARGS.
fn odd_configurations() -> Vec<(Value, &'static str)> {
    let ranges = || json!([[{ "subnet": "10.1.2.0/29" }]]);
    let one = |range: Value| (json!({ "ranges": [[range]] }), "");
    let plain = |args| (json!({ "ranges": ranges() }), args);
    vec![
        (json!({}), ""),
        (json!({ "ranges": [] }), ""),
        (json!({ "ranges": [[]] }), ""),
        (json!({ "ranges": "x" }), ""),
        (json!({ "Ranges": ranges() }), ""),
        (json!({ "ranges": null, "subnet": "10.1.2.0/29" }), ""),
        (json!({ "ranges": ranges(), "resolvConf": "" }), ""),
        (json!({ "ranges": ranges(), "resolvConf": "/nowhere" }), ""),
        (json!({ "ranges": ranges(), "routes": null }), ""),
        (json!({ "ranges": ranges(), "routes": [{ "dst": "10.0.0.1/8" }] }), ""),
        (json!({ "ranges": ranges(), "routes": [{ "dst": "ten" }] }), ""),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/29" }], [{ "subnet": "10.1.2.0/28" }]] }), ""),
        (json!({ "ranges": [[{ "subnet": "10.1.2.0/29" }, { "subnet": "fd00::/64" }]] }), ""),
        one(json!({ "subnet": 5 })),
        one(json!({ "subnet": "10.1.2.0" })),
        one(json!({ "subnet": "10.1.02.0/29" })),
        one(json!({ "subnet": "10.1.2.1/29" })),
        one(json!({ "subnet": "10.1.2.0/31" })),
        one(json!({ "subnet": "fd00::/127" })),
        one(json!({ "subnet": "fd00::/64" })),
        one(json!({ "subnet": "::ffff:10.1.2.0/120" })),
        one(json!({ "subnet": "10.1.2.0/29", "rangeStart": "::ffff:10.1.2.4" })),
        one(json!({ "subnet": "10.1.2.0/29", "rangeStart": "", "rangeEnd": "", "gateway": "" })),
        one(json!({ "subnet": "10.1.2.0/29", "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.3" })),
        one(json!({ "subnet": "10.1.2.0/29", "rangeStart": "10.1.2.0", "gateway": "10.1.2.3" })),
        one(json!({ "subnet": "10.1.2.0/29", "rangeEnd": "10.1.2.9" })),
        one(json!({ "subnet": "10.1.2.0/29", "gateway": null })),
        one(json!({ "subnet": "10.1.2.0/29", "gateway": "banana" })),
        one(json!({ "subnet": "10.1.2.0/29", "gateway": "fd00::1" })),
        plain("IP="),
        plain("IP"),
        plain("ip=10.1.2.5"),
        plain("IP=10.1.2.5/33"),
        plain("IP=10.1.2.5/99;IgnoreUnknown=1"),
        plain("IP=10.1.2.1"),
        plain("IP=10.1.2.7"),
        plain("IP=10.1.3.5"),
        plain("IP=10.1.2.5;IP=10.1.2.6"),
        plain("FOO=1"),
        plain("IgnoreUnknown=true;FOO=1"),
        plain("IgnoreUnknown=x;FOO=1"),
    ]
}

#[test]
fn odd_configurations_are_taken_as_the_reference_takes_them() {
    let go = testing::need!(reference());
    for (keys, args) in odd_configurations() {
        let [by_go, by_us] = [&go, &ours()].map(|program| {
            let dir = Dir::new();
            let mut config =
                json!({ "cniVersion": "1.0.0", "name": "pods", "type": "test", "ipam": keys });
            config["ipam"]["type"] = json!("host-local");
            config["ipam"]["dataDir"] = json!(dir.0);
            let mut command = Command::new(program);
            environment(&mut command, "ADD", "a", "eth0", args);
            let outcome = finish(command, &config);
            if let Err(error) = &outcome {
                assert!(error["code"].is_u64(), "{program:?}, {keys} {args:?}: {error}");
            }
            (outcome.map(|result| strip(&result)).map_err(drop), dir.files())
        });
        assert_eq!(by_go, by_us, "{keys} {args:?}");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

struct Pair {
    go: PathBuf,
    alone: Dir,
    mixed: Dir,
    config: Value,
    /// Other ranges, for DEL and CHECK, which must not care.
    other: Value,
    /// First address of each set's subnet.
    subnets: Vec<IpAddr>,
    last: Option<(Outcome, Outcome)>,
    /// Verb and container of that.
    what: (String, String),
}

impl Pair {
    fn new(random: &mut Random, go: PathBuf) -> Self {
        let (config, subnets) = random_config(random);
        let (other, _) = random_config(random);
        Self {
            go,
            alone: Dir::new(),
            mixed: Dir::new(),
            config,
            other,
            subnets,
            last: None,
            what: Default::default(),
        }
    }

    fn step(&mut self, random: &mut Random) -> String {
        let id = *random.pick(&["a", "b", "c", "d1", "e", "f", "g", "h", "10.0.0.5-x"]);
        let ifname = *random.pick(&["eth0", "eth0", "net1"]);
        match random.below(20) {
            0..=9 => self.add(random, id, ifname),
            10..=14 if !self.has_both(id, ifname) => {
                self.call(random, "DEL", id, ifname, "", &Value::Null)
            }
            10..=17 => self.call(random, "CHECK", id, ifname, "", &Value::Null),
            _ => self.legacy(random, id),
        }
    }

    fn add(&mut self, random: &mut Random, id: &str, ifname: &str) -> String {
        let mut config = self.config.clone();
        let mut args = String::new();
        let holds = |content: &String| content.trim().starts_with(id);
        if random.below(4) == 0 && !self.alone.held().values().any(holds) {
            let subnets = self.subnets.clone();
            let subnet = *random.pick(&subnets);
            let one = address(random, subnet);
            match random.below(4) {
                0 => args = format!("IgnoreUnknown=1;IP={one};K8S_POD_NAME=x"),
                1 => args = format!("IP={one}/24"),
                2 => config["args"] = json!({ "cni": { "ips": [one] } }),
                _ => {
                    let all: Vec<_> = subnets.iter().map(|s| address(random, *s)).collect();
                    config["runtimeConfig"] = json!({ "ips": all });
                }
            }
        }
        self.call(random, "ADD", id, ifname, &args, &config)
    }

    /// Whether `id` has leases with its interface and such without.
    fn has_both(&self, id: &str, ifname: &str) -> bool {
        let held = self.alone.held();
        let has = |content: &str| held.values().any(|held| held.trim() == content);
        has(id) && has(&format!("{id}\r\n{ifname}"))
    }

    /// One call to each side; `Null` stands for any valid configuration.
    fn call(
        &mut self,
        random: &mut Random,
        verb: &str,
        id: &str,
        ifname: &str,
        args: &str,
        config: &Value,
    ) -> String {
        let config = match config {
            Value::Null if random.below(3) == 0 => self.other.clone(),
            Value::Null => self.config.clone(),
            config => config.clone(),
        };
        self.what = (verb.to_owned(), id.to_owned());
        let turn = random.below(2) == 0;
        let program = if turn { ours() } else { self.go.clone() };
        let run = |program: &PathBuf, dir: &Dir| {
            let mut config = config.clone();
            config["ipam"]["dataDir"] = json!(dir.0);
            let mut command = Command::new(program);
            environment(&mut command, verb, id, ifname, args);
            finish(command, &config)
        };
        self.last = Some((run(&self.go, &self.alone), run(&program, &self.mixed)));
        let by = if turn { "ours" } else { "reference" };
        format!("{verb} {id} {ifname} {args:?} by {by}, config {config}")
    }

    /// A lease as old versions wrote them, or with blanks around.
    fn legacy(&mut self, random: &mut Random, id: &str) -> String {
        let name = address(random, self.subnets[0]).to_string();
        let content = match random.below(3) {
            0 => id.to_owned(),
            1 => format!(" {id}\n"),
            _ => format!("{id}\r\neth0\n"),
        };
        for dir in [&self.alone, &self.mixed] {
            if !dir.leases().join(&name).exists() {
                dir.write(&name, &content);
            }
        }
        self.last = None;
        format!("file {name} {content:?}")
    }

    fn ok(&self) -> bool {
        self.last.as_ref().is_none_or(|(alone, _)| alone.is_ok())
    }

    /// The reference rolls a failed ADD back by freeing everything that its container
    /// holds, also from earlier; ours frees what this ADD took.
    fn forget_rollback(&self) {
        let (verb, id) = &self.what;
        if verb != "ADD" || self.ok() {
            return;
        }
        let alone = self.alone.files();
        for (name, content) in self.mixed.files() {
            if !alone.contains_key(&name) && content.trim().split("\r\n").next() == Some(id) {
                fs::remove_file(self.mixed.leases().join(name)).unwrap();
            }
        }
    }

    fn compare(&self, what: &str) {
        if let Some((alone, mixed)) = &self.last {
            assert_eq!(alone.is_ok(), mixed.is_ok(), "{what}\n{alone:?}\n{mixed:?}");
            if let (Ok(alone), Ok(mixed)) = (alone, mixed) {
                assert_eq!(strip(alone), strip(mixed), "{what}");
            }
            let code =
                |outcome: &Outcome| outcome.as_ref().err().map(|error| error["code"].is_u64());
            assert_eq!(code(alone), code(mixed), "{what}: no error object");
        }
        self.forget_rollback();
        assert_eq!(self.alone.files(), self.mixed.files(), "{what}");
    }
}

/// Go writes an empty `dns`.
fn strip(result: &Value) -> Value {
    let mut result = result.clone();
    if let Some(object) = result.as_object_mut() {
        object.retain(|key, value| key != "dns" || *value != json!({}));
    }
    result
}

fn address(random: &mut Random, subnet: IpAddr) -> IpAddr {
    let offset = random.below(20);
    match subnet {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + offset as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(offset)).into()),
    }
}

fn random_config(random: &mut Random) -> (Value, Vec<IpAddr>) {
    let mut subnets = Vec::new();
    let mut sets: Vec<Value> = Vec::new();
    for set in 0..1 + random.below(3) {
        let v6 = random.below(3) == 0;
        let ranges = (0..1 + random.below(3)).map(|range| {
            let base =
                if v6 { format!("fd00:{set}:{range}::") } else { format!("10.{set}.{range}.0") };
            let subnet: IpAddr = base.parse().unwrap();
            if range == 0 {
                subnets.push(subnet);
            }
            random_range(random, subnet)
        });
        sets.push(ranges.collect());
    }
    let mut config = json!({
        "cniVersion": random.pick(&["0.3.0", "0.3.1", "0.4.0", "1.0.0"]),
        "name": "pods", "type": "test", "ipam": { "type": "host-local" },
    });
    if random.below(3) == 0 {
        config["ipam"]["routes"] =
            json!([{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.0.0.9" }]);
    }
    match random.below(4) {
        0 if sets[0].as_array().is_some_and(|ranges| ranges.len() == 1) => {
            let first = sets.remove(0)[0].clone();
            for (key, value) in first.as_object().unwrap() {
                config["ipam"][key] = value.clone();
            }
            config["ipam"]["ranges"] = json!(sets);
        }
        1 => config["runtimeConfig"] = json!({ "ipRanges": sets }),
        _ => config["ipam"]["ranges"] = json!(sets),
    }
    (config, subnets)
}

fn random_range(random: &mut Random, subnet: IpAddr) -> Value {
    let (shortest, at) = match subnet {
        IpAddr::V4(_) => (28, 32),
        IpAddr::V6(_) => (124, 128),
    };
    let length = shortest + random.below(3);
    let size = 1u64 << (at - length);
    let plus = |n: u64| match subnet {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + n as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + u128::from(n)).into()),
    };
    let mut range = json!({ "subnet": format!("{subnet}/{length}") });
    if random.below(3) == 0 {
        let start = random.below(size);
        range["rangeStart"] = json!(plus(start));
        range["rangeEnd"] = json!(plus(start + random.below(size - start)));
    }
    if random.below(3) == 0 {
        range["gateway"] = json!(plus(random.below(size + 3)));
    }
    range
}
