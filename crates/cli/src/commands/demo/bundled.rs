//! The bundled model and texts, compiled into the program, so that the demo runs from any folder.

use std::path::{Path, PathBuf};

use anyhow::Context;

macro_rules! bundled {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../../../examples/bundled-model/", $path)).as_slice())),*]
    };
}

/// Files of `examples/bundled-model`, by their path there.
const MODEL: &[(&str, &[u8])] = bundled!(
    "model/README.md",
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
);
const SILOS: &[(&str, &[u8])] = bundled!(
    "silos/austen_emma.txt",
    "silos/melville_moby_dick.txt",
    "silos/speeches_1945_1953.txt",
    "silos/speeches_1953_1958.txt",
);
const HELD_OUT: &[(&str, &[u8])] = bundled!("held_out.txt");

/// The bundled texts: novels and speeches in English, in the public domain.
pub(in crate::commands) fn public_text() -> impl Iterator<Item = &'static str> {
    // they are text, as their build showed
    HELD_OUT.iter().chain(SILOS).filter_map(|(_, contents)| std::str::from_utf8(contents).ok())
}

/// Writes everything below `folder`; returns each silo's name and text.
pub(in crate::commands) fn unpack(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    for subfolder in ["model", "silos"] {
        let path = folder.join(subfolder);
        std::fs::create_dir(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
    }
    let mut silos = Vec::new();
    for (name, contents) in MODEL.iter().chain(HELD_OUT).chain(SILOS) {
        let path = folder.join(name);
        std::fs::write(&path, contents).with_context(|| format!("cannot write `{}`", path.display()))?;
        if let Some(silo) = name.strip_prefix("silos/") {
            silos.push((silo.trim_end_matches(".txt").to_owned(), path));
        }
    }
    Ok(silos)
}
