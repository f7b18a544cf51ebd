#![no_main]

#[global_allocator]
static ALLOCATOR: fedprune_fuzz::Counting = fedprune_fuzz::Counting;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fedprune_fuzz::fuzz("hub", bytes));
