//! Bad input of every kind: each case has its code, names what is wrong and with
//! which object, and leaves the kernel and the lease store as they were.

use anyhow::{Context, Result, ensure};
use e2e::{Lab, NODE_MAP, Node, Place, Pod};
use serde_json::{Value, json};

use crate::call::{Call, Programs, changes, settled, veth_config};

/// One bad input.
struct Case {
    name: &'static str,
    call: Call,
    /// Shell on the node before the run, and what undoes it.
    setup: String,
    undo: String,
    code: u64,
    says: Vec<String>,
}

impl Case {
    fn setup(mut self, setup: &str, undo: &str) -> Self {
        (self.setup, self.undo) = (setup.to_owned(), undo.to_owned());
        self
    }

    fn env(mut self, key: &str, value: &str) -> Self {
        self.call.set(key, value);
        self
    }

    fn stdin(mut self, bytes: &[u8]) -> Self {
        self.call = self.call.stdin(bytes);
        self
    }

    fn wrapper(mut self, words: &[&str]) -> Self {
        self.call = self.call.wrapper(words);
        self
    }

    /// The case goes wrong as it should, or says how it does not.
    fn check(&self, node: &Place) -> Result<()> {
        node.sh(&self.setup).context("setup")?;
        let before = node.snapshot()?;
        let outcome = self.judge(node);
        let touched = changes(&before, &node.snapshot()?);
        node.sh(&self.undo).context("undo")?;
        outcome?;
        ensure!(touched.is_empty(), "it changed something:\n{touched}");
        Ok(())
    }

    fn judge(&self, node: &Place) -> Result<()> {
        let failure = self.call.fails(node)?;
        ensure!(failure.code == self.code, "code {}, not {}: {failure:?}", failure.code, self.code);
        let said = format!("{} {}", failure.msg, failure.details);
        let missing = self.says.iter().find(|text| !said.contains(text.as_str()));
        ensure!(missing.is_none(), "does not say {missing:?}: {failure:?}");
        Ok(())
    }
}

/// Makes cases for one node and one pod, in which there is nothing yet.
struct Maker<'a> {
    pod: &'a Pod,
    cases: Vec<Case>,
}

impl Maker<'_> {
    fn case(
        &self,
        name: &'static str,
        (plugin, verb): (&str, &str),
        config: &Value,
        code: u64,
        says: &[&str],
    ) -> Result<Case> {
        Ok(Case {
            name,
            call: Call::new(plugin, verb, self.pod, config)?,
            setup: String::new(),
            undo: String::new(),
            code,
            says: says.iter().map(|text| (*text).to_owned()).collect(),
        })
    }

    /// ADD of `veth` with its usual configuration.
    fn veth(&self, name: &'static str, code: u64, says: &[&str]) -> Result<Case> {
        self.case(name, ("veth", "ADD"), &veth_config(), code, says)
    }

    /// ADD of `veth` with the value at `pointer` of its configuration replaced; null removes.
    fn veth_with(
        &self,
        name: &'static str,
        changes: &Value,
        code: u64,
        says: &[&str],
    ) -> Result<Case> {
        self.case(name, ("veth", "ADD"), &merged(veth_config(), changes), code, says)
    }

    fn routing_with(
        &self,
        name: &'static str,
        changes: &Value,
        code: u64,
        says: &[&str],
    ) -> Result<Case> {
        let config = merged(routing_config(self.pod), changes);
        self.case(name, ("routing", "ADD"), &config, code, says)
    }

    /// ADD of `host-local` as another interface plugin calls it.
    fn ipam_with(
        &self,
        name: &'static str,
        ipam: &Value,
        code: u64,
        says: &[&str],
    ) -> Result<Case> {
        let config = merged(veth_config(), &json!({ "type": "ptp", "ipam": ipam }));
        self.case(name, ("host-local", "ADD"), &config, code, says)
    }

    fn push(&mut self, case: Case) {
        self.cases.push(case);
    }
}

