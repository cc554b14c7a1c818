//! A node loses something of its own: its device, entries, tables, underlay. Every
//! trigger brings it back, and nodes that have nothing to do with it notice nothing.

use anyhow::{Result, ensure};

use crate::event::{DAMAGE, Event, HIT, Scene, assert_mtu};
use crate::nodes::{MOVES_KERNEL_FIRST, MOVES_MAP_FIRST};
use crate::stage::{DEADLINE, Trigger};

/// Something that an ADD sees.
macro_rules! damage {
    ($name:literal, $script:expr) => {
        &Event { name: $name, happen: |scene| scene.damage($script), ..DAMAGE }
    };
}

/// One of many entries, at which an ADD may not look.
macro_rules! one_of_many {
    ($name:literal, $script:expr) => {
        &Event { name: $name, happen: |scene| scene.damage($script), seen_by_add: false, ..DAMAGE }
    };
}

/// `ip route flush` asks for a deletion by nexthop and gateway, which the kernel refuses.
const FLUSH_ROUTES: &str = "ip route show proto 87 | sed 's/ nhid.*//; s/ proto.*//' | \
     while read -r route; do ip route del $route proto 87; done; ip -6 route flush proto 87";

const DEVICE: &[&Event] = &[
    damage!("device deleted", "ip link del weft.1"),
    damage!("device renamed", "ip link set weft.1 down; ip link set weft.1 name x1 up"),
    damage!("device renamed while up", "ip link set weft.1 name x1"),
    damage!("device's MAC rewritten", "ip link set weft.1 address 02:00:00:00:00:99"),
    damage!("device down and up", "ip link set weft.1 down; ip link set weft.1 up"),
    damage!("device down", "ip link set weft.1 down"),
    damage!("device's MTU lowered", "ip link set weft.1 mtu 1300"),
    damage!("device's address gone", "ip address flush dev weft.1"),
    damage!("device's end moved", "ip link set weft.1 type vxlan local 192.168.3.99"),
    damage!("device's mark gone", "ip link set weft.1 alias ''"),
    damage!(
        "device made anew by another",
        "ip link del weft.1; ip link add weft.1 type vxlan id 1 dstport 8472 dev eth0; ip link set weft.1 up"
    ),
    damage!("device learns", "ip link set weft.1 type vxlan learning"),
    damage!(
        "device in a bridge",
        "ip link add br9 type bridge 2>&1 || true; ip link set weft.1 master br9"
    ),
    damage!("device without IPv6", "echo 1 >/proc/sys/net/ipv6/conf/weft.1/disable_ipv6"),
];

#[test]
fn the_device_is_brought_back() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(DEVICE)
}

const ENTRIES: &[&Event] = &[
    damage!("routes flushed", FLUSH_ROUTES),
    damage!("nexthops flushed", "ip nexthop flush proto 87 >/dev/null 2>&1"),
    damage!("FDB flushed", "bridge fdb flush dev weft.1"),
    damage!(
        "neighbours flushed",
        "ip -4 neigh flush dev weft.1 nud permanent; ip -6 neigh flush dev weft.1 nud permanent"
    ),
    damage!("own range's route gone", "ip route del unreachable 10.0.3.0/24 metric 8"),
    damage!(
        "own IPv6 range's route gone",
        "ip -6 route del unreachable fd10:0:0:3::/64 metric 512"
    ),
    damage!("nft ruleset flushed", "nft flush ruleset"),
    damage!("an nft table deleted", "nft delete table inet weft_87_tunnel"),
    one_of_many!("one peer's route gone", "ip route del 10.0.4.0/24"),
    one_of_many!("one peer's IPv6 route gone", "ip -6 route del fd10:0:0:4::/64"),
    one_of_many!("one peer's FDB entry gone", "bridge fdb del 0a:58:0a:00:04:00 dev weft.1"),
    one_of_many!(
        "one peer's FDB entry elsewhere",
        "bridge fdb replace 0a:58:0a:00:04:00 dev weft.1 dst 192.168.9.9 self permanent"
    ),
    one_of_many!("one peer's neighbour gone", "ip neigh del 10.0.4.0 dev weft.1"),
    one_of_many!(
        "one peer's neighbour another",
        "ip neigh replace 10.0.4.0 lladdr 02:00:00:00:00:99 nud permanent dev weft.1"
    ),
    one_of_many!(
        "one peer's neighbour not permanent",
        "ip neigh replace 10.0.4.0 lladdr 0a:58:0a:00:04:00 nud stale dev weft.1"
    ),
    one_of_many!(
        "a surplus route with our mark",
        "ip route add 10.0.77.0/24 via 10.0.4.0 dev weft.1 onlink proto 87 metric 8"
    ),
    &Event {
        name: "forwarding switched off",
        happen: |scene| {
            scene.damage(
                "echo 0 >/proc/sys/net/ipv4/ip_forward
                 echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
            )
        },
        ..DAMAGE
    },
    one_of_many!(
        "one peer's nexthop gone",
        "ip nexthop del $(ip nexthop | grep 'via 10.0.4.0 ' | cut -d' ' -f1,2)"
    ),
];

