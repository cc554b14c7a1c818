//! Addresses.

use kernel::address::Address;
use serde_json::Value;

use crate::place::{json, one, with_lan};

#[test]
fn added_without_prefix_route_and_usable_at_once() {
    with_lan(|socket, lan| {
        for text in ["10.0.1.2/24", "fd10:0:0:1::2/64"] {
            let address =
                Address { index: lan, address: text.parse().unwrap(), prefix_route: false };
            socket.request(address.add()).unwrap();
            assert!(socket.addresses(Some(lan)).unwrap().contains(&address));
            assert!(socket.addresses(None).unwrap().contains(&address));
            let seen = one("ip -j address show lan");
            let list = seen["addr_info"].as_array().unwrap();
            let ip = address.address.ip().to_string();
            let info = list.iter().find(|info| info["local"] == ip.as_str()).unwrap();
            assert_eq!(info["noprefixroute"], true, "{info}");
            assert_eq!(info["prefixlen"], address.address.prefix());
            assert_eq!(info["tentative"], Value::Null, "{info}");
            let network = address.address.network().to_string();
            let routes = [json("ip -j route show dev lan"), json("ip -j -6 route show dev lan")];
            let mut routes = routes.iter().flatten();
            let made = |route: &&Value| route["dst"].as_str().unwrap().starts_with(&network);
            assert_eq!(routes.find(made), None);

            let error = socket.request(address.add()).unwrap_err();
            assert!(error.is_exists(), "{error}");
            socket.request(address.delete()).unwrap();
            let error = socket.request(address.delete()).unwrap_err();
            assert!(error.is_gone(), "{error}");
        }
    });
}

#[test]
fn with_prefix_route() {
    with_lan(|socket, lan| {
        let gateway =
            Address { index: lan, address: "10.0.1.1/32".parse().unwrap(), prefix_route: true };
        socket.request(gateway.add()).unwrap();
        assert!(socket.addresses(Some(lan)).unwrap().contains(&gateway));
        let wide =
            Address { index: lan, address: "10.0.2.1/24".parse().unwrap(), prefix_route: true };
        socket.request(wide.add()).unwrap();
        assert_eq!(json("ip -j route show 10.0.2.0/24").len(), 1);
    });
}

#[test]
fn an_interface_that_is_gone_has_none() {
    with_lan(|socket, lan| {
        assert_eq!(socket.addresses(Some(lan + 1000)).unwrap(), []);
    });
}
