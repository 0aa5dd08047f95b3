#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| blockstore_fuzz::check("grpc_calls", data));
