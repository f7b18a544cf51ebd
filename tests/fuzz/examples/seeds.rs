//! Writes the seeds of every target into the corpus, as `seed-NAME`.

use fedprune_fuzz::{TARGETS, corpus};

fn main() -> std::io::Result<()> {
    for target in TARGETS {
        let folder = corpus(target.name);
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-")) {
                std::fs::remove_file(path)?;
            }
        }
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}
