//! Environment and standard input to a call: every rule, and what breaks it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use cni::{Attachment, AttachmentKey, Call, Code, Error, Network, Version, reject_unknown_args};

const ENV: [(&str, &str); 6] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", ""),
    ("CNI_PATH", "/a::/b"),
];

const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"veth"}"#;

/// Parses the usual call with some variables changed.
fn parse(changed: &[(&str, &str)], stdin: &str) -> Result<Call, Error> {
    let changed = changed.iter().chain(&ENV);
    let env = |name: &str| {
        changed.clone().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    };
    Call::parse(&env, stdin.as_bytes())
}

fn add(changed: &[(&str, &str)], stdin: &str) -> (Attachment, Network) {
    match parse(changed, stdin) {
        Ok(Call::Add(attachment, network)) => (attachment, network),
        other => panic!("not an ADD: {other:?}"),
    }
}

#[track_caller]
fn assert_error(call: Result<Call, Error>, code: Code, words: &[&str]) {
    let error = call.expect_err("must fail");
    assert_eq!(error.code, code as u32, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error} lacks {word:?}");
    }
}

#[test]
fn add_is_read_whole() {
    let args = ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a;MAC=");
    let (attachment, network) = add(&[args], CONFIG);
    assert_eq!(attachment.key.container_id, "c1");
    assert_eq!(attachment.key.ifname, "eth0");
    assert_eq!(attachment.netns.as_deref(), Some(Path::new("/run/netns/c1")));
    assert_eq!(attachment.args["K8S_POD_NAME"], "a");
    assert_eq!(attachment.args["MAC"], "");
    assert_eq!(network.version, Version::V1_1_0);
    assert_eq!(network.name, "pods");
    assert_eq!(network.path, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(network.prev_result, None);
    assert_eq!(network.config["type"], "veth");
}

#[test]
fn every_missing_variable_is_named_and_empty_is_missing() {
    let empty = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")];
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    assert_error(parse(&empty, CONFIG), Code::InvalidEnvironment, &all);
    for (variable, _) in empty {
        let call = parse(&[(variable, "")], CONFIG);
        assert_error(call, Code::InvalidEnvironment, &["ADD", variable]);
        let call = parse(&[("CNI_COMMAND", "CHECK"), (variable, "")], CONFIG);
        assert_error(call, Code::InvalidEnvironment, &["CHECK", variable]);
    }
    for variable in ["CNI_CONTAINERID", "CNI_IFNAME"] {
        let call = parse(&[("CNI_COMMAND", "DEL"), (variable, "")], CONFIG);
        assert_error(call, Code::InvalidEnvironment, &["DEL", variable]);
    }
    let call = parse(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "")], CONFIG);
    assert_error(call, Code::InvalidEnvironment, &["GC", "CNI_PATH"]);
}

#[test]
fn cni_path_is_optional_but_for_gc() {
    assert_eq!(add(&[("CNI_PATH", "")], CONFIG).1.path.len(), 0);
}

