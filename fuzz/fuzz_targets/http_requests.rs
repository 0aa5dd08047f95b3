#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| blockstore_fuzz::check("http_requests", data));
