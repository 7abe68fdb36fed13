#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, target) = plexus_fuzz::TARGETS.iter().find(|(name, _)| *name == "netcheck").expect("it is in the list");
    target(data);
});
