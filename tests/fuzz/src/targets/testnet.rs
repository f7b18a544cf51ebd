//! Manifests of networks, and scenarios of simulated rounds.

use fedprune_testnet::manifest::{MANIFEST_LIMIT, MAX_SILOS, Manifest, Source};
use fedprune_testnet::simulator::Scenario;

/// A manifest, or a scenario.
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if let Ok(scenario) = Scenario::from_toml(text) {
        assert_eq!(Scenario::from_toml(&scenario.to_toml()).expect("it was written"), scenario);
        return true;
    }
    let Ok(manifest) = Manifest::parse(text) else { return false };
    assert!(text.len() <= MANIFEST_LIMIT && (1..=MAX_SILOS).contains(&manifest.silos.len()));
    assert!(manifest.silos.windows(2).all(|pair| pair[0].name < pair[1].name), "by name, no two alike");
    let sources = manifest.silos.iter().flat_map(|silo| &silo.data).chain([&manifest.model]);
    let paths = sources.filter_map(|source| if let Source::Path(path) = source { Some(path) } else { None });
    for path in paths.chain(manifest.silos.iter().filter_map(|silo| silo.ballot.as_ref())) {
        let leaves = path.is_absolute() || path.components().any(|part| part.as_os_str() == "..");
        assert!(!leaves, "{} leaves the folder", path.display());
    }
    true
}
