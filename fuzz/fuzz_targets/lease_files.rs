#![no_main]

#[path = "../checks/lease_files.rs"]
mod lease_files;

libfuzzer_sys::fuzz_target!(|data: &[u8]| lease_files::check(data));
