//! The files of a folder, with their SHA-256: what a signature of a model is about.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fedprune_mask::Digest;
use sha2::{Digest as _, Sha256};

use crate::hex;

/// Most files of a model.
pub const MAX_FILES: usize = 1 << 16;
/// Deepest folder below a model's.
pub const MAX_DEPTH: usize = 16;
/// Longest name of a file with its folders, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Below the folder, with `/` between the parts.
    pub name: String,
    /// SHA-256, in lowercase hexadecimal.
    pub sha256: String,
}

/// All files of a folder, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFiles {
    /// The folder's own name.
    pub name: String,
    /// Its files, ascending.
    pub files: Vec<FileDigest>,
    /// SHA-256 of their digests one after another, in hexadecimal: the root that a bundle signs.
    pub root: String,
}

/// Why a folder cannot be signed or compared.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A link, a pipe, a device.
    #[error("`{}` is neither a file nor a folder; replace links by what they lead to", .0.display())]
    Kind(PathBuf),
    /// A name that is no text, or too long.
    #[error("`{}` has a name that cannot be signed: it must be Unicode of at most {MAX_NAME_BYTES} bytes, without control characters or backslashes", .0.display())]
    Name(PathBuf),
    /// Verifiers leave these out whatever a signature says.
    #[error("`{}` belongs to git, and verifiers leave such files out; move it away", .0.display())]
    Git(PathBuf),
    /// Too many, or too deep.
    #[error("`{}` has more than {MAX_FILES} files, or folders deeper than {MAX_DEPTH}; give the model's own folder", .0.display())]
    TooMany(PathBuf),
    /// Nothing to sign.
    #[error("`{}` has no files", .0.display())]
    Empty(PathBuf),
}

/// What verifiers of Model Signing leave out at the top of a folder.
const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

fn io(path: &Path) -> impl FnOnce(io::Error) -> FilesError + '_ {
    |source| FilesError::Io { path: path.to_owned(), source }
}

impl FolderFiles {
    /// Reads all files of a folder; `progress` is told of bytes that were read since its last call.
    ///
    /// # Errors
    /// [`FilesError`] naming what is in the way.
    pub fn read(folder: &Path, progress: &dyn Fn(u64)) -> Result<Self, FilesError> {
        let mut names = Vec::new();
        list(folder, folder, "", 0, &mut names)?;
        if names.is_empty() {
            return Err(FilesError::Empty(folder.to_owned()));
        }
        names.sort();
        let mut root = Sha256::new();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let digest = sha256(&name.split('/').fold(folder.to_owned(), |path, part| path.join(part)), progress)?;
            root.update(digest);
            files.push(FileDigest { name, sha256: hex(&digest) });
        }
        let name = folder.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        Ok(Self { name: name.unwrap_or("model").to_owned(), files, root: hex(&root.finalize()) })
    }
}

/// The BLAKE3 of a file, by which the protocol knows a ballot, and its SHA-256 in hexadecimal.
///
/// # Errors
/// [`FilesError`] when it is none or cannot be read.
pub fn digests(path: &Path) -> Result<(Digest, String), FilesError> {
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), Sha256::new());
    read(path, &mut |bytes| {
        blake3.update(bytes);
        sha256.update(bytes);
    })?;
    Ok((blake3.finalize().into(), hex(&sha256.finalize())))
}

fn sha256(path: &Path, progress: &dyn Fn(u64)) -> Result<[u8; 32], FilesError> {
    let mut hasher = Sha256::new();
    read(path, &mut |bytes| {
        hasher.update(bytes);
        progress(bytes.len() as u64);
    })?;
    Ok(hasher.finalize().into())
}

/// Reads a file part by part.
fn read(path: &Path, each: &mut dyn FnMut(&[u8])) -> Result<(), FilesError> {
    // asked before it is opened: opening a pipe waits for a writer
    if !fs::symlink_metadata(path).map_err(io(path))?.is_file() {
        return Err(FilesError::Kind(path.to_owned()));
    }
    let mut file = File::open(path).map_err(io(path))?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(io(path))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        each(bytes);
    }
}

fn list(top: &Path, folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<(), FilesError> {
    if depth > MAX_DEPTH {
        return Err(FilesError::TooMany(top.to_owned()));
    }
    for entry in fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| FilesError::Name(path.clone()))?;
        if depth == 0 && GIT.contains(&name.as_str()) {
            return Err(FilesError::Git(path));
        }
        let name = format!("{prefix}{name}");
        if name.len() > MAX_NAME_BYTES || name.contains('\\') || name.chars().any(char::is_control) {
            return Err(FilesError::Name(path));
        }
        // of the link itself, not of what it leads to
        let kind = entry.file_type().map_err(io(&path))?;
        if kind.is_dir() {
            list(top, &path, &format!("{name}/"), depth.saturating_add(1), names)?;
        } else if kind.is_file() {
            names.push(name);
        } else {
            return Err(FilesError::Kind(path));
        }
        if names.len() > MAX_FILES {
            return Err(FilesError::TooMany(top.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_over_the_digests_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for (name, text) in [("b", "2"), ("a", "1"), ("sub/c", "3")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let read = FolderFiles::read(folder.path(), &|_| ()).unwrap();
        let names: Vec<&str> = read.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "sub/c"]);
        let mut root = Sha256::new();
        ["1", "2", "3"].iter().for_each(|text| root.update(Sha256::digest(text)));
        assert_eq!(read.root, hex(&root.finalize()));
        let (blake3, sha256) = digests(&folder.path().join("a")).unwrap();
        assert_eq!((blake3, &sha256), (Digest::of(b"1"), &read.files[0].sha256));
        assert_eq!(read.files[0].sha256, "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b");
    }

    #[test]
    fn what_cannot_be_signed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let read = || FolderFiles::read(folder.path(), &|_| ()).unwrap_err();
        assert!(matches!(read(), FilesError::Empty(_)));
        let file = folder.path().join("a");
        fs::write(&file, "1").unwrap();
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink("a", &link).unwrap();
            assert!(matches!(read(), FilesError::Kind(path) if path == link));
            fs::remove_file(&link).unwrap();
        }
        fs::write(folder.path().join("back\\slash"), "1").unwrap();
        assert!(matches!(read(), FilesError::Name(_)));
        fs::remove_file(folder.path().join("back\\slash")).unwrap();
        fs::write(folder.path().join(".gitattributes"), "1").unwrap();
        assert!(matches!(read(), FilesError::Git(_)));
        assert!(FolderFiles::read(&folder.path().join("none"), &|_| ()).is_err());
    }
}
