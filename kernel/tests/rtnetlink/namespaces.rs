//! Network namespaces by path.

use std::fs;
use std::os::fd::AsFd;

use kernel::Rtnetlink;
use kernel::link::VethPair;
use kernel::netns::Netns;
use nix::errno::Errno;

use crate::place::{another, in_namespace, json, sh};

#[test]
fn what_is_no_namespace_is_refused() {
    let dir = std::env::temp_dir().join(format!("weft-netns-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name);
    fs::write(path("file"), "").unwrap();
    sh(&format!(
        "mkfifo {0}/fifo; ln -s {0}/gone {0}/dead; ln -s {0}/loop {0}/loop",
        dir.display()
    ));
    for (name, errno) in [
        ("file", Errno::EINVAL),
        ("fifo", Errno::EINVAL),
        (".", Errno::EINVAL),
        ("gone", Errno::ENOENT),
        ("dead", Errno::ENOENT),
        ("loop", Errno::ELOOP),
        ("file/below", Errno::ENOTDIR),
    ] {
        let error = Netns::open(&path(name)).expect_err(name);
        assert_eq!(error.errno, errno, "{error}");
        assert!(error.to_string().contains(&path(name).display().to_string()), "{error}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// `/proc` holds files, too, and namespaces of other kinds.
#[test]
fn nothing_but_a_network_namespace_is_entered() {
    in_namespace(|| {
        let home = Netns::current().unwrap();
        for path in ["/proc/self/ns/uts", "/proc/self/status", "/proc/self/fd"] {
            let entered = Netns::open(path.as_ref()).and_then(|netns| netns.run(&home, || ()));
            let error = entered.expect_err(path);
            assert!(error.to_string().contains(path), "{error}");
            assert!(Netns::current().unwrap().is(&home).unwrap());
        }
    });
}

#[test]
fn a_namespace_is_known_by_any_path() {
    in_namespace(|| {
        let home = Netns::current().unwrap();
        let other = another();
        assert!(home.is(&Netns::open("/proc/thread-self/ns/net".as_ref()).unwrap()).unwrap());
        assert!(!home.is(&other).unwrap());
        assert_ne!(home.identity().unwrap(), other.identity().unwrap());
        sh("ip link add here type bridge");
        let links = || json("ip -j link show type bridge").len();
        assert_eq!((links(), other.run(&home, links).unwrap()), (1, 0));
        // A socket stays where it was opened.
        let mut socket = Rtnetlink::open().unwrap();
        let seen = other.run(&home, || socket.link_by_name("here").unwrap().is_some()).unwrap();
        assert!(seen);
        let of_socket = other.run(&home, || socket.netns().unwrap()).unwrap();
        assert!(of_socket.is(&home).unwrap());
    });
}

#[test]
fn nsid_is_that_of_the_other_end_of_a_pair() {
    in_namespace(|| {
        let home = Netns::current().unwrap();
        let (pod, stranger) = (another(), another());
        let mut socket = Rtnetlink::open().unwrap();
        assert_eq!(socket.nsid(&pod).unwrap(), None);
        let pair = VethPair {
            group: kernel::link::HOST_END_GROUP,
            pod_name: "eth0",
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_name: "host0",
            host_mac: [2, 0, 0, 0, 0, 2],
            index: 77,
            mtu: 1500,
            host_netns: home.as_fd(),
        };
        pod.run(&home, || Rtnetlink::open()?.request(pair.message())).unwrap().unwrap();
        let link = socket.link_by_name("host0").unwrap().unwrap();
        assert!(link.lower_nsid.is_some());
        assert_eq!(socket.nsid(&pod).unwrap(), link.lower_nsid);
        assert_eq!(socket.nsid(&stranger).unwrap(), None);
    });
}