/// `config` with the keys of `changes`, objects key by key; null removes a key.
fn merged(mut config: Value, changes: &Value) -> Value {
    let (Some(map), Some(new)) = (config.as_object_mut(), changes.as_object()) else {
        return changes.clone();
    };
    for (key, value) in new {
        match value {
            Value::Null => drop(map.remove(key)),
            Value::Object(_) => {
                let old = map.remove(key).unwrap_or(json!({}));
                map.insert(key.clone(), merged(old, value));
            }
            _ => drop(map.insert(key.clone(), value.clone())),
        }
    }
    config
}

fn routing_config(pod: &Pod) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "routing",
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "eth0", "mac": "0a:58:0a:00:01:02", "sandbox": pod.netns() }],
            "ips": [{ "address": "10.0.1.2/24", "gateway": "10.0.1.1", "interface": 0 }] } })
}

/// Runs the cases on worker1 of a dual-stack lesson that was never touched, and
/// fails with every one that does not go wrong as it should.
fn run(make: impl FnOnce(&mut Maker, &Node) -> Result<()>) -> Result<()> {
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let mut maker = Maker { pod: &pod, cases: Vec::new() };
    make(&mut maker, node)?;
    let failed = |case: &Case| {
        let error = case.check(node).err()?;
        Some(format!("== {}: {error:#}", case.name))
    };
    let failures: Vec<String> = maker.cases.iter().filter_map(failed).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn environment() -> Result<()> {
    e2e::needs_lab!();
    run(|make, _| {
        let variables: [(&str, &str, &str, &[&str]); 14] = [
            ("no container", "CNI_CONTAINERID", "", &["ADD", "CNI_CONTAINERID"]),
            ("no namespace", "CNI_NETNS", "", &["CNI_NETNS"]),
            ("no interface", "CNI_IFNAME", "", &["CNI_IFNAME"]),
            ("container is a path", "CNI_CONTAINERID", "../x", &["CNI_CONTAINERID", "../x"]),
            ("interface too long", "CNI_IFNAME", "eth0123456789012", &["eth0123456789012", "15"]),
            ("interface is a path", "CNI_IFNAME", "a/b", &["CNI_IFNAME", "a/b"]),
            ("interface is a pattern", "CNI_IFNAME", "eth%d", &["CNI_IFNAME", "eth%d"]),
            ("unknown verb", "CNI_COMMAND", "FROB", &["CNI_COMMAND", "FROB", "STATUS"]),
            ("argument without value", "CNI_ARGS", "IP", &["CNI_ARGS", "\"IP\""]),
            ("unknown argument", "CNI_ARGS", "COLOUR=red", &["COLOUR", "IgnoreUnknown"]),
            ("MAC is none", "CNI_ARGS", "MAC=zz", &["CNI_ARGS: MAC", "zz"]),
            ("MAC of a group", "CNI_ARGS", "MAC=01:00:5e:00:00:01", &["01:00:5e:00:00:01"]),
            ("IP is none", "CNI_ARGS", "IP=300.0.0.1", &["IP=300.0.0.1"]),
            ("nowhere to look for plugins", "CNI_PATH", "", &["CNI_PATH"]),
        ];
        for (name, key, value, says) in variables {
            make.push(make.veth(name, 4, says)?.env(key, value));
        }
        let both = make.veth("two missing", 4, &["CNI_NETNS", "CNI_IFNAME"])?;
        make.push(both.env("CNI_NETNS", "").env("CNI_IFNAME", ""));
        let invalid = make.veth("invalid UTF-8 in a path is a path", 4, &["/run/netns/"])?;
        make.push(invalid.env("CNI_NETNS", "/run/netns/\u{fffd}"));
        let gc =
            make.case("GC without a path", ("veth", "GC"), &veth_config(), 4, &["CNI_PATH"])?;
        make.push(gc.env("CNI_PATH", ""));
        Ok(())
    })
}

#[test]
fn namespace() -> Result<()> {
    e2e::needs_lab!();
    run(|make, _| {
        let gone = "/run/netns/gone";
        let made = [
            ("namespace is gone", "true", "true"),
            ("namespace is a plain file", "touch /run/netns/gone", "rm /run/netns/gone"),
            ("namespace is a directory", "mkdir /run/netns/gone", "rmdir /run/netns/gone"),
            ("namespace is a fifo", "mkfifo /run/netns/gone", "rm /run/netns/gone"),
            ("namespace is a dead link", "ln -s /x /run/netns/gone", "rm /run/netns/gone"),
        ];
        for (name, setup, undo) in made {
            let veth = make.veth(name, 4, &["CNI_NETNS", gone])?;
            make.push(veth.env("CNI_NETNS", gone).setup(setup, undo));
            let config = json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" });
            let loopback =
                make.case(name, ("loopback", "ADD"), &config, 4, &["CNI_NETNS", gone])?;
            make.push(loopback.env("CNI_NETNS", gone).setup(setup, undo));
            let routing = make.routing_with(name, &json!({}), 4, &["CNI_NETNS", gone])?;
            make.push(routing.env("CNI_NETNS", gone).setup(setup, undo));
        }
        let own = "/proc/self/ns/net";
        make.push(make.veth("own namespace", 8, &[own])?.env("CNI_NETNS", own));
        let config = json!({ "cniVersion": "1.0.0", "name": "lo", "type": "loopback" });
        let loopback = make.case("own namespace", ("loopback", "ADD"), &config, 8, &[own])?;
        make.push(loopback.env("CNI_NETNS", own));
        // Only entering it tells one namespace from another.
        let other = "/proc/self/ns/uts";
        let case = make.veth("namespace of another kind", 100, &["enter", other])?;
        make.push(case.env("CNI_NETNS", other));
        Ok(())
    })
}

#[test]
fn standard_input() -> Result<()> {
    e2e::needs_lab!();
    run(|make, _| {
        let texts: [(&str, &[u8]); 6] = [
            ("nothing", b""),
            ("no JSON", b"pods"),
            ("a list", b"[]"),
            ("cut off", br#"{"cniVersion":"1.0.0","name":"pods","#),
            ("more than one value", br#"{"cniVersion":"1.0.0","name":"pods"} {}"#),
            ("not UTF-8", b"{\"name\":\"\xff\"}"),
        ];
        for (name, text) in texts {
            make.push(make.veth(name, 6, &["standard input"])?.stdin(text));
        }
        let version = json!({ "cniVersion": "9.9.9" });
        make.push(make.veth_with("version of the future", &version, 1, &["9.9.9"])?);
        for (verb, version, least) in
            [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
        {
            let config = merged(veth_config(), &json!({ "cniVersion": version }));
            let says = [verb, version, least];
            make.push(make.case("verb before its version", ("veth", verb), &config, 1, &says)?);
        }
        for (name, value) in [
            ("no name", Value::Null),
            ("name is a path", json!("../pods")),
            ("name is a number", json!(5)),
            ("name is empty", json!("")),
        ] {
            make.push(make.veth_with(name, &json!({ "name": value }), 7, &["name"])?);
        }
        let gc = "cni.dev/valid-attachments";
        make.push(make.case("GC without a list", ("veth", "GC"), &veth_config(), 7, &[gc])?);
        let config = merged(veth_config(), &json!({ gc: [{ "containerID": "a" }] }));
        let says = [gc, "ifname"];
        make.push(make.case("GC with half a key", ("veth", "GC"), &config, 7, &says)?);
        for (name, value) in [
            ("prevResult is a word", json!("garbage")),
            ("prevResult is a list", json!([1])),
            ("prevResult with a bad address", json!({ "ips": [{ "address": "10.0.1.2/99" }] })),
        ] {
            let changes = json!({ "prevResult": value });
            make.push(make.routing_with(name, &changes, 7, &["prevResult"])?);
        }
        let first = json!({ "prevResult": null });
        make.push(make.routing_with("routing is first", &first, 7, &["prevResult", "after"])?);
        let config = merged(routing_config(make.pod), &first);
        make.push(make.case("CHECK without", ("routing", "CHECK"), &config, 7, &["prevResult"])?);
        make.push(make.case(
            "CHECK without",
            ("veth", "CHECK"),
            &veth_config(),
            7,
            &["prevResult"],
        )?);
        Ok(())
    })
}

#[test]
fn configuration_of_veth() -> Result<()> {
    e2e::needs_lab!();
    run(|make, _| {
        let cases: [(&str, Value, &[&str]); 14] = [
            ("no ipam", json!({ "ipam": null }), &["ipam"]),
            ("ipam is a word", json!({ "ipam": "host-local" }), &["ipam"]),
            ("ipam without type", json!({ "ipam": { "type": null } }), &["ipam.type"]),
            ("ipam is a path", json!({ "ipam": { "type": "../ipam" } }), &["../ipam"]),
            ("no such ipam", json!({ "ipam": { "type": "nosuch" } }), &["nosuch", "CNI_PATH"]),
            ("mtu below IPv4's least", json!({ "mtu": 67 }), &["mtu", "67", "68"]),
            ("mtu below IPv6's least", json!({ "mtu": 1279 }), &["mtu", "1279", "1280"]),
            ("mtu too large", json!({ "mtu": 65536 }), &["mtu", "65536", "65535"]),
            ("mtu is negative", json!({ "mtu": -1 }), &["mtu", "-1"]),
            ("mtu is a word", json!({ "mtu": "jumbo" }), &["mtu", "jumbo"]),
            ("spoofCheck is a word", json!({ "spoofCheck": "yes" }), &["spoofCheck", "yes"]),
            ("defaultRoute is a number", json!({ "defaultRoute": 1 }), &["defaultRoute"]),
            ("dns is a list", json!({ "dns": [] }), &["dns"]),
            (
                "MAC of a group",
                json!({ "runtimeConfig": { "mac": "ff:ff:ff:ff:ff:ff" } }),
                &["runtimeConfig.mac", "ff:ff:ff:ff:ff:ff"],
            ),
        ];
        for (name, changes, says) in cases {
            make.push(make.veth_with(name, &changes, 7, says)?);
        }
        Ok(())
    })
}

#[test]
fn delegated_ipam() -> Result<()> {
    e2e::needs_lab!();
    let programs = Programs::new(
        "ipam",
        &[
            ("mumbler", "echo hello"),
            ("silent", "exit 3"),
            (
                "refuser",
                r#"[ $CNI_COMMAND = ADD ] || exit 0; echo '{"code":55,"msg":"no leases"}'; exit 1"#,
            ),
            ("giver-of-nothing", r#"echo '{"cniVersion":"1.1.0","ips":[]}'"#),
            ("giver-of-rubbish", r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"x"}]}'"#),
        ],
    )?;
    run(|make, _| {
        for (ipam, code, says) in [
            ("mumbler", 102, "mumbler"),
            ("silent", 102, "exit status: 3"),
            ("refuser", 55, "no leases"),
            ("giver-of-nothing", 7, "no address"),
            ("giver-of-rubbish", 102, "giver-of-rubbish"),
        ] {
            let case =
                make.veth_with("IPAM", &json!({ "ipam": { "type": ipam } }), code, &[says])?;
            make.push(case.env("CNI_PATH", &programs.0.display().to_string()));
        }
        Ok(())
    })
}

#[test]
fn ranges_and_leases() -> Result<()> {
    e2e::needs_lab!();
    let none = "true";
    run(|make, _| {
        let sets = |ranges: Value| json!({ "type": "host-local", "ranges": ranges });
        let cases: [(&str, Value, &[&str]); 9] = [
            ("subnet without length", json!({ "subnet": "10.9.0.0" }), &["subnet", "10.9.0.0"]),
            ("subnet is no CIDR", json!({ "subnet": "10.9.0.0/33" }), &["subnet", "10.9.0.0/33"]),
            ("no subnet", sets(json!([[{}]])), &["ranges[0][0]", "subnet"]),
            ("ranges is flat", sets(json!([{ "subnet": "10.9.0.0/24" }])), &["ranges[0]"]),
            (
                "start outside",
                sets(json!([[{ "subnet": "10.9.0.0/24", "rangeStart": "10.8.0.1" }]])),
                &["10.8.0.1", "10.9.0.0/24"],
            ),
            (
                "start after end",
                sets(
                    json!([[{ "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.3" }]]),
                ),
                &["10.9.0.9", "10.9.0.3"],
            ),
            (
                "sets overlap",
                sets(json!([[{ "subnet": "10.9.0.0/24" }], [{ "subnet": "10.9.0.0/16" }]])),
                &["range set 0", "range set 1"],
            ),
            (
                "gateway is a word",
                sets(json!([[{ "subnet": "10.9.0.0/24", "gateway": "up" }]])),
                &["gateway", "up"],
            ),
            (
                "route without destination",
                json!({ "subnet": "10.9.0.0/24", "routes": [{ "gw": "10.9.0.1" }] }),
                &["routes[0]"],
            ),
        ];
        for (name, ipam, says) in cases {
            make.push(make.ipam_with(name, &ipam, 7, says)?);
        }
        let subnet = json!({ "subnet": "10.9.0.0/29" });
        let taken = "d=/var/lib/cni/networks/pods; mkdir -p $d; for i in 2 3 4 5 6; do
            printf 'other\\r\\neth0' >$d/10.9.0.$i; ip route add 10.9.0.$i dev lo; done";
        let free =
            "rm -r /var/lib/cni/networks/pods; for i in 2 3 4 5 6; do ip route del 10.9.0.$i; done";
        let full = make.ipam_with("exhausted", &subnet, 11, &["6 of 6", "10.9.0.0/29"])?;
        make.push(full.setup(taken, free));
        let status = merged(veth_config(), &json!({ "ipam": subnet }));
        let full = make.case("exhausted", ("host-local", "STATUS"), &status, 50, &["6 of 6"])?;
        make.push(full.setup(taken, free));
        let one = make.ipam_with("requested is taken", &subnet, 11, &["10.9.0.4", "taken"])?;
        make.push(one.env("CNI_ARGS", "IP=10.9.0.4").setup(taken, free));
        let one =
            make.ipam_with("requested is the gateway", &subnet, 7, &["10.9.0.1", "gateway"])?;
        make.push(one.env("CNI_ARGS", "IP=10.9.0.1").setup(none, none));
        let one = make.ipam_with("requested is elsewhere", &subnet, 7, &["10.7.0.1"])?;
        make.push(one.env("CNI_ARGS", "IP=10.7.0.1"));
        let file = json!({ "subnet": "10.9.0.0/29", "dataDir": "/etc/hostname/leases" });
        make.push(make.ipam_with("dataDir is a file", &file, 5, &["/etc/hostname/leases"])?);
        let again = make.ipam_with("leased already", &subnet, 4, &["pod-a", "10.9.0.2", "DEL"])?;
        let lease =
            "d=/var/lib/cni/networks/pods; mkdir -p $d; printf 'pod-a\\r\\neth0' >$d/10.9.0.2";
        make.push(again.setup(lease, "rm -r /var/lib/cni/networks/pods"));
        let config = merged(veth_config(), &json!({ "prevResult": { "ips": [] } }));
        make.push(make.case(
            "no lease",
            ("host-local", "CHECK"),
            &config,
            101,
            &["pod-a", "eth0"],
        )?);
        Ok(())
    })
}

#[test]
fn node_map() -> Result<()> {
    e2e::needs_lab!();
    run(|make, node| {
        let map = node.read_file(NODE_MAP)?;
        let put = |text: &str| format!("cat >{NODE_MAP} <<'END'\n{text}\nEND\n");
        let restore = put(&map);
        let node_of = |name: &str, address: &str, ranges: &[&str]| json!({ "name": name, "addresses": [address], "podCIDRs": ranges });
        let own = "192.168.211.128";
        let maps: [(&str, String, u64, &[&str]); 7] = [
            ("no map", format!("rm {NODE_MAP}"), 7, &["/etc/weft/nodes.d"]),
            ("not JSON", put("nodes: []"), 7, &["nodes.json"]),
            (
                "no such node",
                put(&json!([node_of("other", "192.0.2.1", &["10.0.7.0/24"])]).to_string()),
                7,
                &["192.168.211.128", "192.0.2.1"],
            ),
            (
                "two with our address",
                put(&json!([
                    node_of("one", own, &["10.0.7.0/24"]),
                    node_of("two", own, &["10.0.8.0/24"])
                ])
                .to_string()),
                7,
                &["one", "two", own],
            ),
            (
                "two with our name",
                put(&json!([
                    node_of("worker1", own, &["10.0.7.0/24"]),
                    node_of("worker1", "192.0.2.1", &["10.0.8.0/24"])
                ])
                .to_string()),
                7,
                &["worker1"],
            ),
            (
                "our range is another's too",
                put(&json!([
                    node_of("worker1", own, &["10.0.7.0/24"]),
                    node_of("two", "192.0.2.1", &["10.0.0.0/16"])
                ])
                .to_string()),
                7,
                &["worker1", "10.0.0.0/16"],
            ),
            (
                "no range yet",
                put(&json!([node_of("worker1", own, &[])]).to_string()),
                11,
                &["worker1"],
            ),
        ];
        for (name, setup, code, says) in &maps {
            make.push(make.veth(name, *code, says)?.setup(setup, &restore));
            make.push(make.routing_with(name, &json!({}), *code, says)?.setup(setup, &restore));
            let config = merged(veth_config(), &json!({ "type": "veth" }));
            let unready = make.case(name, ("veth", "STATUS"), &config, 50, says)?;
            make.push(unready.setup(setup, &restore));
        }
        let gone = "mv /etc/weft/nodes.d /etc/weft/away";
        let back = "mv /etc/weft/away /etc/weft/nodes.d";
        make.push(make.veth("no directory", 7, &["/etc/weft/nodes.d"])?.setup(gone, back));
        let changes = json!({ "nodes": "all of them" });
        make.push(make.routing_with("map inline is a word", &changes, 7, &["nodes"])?);
        let changes = json!({ "ipam": { "nodesDir": "/etc/weft/elsewhere" } });
        make.push(make.veth_with("no such directory", &changes, 7, &["/etc/weft/elsewhere"])?);
        Ok(())
    })
}

#[test]
fn configuration_of_routing() -> Result<()> {
    e2e::needs_lab!();
    run(|make, _| {
        let cases: [(&str, Value, &[&str]); 20] = [
            ("mode", json!({ "routingMode": "vpn" }), &["routingMode", "vpn", "hybrid"]),
            ("tunnel without port", json!({ "tunnelPort": 0 }), &["tunnelPort", "native"]),
            (
                "hybrid without port",
                json!({ "routingMode": "hybrid", "tunnelPort": 0 }),
                &["tunnelPort", "hybrid"],
            ),
            ("port too large", json!({ "tunnelPort": 65536 }), &["tunnelPort", "65536"]),
            ("VNI 0", json!({ "vni": 0 }), &["vni", "0"]),
            ("VNI of 25 bits", json!({ "vni": 16_777_216 }), &["vni", "16777216"]),
            ("device is a path", json!({ "device": "a/b" }), &["device", "a/b"]),
            ("device too long", json!({ "device": "weft.01234567890" }), &["device", "15"]),
            (
                "source ports upside down",
                json!({ "tunnelSourcePortRange": "9-1" }),
                &["tunnelSourcePortRange", "9-1"],
            ),
            (
                "source ports are one",
                json!({ "tunnelSourcePortRange": "9-9" }),
                &["tunnelSourcePortRange", "9-9"],
            ),
            (
                "native CIDR",
                json!({ "ipv4NativeRoutingCIDR": "10.0.0.0" }),
                &["ipv4NativeRoutingCIDR", "10.0.0.0"],
            ),
            (
                "native CIDR of the other family",
                json!({ "ipv6NativeRoutingCIDR": ["10.0.0.0/8"] }),
                &["ipv6NativeRoutingCIDR", "10.0.0.0/8"],
            ),
            ("links", json!({ "links": ["eth0"] }), &["links[0]", "eth0"]),
            ("no such underlay", json!({ "underlay": "nosuch0" }), &["nosuch0", "eth0"]),
            ("underlay family", json!({ "underlayFamily": "ipx" }), &["underlayFamily", "ipx"]),
            ("protocol of the kernel", json!({ "routeProtocol": 3 }), &["routeProtocol", "3"]),
            ("protocol of pods", json!({ "routeProtocol": 88 }), &["routeProtocol", "88"]),
            ("mtu too large", json!({ "mtu": 1451 }), &["mtu", "1451", "1450", "eth0"]),
            ("mtu too small", json!({ "mtu": 1279 }), &["mtu", "1279", "1280"]),
            (
                "native off the link",
                json!({ "routingMode": "native", "directRoutingSkipUnreachable": false }),
                &["control-plane", "directRoutingSkipUnreachable"],
            ),
        ];
        for (name, changes, says) in cases {
            make.push(make.routing_with(name, &changes, 7, says)?);
        }
        let own = json!({
            "name": "worker1", "addresses": ["192.168.211.128"], "podCIDRs": ["10.0.1.0/24"] });
        let changes = json!({ "underlay": "other0", "underlayFamily": "ipv6", "nodes": [own] });
        let case =
            make.routing_with("underlay without address", &changes, 7, &["other0", "IPv6"])?;
        make.push(case.setup("ip link add other0 type bridge", "ip link del other0"));
        Ok(())
    })
}

#[test]
fn kernel() -> Result<()> {
    e2e::needs_lab!();
    let read_only = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount -n --bind /proc/sys /proc/sys && mount -n -o remount,bind,ro /proc/sys && exec \"$0\"",
    ];
    let unprivileged = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    run(|make, _| {
        let exists = make.veth("interface exists", 100, &["eth0", "exists", "container"])?;
        let inside = "nsenter --net=/run/netns/pod-a ip link";
        make.push(
            exists.setup(&format!("{inside} add eth0 type bridge"), &format!("{inside} del eth0")),
        );
        let says = ["/proc/sys/net/ipv4/ip_forward", "Read-only"];
        make.push(make.veth("read-only sysctls", 100, &says)?.wrapper(&read_only));
        let none = make.routing_with("read-only sysctls", &json!({}), 100, &says)?;
        make.push(none.wrapper(&read_only));
        let says = ["CAP_NET_ADMIN"];
        make.push(make.veth("no privilege", 100, &says)?.wrapper(&unprivileged));
        let none = make.routing_with("no privilege", &json!({}), 100, &says)?;
        make.push(none.wrapper(&unprivileged));
        let clash = make.routing_with("VNI clash", &json!({}), 7, &["theirs", "VNI 1", "8472"])?;
        make.push(clash.setup(
            "ip link add theirs type vxlan id 1 dstport 8472 local 192.168.211.128",
            "ip link del theirs",
        ));
        let clash = make.routing_with("VNI clash", &json!({ "vni": 7 }), 7, &["theirs", "8472"])?;
        make.push(
            clash
                .setup("ip link add theirs type vxlan external dstport 8472", "ip link del theirs"),
        );
        let name = make.routing_with("device name taken", &json!({}), 7, &["device", "weft.1"])?;
        make.push(name.setup("ip link add weft.1 type bridge", "ip link del weft.1"));
        let small =
            make.routing_with("small underlay", &json!({}), 7, &["eth0", "1320", "1280"])?;
        let undo = "ip link set eth0 mtu 1500";
        make.push(small.setup("ip link set eth0 mtu 1320", undo));
        let store = "mkdir -p /var/lib/cni; mount -n -t tmpfs -o ro none /var/lib/cni";
        let case = make.veth("read-only store", 5, &["/var/lib/cni/networks/pods"])?;
        make.push(case.setup(store, "umount -n /var/lib/cni"));
        let run = "mount -n -t tmpfs -o ro none /run/weft";
        let case = make.veth("read-only /run/weft", 5, &["/run/weft"])?;
        make.push(case.setup(run, "umount -n /run/weft"));
        Ok(())
    })
}

/// What worked goes on working when a change to the configuration is refused.
#[test]
fn refused_change_keeps_what_was_there() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let result = Call::new("veth", "ADD", &pod, &veth_config())?.ok(node)?;
    let config = merged(routing_config(&pod), &json!({ "prevResult": result }));
    Call::new("routing", "ADD", &pod, &config)?.ok(node)?;
    node.sh("ip link add theirs type vxlan id 7 dstport 8472 local 192.168.211.128")?;
    let before = node.snapshot()?;
    for (change, code) in [
        (json!({ "vni": 7 }), 7),
        (json!({ "mtu": 9000 }), 7),
        (json!({ "underlay": "nosuch0" }), 7),
        (json!({ "device": "eth0" }), 7),
        (json!({ "routingMode": "native", "directRoutingSkipUnreachable": false }), 7),
    ] {
        let failure = Call::new("routing", "ADD", &pod, &merged(config.clone(), &change))?;
        let failure = failure.fails(node).with_context(|| change.to_string())?;
        assert_eq!(failure.code, code, "{change}: {failure:?}");
        let touched = changes(&before, &node.snapshot()?);
        assert!(touched.is_empty(), "{change}: {touched}");
    }
    Ok(())
}

/// A second ADD without DEL is refused and leaves the first as it is.
#[test]
fn second_add_is_refused_and_harmless() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let add = Call::new("veth", "ADD", &pod, &veth_config())?;
    let result = add.ok(node)?;
    let (before, before_inside) = (node.snapshot()?, pod.snapshot()?);
    let failure = add.fails(node)?;
    assert!(failure.msg.contains("exists already") && failure.msg.contains("DEL"), "{failure:?}");
    assert_eq!(changes(&before, &node.snapshot()?), "");
    before_inside.assert_same(&pod.snapshot()?);
    let config = merged(veth_config(), &json!({ "prevResult": result }));
    Call::new("veth", "CHECK", &pod, &config)?.ok(node)?;
    Ok(())
}

/// The host's route to an address is another program's: nothing of the pod stays.
#[test]
fn address_routed_elsewhere() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson_dual()?;
    let node = lab.node("worker1")?;
    settled(node)?;
    let pod = node.pod("pod-a")?;
    let call = |verb: &str| Call::new("veth", verb, &pod, &veth_config());
    // What the host needs for all pods stays.
    call("ADD")?.ok(node)?;
    call("DEL")?.ok(node)?;
    node.sh("ip route add 10.0.1.77 dev eth0")?;
    let before = node.snapshot()?;
    let mut add = call("ADD")?;
    add.set("CNI_ARGS", "IP=10.0.1.77");
    let failure = add.fails(node)?;
    assert_eq!(failure.code, 100, "{failure:?}");
    assert!(failure.msg.contains("`ip route add 10.0.1.77/32 dev veth"), "{failure:?}");
    assert_eq!(changes(&before, &node.snapshot()?), "");
    call("ADD")?.ok(node).map(drop)
}
