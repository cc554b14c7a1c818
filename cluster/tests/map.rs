//! The node map as files and documents.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cluster::{Family, Map, MapError, Node, ProblemKind};
use proptest::prelude::*;
use serde_json::json;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-map-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn read(&self) -> Result<Map, MapError> {
        Map::read(&self.0)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn map(json: serde_json::Value) -> Map {
    Map::from_json(json.to_string().as_bytes(), "test").unwrap()
}

fn names(nodes: &[Node]) -> Vec<&str> {
    nodes.iter().map(|node| node.name.as_str()).collect()
}

fn quarantined(map: &Map) -> Vec<&str> {
    map.quarantined.iter().map(|q| q.node.name.as_str()).collect()
}

fn record(name: &str, number: usize) -> serde_json::Value {
    let (high, low) = (number / 256, number % 256);
    json!({
        "name": name,
        "addresses": [format!("192.168.{high}.{low}/16"), format!("2001:db8::{number:x}")],
        "podCIDRs": [format!("10.{high}.{low}.0/24"), format!("fd00:0:0:{number:x}::/64")],
    })
}

/// The shape of `kubectl get nodes -o json`, with its noise.
fn kubernetes_node(name: &str, ip: &str, spec: serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": "0b9c", "annotations": {"a/b": "{\"x\":[1]}"},
                     "labels": {"kubernetes.io/os": "linux"}},
        "spec": spec,
        "status": {
            "addresses": [{"address": "203.0.113.9", "type": "ExternalIP"},
                          {"address": ip, "type": "InternalIP"},
                          {"address": name, "type": "Hostname"}],
            "capacity": {"cpu": "2"}, "images": [{"names": ["a@sha256:0", "b"], "sizeBytes": 742}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}
        }
    })
}

#[test]
fn files_of_every_form_are_read_in_name_order() {
    let dir = Directory::new("forms");
    dir.write("30.json", &json!({"nodes": [record("d", 4)]}).to_string());
    dir.write("10.json", &record("a", 1).to_string());
    dir.write("20.json", &json!([record("b", 2), record("c", 3)]).to_string());
    dir.write(".hidden.json", "not JSON");
    dir.write("README", "not JSON");
    fs::create_dir(dir.0.join("sub.json")).unwrap();
    let map = dir.read().unwrap();
    assert_eq!(names(&map.nodes), ["a", "b", "c", "d"]);
    assert!(map.is_sound(), "{:?}", map.problems);
    let first = &map.nodes[0];
    assert_eq!(first.tunnel_end(Family::V4), Some("192.168.0.1".parse().unwrap()));
    assert_eq!(first.tunnel_end(Family::V6), Some("2001:db8::1".parse().unwrap()));
    assert_eq!(first.range_v4(), Some("10.0.1.0/24".parse().unwrap()));
    assert_eq!(first.range_v6(), Some("fd00:0:0:1::/64".parse().unwrap()));
    assert_eq!(first.addresses[0].prefix_len, Some(16));
}

#[test]
fn a_mounted_config_map_is_read_through_its_links() {
    let dir = Directory::new("configmap");
    fs::create_dir(dir.0.join("..2024")).unwrap();
    dir.write("..2024/nodes.json", &record("a", 1).to_string());
    symlink("..2024", dir.0.join("..data")).unwrap();
    symlink("..data/nodes.json", dir.0.join("nodes.json")).unwrap();
    assert_eq!(names(&dir.read().unwrap().nodes), ["a"]);
    symlink("gone", dir.0.join("x.json")).unwrap();
    assert_eq!(dir.read().unwrap().unreadable.len(), 1);
}

