//! Files that are written whole or not at all.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

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

/// A path that means the same in a process with another current folder.
///
/// # Errors
/// When the current folder is gone.
pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where `{}` is", path.display()))
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
    sync_folder(folder);
    Ok(result)
}

/// Writes a small new file whole or not at all, readable by whom the process's umask admits.
///
/// # Errors
/// Naming the path; an existing file is not overwritten.
pub fn create_document(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    place(path, contents, 0o666, false)
}

/// Writes a small new file that only its owner can read, from its first byte on.
///
/// # Errors
/// As [`create_document`].
pub fn create_secret(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    place(path, contents, 0o600, false)
}

/// Writes a small file in place of what `path` holds, if it holds anything: readers see the old or the new one.
///
/// # Errors
/// Naming the path; what was there stays.
pub fn replace_document(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    // a link stays a link: what it leads to is replaced
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    place(&path, contents, 0o666, true)
}

fn place(path: &Path, contents: &[u8], mode: u32, replace: bool) -> anyhow::Result<()> {
    let context = || format!("cannot write `{}`; nothing of it was left behind", path.display());
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fedprune-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = builder.tempfile_in(folder).with_context(context)?;
    if replace && let Ok(old) = std::fs::metadata(path) {
        file.as_file().set_permissions(old.permissions()).with_context(context)?;
    }
    file.write_all(contents).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    if replace {
        file.persist(path).map_err(|error| error.error).with_context(context)?;
    } else {
        file.persist_noclobber(path).map_err(|error| error.error).with_context(context)?;
    }
    sync_folder(folder);
    Ok(())
}

/// Makes renames in a folder durable; a file system that cannot is no reason to fail.
pub fn sync_folder(folder: &Path) {
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Reads a file of at most `limit` bytes; pipes and devices, which may never end, are not opened.
///
/// # Errors
/// Naming the path.
pub fn read_small(path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read `{}`", path.display());
    let metadata = std::fs::metadata(path).with_context(context)?;
    if !metadata.is_file() {
        return Err(anyhow::anyhow!("it is not a regular file")).with_context(context);
    }
    let limit = limit as u64;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(context)?;
    file.take(limit + 1).read_to_end(&mut bytes).with_context(context)?;
    if bytes.len() as u64 > limit {
        let bytes = metadata.len().max(bytes.len() as u64);
        return Err(anyhow::anyhow!("it has {bytes} bytes, more than the {limit} of any such file"))
            .with_context(context);
    }
    Ok(bytes)
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

    #[cfg(unix)]
    #[test]
    fn secrets_are_private_and_documents_keep_their_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (secret, document, link) =
            (folder.path().join("key"), folder.path().join("document"), folder.path().join("link"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        create_secret(&secret, b"secret").unwrap();
        assert_eq!(mode(&secret), 0o600);
        assert!(create_secret(&secret, b"other").is_err());
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        create_document(&document, b"one").unwrap();
        std::fs::set_permissions(&document, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("document", &link).unwrap();
        replace_document(&link, b"two").unwrap();
        assert_eq!((mode(&document), read_small(&document, 3).unwrap()), (0o640, b"two".to_vec()));
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(format!("{:#}", read_small(&document, 2).unwrap_err()).contains("3 bytes, more than the 2"));
        assert!(format!("{:#}", read_small(folder.path(), 2).unwrap_err()).contains("not a regular file"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn shell_quotes_only_what_needs_it() {
        assert_eq!(shell(Path::new("a/b-1.txt")), "a/b-1.txt");
        assert_eq!(shell(Path::new("my notes")), "'my notes'");
        assert_eq!(shell(Path::new("it's")), r"'it'\''s'");
    }
}
