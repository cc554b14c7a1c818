#![no_main]

#[path = "../checks/stdin.rs"]
mod stdin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| stdin::check(data));
