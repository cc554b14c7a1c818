#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernel::replies::check(data));