#[test]
fn del_needs_no_namespace() {
    let call = parse(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")], CONFIG);
    assert!(matches!(call, Ok(Call::Del(Attachment { netns: None, .. }, _))), "{call:?}");
}

#[test]
fn status_and_gc_need_no_attachment() {
    let nothing = [("CNI_CONTAINERID", ""), ("CNI_NETNS", "../"), ("CNI_IFNAME", "a/b")];
    let status = parse(&[&nothing[..], &[("CNI_COMMAND", "STATUS")]].concat(), CONFIG);
    assert!(matches!(status, Ok(Call::Status(_))), "{status:?}");
    let gc = r#"{"cniVersion":"1.1.0","name":"pods","cni.dev/valid-attachments":[]}"#;
    let gc = parse(&[&nothing[..], &[("CNI_COMMAND", "GC")]].concat(), gc);
    assert!(matches!(gc, Ok(Call::Gc(..))), "{gc:?}");
}

#[test]
fn unknown_verbs_are_refused() {
    for verb in ["", "add", "ADD ", "UPDATE"] {
        let call = parse(&[("CNI_COMMAND", verb)], CONFIG);
        assert_error(call, Code::InvalidEnvironment, &["CNI_COMMAND", "STATUS"]);
    }
}

#[test]
fn container_ids_and_network_names_follow_one_rule() {
    let long = "a".repeat(300);
    for good in ["a", "0", "a_b.c-D", "9..", &long] {
        let config = CONFIG.replace("pods", good);
        assert_eq!(add(&[("CNI_CONTAINERID", good)], &config).1.name, good);
    }
    for bad in ["_a", ".", "-a", "a/b", "../a", "a b", "a\n", "ä", "aä", "a:b", "a%"] {
        let call = parse(&[("CNI_CONTAINERID", bad)], CONFIG);
        assert_error(call, Code::InvalidEnvironment, &["CNI_CONTAINERID"]);
        let config = serde_json::json!({ "cniVersion": "1.1.0", "name": bad }).to_string();
        assert_error(parse(&[], &config), Code::InvalidConfig, &["name"]);
    }
}

#[test]
fn interface_names_are_the_kernels() {
    for good in ["a", "eth0", "abcdefghijklmno", "a.100", "-", "...", "ä"] {
        assert_eq!(add(&[("CNI_IFNAME", good)], CONFIG).0.key.ifname, good);
    }
    for bad in
        ["abcdefghijklmnop", "ääääääää", ".", "..", "a/b", "a:b", "a b", "a\u{a0}", "à", "veth%d"]
    {
        for verb in ["ADD", "CHECK", "DEL"] {
            let call = parse(&[("CNI_COMMAND", verb), ("CNI_IFNAME", bad)], CONFIG);
            assert_error(call, Code::InvalidEnvironment, &["CNI_IFNAME"]);
        }
    }
}

#[test]
fn variables_that_are_not_utf8_are_named_and_paths_may_be() {
    let raw = OsString::from_vec(b"/\xff".to_vec());
    for broken in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS"] {
        let call = Call::parse(&env_with(broken, &raw), CONFIG.as_bytes());
        assert_error(call, Code::InvalidEnvironment, &[broken]);
    }
    match Call::parse(&env_with("CNI_NETNS", &raw), CONFIG.as_bytes()) {
        Ok(Call::Add(attachment, _)) => assert_eq!(attachment.netns, Some(PathBuf::from(&raw))),
        other => panic!("{other:?}"),
    }
}

fn env_with(name: &str, value: &OsString) -> impl Fn(&str) -> Option<OsString> {
    move |asked| {
        let usual = ENV.iter().find(|(key, _)| *key == asked);
        if asked == name { Some(value.clone()) } else { usual.map(|(_, value)| value.into()) }
    }
}

#[test]
fn args_are_pairs_with_one_equals_sign() {
    for bad in ["a", "a=b;", ";a=b", "a=b=c", "a=b;;c=d"] {
        for verb in ["ADD", "CHECK"] {
            let call = parse(&[("CNI_COMMAND", verb), ("CNI_ARGS", bad)], CONFIG);
            assert_error(call, Code::InvalidEnvironment, &["CNI_ARGS"]);
        }
        let call = parse(&[("CNI_COMMAND", "DEL"), ("CNI_ARGS", bad)], CONFIG);
        assert!(matches!(call, Ok(Call::Del(..))), "{bad}: {call:?}");
    }
}

