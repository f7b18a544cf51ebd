//! Manifests of networks.

use fedprune_testnet::manifest::{MANIFEST_LIMIT, MAX_SILOS, Manifest, Source};

/// A manifest.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(manifest) = Manifest::parse(text) else { return false };
    assert!(text.len() <= MANIFEST_LIMIT && (1..=MAX_SILOS).contains(&manifest.silos.len()));
    assert!(manifest.silos.windows(2).all(|pair| pair[0].name < pair[1].name), "by name, no two alike");
    for source in manifest.silos.iter().flat_map(|silo| &silo.data).chain([&manifest.model]) {
        if let Source::Path(path) = source {
            let leaves = path.is_absolute() || path.components().any(|part| part.as_os_str() == "..");
            assert!(!leaves, "{} leaves the folder", path.display());
        }
    }
    true
}
