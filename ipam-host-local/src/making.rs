//! Containers that are being worked on at this moment.

use std::collections::HashSet;

/// IDs of the containers for which a CNI plugin runs: every plugin, of whatever
/// make, has CNI_CONTAINERID in its environment from its start to its end
/// (spec 1.1.0, "Parameters"), and an interface plugin outlives the IPAM plugin that it calls.
///
/// A lease that is there already, and whose container is not in a set taken
/// afterwards, belongs to a pod that is made or has failed; no clock is needed to tell.
pub(crate) fn containers() -> HashSet<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return HashSet::new() };
    let numbers = processes.flatten().filter(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    });
    numbers
        .filter_map(|entry| container_of(&std::fs::read(entry.path().join("environ")).ok()?))
        .collect()
}

fn container_of(environment: &[u8]) -> Option<String> {
    let variables = environment.split(|byte| *byte == 0);
    let id = variables.filter_map(|v| v.strip_prefix(b"CNI_CONTAINERID=")).next()?;
    String::from_utf8(id.to_vec()).ok().filter(|id| !id.is_empty())
}
