//! A plugin's input: the environment and standard input.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use cni::{Call, Error, Network, Version};
use serde_json::Value;

const VARIABLES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// Six lines, one a variable of the environment, then standard input.
pub(crate) fn check(data: &[u8]) {
    let mut lines = data.splitn(VARIABLES.len() + 1, |byte| *byte == b'\n');
    let values: Vec<OsString> = lines
        .by_ref()
        .take(VARIABLES.len())
        .map(|line| OsString::from_vec(line.to_vec()))
        .collect();
    let stdin = lines.next().unwrap_or_default();
    let parse = |stdin: &[u8]| {
        let env = |name: &str| {
            VARIABLES.iter().zip(&values).find(|(known, _)| **known == name).map(|(_, v)| v.clone())
        };
        Call::parse(&env, stdin)
    };
    match parse(stdin) {
        Ok(call) => read(&call),
        Err(error) => {
            is_fit(&error);
            if values.first().is_some_and(|verb| verb == "DEL") {
                assert!(
                    without_prev_result(stdin).is_none_or(|stdin| parse(&stdin).is_err()),
                    "prevResult made DEL fail: {error}"
                );
            }
        }
    }
}

/// Reads all that a plugin reads of a call.
fn read(call: &Call) {
    let network = match call {
        Call::Add(attachment, network) | Call::Check(attachment, network) => {
            assert!(attachment.netns.is_some());
            fit(cni::reject_unknown_args(&attachment.args, &["IP", "MAC"]));
            network
        }
        Call::Del(_, network) | Call::Gc(_, network) | Call::Status(network) => network,
        Call::Version(version) => return assert!(!version.is_empty()),
    };
    fit(network.runtime_mac());
    fit(network.runtime_ips());
    fit(network.args_ips());
    fit(network.dns());
    fit(network.ipam());
    fit(network.runtime_config());
    fit(network.ipam_type());
    read_prev_result(network);
}

fn read_prev_result(network: &Network) {
    let Ok(result) = network.require_prev_result() else { return };
    fit(result.to_json(network.version));
}

fn fit<T>(outcome: Result<T, Error>) {
    if let Err(error) = outcome {
        is_fit(&error);
    }
}

/// Whether callers and operators can make something of the error.
fn is_fit(error: &Error) {
    assert_ne!(error.code, 0, "{error}");
    assert!(!error.msg.is_empty());
    assert!(!error.msg.contains('\n'), "{error}");
    let object = error.to_json(Version::LATEST);
    assert!(!object.to_string().contains("not found"), "{object}");
    let again = Error::from_json(&object).expect("our own error object");
    assert_eq!(again.code, error.code);
}

/// The configuration without its `prevResult`, if it is an object that has one.
fn without_prev_result(stdin: &[u8]) -> Option<Vec<u8>> {
    let Ok(Value::Object(mut config)) = serde_json::from_slice(stdin) else { return None };
    let all = config.len();
    config.retain(|key, _| !key.eq_ignore_ascii_case("prevResult"));
    (config.len() < all).then(|| Value::Object(config).to_string().into_bytes())
}
