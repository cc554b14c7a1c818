//! weft under podman: its own conflist loader, network namespaces, port mappings and
//! reboots, on nodes of the lab.

mod host;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::{Block, Lab, Node, PingOptions, Place, Snapshot, blocks, ping};

use host::{Host, Turn, prerequisites, without_cni};

/// A test's turn with podman, where there is one that has CNI.
macro_rules! turn {
    () => {{
        testing::need!(prerequisites());
        let without = without_cni()?;
        testing::applies!(without.is_none(), "{} has no CNI", without.unwrap_or_default());
        Turn::take()?
    }};
}

/// The quick start's blocks: the files come first.
fn quick_start() -> Result<Vec<Block>> {
    blocks("docs/runtimes.md", "## podman")
}

/// Two nodes with podman as the quick start configures it, and an image called busybox.
fn two_hosts<'a>(lab: &'a Lab, turn: &'a Turn) -> Result<[Host<'a>; 2]> {
    let [first, second] = ["worker1", "worker2"].map(|name| -> Result<Host> {
        let host = Host::start(lab.node(name)?, turn)?;
        for block in quick_start()?.iter().filter(|block| matches!(block, Block::File { .. })) {
            block.follow(host.node())?;
        }
        Ok(host)
    });
    Ok([first?, second?])
}

#[track_caller]
fn assert_ping(from: &Place, to: IpAddr) -> Result<()> {
    let result = ping(from, to, &PingOptions { wait: 5.0, ..PingOptions::default() })?;
    assert!(result.all(), "{}", result.output);
    Ok(())
}

/// Asserts that a node is as before, but for what the lease store and plugins of others
/// keep: the last address given out, iptables' own tables, forwarding.
#[track_caller]
fn assert_as_before(node: &Node, before: &Snapshot) -> Result<()> {
    let now = node.snapshot()?;
    let diff = before.diff(&now);
    let expected = |line: &str| {
        line.contains("Sysctls: ")
            && (line.contains("forward") || line.contains("all/accept_redirects"))
            || line.contains("Files: /var/lib/cni/") && !line.contains("/10.0.")
            || line.contains("Files: /etc/cni/net.d/cni.lock")
            // portmap's chains stay when the last port is gone.
            || line.contains("Nftables: ") && !line.contains("weft")
    };
    let left: Vec<&str> = diff.lines().filter(|line| !expected(line)).collect();
    ensure!(left.is_empty(), "{} is not as before:\n{}", node.name(), left.join("\n"));
    Ok(())
}

/// The body of `/hostname`, fetched without a program of its own.
fn http(from: &Place, address: IpAddr, port: u16) -> Result<String> {
    let script = format!(
        "exec 3<>/dev/tcp/{address}/{port}; printf 'GET /hostname HTTP/1.0\r\n\r\n' >&3; sed '1,/^\r$/d' <&3"
    );
    from.run_ok(&["timeout", "10", "bash", "-e", "-c", &script])
}

#[test]
fn the_quick_start_works_as_it_stands() -> Result<()> {
    let turn = turn!();
    let lab = Lab::lesson()?;
    let [here, there] = two_hosts(&lab, &turn)?;
    let before = here.node().snapshot()?;
    let mut commands = quick_start()?;
    commands.retain(|block| matches!(block, Block::Commands(_)));
    let [run, remove] = &commands[..] else { panic!("the quick start has other commands now") };

    run.follow(here.node())?;
    let web = here.address("web")?;
    let page = http(here.node(), web, 80)?;
    // httpd serves the image's /etc, where podman puts the container's host name.
    assert_eq!(page.trim(), here.podman("inspect --format {{.Config.Hostname}} web")?.trim());
    // From outside, by the published port; and from a container of the other node.
    let node = here.node().address(e2e::Family::V4)?;
    assert_eq!(http(lab.router(), node, 8080)?, page);
    there.podman("run --detach --cap-add NET_RAW --name client busybox sleep 1000")?;
    let fetched = there.podman(&format!("exec client wget -q -O - http://{web}/hostname"))?;
    assert_eq!(fetched, page);
    there.podman("rm --force --time 0 client")?;

    remove.follow(here.node())?;
    here.weft(&["teardown"])?;
    assert_as_before(here.node(), &before)
}

