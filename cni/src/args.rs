//! CNI_ARGS: `K=V;K=V`, deprecated and still sent by every caller.

use std::collections::BTreeMap;

use crate::{Code, Error};

/// Reads the variable. An empty one has no pairs; of two pairs with one key the
/// last counts.
pub(crate) fn parse_args(text: &str) -> Result<BTreeMap<String, String>, Error> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    text.split(';').map(parse_pair).collect()
}

fn parse_pair(pair: &str) -> Result<(String, String), Error> {
    match pair.split_once('=') {
        Some((key, value)) if !value.contains('=') => Ok((key.to_owned(), value.to_owned())),
        _ => Err(invalid(format!("{pair:?} is not KEY=VALUE with exactly one \"=\""))),
    }
}

/// Fails if `args` has a key that is not in `known`, unless the caller says
/// `IgnoreUnknown=1` (or `true`, in any case), as containerd and CRI-O do.
///
/// For plugins that act on CNI_ARGS; those that do not need not look at it.
pub fn reject_unknown_args(args: &BTreeMap<String, String>, known: &[&str]) -> Result<(), Error> {
    if ignore_unknown(args)? {
        return Ok(());
    }
    let is_unknown = |key: &&String| *key != IGNORE_UNKNOWN && !known.contains(&key.as_str());
    let unknown: Vec<_> = args.keys().filter(is_unknown).map(String::as_str).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(invalid(format!(
        "unknown key {}: remove it, or add {IGNORE_UNKNOWN}=1 to have it ignored",
        unknown.join(", ")
    )))
}

const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

fn ignore_unknown(args: &BTreeMap<String, String>) -> Result<bool, Error> {
    let Some(value) = args.get(IGNORE_UNKNOWN) else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(invalid(format!("{IGNORE_UNKNOWN}={value} is neither 1, true, 0 nor false"))),
    }
}

fn invalid(problem: String) -> Error {
    Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: {problem}"))
}
