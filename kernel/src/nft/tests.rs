//! Against the real kernel, each test in a network namespace of its own. `nft`
//! is the witness of what is there, and the hand that meddles with it.

use std::process::Command;
use std::time::Instant;

use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs `test` in a new network namespace, where that is permitted; else it is skipped.
/// The thread's end is the namespace's.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    testing::need!(testing::kernel());
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn nft(line: &str) -> String {
    let output = Command::new("nft").args(line.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn networks(list: &[&str]) -> Vec<IpNetwork> {
    list.iter().map(|network| network.parse().unwrap()).collect()
}

/// A table with one of everything.
fn sample() -> Table {
    let list = networks(&["10.0.0.0/24", "10.0.1.0/24", "192.0.2.1", "fd00:1::/64"]);
    let pods4 = Set::new("pods4", IpVersion::V4, &list);
    let pods6 = Set::new("pods6", IpVersion::V6, &list);
    let ends = Set::new("ends", IpVersion::V4, &networks(&["192.0.2.7", "192.0.2.9"]));
    let none = Set::new("none", IpVersion::V6, &[]);
    let raw = vec![
        Rule::new().from_link_group(0x7765_6674).source_is_elsewhere().count().drop(),
        Rule::new().udp_to(8472).jump("received").comment("to the tunnel"),
    ];
    let received = vec![
        Rule::new().other_vni(1).back(),
        Rule::new().to_other_host().back(),
        Rule::new().source_in(&ends).no_track().accept(),
        Rule::new().source_not_in(&none).count().drop(),
    ];
    let nat = vec![
        Rule::new().marked(0x4000).back(),
        Rule::new().to_link("weft.1").source_not_in(&pods4).masquerade(),
        Rule::new().source_in(&pods6).destination_in(&pods6).back(),
    ];
    Table::new("weft_test")
        .set(Set::new("unused", IpVersion::V4, &list))
        .set(pods4)
        .set(pods6)
        .set(ends)
        .set(none)
        .chain(Chain::at(Hook::PreroutingRaw, "raw", raw))
        .chain(Chain::called("received", received))
        .chain(Chain::at(Hook::PostroutingSourceNat, "nat", nat))
}

const SAMPLE: &str = r#"table inet weft_test {
	comment "weft DIGEST"
	set pods4 {
		type ipv4_addr
		flags constant,interval
		elements = { 10.0.0.0/23, 192.0.2.1 }
	}

	set pods6 {
		type ipv6_addr
		flags constant,interval
		elements = { fd00:1::/64 }
	}

	set ends {
		type ipv4_addr
		flags constant
		elements = { 192.0.2.7, 192.0.2.9 }
	}

	set none {
		type ipv6_addr
		flags constant
	}

	chain raw {
		type filter hook prerouting priority raw; policy accept;
		iifgroup 2003134068 fib saddr . iif oif missing counter packets 0 bytes 0 drop
		udp dport 8472 jump received comment "to the tunnel"
	}

	chain received {
		@th,96,32 & 0xffffff00 != 0x100 return
		fib daddr type unicast return
		ip saddr @ends notrack accept
		ip6 saddr != @none counter packets 0 bytes 0 drop
	}

	chain nat {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		oifname "weft.1" ip saddr != @pods4 masquerade fully-random
		ip6 saddr @pods6 ip6 daddr @pods6 return
	}
}
"#;

#[test]
fn nft_reads_what_was_written() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        assert!(ensure(&mut socket, &sample()).unwrap());
        let digest = format!("{:016x}", sample().proof().digest());
        assert_eq!(nft("list ruleset"), SAMPLE.replace("DIGEST", &digest));
        assert!(nft("-j list ruleset").contains("weft_test"));
        assert!(!ensure(&mut socket, &sample()).unwrap(), "installed twice");
    });
}