#[test]
fn containers_of_two_nodes_reach_each_other_until_they_are_removed() -> Result<()> {
    let turn = turn!();
    let lab = Lab::lesson()?;
    let hosts = two_hosts(&lab, &turn)?;
    let before = hosts.iter().map(|host| host.node().snapshot()).collect::<Result<Vec<_>>>()?;
    for host in &hosts {
        host.podman("run --detach --cap-add NET_RAW --name one busybox sleep 1000")?;
        host.podman("run --detach --cap-add NET_RAW --name two busybox sleep 1000")?;
    }
    let [here, there] = &hosts;
    let far = there.address("one")?;
    for to in [far, there.address("two")?, here.address("two")?] {
        here.podman(&format!("exec one ping -c 1 -W 5 {to}"))?;
    }
    // A restart is DEL and ADD; the other containers do not notice.
    there.podman("restart --time 0 two")?;
    here.podman(&format!("exec one ping -c 1 -W 5 {}", there.address("two")?))?;
    // Stopped, a container has no interface and no lease, and started again has both.
    there.podman("stop --time 0 one")?;
    assert!(!there.weft(&["ipam"])?.contains(&format!("{far} ")), "the lease is still there");
    there.podman("start one")?;
    here.podman(&format!("exec one ping -c 1 -W 5 {}", there.address("one")?))?;

    for (host, before) in hosts.iter().zip(&before) {
        host.podman("rm --all --force --time 0")?;
        host.weft(&["teardown"])?;
        assert_as_before(host.node(), before)?;
    }
    Ok(())
}

#[test]
fn a_pod_shares_one_interface_and_its_ports() -> Result<()> {
    let turn = turn!();
    let lab = Lab::lesson()?;
    let [here, there] = two_hosts(&lab, &turn)?;
    let before = here.node().snapshot()?;
    here.podman("pod create --name shop --publish 8081:80 --infra-image localhost/busybox --infra-command 'sleep 1000'")?;
    here.podman("run --detach --pod shop --name front busybox httpd -f -h /etc")?;
    here.podman("run --detach --pod shop --name back busybox sleep 1000")?;
    let page = here.podman("exec back wget -q -O - http://127.0.0.1/hostname")?;
    let interfaces = here.node().json(&["ip", "-j", "link", "show", "type", "veth"])?;
    let ours = interfaces
        .as_array()
        .context("a list")?
        .iter()
        .filter(|link| link["ifname"].as_str().is_some_and(|name| name != "eth0"));
    assert_eq!(ours.count(), 1, "{interfaces}");
    there.podman("run --detach --cap-add NET_RAW --name client busybox sleep 1000")?;
    let node = here.node().address(e2e::Family::V4)?;
    let fetched = there.podman(&format!("exec client wget -q -O - http://{node}:8081/hostname"))?;
    assert_eq!(fetched, page);
    there.podman("rm --force --time 0 client")?;

    here.podman("pod rm --force --time 0 shop")?;
    here.weft(&["teardown"])?;
    assert_as_before(here.node(), &before)
}

#[test]
fn after_a_reboot_the_same_containers_start_and_no_lease_is_lost() -> Result<()> {
    let turn = turn!();
    let lab = Lab::lesson()?;
    let [here, there] = two_hosts(&lab, &turn)?;
    for name in ["one", "two", "three"] {
        here.podman(&format!("run --detach --cap-add NET_RAW --name {name} busybox sleep 1000"))?;
    }
    there.podman("run --detach --cap-add NET_RAW --name client busybox sleep 1000")?;
    here.power_cut(&lab)?;

    // podman finds its own files in /run gone and takes all containers for stopped.
    here.podman("start one two")?;
    for name in ["one", "two"] {
        there.podman(&format!("exec client ping -c 1 -W 5 {}", here.address(name)?))?;
        assert_ping(here.node(), here.address(name)?)?;
    }
    let mut living = [here.address("one")?, here.address("two")?];
    living.sort();
    assert_eq!(here.node().leases("pods"), living, "leases of before the reboot stayed");
    here.podman("rm --all --force --time 0")?;
    assert!(here.node().leases("pods").is_empty());
    Ok(())
}
