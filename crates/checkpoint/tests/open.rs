//! Real checkpoints, opened.

use fedprune_checkpoint::Checkpoint;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

#[test]
fn opens_every_fixture() {
    for name in ["llama", "llama3-rope-tied", "mistral", "qwen2", "qwen3"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        println!(
            "{name}: {:?} {} {} {}",
            checkpoint.config(),
            checkpoint.parameters(),
            checkpoint.bytes(),
            checkpoint.content_digest(&|_| {})
        );
    }
}
