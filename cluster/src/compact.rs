//! Writing nodes as JSON.

use std::fmt::Display;

use crate::node::Node;

/// `{"nodes":[...]}` without white space. A node that comes with a text is
/// quarantined for that reason.
pub(crate) fn document<'a>(nodes: impl Iterator<Item = (&'a Node, Option<&'a str>)>) -> String {
    let mut out = String::from("{\"nodes\":[");
    for (index, (node, quarantined)) in nodes.enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_node(&mut out, node, quarantined);
    }
    out.push_str("]}");
    out
}

fn write_node(out: &mut String, node: &Node, quarantined: Option<&str>) {
    out.push('{');
    write_key(out, "name");
    write_text(out, &node.name);
    write_list(out, "addresses", &node.addresses);
    write_list(out, "podCIDRs", &node.pod_ranges);
    write_option(out, "tunnelAddress", node.tunnel_address);
    write_option(out, "vtepMAC", node.vtep_mac);
    write_option(out, "quarantined", quarantined);
    out.push('}');
}

fn write_list(out: &mut String, key: &str, items: &[impl Display]) {
    out.push(',');
    write_key(out, key);
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_text(out, &item.to_string());
    }
    out.push(']');
}

fn write_option(out: &mut String, key: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        out.push(',');
        write_key(out, key);
        write_text(out, &value.to_string());
    }
}

fn write_key(out: &mut String, key: &str) {
    write_text(out, key);
    out.push(':');
}

/// A string with what JSON wants escaped: quotes, backslashes, controls.
fn write_text(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