#[test]
fn entries_are_brought_back() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(ENTRIES)
}

/// Another program's route for a peer's range: of it the operator is told, it is left alone,
/// and all other peers are served. The event is that it goes.
fn put_in_the_way(scene: &mut Scene, metric: u32) -> Result<()> {
    let route = format!("10.0.4.0/24 metric {metric}");
    scene
        .damage(&format!("ip route del 10.0.4.0/24 proto 87; ip route add unreachable {route}"))?;
    scene.damage("ip route del 10.0.1.0/24 proto 87")?;
    let sync = scene.stage.weft(HIT, &["sync"])?;
    ensure!(sync.status.code() == Some(1) && sync.stderr.contains("10.0.4.0/24"), "{sync}");
    scene.stage.trigger(HIT, Trigger::Status)?;
    scene.stage.trigger(HIT, Trigger::Add)?;
    let kept = scene.hit().run_ok(&[
        "ip",
        "route",
        "show",
        "10.0.4.0/24",
        "metric",
        &metric.to_string(),
    ])?;
    ensure!(kept.contains("unreachable"), "it is gone: {kept}");
    let now = std::time::Instant::now();
    scene.traffic.wait_for(now, DEADLINE, |nodes| nodes != [HIT, 3]).map(drop)
}

const IN_THE_WAY: &[&Event] = &[
    &Event {
        name: "another program's route goes",
        prepare: |scene| put_in_the_way(scene, 8),
        happen: |scene| scene.damage("ip route del unreachable 10.0.4.0/24 metric 8"),
        settles: 1,
        seen_by_add: false,
        restores: false,
        ..DAMAGE
    },
    &Event {
        name: "another program's better route goes",
        prepare: |scene| put_in_the_way(scene, 0),
        happen: |scene| scene.damage("ip route del unreachable 10.0.4.0/24 metric 0"),
        settles: 1,
        // Ours is there behind it.
        drifts: false,
        restores: false,
        ..DAMAGE
    },
];

#[test]
fn another_programs_route_is_in_the_way() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(IN_THE_WAY)
}

/// Gives the underlay another MTU, and the rest of the node what follows from it.
fn settle_at_mtu(scene: &mut Scene, mtu: u32) -> Result<()> {
    scene.damage(&format!("ip link set eth0 mtu {mtu}"))?;
    scene.stage.trigger(HIT, Trigger::Sync)
}

/// Takes the underlay down and up, and gives it back what it loses by that.
fn down_and_up(scene: &mut Scene) -> Result<()> {
    scene.damage("ip link set eth0 down")?;
    // What runs meanwhile does no harm, and fails only where no address is left.
    let status = scene.stage.chains[HIT].status().map_err(|error| (error.code, error.msg));
    let sync = scene.stage.weft(HIT, &["sync"])?;
    let addresses = scene.hit().run_ok(&["ip", "-o", "address", "show", "dev", "eth0"])?;
    if addresses.is_empty() {
        ensure!(matches!(&status, Err((50, msg)) if msg.contains("no interface")), "{status:?}");
        ensure!(sync.status.code() == Some(1), "{sync}");
    } else {
        ensure!(status.is_ok() && sync.success(), "{status:?}, {sync}");
    }
    let host = scene.hit().host();
    let mut script = String::from("ip link set eth0 up\n");
    for address in host.addresses.iter().filter(|address| address.is_ipv6()) {
        script.push_str(&format!("ip address replace {address} dev eth0 nodad\n"));
    }
    for gateway in &scene.stage.lab.topology().links[host.link].router {
        if host.addresses.iter().any(|own| own.is_ipv4() == gateway.is_ipv4()) {
            script.push_str(&format!("ip route replace default via {}\n", gateway.ip()));
        }
    }
    scene.damage(&script)?;
    scene.hit().wait_link("eth0")
}

