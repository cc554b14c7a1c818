//! Many messages at once, refusals among them, and lists that change while they are read.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::netlink::Message;
use kernel::netns::Netns;
use kernel::route::{Filter, Kind, Route};
use nix::errno::Errno;

use crate::place::{sh, with_lan};

const OURS: Filter = Filter { family: libc::AF_INET as u8, protocol: 87, dev: None, table: 0 };

/// The `number`th of many routes.
fn route(number: usize) -> Route {
    let address = Ipv4Addr::from(0x0a00_0000 + ((number as u32) << 8));
    let dst = IpNetwork::new(address.into(), 24).unwrap();
    Route { kind: Kind::Unreachable, metric: 8, ..Route::to(dst, 87) }
}

#[test]
fn refusals_in_the_middle_stop_nothing_and_keep_their_numbers() {
    with_lan(|socket, _| {
        let wrong = [0, 199, 200, 201, 2500, 2501, 4999];
        let mut messages: Vec<Message> = (0..5000).map(|i| route(i).add()).collect();
        for i in wrong {
            messages[i] = Route {
                via: Some("203.0.113.9".parse().unwrap()),
                kind: Kind::Unicast,
                ..route(i)
            }
            .add();
        }
        let refused = socket.batch(&mut messages).unwrap();
        let indices: Vec<usize> = refused.iter().map(|refusal| refusal.index).collect();
        assert_eq!(indices, wrong);
        for refusal in &refused {
            assert_eq!(refusal.error.errno, Errno::ENETUNREACH, "{}", refusal.error);
            let words = "Nexthop has invalid gateway";
            assert_eq!(refusal.error.extack.as_deref(), Some(words), "{}", refusal.error);
            assert!(refusal.error.to_string().contains(words));
        }
        assert_eq!(socket.routes(OURS).unwrap().len(), 5000 - wrong.len());
        assert_eq!(sh("ip route show proto 87 | wc -l").trim(), "4993");
        // The socket is as good as new.
        assert!(socket.link_by_name("lan").unwrap().is_some());
    });
}

#[test]
fn all_of_them_refused() {
    with_lan(|socket, _| {
        let mut messages: Vec<Message> = (0..1000).map(|i| route(i).delete()).collect();
        let refused = socket.batch(&mut messages).unwrap();
        assert_eq!(refused.len(), 1000);
        let in_order = refused.iter().enumerate().all(|(i, refusal)| refusal.index == i);
        assert!(in_order && refused.iter().all(|refusal| refusal.error.is_gone()));
        assert!(socket.batch(&mut []).unwrap().is_empty());
        assert!(socket.link_by_name("lan").unwrap().is_some());
    });
}

#[test]
fn a_list_is_whole_while_another_thread_changes_it() {
    with_lan(|socket, _| {
        const STABLE: usize = 3000;
        let mut messages: Vec<Message> = (0..STABLE).map(|i| route(i).add()).collect();
        assert!(socket.batch(&mut messages).unwrap().is_empty());
        let stable: HashSet<Route> = (0..STABLE).map(route).collect();
        let home = Netns::current().unwrap();
        let stop = AtomicBool::new(false);
        let meddle = || {
            // A thread starts in the namespace of the one that made it.
            assert!(Netns::current().unwrap().is(&home).unwrap());
            let mut socket = Rtnetlink::open().unwrap();
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                let some = || STABLE..STABLE + 50;
                let mut add: Vec<Message> = some().map(|i| route(i).add()).collect();
                let mut delete: Vec<Message> = some().map(|i| route(i).delete()).collect();
                assert!(socket.batch(&mut add).unwrap().is_empty());
                assert!(socket.batch(&mut delete).unwrap().is_empty());
                rounds += 1;
            }
            rounds
        };
        let rounds = thread::scope(|scope| {
            let meddler = scope.spawn(meddle);
            for _ in 0..30 {
                let listed: HashSet<Route> = socket.routes(OURS).unwrap().into_iter().collect();
                assert_eq!(stable.difference(&listed).count(), 0, "some are missing");
                assert!(socket.links().unwrap().iter().any(|link| link.name == "lan"));
            }
            stop.store(true, Ordering::Relaxed);
            meddler.join().unwrap()
        });
        assert!(rounds > 0);
    });
}

#[test]
fn errors_speak_the_kernels_own_words() {
    with_lan(|socket, lan| {
        let route = Route {
            kind: Kind::Unicast,
            via: Some("198.51.100.1".parse().unwrap()),
            dev: Some(lan),
            ..route(1)
        };
        let error = socket.request(route.add()).unwrap_err();
        let error = error.about("cannot add it");
        assert_eq!(
            error.to_string(),
            format!("cannot add it: {} (Nexthop has invalid gateway)", Errno::ENETUNREACH.desc())
        );
    });
}