#[test]
fn meddling_is_noticed_and_repaired() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        let proof = sample().proof();
        assert!(!installed(&mut socket, &proof).unwrap());
        for meddling in [
            "flush ruleset",
            "flush table inet weft_test",
            "flush chain inet weft_test received",
            "add rule inet weft_test nat accept",
            "insert rule inet weft_test received accept",
            "chain inet weft_test raw { policy drop ; }",
            "add table inet weft_test { flags dormant ; }",
            "add chain inet weft_test other { type filter hook input priority 0 ; }",
            "delete rule inet weft_test raw handle HANDLE",
        ] {
            ensure(&mut socket, &sample()).unwrap();
            assert!(installed(&mut socket, &proof).unwrap());
            let handle = first_handle(&nft("-a list chain inet weft_test raw"));
            nft(&meddling.replace("HANDLE", &handle));
            assert!(!installed(&mut socket, &proof).unwrap(), "unnoticed: {meddling}");
            assert!(ensure(&mut socket, &sample()).unwrap(), "not repaired: {meddling}");
            assert!(installed(&mut socket, &proof).unwrap(), "badly repaired: {meddling}");
        }
    });
}

fn first_handle(chain: &str) -> String {
    let rule = chain.lines().find(|line| line.contains("fib saddr")).unwrap();
    rule.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn a_constant_set_cannot_be_changed_behind_our_back() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        ensure(&mut socket, &sample()).unwrap();
        for line in
            ["flush set inet weft_test ends", "add element inet weft_test pods4 { 1.1.1.1 }"]
        {
            let output = Command::new("nft").args(line.split(' ')).output().unwrap();
            assert!(!output.status.success(), "{line}");
        }
    });
}

#[test]
fn another_table_of_the_name_is_replaced_and_others_are_left() {
    in_namespace(|| {
        nft("add table inet weft_test");
        nft("add chain inet weft_test stale");
        nft("add table inet other");
        nft("add table ip weft_test");
        let mut socket = Socket::netfilter().unwrap();
        assert!(ensure(&mut socket, &sample()).unwrap());
        assert!(!nft("list table inet weft_test").contains("stale"));
        assert_eq!(tables(&mut socket, "weft_").unwrap(), ["weft_test"]);
        assert!(exists(&mut socket, "weft_test").unwrap());
        assert!(remove(&mut socket, "weft_test").unwrap());
        assert!(!remove(&mut socket, "weft_test").unwrap());
        assert!(!exists(&mut socket, "weft_test").unwrap());
        assert_eq!(nft("list tables"), "table inet other\ntable ip weft_test\n");
    });
}

#[test]
fn a_refusal_names_the_object_and_changes_nothing() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        ensure(&mut socket, &sample()).unwrap();
        let before = nft("list ruleset");
        let broken =
            sample().chain(Chain::called("last", vec![Rule::new(), Rule::new().jump("nowhere")]));
        let error = ensure(&mut socket, &broken).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot add rule 2 to chain last in nf_tables table inet weft_test:"),
            "{error}"
        );
        assert_eq!(nft("list ruleset"), before);
        // The socket still answers questions with their own answers.
        assert!(installed(&mut socket, &sample().proof()).unwrap());
    });
}

/// Where a right is lacking the kernel answers the first of several messages
/// only; who waited for the last would wait for ever.
#[test]
fn without_the_right_the_kernel_refuses_at_once() {
    const ME: &str = "nft::tests::refused_for_want_of_a_right";
    testing::need!(testing::kernel());
    let lacking = ["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let test = std::env::current_exe().unwrap();
    let status = Command::new("setpriv")
        .args(lacking)
        .arg(test)
        .args(["--exact", ME, "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by the test above, without CAP_NET_ADMIN"]
fn refused_for_want_of_a_right() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        let refusals = [
            installed(&mut socket, &sample().proof()).unwrap_err(),
            exists(&mut socket, "weft_test").unwrap_err(),
            remove(&mut socket, "weft_test").unwrap_err(),
            transact(&mut socket, sample().commands(Replaced::Nothing)).unwrap_err(),
            counters(&mut socket, "weft_test").unwrap_err(),
            forward_drops(&mut socket).unwrap_err(),
        ];
        for error in refusals {
            assert_eq!(error.errno, Errno::EPERM, "{error}");
            assert!(error.to_string().contains("CAP_NET_ADMIN is needed"), "{error}");
        }
    });
}

#[test]
fn a_proof_survives_being_written_down() {
    let proof = sample().proof();
    assert_eq!(proof.to_string().parse(), Ok(proof));
    for text in ["", "weft_test", "weft_test xyz 3", "weft_test 12 3 raw", "weft_test 12 3 raw=x"] {
        assert!(text.parse::<Proof>().is_err(), "{text}");
    }
}