/// kubelet replaces the directory that the links lead through, then removes it.
#[test]
fn a_directory_replaced_while_its_links_are_followed_is_always_read_whole() {
    let dir = Directory::new("replaced");
    let path = |name: &str| dir.0.join(name);
    let swap = |number: usize| {
        let new = format!("..{number}");
        fs::create_dir(path(&new)).unwrap();
        fs::write(path(&new).join("nodes.json"), record("a", number % 200).to_string()).unwrap();
        symlink(&new, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
    };
    swap(0);
    symlink("..data/nodes.json", path("nodes.json")).unwrap();
    let running = AtomicBool::new(true);
    let wrong: Vec<String> = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                swap(number);
                fs::remove_dir_all(path(&format!("..{}", number - 1))).unwrap();
                if !running.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let wrong = (0..10_000).filter_map(|_| match dir.read() {
            Ok(map) if map.is_sound() => None,
            Ok(map) => Some(map.unreadable[0].to_string()),
            Err(error) => Some(error.to_string()),
        });
        let wrong = wrong.collect();
        running.store(false, Ordering::Relaxed);
        wrong
    });
    assert!(wrong.is_empty(), "{} times: {}", wrong.len(), wrong[0]);
}

#[test]
fn kubernetes_objects_are_read_unchanged() {
    let items = json!([
        kubernetes_node("a", "192.168.1.1", json!({"podCIDR": "10.0.1.0/24",
            "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"], "taints": [{"key": "k"}]})),
        kubernetes_node("b", "192.168.1.2", json!({"podCIDR": "10.0.2.0/24"})),
        kubernetes_node("c", "192.168.1.3", json!({})),
        {"kind": "Pod", "metadata": {"name": "p"}, "spec": {}},
    ]);
    for kind in ["List", "NodeList"] {
        let map = map(json!({"apiVersion": "v1", "items": items, "kind": kind,
                             "metadata": {"resourceVersion": ""}}));
        assert_eq!(names(&map.nodes), ["a", "b"]);
        assert_eq!(names(&map.incomplete), ["c"]);
        assert!(map.is_sound(), "{:?}", map.problems);
        assert_eq!(map.nodes[0].pod_ranges.len(), 2);
        assert_eq!(map.nodes[1].addresses.len(), 1);
        assert_eq!(map.nodes[1].addresses[0].to_string(), "192.168.1.2");
    }
    // The API itself leaves the kind out of a typed list's items.
    let mut bare = kubernetes_node("a", "192.168.1.1", json!({"podCIDR": "10.0.1.0/24"}));
    bare.as_object_mut().unwrap().remove("kind");
    assert_eq!(names(&map(json!({"kind": "NodeList", "items": [bare]})).nodes), ["a"]);
    let single = kubernetes_node("a", "192.168.1.1", json!({"podCIDR": "10.0.1.0/24"}));
    assert_eq!(names(&map(single).nodes), ["a"]);
}

#[test]
fn one_bad_record_quarantines_itself_alone() {
    let cases = [
        (
            json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": ["10.9.9.5/24"]}),
            "host bits",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": ["10.9.9.0"]}),
            "not a CIDR",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": ["0.0.0.0/0"]}),
            "from 1 to 32",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": "10.9.9.0/24"}),
            "must be a list",
        ),
        (json!({"name": "x", "addresses": [7], "podCIDRs": ["10.9.9.0/24"]}), "a number"),
        (
            json!({"name": "x", "addresses": ["224.0.0.1"], "podCIDRs": ["10.9.9.0/24"]}),
            "multicast",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9/33"], "podCIDRs": ["10.9.9.0/24"]}),
            "from 1 to 32",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9"],
                "podCIDRs": ["10.9.0.0/16", "10.9.9.0/24"]}),
            "overlap",
        ),
        (
            json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": ["10.9.9.0/24"],
                "vtepMAC": "01:00:5e:00:00:01"}),
            "group address",
        ),
        (json!({"name": "x y", "podCIDRs": ["10.9.9.0/24"]}), "one word"),
        (json!({"addresses": ["192.168.9.9"], "podCIDRs": ["10.9.9.0/24"]}), "no name"),
        (json!("x"), "is a string"),
    ];
    for (bad, why) in cases {
        let map = map(json!([record("a", 1), bad, record("b", 2)]));
        assert_eq!(names(&map.nodes), ["a", "b"], "{bad}");
        assert_eq!(map.quarantined.len(), 1, "{bad}");
        let text = map.problems[0].to_string();
        assert!(text.contains(why) && text.contains("[1]") && text.starts_with("test: "), "{text}");
    }
    let map =
        map(json!({"name": "x", "addresses": ["192.168.9.9"], "podCIDRs": ["10.9.9.0/24", "?"]}));
    assert_eq!(map.quarantined[0].node.pod_ranges.len(), 1, "what could be read is kept");
}