/// Pulls the cable, and plugs it in.
fn unplug(scene: &mut Scene) -> Result<()> {
    scene.stage.lab.set_cable(scene.hit(), false)?;
    // Pods on the node go on talking to each other, and new ones come.
    scene.stage.trigger(HIT, Trigger::Status)?;
    scene.stage.trigger(HIT, Trigger::Add)?;
    let sync = scene.stage.weft(HIT, &["sync"])?;
    ensure!(sync.success() || sync.stderr.contains("Carrier"), "{sync}");
    scene.stage.lab.set_cable(scene.hit(), true)
}

/// In the tunnel none of ours is on the underlay, and nothing has to be repaired.
const TUNNEL_UNDERLAY: &[&Event] = &[
    &Event { name: "underlay down and up", happen: down_and_up, drifts: false, ..DAMAGE },
    &Event { name: "cable pulled", happen: unplug, drifts: false, ..DAMAGE },
    &Event {
        name: "underlay's MTU lowered",
        happen: |scene| scene.damage("ip link set eth0 mtu 1400"),
        check: |scene| {
            assert_mtu(scene.hit(), "weft.1", 1350)?;
            assert_mtu(&scene.stage.pods[HIT], "eth0", 1350)
        },
        undo: |scene| settle_at_mtu(scene, 1500),
        restores: false,
        ..DAMAGE
    },
    &Event {
        name: "underlay's MTU raised",
        prepare: |scene| settle_at_mtu(scene, 1400),
        happen: |scene| scene.damage("ip link set eth0 mtu 1500"),
        check: |scene| {
            assert_mtu(scene.hit(), "weft.1", 1450)?;
            assert_mtu(&scene.stage.pods[HIT], "eth0", 1450)
        },
        restores: false,
        ..DAMAGE
    },
];

#[test]
fn the_underlay_of_the_tunnel_changes() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel()?.play(TUNNEL_UNDERLAY)
}

/// Taken down, an interface loses its IPv6 addresses, of which one is the tunnel's end.
const TUNNEL_OVER_IPV6: &[&Event] = &[
    damage!("over IPv6: device deleted", "ip link del weft.1"),
    &Event {
        name: "over IPv6: underlay down and up",
        happen: down_and_up,
        drifts: false,
        ..DAMAGE
    },
    &Event { name: "over IPv6: cable pulled", happen: unplug, drifts: false, ..DAMAGE },
    &Event { name: "over IPv6: address changes, kernel first", ..MOVES_KERNEL_FIRST },
    &Event { name: "over IPv6: address changes, map first", ..MOVES_MAP_FIRST },
];

#[test]
fn a_tunnel_over_ipv6_is_brought_back() -> Result<()> {
    e2e::needs_lab!();
    Scene::tunnel_over_ipv6()?.play(TUNNEL_OVER_IPV6)
}

/// Without a tunnel the routes are on the underlay and go with it.
const NATIVE: &[&Event] = &[
    &Event { name: "native: underlay down and up", happen: down_and_up, ..DAMAGE },
    // With the carrier the kernel takes nexthop objects away (`nexthop_flush_dev`).
    &Event { name: "native: cable pulled", happen: unplug, ..DAMAGE },
    damage!("native: routes flushed", FLUSH_ROUTES),
    damage!("native: nft ruleset flushed", "nft flush ruleset"),
    one_of_many!("native: one peer's route gone", "ip route del 10.0.4.0/24"),
    &Event {
        name: "native: underlay's MTU lowered",
        happen: |scene| scene.damage("ip link set eth0 mtu 1400"),
        check: |scene| assert_mtu(&scene.stage.pods[HIT], "eth0", 1400),
        undo: |scene| settle_at_mtu(scene, 1500),
        restores: false,
        ..DAMAGE
    },
    &Event {
        name: "native: underlay's MTU raised",
        prepare: |scene| settle_at_mtu(scene, 1400),
        happen: |scene| scene.damage("ip link set eth0 mtu 1500"),
        check: |scene| assert_mtu(&scene.stage.pods[HIT], "eth0", 1500),
        restores: false,
        ..DAMAGE
    },
];

#[test]
fn direct_routes_are_brought_back() -> Result<()> {
    e2e::needs_lab!();
    Scene::native()?.play(NATIVE)
}
