//! Links.

use std::net::IpAddr;
use std::os::fd::AsFd;

use kernel::Rtnetlink;
use kernel::interface::Interface;
use kernel::link::{
    HOST_END_GROUP, LinkChange, VethPair, Vxlan, VxlanDevice, delete, delete_by_name,
};
use kernel::netns::Netns;
use nix::errno::Errno;

use crate::place::{another, in_namespace, json, one, sh, with_lan};

const INDEX: u32 = 0x01ab_cdef;

fn pair<'a>(pod_name: &'a str, host_name: &'a str, index: u32, host: &'a Netns) -> VethPair<'a> {
    VethPair {
        group: kernel::link::HOST_END_GROUP,
        pod_name,
        pod_mac: [0x0a, 0x58, 10, 0, 1, 2],
        host_name,
        host_mac: [0x0e, 1, 2, 3, 4, 5],
        index,
        mtu: 1450,
        host_netns: host.as_fd(),
    }
}

#[test]
fn veth_pair_across_namespaces_with_a_chosen_index() {
    in_namespace(|| {
        let (host, pod) = (Netns::current().unwrap(), another());
        let make = || Rtnetlink::open()?.request(pair("eth0", "vethhost", INDEX, &host).message());
        pod.run(&host, make).unwrap().unwrap();
        let inside = pod.run(&host, || one("ip -j -d link show eth0")).unwrap();
        assert_eq!(inside["ifindex"], INDEX);
        assert_eq!(inside["address"], "0a:58:0a:00:01:02");
        assert_eq!(inside["mtu"], 1450);
        assert!(inside["flags"].to_string().contains("\"UP\""), "{inside}");
        let outside = one("ip -j -d link show vethhost");
        assert_eq!(outside["ifindex"], INDEX);
        assert_eq!(outside["address"], "0e:01:02:03:04:05");
        assert_eq!(outside["group"], HOST_END_GROUP.to_string());
        assert!(!outside["flags"].to_string().contains("\"UP\""), "{outside}");

        let mut socket = Rtnetlink::open().unwrap();
        let link = socket.link_by_name("vethhost").unwrap().unwrap();
        assert_eq!((link.index, link.lower, link.group), (INDEX, Some(INDEX), HOST_END_GROUP));
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert!(link.lower_nsid.is_some());
        assert_eq!(link.lower_nsid, socket.nsid(&pod).unwrap());
        assert_eq!(socket.link(INDEX).unwrap().as_ref(), Some(&link));
        assert_eq!(socket.links_of_kind("veth").unwrap(), [link]);
        // Either end takes the other with it.
        socket.request(delete(INDEX)).unwrap();
        assert!(pod.run(&host, || json("ip -j link show type veth")).unwrap().is_empty());
        assert_eq!(socket.link(INDEX).unwrap(), None);
    });
}

#[test]
fn taken_index_and_taken_names_are_told_apart() {
    in_namespace(|| {
        let (host, pod) = (Netns::current().unwrap(), another());
        let make = |pod_name: &str, host_name: &str, index: u32| {
            let message = pair(pod_name, host_name, index, &host).message();
            pod.run(&host, || Rtnetlink::open()?.request(message)).unwrap()
        };
        make("eth0", "vethone", INDEX).unwrap();
        // An index taken in the pod's namespace is a link that exists (rtnl_newlink).
        let error = make("eth1", "vethtwo", INDEX).unwrap_err();
        assert!(error.is_exists(), "{error}");
        let error = make("eth0", "vethtwo", INDEX + 1).unwrap_err();
        assert!(error.is_exists(), "{error}");
        let error = make("eth1", "vethone", INDEX + 1).unwrap_err();
        assert!(error.is_exists(), "{error}");
        // Nothing of a refused pair is left on either side.
        assert_eq!(pod.run(&host, || json("ip -j link show type veth")).unwrap().len(), 1);
        assert_eq!(json("ip -j link show type veth").len(), 1);
        // An index taken on the host alone.
        sh(&format!("ip link add taken index {} type bridge", INDEX + 2));
        let error = make("eth2", "vethtwo", INDEX + 2).unwrap_err();
        assert_eq!(error.errno, Errno::EBUSY, "{error}");
    });
}

fn vxlan(local: &str, underlay: u32) -> VxlanDevice {
    let settings = Vxlan {
        vni: 77,
        port: 8472,
        source_ports: (49152, 65535),
        local: Some(local.parse().unwrap()),
        underlay: Some(underlay),
        learning: false,
        udp_checksum: true,
        external: false,
    };
    VxlanDevice { name: "weft.77".into(), mac: [0x0a, 0x58, 10, 0, 1, 0], mtu: 1400, settings }
}

