//! weft's executables in the lab: real packets, real kernels, and `ip -j` and tcpdump as
//! witnesses.

mod attachment;
mod cleanup;
mod converge;
mod demo;
mod modes;
mod mtu;
mod reach;
mod tunnel;

use std::net::IpAddr;

use anyhow::Result;
use e2e::{PingOptions, Place, ping};
use serde_json::Value;

/// Pings once and panics with what ping said unless the reply came.
#[track_caller]
fn assert_ping(from: &Place, to: IpAddr, options: &PingOptions) -> Result<()> {
    // On a machine that is busy with other things a reply may take its time.
    let patient = PingOptions { wait: 5.0, ..options.clone() };
    let result = ping(from, to, &patient)?;
    assert!(result.all(), "{}", result.output);
    Ok(())
}

/// The only object of a JSON list.
#[track_caller]
fn only(list: &Value) -> &Value {
    match list.as_array().map(Vec::as_slice) {
        Some([one]) => one,
        _ => panic!("not one object: {list}"),
    }
}

/// The objects of a list that have all these strings under these keys.
fn matching<'a>(list: &'a Value, wanted: &[(&str, &str)]) -> Vec<&'a Value> {
    let fits = |entry: &&Value| wanted.iter().all(|(key, value)| entry[*key] == *value);
    list.as_array().into_iter().flatten().filter(fits).collect()
}
