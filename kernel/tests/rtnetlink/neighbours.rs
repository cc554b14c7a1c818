//! Neighbours and forwarding databases.

use std::net::IpAddr;

use kernel::neighbour::{FdbEntry, Neighbour, State};

use crate::place::{json, one, sh, with_lan};

const MAC: [u8; 6] = [0x0a, 0x58, 10, 0, 2, 0];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn neighbours_of_both_families() {
    with_lan(|socket, lan| {
        for (text, state, word) in [
            ("192.0.2.7", State::Permanent, "PERMANENT"),
            ("192.0.2.8", State::Stale, "STALE"),
            ("2001:db8::7", State::Permanent, "PERMANENT"),
            ("fe80::858:aff:fe00:200", State::Stale, "STALE"),
        ] {
            let ip = ip(text);
            let entry = Neighbour { index: lan, ip, mac: Some(MAC), state, external: false };
            socket.request(entry.set()).unwrap();
            let seen = one(&format!("ip -j neighbour show {text} dev lan"));
            assert_eq!(seen["lladdr"], "0a:58:0a:00:02:00", "{seen}");
            assert_eq!(seen["state"][0], word, "{seen}");
            assert_eq!(socket.neighbour(lan, ip).unwrap(), Some(entry));
            assert!(socket.neighbours(Some(lan)).unwrap().contains(&entry));
            // Set again, with another address.
            let moved = Neighbour { mac: Some([2, 0, 0, 0, 0, 1]), ..entry };
            socket.request(moved.set()).unwrap();
            assert_eq!(socket.neighbour(lan, ip).unwrap(), Some(moved));
            socket.request(moved.delete()).unwrap();
            let error = socket.request(moved.delete()).unwrap_err();
            assert!(error.is_gone(), "{error}");
        }
        assert_eq!(socket.neighbour(lan, ip("192.0.2.77")).unwrap(), None);
    });
}

#[test]
fn other_programs_entries_are_told_apart() {
    with_lan(|socket, lan| {
        sh("ip neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev lan nud permanent extern_learn
            ip link add v type vxlan id 3 dstport 8472 local 192.0.2.1
            bridge fdb add 02:00:00:00:00:09 dev v dst 192.0.2.9 self permanent extern_learn");
        assert!(socket.neighbour(lan, ip("192.0.2.9")).unwrap().unwrap().external);
        let v = socket.link_by_name("v").unwrap().unwrap().index;
        let theirs = socket.fdb_entry(v, &[2, 0, 0, 0, 0, 9]).unwrap().unwrap();
        assert!(theirs.external, "{theirs:?}");
    });
}

#[test]
fn forwarding_database() {
    with_lan(|socket, _| {
        sh("ip link add v type vxlan id 3 dstport 8472 local 192.0.2.1
            ip link add w type vxlan id 4 dstport 8472 local 192.0.2.1
            bridge fdb add 02:00:00:00:00:01 dev w dst 192.0.2.3 self permanent");
        let index = socket.link_by_name("v").unwrap().unwrap().index;
        let entry = FdbEntry {
            index,
            mac: MAC,
            dst: Some(ip("192.0.2.2")),
            state: State::Permanent,
            external: false,
        };
        socket.request(entry.set()).unwrap();
        socket.request(entry.set()).unwrap();
        assert_eq!(socket.fdb(index).unwrap(), [entry], "another device's are not listed");
        assert_eq!(socket.fdb_entry(index, &MAC).unwrap(), Some(entry));
        // The peer has another address: no second destination, which would get copies.
        let moved = FdbEntry { dst: Some(ip("192.0.2.4")), ..entry };
        socket.request(moved.set()).unwrap();
        assert_eq!(socket.fdb(index).unwrap(), [moved]);
        let seen = json("bridge -j fdb show dev v");
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(
            (&seen[0]["dst"], &seen[0]["state"]),
            (&"192.0.2.4".into(), &"permanent".into())
        );
        socket.request(moved.delete()).unwrap();
        assert_eq!(socket.fdb(index).unwrap(), []);
        let error = socket.request(moved.delete()).unwrap_err();
        assert!(error.is_gone(), "{error}");
        assert_eq!(socket.fdb_entry(index, &MAC).unwrap(), None);
    });
}