#[test]
fn counters_and_other_programs_drops_are_listed() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        assert_eq!(counters(&mut socket, "weft_test").unwrap(), []);
        assert_eq!(forward_drops(&mut socket).unwrap(), []);
        ensure(&mut socket, &sample()).unwrap();
        let chains: Vec<String> =
            counters(&mut socket, "weft_test").unwrap().into_iter().map(|c| c.chain).collect();
        assert_eq!(chains, ["raw", "received"]);
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        nft("add chain ip filter INPUT { type filter hook input priority 0 ; policy drop ; }");
        nft("add table inet fw");
        nft("add chain inet fw forward { type filter hook forward priority 10 ; }");
        nft("add rule inet fw forward iifname eth0 accept");
        assert_eq!(forward_drops(&mut socket).unwrap().len(), 1);
        nft("add rule inet fw forward counter reject with icmpx admin-prohibited");
        let texts: Vec<String> =
            forward_drops(&mut socket).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "policy of chain FORWARD in table ip filter",
                "last rule of chain forward in table inet fw"
            ]
        );
    });
}

/// 10,000 intervals of each version, none next to another.
fn large() -> Table {
    let mut list = Vec::new();
    for i in 0..10_000u32 {
        let ip = std::net::Ipv4Addr::from(0x0a00_0000 + 512 * i);
        list.push(format!("{ip}/24").parse().unwrap());
        list.push(format!("fd00:{:x}::/33", i + 1).parse().unwrap());
    }
    let sets = [Set::new("pods4", IpVersion::V4, &list), Set::new("pods6", IpVersion::V6, &list)];
    let rules = sets.iter().map(|set| Rule::new().source_in(set).count().accept()).collect();
    let [pods4, pods6] = sets;
    Table::new("weft_large").set(pods4).set(pods6).chain(Chain::at(
        Hook::PreroutingRaw,
        "raw",
        rules,
    ))
}

#[test]
fn twenty_thousand_intervals_go_in_as_one_transaction() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        let table = large();
        assert!(ensure(&mut socket, &table).unwrap());
        let listing =
            nft("list set inet weft_large pods4") + &nft("list set inet weft_large pods6");
        assert_eq!(listing.matches("/24").count(), 10_000);
        assert_eq!(listing.matches("/33").count(), 10_000);
        assert!(!ensure(&mut socket, &table).unwrap());
    });
}

/// What the fast path pays; `cargo test -p kernel cost -- --ignored --nocapture`.
#[test]
#[ignore = "measures, proves nothing"]
fn cost() {
    in_namespace(|| {
        let mut socket = Socket::netfilter().unwrap();
        let each = |what: &str, times: u32, run: &mut dyn FnMut(&mut Socket)| {
            let start = Instant::now();
            (0..times).for_each(|_| run(&mut socket));
            eprintln!("{what}: {:?}", start.elapsed() / times);
        };
        run_costs(each);
    });
}

fn run_costs(mut each: impl FnMut(&str, u32, &mut dyn FnMut(&mut Socket))) {
    let (table, proof) = (sample(), sample().proof());
    each("first install", 1, &mut |s| assert!(ensure(s, &table).unwrap()));
    each("installed(), 3 chains", 10_000, &mut |s| assert!(installed(s, &proof).unwrap()));
    each("replace", 1, &mut |s| {
        transact(s, table.commands(Replaced::Whatever)).unwrap();
    });
    let large = large();
    each("proof() of 20,000 intervals", 3, &mut |_| assert!(large.proof().digest() != 0));
    each("install of 20,000 intervals", 1, &mut |s| assert!(ensure(s, &large).unwrap()));
    let proof = large.proof();
    each("installed(), 20,000 intervals", 10_000, &mut |s| assert!(installed(s, &proof).unwrap()));
    each("close and open", 1, &mut |s| *s = Socket::netfilter().unwrap());
    each("ensure of what is there, socket opened anew", 100, &mut |s| {
        *s = Socket::netfilter().unwrap();
        assert!(!ensure(s, &table).unwrap());
    });
}
