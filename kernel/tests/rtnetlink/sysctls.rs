//! Settings under /proc/sys.

use kernel::sysctl;

use crate::place::{in_namespace, sh};

#[test]
fn names_with_dots_and_only_what_differs_is_written() {
    in_namespace(|| {
        sh("ip link add eth0.100 type bridge; ip link add eth0 type bridge");
        let key = "net/ipv4/conf/eth0.100/rp_filter";
        assert_eq!(sysctl::get(key).unwrap().as_deref(), Some("0"));
        assert!(sysctl::set(key, "2").unwrap());
        assert!(!sysctl::set(key, "2").unwrap());
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/eth0.100/rp_filter").trim(), "2");
        assert_eq!(sh("cat /proc/sys/net/ipv4/conf/eth0/rp_filter").trim(), "0");
    });
}

#[test]
fn settings_are_the_threads_own_namespaces() {
    in_namespace(|| {
        assert_eq!(sysctl::get("net/ipv4/ip_forward").unwrap().as_deref(), Some("0"));
        assert!(sysctl::set("net/ipv4/ip_forward", "1").unwrap());
        in_namespace(|| {
            let inner = sysctl::get("net/ipv4/conf/lo/tag").unwrap();
            assert_eq!(inner.as_deref(), Some("0"));
            assert!(sysctl::set("net/ipv4/conf/lo/tag", "5").unwrap());
        });
        assert_eq!(sysctl::get("net/ipv4/conf/lo/tag").unwrap().as_deref(), Some("0"));
    });
}

#[test]
fn what_is_not_there_and_what_is_refused() {
    in_namespace(|| {
        assert_eq!(sysctl::get("net/ipv6/conf/gone/accept_ra").unwrap(), None);
        let error = sysctl::set("net/ipv6/conf/gone/accept_ra", "0").unwrap_err();
        assert!(error.is_gone(), "{error}");
        let key = "net/ipv4/ip_forward";
        let error = sysctl::set(key, "perhaps").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/proc/sys/net/ipv4/ip_forward to perhaps"), "{text}");
        assert_eq!(sysctl::get(key).unwrap().as_deref(), Some("0"));
    });
}
