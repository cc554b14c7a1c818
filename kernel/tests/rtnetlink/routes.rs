//! Routes and nexthop objects.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::nexthop::Nexthop;
use kernel::route::{Filter, Kind, Route, Scope};
use nix::errno::Errno;

use crate::place::{json, one, sh, with_lan};

const OURS: u8 = 87;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn family(route: &Route) -> u8 {
    (if route.dst.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// A route by a gateway, one of each family.
fn by_gateway(lan: u32) -> [Route; 2] {
    [("10.9.0.0/16", "192.0.2.2"), ("fd09::/32", "2001:db8::2")].map(|(dst, via)| Route {
        via: Some(ip(via)),
        dev: Some(lan),
        metric: 8,
        ..Route::to(net(dst), OURS)
    })
}

#[test]
fn what_is_added_is_listed_as_it_was_asked_for() {
    with_lan(|socket, lan| {
        let [v4, v6] = by_gateway(lan);
        let unreachable =
            |dst| Route { kind: Kind::Unreachable, metric: 8, ..Route::to(net(dst), OURS) };
        let onlink =
            Route { dst: net("10.8.0.0/16"), via: Some(ip("10.99.0.1")), onlink: true, ..v4 };
        let link_local = Route { dst: net("fd08::/32"), via: Some(ip("fe80::9")), ..v6 };
        let link =
            Route { dev: Some(lan), scope: Scope::Link, ..Route::to(net("10.7.0.1/32"), 88) };
        let full = Route {
            dst: net("10.6.0.0/16"),
            src: Some(ip("192.0.2.1")),
            mtu: Some(1400),
            advmss: Some(1360),
            table: 7439,
            ..v4
        };
        let full6 =
            Route { dst: net("fd06::/32"), mtu: Some(1400), src: Some(ip("2001:db8::1")), ..v6 };
        let other = Route { dst: net("10.5.0.0/16"), protocol: 201, ..v4 };
        let routes = [
            v4,
            v6,
            unreachable("10.4.0.0/16"),
            unreachable("fd04::/32"),
            onlink,
            link_local,
            link,
            full,
            full6,
            other,
        ];
        for route in &routes {
            socket.request(route.add()).unwrap_or_else(|e| panic!("{}: {e}", route.words(None)));
            let filter = Filter {
                family: family(route),
                protocol: route.protocol,
                table: route.table,
                dev: route.dev,
            };
            let listed = socket.routes(filter).unwrap();
            assert!(listed.contains(route), "{route:?} not in {listed:?}");
            assert!(listed.iter().all(|r| r.protocol == route.protocol && r.table == route.table));
        }
        let seen = one("ip -j -d route show 10.6.0.0/16 table 7439");
        assert_eq!(seen["gateway"], "192.0.2.2", "{seen}");
        assert_eq!((&seen["protocol"], &seen["metric"]), (&"87".into(), &8.into()));
        assert_eq!(seen["prefsrc"], "192.0.2.1");
        assert_eq!(seen["metrics"][0]["mtu"], 1400);
        assert_eq!(one("ip -j -d route show 10.4.0.0/16")["type"], "unreachable");
        assert_eq!(one("ip -j -d -6 route show fd04::/32")["type"], "unreachable");
        assert!(one("ip -j -d route show 10.8.0.0/16")["flags"].to_string().contains("onlink"));
        // A table that nobody has used.
        let empty = Filter { family: libc::AF_INET as u8, table: 7440, ..Filter::default() };
        assert_eq!(socket.routes(empty).unwrap(), []);
    });
}

#[test]
fn creation_is_exclusive() {
    with_lan(|socket, lan| {
        sh("ip route add 10.9.0.0/16 via 192.0.2.3 metric 8 proto static
            ip route add fd09::/32 via 2001:db8::3 metric 8 proto static");
        let before = sh("ip route; ip -6 route");
        for route in by_gateway(lan) {
            let error = socket.request(route.add()).unwrap_err();
            assert!(error.is_exists(), "{error}");
            let unreachable = Route { kind: Kind::Unreachable, via: None, dev: None, ..route };
            let error = socket.request(unreachable.add()).unwrap_err();
            assert!(error.is_exists(), "{error}");
        }
        assert_eq!(sh("ip route; ip -6 route"), before);
        // At another metric there is room.
        for route in by_gateway(lan) {
            socket.request(Route { metric: 9, ..route }.add()).unwrap();
        }
    });
}

#[test]
fn deletion_takes_that_route_and_no_other() {
    with_lan(|socket, lan| {
        sh("ip route add 10.9.0.0/16 via 192.0.2.2 metric 8 proto static
            ip route add fd09::/32 via 2001:db8::2 metric 8 proto static");
        let before = sh("ip route; ip -6 route");
        for route in by_gateway(lan) {
            let (via, dev) = match route.dst.is_ipv4() {
                true => (ip("192.0.2.3"), lan + 1),
                false => (ip("2001:db8::3"), lan + 1),
            };
            let theirs = Route { protocol: libc::RTPROT_STATIC, ..route };
            for wrong in [
                route,
                Route { via: Some(via), ..theirs },
                Route { dev: Some(dev), ..theirs },
                Route { metric: 9, ..theirs },
                Route { dst: IpNetwork::from(route.dst.ip()), ..theirs },
            ] {
                let error = socket.request(wrong.delete()).unwrap_err();
                assert!(error.is_gone() || error.errno == Errno::ENODEV, "{error}");
            }
        }
        assert_eq!(sh("ip route; ip -6 route"), before);
        for route in by_gateway(lan) {
            let theirs = Route { protocol: libc::RTPROT_STATIC, ..route };
            socket.request(theirs.delete()).unwrap();
        }
        assert_eq!(json("ip -j route show 10.9.0.0/16").len(), 0);
        assert_eq!(json("ip -j -6 route show fd09::/32").len(), 0);
    });
}

#[test]
fn nexthop_objects() {
    with_lan(|socket, lan| {
        let nexthop = |id: u32, via: &str, onlink| Nexthop {
            id,
            dev: lan,
            via: ip(via),
            protocol: OURS,
            onlink,
        };
        let list = [
            nexthop(0x0a00_0100, "10.0.1.0", true),
            nexthop(0x0a00_0200, "192.0.2.2", false),
            nexthop(7, "2001:db8::2", false),
        ];
        for object in &list {
            socket.request(object.add()).unwrap();
            let error = socket.request(object.add()).unwrap_err();
            assert!(error.is_exists(), "{error}");
        }
        sh("ip nexthop add id 9 blackhole");
        let listed = socket.nexthops(Some(lan)).unwrap();
        assert!(list.iter().all(|object| listed.contains(object)), "{listed:?}");
        assert_eq!(listed.len(), list.len());
        assert_eq!(socket.nexthops(None).unwrap().len(), list.len(), "a blackhole has no gateway");
        assert_eq!(one("ip -j nexthop show id 167772416")["gateway"], "10.0.1.0");

        let route = Route {
            nexthop: Some(list[0].id),
            metric: 8,
            src: Some(ip("192.0.2.1")),
            mtu: Some(1400),
            ..Route::to(net("10.0.1.0/24"), OURS)
        };
        socket.request(route.add()).unwrap();
        let seen = one("ip -j route show 10.0.1.0/24");
        assert_eq!((&seen["nhid"], &seen["gateway"]), (&list[0].id.into(), &"10.0.1.0".into()));
        let filter = Filter { family: libc::AF_INET as u8, protocol: OURS, ..Filter::default() };
        let listed = socket.routes(filter).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].nexthop, listed[0].mtu), (route.nexthop, route.mtu));
        socket.request(route.delete()).unwrap();
        socket.request(route.add()).unwrap();
        // The object takes its routes with it.
        socket.request(list[0].delete()).unwrap();
        assert_eq!(socket.routes(filter).unwrap(), []);
        let error = socket.request(list[0].delete()).unwrap_err();
        assert!(error.is_gone(), "{error}");
        let error = socket.request(route.add()).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL, "{error}");
    });
}

#[test]
fn look_ups() {
    with_lan(|socket, lan| {
        for route in by_gateway(lan) {
            socket.request(Route { mtu: Some(1400), ..route }.add()).unwrap();
            let inside = ip(if route.dst.is_ipv4() { "10.9.3.4" } else { "fd09::3:4" });
            let way = socket.route_to(inside).unwrap().unwrap();
            assert_eq!((way.dev, way.via, way.mtu), (Some(lan), route.via, Some(1400)));
            let matching = socket.matching_route(inside).unwrap().unwrap();
            assert_eq!((matching.dst, matching.metric), (route.dst, 8));
        }
        let own = socket.route_to(ip("192.0.2.1")).unwrap().unwrap();
        assert_eq!(own.kind, Kind::Local);
        let near = socket.route_to(ip("192.0.2.2")).unwrap().unwrap();
        assert_eq!((near.kind, near.via, near.src), (Kind::Unicast, None, Some(ip("192.0.2.1"))));
        for nowhere in ["203.0.113.1", "2001:db8:9::1"] {
            assert_eq!(socket.route_to(ip(nowhere)).unwrap(), None, "{nowhere}");
            assert_eq!(socket.matching_route(ip(nowhere)).unwrap(), None, "{nowhere}");
        }
    });
}
