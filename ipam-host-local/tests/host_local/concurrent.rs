//! Many calls at once, of both binaries.

use std::collections::HashSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::util::{Dir, addresses, call, ours, reference};

const NETWORKS: usize = 20;
const PODS: usize = 500;
const WORKERS: usize = 50;

fn config(dir: &Dir, network: usize) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": format!("net{network}"), "type": "test",
        "ipam": { "type": "host-local", "dataDir": dir.0, "ranges": [[{ "subnet": "10.1.2.0/24" }]] },
    })
}

/// Does `job` for every pod, in `WORKERS` threads.
fn for_all_pods(job: impl Fn(usize) + Sync) {
    let next = Mutex::new(0..PODS);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some(pod) = next.lock().unwrap().next() else { break };
                    job(pod);
                }
            });
        }
    });
}

#[test]
fn parallel_calls_give_each_address_once() {
    let go = testing::need!(reference());
    let dir = Dir::new();
    let given = Mutex::new(HashSet::new());
    let program = |n: usize| if n % 3 == 0 { go.clone() } else { ours() };
    for_all_pods(|pod| {
        let network = pod % NETWORKS;
        let result =
            call(&program(pod / NETWORKS), "ADD", &format!("pod{pod}"), &config(&dir, network));
        for address in addresses(&result.unwrap()) {
            assert!(given.lock().unwrap().insert((network, address.clone())), "{address} twice");
        }
    });
    assert_eq!(given.lock().unwrap().len(), PODS);
    // DEL of each and ADD of another at once: who lives has the address that it was told.
    let living = Mutex::new(Vec::new());
    for_all_pods(|pod| {
        let network = pod % NETWORKS;
        let config = config(&dir, network);
        call(&program(pod / NETWORKS + 1), "DEL", &format!("pod{pod}"), &config).unwrap();
        let id = format!("next{pod}");
        let result = call(&program(pod / NETWORKS + 2), "ADD", &id, &config).unwrap();
        living.lock().unwrap().push((network, id, addresses(&result)));
    });
    for (network, id, addresses) in living.into_inner().unwrap() {
        let lease = dir.0.join(format!("net{network}/{}", addresses[0]));
        assert_eq!(std::fs::read_to_string(lease).unwrap(), format!("{id}\r\neth0"));
    }
    for_all_pods(|pod| {
        let config = config(&dir, pod % NETWORKS);
        call(&program(pod / NETWORKS + 1), "DEL", &format!("next{pod}"), &config).unwrap();
    });
    for network in 0..NETWORKS {
        let leases = std::fs::read_dir(dir.0.join(format!("net{network}"))).unwrap();
        let names = leases.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names.filter(|name| name.starts_with("10.")).collect();
        assert!(left.is_empty(), "network {network}: {left:?}");
    }
}
