#![no_main]

#[path = "../checks/node_map.rs"]
mod node_map;

libfuzzer_sys::fuzz_target!(|data: &[u8]| node_map::check(data));