#[test]
fn unknown_args_are_refused_unless_ignored() {
    let check =
        |text: &str| reject_unknown_args(&add(&[("CNI_ARGS", text)], CONFIG).0.args, &["IP"]);
    for good in
        ["", "IP=1", "A=1;IgnoreUnknown=1", "IgnoreUnknown=TRUE;A=1", "IgnoreUnknown=0;IP=1"]
    {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for bad in
        ["A=1", "A=1;IgnoreUnknown=false", "A=1;ignoreunknown=1", "IgnoreUnknown=yes", "ip=1"]
    {
        let error = check(bad).expect_err(bad);
        assert_eq!(error.code, Code::InvalidEnvironment as u32);
        assert!(error.msg.starts_with("CNI_ARGS: "), "{error}");
    }
}

#[test]
fn what_is_not_a_json_object_is_a_decode_error() {
    let deep = "[".repeat(100_000);
    for bad in ["", " ", "null", "[]", "1", "{", "{}{}", "{\"a\":1}x", "\u{feff}{}", &deep] {
        assert_error(parse(&[], bad), Code::Decode, &["standard input"]);
    }
}

#[test]
fn a_network_needs_a_name() {
    for config in ["{}", r#"{"name":""}"#, r#"{"name":null}"#, r#"{"name":1}"#] {
        assert_error(parse(&[], config), Code::InvalidConfig, &["name"]);
    }
}

#[test]
fn the_environment_is_judged_before_the_configuration_and_the_name_before_the_version() {
    assert_error(parse(&[("CNI_IFNAME", "a/b")], "{"), Code::InvalidEnvironment, &[]);
    assert_error(parse(&[], r#"{"cniVersion":"9.9.9"}"#), Code::InvalidConfig, &["name"]);
}

#[test]
fn versions_match_exactly() {
    for (config, version) in [
        (r#"{"name":"n"}"#, Version::V0_1_0),
        (r#"{"name":"n","cniVersion":""}"#, Version::V0_1_0),
        (r#"{"name":"n","cniVersion":null}"#, Version::V0_1_0),
        (r#"{"NAME":"n","CNIVersion":"0.3.1"}"#, Version::V0_3_1),
    ] {
        assert_eq!(add(&[], config).1.version, version);
    }
    for bad in ["1.1", "1.1.0 ", "v1.1.0", "0.9.0", "1.2.0", "9.9.9", "01.1.0"] {
        let call = parse(&[], &CONFIG.replace("1.1.0", bad));
        assert_error(call, Code::IncompatibleVersion, &[bad, "1.1.0"]);
    }
    assert_error(
        parse(&[], r#"{"name":"n","cniVersion":1}"#),
        Code::InvalidConfig,
        &["cniVersion"],
    );
}

#[test]
fn verbs_are_refused_before_the_version_that_brought_them() {
    for version in Version::ALL {
        for (verb, since) in [
            ("ADD", Version::V0_1_0),
            ("DEL", Version::V0_1_0),
            ("CHECK", Version::V0_4_0),
            ("GC", Version::V1_1_0),
            ("STATUS", Version::V1_1_0),
        ] {
            let config = format!(
                r#"{{"cniVersion":"{version}","name":"n","cni.dev/valid-attachments":null}}"#
            );
            let call = parse(&[("CNI_COMMAND", verb)], &config);
            if version < since {
                assert_error(call, Code::IncompatibleVersion, &[verb, since.as_str()]);
            } else {
                assert!(call.is_ok(), "{verb} {version}: {call:?}");
            }
        }
    }
}

#[test]
fn version_answers_whatever_comes() {
    for (stdin, answer) in [
        ("", "1.1.0"),
        ("{", "1.1.0"),
        ("[1]", "1.1.0"),
        ("{}", "1.1.0"),
        (r#"{"cniVersion":""}"#, "1.1.0"),
        (r#"{"cniVersion":7}"#, "1.1.0"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"9.9.9","name":"../"}"#, "9.9.9"),
    ] {
        let call = parse(&[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "")], stdin);
        assert!(matches!(&call, Ok(Call::Version(version)) if version == answer), "{call:?}");
    }
}

fn gc(keys: &str) -> Result<Call, Error> {
    parse(&[("CNI_COMMAND", "GC")], &CONFIG.replace(r#""type":"veth""#, keys))
}

#[test]
fn gc_takes_both_names_of_the_list_and_null_for_an_empty_one() {
    let one = AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() };
    let two = AttachmentKey { container_id: "c2".into(), ifname: "net1".into() };
    const ONE: &str = r#"[{"containerID":"c1","ifname":"eth0"}]"#;
    const TWO: &str = r#"[{"ContainerID":"c2","IFNAME":"net1"}]"#;
    let (new, old) = (r#""cni.dev/valid-attachments""#, r#""cni.dev/attachments""#);
    for (keys, expected) in [
        (format!("{new}:{ONE}"), vec![one.clone()]),
        (format!("{old}:{ONE}"), vec![one.clone()]),
        (format!("{new}:{ONE},{old}:{ONE}"), vec![one.clone()]),
        (format!("{new}:{ONE},{old}:{TWO}"), vec![one.clone(), two]),
        (format!("{new}:null,{old}:{ONE}"), vec![one]),
        (format!("{new}:null"), vec![]),
        (format!("{old}:null"), vec![]),
        (format!("{new}:[]"), vec![]),
        (format!("{old}:[]"), vec![]),
    ] {
        let call = gc(&keys);
        assert!(matches!(&call, Ok(Call::Gc(valid, _)) if *valid == expected), "{keys}: {call:?}");
    }
}

#[test]
fn gc_removes_nothing_on_a_guess() {
    assert_error(gc(r#""a":1"#), Code::InvalidConfig, &["cni.dev/valid-attachments: missing"]);
    for bad in
        ["1", "{}", "[1]", "[null]", "[{}]", r#"[{"containerID":"c1"}]"#, r#"[{"ifname":"a"}]"#]
    {
        let call = gc(&format!(r#""cni.dev/valid-attachments":{bad}"#));
        assert_error(call, Code::InvalidConfig, &["cni.dev/valid-attachments"]);
    }
}

fn with_prev(verb: &str, prev: &str) -> Result<Call, Error> {
    let config = CONFIG.replace(r#""type""#, &format!(r#""prevResult":{prev},"type""#));
    parse(&[("CNI_COMMAND", verb)], &config)
}

#[test]
fn a_previous_result_is_in_the_configurations_version_unless_it_says_its_own() {
    for prev in [
        r#"{"ips":[{"address":"10.0.0.2/24"}]}"#,
        r#"{"cniVersion":"","ips":[{"address":"10.0.0.2/24"}]}"#,
        r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#,
    ] {
        let Ok(Call::Add(_, network)) = with_prev("ADD", prev) else { panic!("{prev}") };
        let result = network.require_prev_result().expect("given");
        assert_eq!(result.ips.len(), 1, "{prev}");
    }
}

#[test]
fn a_broken_previous_result_stops_add_and_check_but_never_del() {
    for bad in ["1", "[]", r#"{"ips":1}"#, r#"{"ips":[{"address":"x"}]}"#, r#"{"cniVersion":"9"}"#]
    {
        assert_error(with_prev("ADD", bad), Code::InvalidConfig, &["prevResult"]);
        assert_error(with_prev("CHECK", bad), Code::InvalidConfig, &["prevResult"]);
        let del = with_prev("DEL", bad);
        assert!(matches!(&del, Ok(Call::Del(_, n)) if n.prev_result.is_none()), "{bad}: {del:?}");
        let status = with_prev("STATUS", bad);
        assert!(matches!(&status, Ok(Call::Status(_))), "{bad}: {status:?}");
    }
}

#[test]
fn a_missing_previous_result_is_an_error_where_it_is_needed() {
    let error = add(&[], CONFIG).1.require_prev_result().expect_err("none given");
    assert_eq!(error.code, Code::InvalidConfig as u32);
}

#[test]
fn keys_of_the_conventions_are_read() {
    let config = r#"{"name":"n",
        "runtimeConfig":{"Mac":"0a:00:00:00:00:01","IPs":["10.0.0.5","fd00::5/64"]},
        "args":{"cni":{"ips":["10.0.0.6/8"]}},
        "ipam":{"type":"host-local"},
        "dns":{"Nameservers":["9.9.9.9"],"domain":null,"search":[]}}"#;
    let network = add(&[], config).1;
    assert_eq!(network.runtime_mac(), Ok(Some("0a:00:00:00:00:01")));
    let ips: Vec<_> =
        network.runtime_ips().expect("valid").iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.5", "fd00::5"]);
    assert_eq!(network.args_ips().expect("valid").len(), 1);
    assert_eq!(network.ipam_type(), Ok(Some("host-local")));
    assert_eq!(network.dns().expect("valid").expect("given").nameservers, ["9.9.9.9"]);
}

#[test]
fn keys_of_the_conventions_may_be_absent_and_errors_name_them() {
    let network = add(&[], r#"{"name":"n","runtimeConfig":null,"args":{},"dns":{}}"#).1;
    assert_eq!(network.runtime_mac(), Ok(None));
    assert_eq!(network.runtime_ips(), Ok(vec![]));
    assert_eq!(network.args_ips(), Ok(vec![]));
    assert_eq!(network.ipam_type(), Ok(None));
    let bad = r#"{"name":"n","runtimeConfig":{"ips":["10.0.0.0/33"]},"ipam":{"type":3}}"#;
    let network = add(&[], bad).1;
    assert!(network.runtime_ips().expect_err("bad").msg.starts_with("runtimeConfig.ips[0]: "));
    assert!(network.ipam_type().expect_err("bad").msg.starts_with("ipam.type: "));
}
