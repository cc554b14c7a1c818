//! Results of other plugins: `prevResult`, and what a delegate prints.

use cni::{AddResult, Error, Version};
use serde_json::Value;

/// A digit, the version of the configuration, then a result.
pub(crate) fn check(data: &[u8]) {
    let Some((digit, json)) = data.split_first() else { return };
    let default = Version::ALL[usize::from(digit.wrapping_sub(b'0')) % Version::ALL.len()];
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return };
    if let Some(error) = Error::from_json(&value) {
        assert_ne!(error.code, 0);
        assert_eq!(Error::from_json(&error.to_json(default)).map(|e| e.code), Some(error.code));
    }
    match AddResult::from_json(&value, default) {
        Ok(result) => Version::ALL.into_iter().for_each(|version| survives(&result, version)),
        Err(error) => assert!(error.code != 0 && !error.msg.contains('\n'), "{error}"),
    }
}

/// What `version` says of `result` reads back as what it says, and all that newer
/// versions say includes it.
fn survives(result: &AddResult, version: Version) {
    let said = match result.to_json(version) {
        Ok(said) => said,
        Err(error) => {
            assert!(version <= Version::V0_2_0 && result.ips.is_empty(), "{version}: {error}");
            return;
        }
    };
    let read = reread(&said);
    assert_eq!(read.to_json(version).as_ref(), Ok(&said), "said again in {version}");
    if version >= Version::V1_0_0 {
        assert_eq!(&read, result, "{version} says everything");
    }
    let newest = result.to_json(Version::LATEST).expect("the newest version says everything");
    assert_eq!(reread(&newest).to_json(version), Ok(said), "{version} by way of the newest");
}

/// Reads our own output, whose `cniVersion` decides, not the default.
fn reread(said: &Value) -> AddResult {
    let text = said.to_string();
    let value: Value = serde_json::from_str(&text).expect("our own output");
    let read = Version::ALL.map(|default| AddResult::from_json(&value, default));
    let [first, others @ ..] = read;
    assert!(others.iter().all(|other| *other == first), "the default counted: {text}");
    first.expect("our own output")
}