#[test]
fn conflicts_quarantine_both_and_name_both_files() {
    let dir = Directory::new("conflict");
    dir.write("a.json", &json!([record("one", 1), record("two", 2)]).to_string());
    let clashes = [
        json!({"name": "one", "addresses": ["192.168.7.7"], "podCIDRs": ["10.7.7.0/24"]}),
        json!({"name": "x", "addresses": ["192.168.7.7"], "podCIDRs": ["10.0.1.128/25"]}),
        json!({"name": "x", "addresses": ["192.168.0.1"], "podCIDRs": ["10.7.7.0/24"]}),
        json!({"name": "x", "addresses": ["192.168.7.7"], "tunnelAddress": "2001:db8::1",
               "podCIDRs": ["10.7.7.0/24"]}),
        json!({"name": "x", "addresses": ["192.168.7.7"], "podCIDRs": ["10.7.7.0/24"],
               "vtepMAC": "0A:58:0a:00:01:00"}),
    ];
    for clash in clashes {
        dir.write("b.json", &clash.to_string());
        let map = dir.read().unwrap();
        assert_eq!(names(&map.nodes), ["two"], "{clash}");
        assert_eq!(map.quarantined.len(), 2, "{clash}");
        let problem = &map.problems[0];
        assert_eq!(problem.kind, ProblemKind::Conflict);
        let text = problem.to_string();
        for part in ["a.json", "b.json", "[0]", "one"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_range_around_others_conflicts_with_each() {
    let wide = json!({"name": "w", "addresses": ["172.16.0.1"], "podCIDRs": ["10.0.0.0/22"]});
    let map = map(json!([record("a", 1), record("b", 2), record("far", 9), wide]));
    assert_eq!(names(&map.nodes), ["far"]);
    assert_eq!(quarantined(&map), ["a", "b", "w"]);
}

#[test]
fn a_range_with_node_addresses_in_it_is_quarantined_alone() {
    let wide = json!({"name": "w", "addresses": ["172.16.0.1"], "podCIDRs": ["192.168.0.0/16"]});
    let map = map(json!([record("a", 1), wide, record("b", 2)]));
    assert_eq!(names(&map.nodes), ["a", "b"]);
    assert_eq!(quarantined(&map), ["w"]);
    assert_eq!(map.problems.len(), 1);
}

#[test]
fn incomplete_records_are_silent_and_conflict_with_nothing() {
    let map = map(json!([
        record("a", 1),
        {"name": "new", "addresses": ["192.168.0.1"]},
        {"name": "newer", "addresses": null, "podCIDRs": ["10.0.1.0/24"], "tunnelAddress": null},
    ]));
    assert_eq!(names(&map.nodes), ["a"]);
    assert_eq!(names(&map.incomplete), ["new", "newer"]);
    assert!(map.is_sound());
}

#[test]
fn a_mistyped_key_is_a_warning_or_quarantines_what_lacks_it() {
    let map = map(json!([{"name": "a", "addresses": ["192.168.0.1"], "podCIDR": ["10.0.1.0/24"]}]));
    assert_eq!(map.problems[0].kind, ProblemKind::UnknownKey);
    assert!(map.problems[0].to_string().contains("did you mean podCIDRs?"), "{}", map.problems[0]);
    assert_eq!((map.quarantined.len(), map.incomplete.len()), (1, 0));
    assert!(map.quarantined[0].why.contains("podCIDRs is meant"), "{}", map.quarantined[0].why);
    for (key, meant) in [
        ("adresses", "addresses"),
        ("adress", "addresses"),
        ("addersses", "addresses"),
        ("Addresses", "addresses"),
        ("podsCIDRs", "podCIDRs"),
        ("podCDIRs", "podCIDRs"),
        ("vtepMac", "vtepMAC"),
    ] {
        let map = self::map(json!([{"name": "a", key: []}]));
        assert_eq!(map.quarantined.len(), 1, "{key}: {map:?}");
        assert!(map.problems[0].to_string().contains(&format!("did you mean {meant}?")), "{key}");
    }
    for key in ["note", "comment", "nodeName", "", "é"] {
        let map = self::map(json!([{"name": "a", key: []}]));
        assert_eq!((map.quarantined.len(), map.incomplete.len()), (0, 1), "{key}: {map:?}");
    }
    let map = self::map(json!([{"name": "a", "addresses": ["192.168.0.1"], "comment": "new"}]));
    assert_eq!((map.quarantined.len(), names(&map.incomplete)), (0, vec!["a"]));
    let map = self::map(json!({"nodes": [record("a", 1)], "name": "prod", "comment": 1}));
    assert_eq!((map.nodes.len(), map.problems.len(), map.incomplete.len()), (1, 2, 0));
    assert!(map.quarantined.is_empty());
}

#[test]
fn a_file_that_is_no_map_is_unreadable_and_the_others_are_read() {
    let dir = Directory::new("unreadable");
    dir.write("a.json", &record("a", 1).to_string());
    for bad in ["", "{", "5", "{\"nodes\": 5}", "{} {}", "[1,]"] {
        dir.write("b.json", bad);
        let map = dir.read().unwrap();
        assert_eq!(names(&map.nodes), ["a"]);
        assert_eq!(map.unreadable.len(), 1, "{bad:?}");
        assert!(map.unreadable[0].to_string().contains("b.json: is no node map"), "{bad:?}");
    }
}

#[test]
fn no_map_at_all_is_an_error_with_the_path() {
    let missing = Map::read(Path::new("/nonexistent/nodes.d")).unwrap_err();
    assert!(matches!(missing, MapError::Unreadable { .. }));
    assert!(missing.to_string().contains("/nonexistent/nodes.d"));
    let dir = Directory::new("empty");
    assert!(matches!(dir.read(), Err(MapError::Empty { .. })));
    dir.write("a.json", "{\"kind\": \"NodeList\", \"items\": null}");
    assert!(matches!(dir.read(), Err(MapError::Empty { .. })));
    assert!(matches!(Map::from_json(b"[", "x"), Err(MapError::Malformed { .. })));
}

#[test]
fn a_large_file_is_read_as_a_small_one() {
    let dir = Directory::new("large");
    let noise = "x".repeat(9 << 20);
    dir.write(
        "a.json",
        &json!([{"kind": "Node", "noise": noise, "metadata": {"name": "a\u{e9}"},
        "spec": {"podCIDR": "10.0.1.0/24"}}, record("b", 2)])
        .to_string(),
    );
    let map = dir.read().unwrap();
    assert_eq!(names(&map.nodes), ["b"]);
    assert_eq!(names(&map.incomplete), ["a\u{e9}"]);
}

#[test]
fn compact_json_gives_the_same_map_again() {
    let before = map(json!([
        record("a", 1), record("b", 2), record("b", 3), {"name": "new"},
        {"name": "bad\"", "addresses": ["192.168.1.1"], "podCIDRs": ["10.0.9.0/24", "x\ny"]},
        {"name": "nat", "addresses": ["10.99.0.1/24"], "podCIDRs": ["10.0.8.0/24"],
         "tunnelAddress": "198.51.100.7", "vtepMAC": "02:00:00:00:00:01"},
    ]));
    let json = before.to_compact_json();
    assert!(json.starts_with("{\"nodes\":[{\"name\":\"a\",\"addresses\":[\"192.168.0.1/16\""));
    let after = Map::from_json(json.as_bytes(), "test").unwrap();
    assert_eq!(before.nodes, after.nodes);
    assert_eq!(before.incomplete, after.incomplete);
    let kept = |map: &Map| -> Vec<_> {
        map.quarantined.iter().map(|q| (q.node.clone(), q.why.clone())).collect()
    };
    assert_eq!(kept(&before), kept(&after));
    assert_eq!(after.to_compact_json(), json);
}

#[test]
fn ten_thousand_nodes() {
    let nodes: Vec<_> = (1..=10_000).map(|n| record(&format!("node{n}"), n)).collect();
    let value = json!({"nodes": nodes});
    let json = value.to_string();
    let start = std::time::Instant::now();
    let map = Map::from_json(json.as_bytes(), "test").unwrap();
    let took = start.elapsed();
    println!("10,000 nodes, {} octets: {took:?}", json.len());
    assert_eq!(map.nodes.len(), 10_000);
    assert!(map.is_sound());
    // Generous, for a debug build on a busy machine: it catches a square, no less.
    assert!(took.as_secs() < 5, "{took:?}");
    assert_eq!(Map::from_value(&value, "test").unwrap().nodes, map.nodes);
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let keys = prop::sample::select(vec![
        "name",
        "addresses",
        "podCIDRs",
        "podCIDR",
        "tunnelAddress",
        "vtepMAC",
        "nodes",
        "items",
        "kind",
        "metadata",
        "spec",
        "status",
        "type",
        "address",
        "quarantined",
        "else",
    ]);
    let texts = prop::sample::select(vec![
        "",
        "a",
        "Node",
        "NodeList",
        "InternalIP",
        "10.0.0.1",
        "10.0.0.0/8",
        "10.0.0.0/32",
        "fd00::/8",
        "fd00::1",
        "::/0",
        "0a:58:00:00:00:01",
        "255.255.255.255/1",
        "10.0.0.0/256",
        "/",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        any::<bool>().prop_map(serde_json::Value::from),
        texts.prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::vec((keys.clone(), inner), 0..8).prop_map(|pairs| {
                serde_json::Value::Object(
                    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                )
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_octets_are_an_answer(octets in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = Map::from_json(&octets, "test");
    }

    #[test]
    fn any_json_is_an_answer_and_the_same_from_text(value in any_json()) {
        let text = value.to_string();
        let parsed = Map::from_json(text.as_bytes(), "test");
        let inline = Map::from_value(&value, "test");
        prop_assert_eq!(parsed.is_ok(), inline.is_ok());
        if let (Ok(parsed), Ok(inline)) = (parsed, inline) {
            prop_assert_eq!(&parsed, &inline);
            let again = Map::from_json(parsed.to_compact_json().as_bytes(), "test").unwrap();
            prop_assert_eq!(parsed.nodes, again.nodes);
            prop_assert_eq!(parsed.incomplete, again.incomplete);
        }
    }

    /// What the sweep finds is what comparing every pair of ranges finds.
    #[test]
    fn overlaps_are_all_found(
        ranges in prop::collection::vec((0u32..64, 24u8..30), 1..12)
    ) {
        let networks: Vec<ipnetwork::Ipv4Network> = ranges.iter().map(|(n, len)| {
            let net = ipnetwork::Ipv4Network::new((0x0a00_0000 + n * 16).into(), *len).unwrap();
            ipnetwork::Ipv4Network::new(net.network(), *len).unwrap()
        }).collect();
        let nodes: Vec<_> = networks.iter().enumerate().map(|(i, net)| json!({
            "name": format!("n{i}"), "addresses": [format!("192.168.0.{}", i + 1)],
            "podCIDRs": [net.to_string()],
        })).collect();
        let map = map(json!(nodes));
        let clean: Vec<_> = (0..networks.len()).filter(|&i| {
            (0..networks.len()).all(|j| i == j || !networks[i].overlaps(networks[j]))
        }).map(|i| format!("n{i}")).collect();
        prop_assert_eq!(names(&map.nodes), clean);
    }
}