#[test]
fn vxlan_device_is_made_read_and_changed_in_place() {
    for (local, other, key) in
        [("192.0.2.1", "192.0.2.9", "local"), ("2001:db8::1", "2001:db8::9", "local6")]
    {
        crate::place::with_lan(|socket, lan| {
            let device = vxlan(local, lan);
            socket.request(device.message()).unwrap();
            let link = socket.link_by_name("weft.77").unwrap().unwrap();
            assert_eq!(link.vxlan.as_ref(), Some(&device.settings));
            assert_eq!((link.mac, link.mtu, link.up), (Some(device.mac), 1400, false));
            assert_eq!(socket.links_of_kind("vxlan").unwrap(), std::slice::from_ref(&link));
            let seen = one("ip -j -d link show weft.77");
            let data = &seen["linkinfo"]["info_data"];
            assert_eq!(data[key], local, "{seen}");
            assert_eq!((&data["id"], &data["port"]), (&77.into(), &8472.into()));
            assert_eq!(data["learning"], false);
            assert_eq!((&data["port_range"]["low"], &data["link"]), (&49152.into(), &"lan".into()));
            assert_eq!(data["udp_zero_csum6_tx"], false);
            if key == "local" {
                assert_eq!(data["udp_csum"], true);
            }

            let other: IpAddr = other.parse().unwrap();
            let change = LinkChange { vxlan_local: Some(other), ..LinkChange::default() };
            socket.request(change.message(link.index)).unwrap();
            let changed = socket.link_by_name("weft.77").unwrap().unwrap();
            assert_eq!(changed.index, link.index);
            let local = Some(other);
            assert_eq!(changed.vxlan, Some(Vxlan { local, ..device.settings.clone() }));
            let error = socket.request(device.message()).unwrap_err();
            assert!(error.is_exists(), "{error}");
        });
    }
}

#[test]
fn other_programs_vxlan_devices_are_read() {
    crate::place::with_lan(|socket, _| {
        sh("ip link add theirs type vxlan external dstport 4789
            ip link add plain type vxlan id 5 dstport 4790");
        let theirs = socket.link_by_name("theirs").unwrap().unwrap().vxlan.unwrap();
        assert!(theirs.external && theirs.port == 4789 && theirs.local.is_none(), "{theirs:?}");
        let plain = socket.link_by_name("plain").unwrap().unwrap().vxlan.unwrap();
        assert!(plain.learning && !plain.external && plain.vni == 5 && plain.underlay.is_none());
    });
}

#[test]
fn links_change() {
    in_namespace(|| {
        sh("ip link add one type bridge");
        let mut socket = Rtnetlink::open().unwrap();
        let index = socket.link_by_name("one").unwrap().unwrap().index;
        let long = "x".repeat(300);
        let change = LinkChange {
            name: Some("two"),
            mtu: Some(1300),
            mac: Some([2, 0, 0, 0, 0, 9]),
            alias: Some(&long),
            group: Some(7),
            no_link_local: true,
            up: Some(true),
            ..LinkChange::default()
        };
        socket.request(change.message(index)).unwrap();
        let seen = one("ip -j -d link show two");
        assert_eq!((&seen["mtu"], &seen["group"]), (&1300.into(), &"7".into()));
        assert_eq!(seen["address"], "02:00:00:00:00:09");
        assert_eq!(seen["inet6_addr_gen_mode"], "none");
        let link = socket.link_by_name("two").unwrap().unwrap();
        assert_eq!(link.alias.map(|alias| alias.len()), Some(255));
        assert!(link.up);
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        socket.request(down.message(index)).unwrap();
        assert!(!socket.link(index).unwrap().unwrap().up);
        assert_eq!(socket.link_by_name("one").unwrap(), None);
        socket.request(delete_by_name("two")).unwrap();
        for gone in [delete_by_name("two"), delete(index), down.message(index)] {
            let error = socket.request(gone).unwrap_err();
            assert!(error.is_gone(), "{error}");
        }
    });
}

#[test]
fn a_few_facts_are_told_without_a_lock() {
    with_lan(|socket, lan| {
        sh("ip link set lan mtu 1450");
        assert_eq!(socket.index_of("lan").unwrap(), Some(lan));
        let mut lan_now = Interface { name: "lan".to_owned(), mtu: 1450, up: true };
        assert_eq!(socket.interface(lan).unwrap().as_ref(), Some(&lan_now));
        assert_eq!(socket.index_of("lanlanlanlanlanlan").unwrap(), None);
        assert_eq!(socket.interface(lan + 1000).unwrap(), None);
        sh("ip link set lan down; ip link set lan name fifteenletters1");
        assert_eq!(socket.index_of("fifteenletters1").unwrap(), Some(lan));
        (lan_now.name, lan_now.up) = ("fifteenletters1".to_owned(), false);
        assert_eq!(socket.interface(lan).unwrap(), Some(lan_now));
    });
}
