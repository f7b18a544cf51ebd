//! Files that are written whole or not at all.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};

/// Refuses an output path that exists, or whose folder does not, before any work is done.
///
/// # Errors
/// Naming the path and what to do.
pub fn check_new(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata().is_ok() {
        bail!("`{}` exists and is not overwritten; choose another --out or remove it", path.display());
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        bail!("the folder `{0}` does not exist; create it with: mkdir -p {0}", folder.display());
    }
    Ok(())
}

/// Writes a file through `write`: to a temporary neighbour, synced, then renamed; on any error nothing is left.
///
/// # Errors
/// Naming the path; the cause is kept.
pub fn create_new<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let context = || format!("cannot write `{}`; nothing of it was left behind", path.display());
    let folder = folder_of(path);
    let file = tempfile::Builder::new().prefix(".fedprune-").tempfile_in(folder).with_context(context)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let result = write(&mut writer).with_context(context)?;
    let file = writer.into_inner().map_err(|error| error.into_error()).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    file.persist_noclobber(path).map_err(|error| error.error).with_context(context)?;
    // The rename itself is durable once the folder is synced; a file system that cannot is no reason to fail.
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(result)
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A path as it must be typed in a shell.
pub fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+=:@%,".contains(character);
    if text.chars().any(char::is_control) {
        // what no one should paste as it is: the quoting of bash and zsh for such characters
        let escaped: String = text.chars().flat_map(char::escape_default).collect();
        return format!("$'{escaped}'");
    }
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// This program as it was called, so that a suggested command runs where this one did.
pub fn program() -> String {
    std::env::args_os().next().map_or_else(|| "fedprune".to_owned(), |name| shell(Path::new(&name)))
}

/// The largest resident memory of this process so far, in bytes, where the system tells (VmHWM).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ballot");
        let error = create_new::<()>(&path, |writer| {
            writer.write_all(b"half")?;
            bail!("no space left")
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("no space left"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        create_new(&path, |writer| Ok(writer.write_all(b"whole")?)).unwrap();
        assert!(check_new(&path).unwrap_err().to_string().contains("exists"));
        assert!(create_new(&path, |_| Ok(())).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert!(check_new(&folder.path().join("no/where")).unwrap_err().to_string().contains("mkdir -p"));
    }

    #[test]
    fn shell_quotes_only_what_needs_it() {
        assert_eq!(shell(Path::new("a/b-1.txt")), "a/b-1.txt");
        assert_eq!(shell(Path::new("my notes")), "'my notes'");
        assert_eq!(shell(Path::new("it's")), r"'it'\''s'");
    }
}
