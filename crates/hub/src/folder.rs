//! The folder in which a model grows, `OUT.fetching`: whose it is, who is at work in it, and what may stay in it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::HubError;
use crate::fetch::{Provenance, Request};
use crate::listing::RemoteFile;
use crate::transfer::{failed, part_name};

/// Most bytes of a file that says where a folder came from.
const PROVENANCE_BYTES: u64 = 4 << 20;
/// The file by which two processes keep out of each other's way.
pub(crate) const LOCK: &str = ".lock";

/// `OUT.fetching`.
fn growing(out: &Path) -> PathBuf {
    with_ending(out, ".fetching")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// As what a file that says where a folder came from is written, before it gets its name.
fn new_name(path: &Path) -> PathBuf {
    with_ending(path, ".new")
}

/// The folder in which it grows, new or of an earlier run, and the lock on it.
pub(crate) fn begin(request: &Request<'_>, provenance: &Provenance) -> Result<(PathBuf, File), HubError> {
    let folder = growing(request.out);
    let leftover = |what: String| HubError::Leftover { folder: folder.clone(), what };
    let foreign = || leftover("was not made by this command: give another --out".to_owned());
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !folder.symlink_metadata().is_ok_and(|there| there.is_dir()) {
                return Err(foreign());
            }
        }
        made => made.map_err(failed("create", &folder))?,
    }

    // before anything is put into it, as it may be somebody else's; one without anything in it is of a run that ended
    // before it had begun
    let file = folder.join(request.provenance);
    let new = new_name(Path::new(request.provenance));
    let entries = entries(&folder)?;
    let is_of_beginning = |name: &OsStr| name == OsStr::new(LOCK) || name == new.as_os_str();
    if read(&file).is_none() && !entries.iter().all(|entry| !entry.is_folder && is_of_beginning(&entry.name)) {
        return Err(foreign());
    }
    if let Some(entry) = entries.iter().find(|entry| entry.is_folder) {
        let inner = folder.join(&entry.name);
        return Err(leftover(format!(
            "holds `{}`, a folder, which this command does not make: move that elsewhere",
            inner.display()
        )));
    }

    let lock = lock(&folder)?;
    // again, as another process may have been at work until now
    match read(&file) {
        Some(earlier) if (&earlier.repository, &earlier.commit) == (&provenance.repository, &provenance.commit) => {}
        Some(earlier) => {
            return Err(leftover(format!(
                "holds a part of `{}` at commit {}, and `{}` is {} now: go on with the former, --revision {}",
                earlier.repository, earlier.commit, request.revision, provenance.commit, earlier.commit
            )));
        }
        None => {
            write(&file, provenance)?;
            sync(&folder)?;
        }
    }
    Ok((folder, lock))
}

/// Keeps other processes out of a folder, as long as what is returned is open.
fn lock(folder: &Path) -> Result<File, HubError> {
    let path = folder.join(LOCK);
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        // none is made here, and what a link leads to is not ours
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let lock = opened.map_err(failed("create", &path))?;
    match lock.try_lock() {
        Ok(()) if is_at(&lock, &path) => Ok(lock),
        // of a folder that has got its name since it was opened
        Ok(()) | Err(TryLockError::WouldBlock) => Err(HubError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(HubError::File { action: "lock", path, source }),
    }
}

/// Whether a path still leads to an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (file.metadata(), path.symlink_metadata()) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (file.dev(), file.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        file.is_file() && there.is_file()
    }
}

/// What lies in a folder.
struct Entry {
    name: OsString,
    is_folder: bool,
}

fn entries(folder: &Path) -> Result<Vec<Entry>, HubError> {
    let read = || {
        let entry = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry?;
            Ok(Entry { name: entry.file_name(), is_folder: entry.file_type()?.is_dir() })
        };
        std::fs::read_dir(folder)?.map(entry).collect::<Result<Vec<_>, _>>()
    };
    read().map_err(failed("read", folder))
}

/// Removes what is not of these files, nor a part of one, and was left by an earlier run or another hub's list.
pub(crate) fn sweep(folder: &Path, provenance: &str, files: &[&RemoteFile]) -> Result<(), HubError> {
    let of_files = files.iter().flat_map(|file| [file.name.clone(), part_name(file)]);
    let kept: BTreeSet<OsString> =
        of_files.chain([LOCK.to_owned(), provenance.to_owned()]).map(OsString::from).collect();
    for entry in entries(folder)? {
        if !kept.contains(&entry.name) {
            let path = folder.join(&entry.name);
            std::fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Option<Provenance> {
    if !path.symlink_metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(PROVENANCE_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Says where a folder came from; what says so already does, until this does.
pub(crate) fn write(path: &Path, provenance: &Provenance) -> Result<(), HubError> {
    let mut bytes = serde_json::to_vec_pretty(provenance).map_err(|error| HubError::File {
        action: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    bytes.push(b'\n');
    let new = new_name(path);
    let write = || {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    write().map_err(failed("write", &new))?;
    std::fs::rename(&new, path).map_err(failed("write", path))
}

/// Makes a folder's entries durable.
pub(crate) fn sync(folder: &Path) -> Result<(), HubError> {
    if cfg!(unix) {
        File::open(folder).and_then(|file| file.sync_all()).map_err(failed("sync", folder))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::Identity;
    use crate::name::{RepositoryName, Revision};

    const NAME: &str = "fetched-from.json";

    fn provenance(commit: &str) -> Provenance {
        Provenance {
            fetched_by: "fedprune".to_owned(),
            hub: "https://hub.example".to_owned(),
            repository: "a/b".to_owned(),
            revision: "main".to_owned(),
            commit: commit.to_owned(),
            licence: None,
            content_digest: None,
            files: Vec::new(),
        }
    }

    /// Begins to fetch into `model` in a folder.
    fn begin_in(place: &Path) -> Result<(PathBuf, File), HubError> {
        let (name, revision): (RepositoryName, Revision) = ("a/b".parse().unwrap(), Revision::default());
        let request = Request {
            name: &name,
            revision: &revision,
            out: &place.join("model"),
            provenance: NAME,
            program: "fedprune",
            room: &|_| None,
            suits: &|_| Ok(()),
        };
        begin(&request, &provenance("0"))
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> = entries(folder).unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_of_a_run_that_ended_at_once_is_gone_on_with() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("model.fetching");
        for there in [&[][..], &[".lock"], &["fetched-from.json.new"], &["fetched-from.json.new", ".lock"]] {
            std::fs::create_dir(&folder).unwrap();
            for name in there {
                std::fs::write(folder.join(name), "{ \"fetched_by\": \"fed").unwrap();
            }
            let (begun, lock) = begin_in(place.path()).unwrap();
            assert_eq!(begun, folder);
            assert_eq!(read(&folder.join(NAME)), Some(provenance("0")), "{there:?}");
            assert!(matches!(begin_in(place.path()), Err(HubError::Locked { .. })));
            drop(lock);
            begin_in(place.path()).unwrap();
            assert_eq!(names(&folder), [LOCK, NAME]);
            std::fs::remove_dir_all(&folder).unwrap();
        }
        for foreign in ["precious", "model.safetensors.part", NAME] {
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(foreign), "{").unwrap();
            let Err(HubError::Leftover { what, .. }) = begin_in(place.path()) else { panic!("{foreign} is taken") };
            assert!(what.contains("not made by this command"), "{what}");
            assert_eq!(names(&folder), [foreign], "nothing is put into it");
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::write(&folder, "a file").unwrap();
        assert!(matches!(begin_in(place.path()), Err(HubError::Leftover { .. })));
    }

    #[test]
    fn what_says_where_a_folder_came_from_is_there_until_another_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(NAME);
        write(&path, &provenance("0")).unwrap();
        // as on a disk that is full
        let new = new_name(&path);
        std::fs::create_dir(&new).unwrap();
        assert!(matches!(write(&path, &provenance("1")), Err(HubError::File { path, .. }) if path == new));
        assert_eq!(read(&path), Some(provenance("0")));
        std::fs::remove_dir(&new).unwrap();
        write(&path, &provenance("1")).unwrap();
        assert_eq!(read(&path), Some(provenance("1")));
        assert_eq!(names(place.path()), [NAME]);
    }

    #[test]
    fn only_files_of_this_model_stay() {
        let place = tempfile::tempdir().unwrap();
        let folder = begin_in(place.path()).unwrap().0;
        let left =
            ["a.safetensors", "b.safetensors.part", "model.safetensors", "vocab.json.part", "fetched-from.json.new"];
        for name in left {
            std::fs::write(folder.join(name), name).unwrap();
        }
        let file =
            |name: &str| RemoteFile { name: name.to_owned(), bytes: 1, identity: Identity::Sha256("0".repeat(64)) };
        sweep(&folder, NAME, &[&file("a.safetensors"), &file("b.safetensors")]).unwrap();
        assert_eq!(names(&folder), [LOCK, "a.safetensors", "b.safetensors.part", NAME]);

        std::fs::create_dir(folder.join("inner")).unwrap();
        let Err(HubError::Leftover { what, .. }) = begin_in(place.path()) else { panic!("a folder in it is taken") };
        assert!(what.contains("inner"), "{what}");
        assert!(folder.join("inner").is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let precious = place.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        let folder = begin_in(place.path()).unwrap().0;
        for name in [LOCK, "fetched-from.json.new", "model.safetensors"] {
            let _ = std::fs::remove_file(folder.join(name));
            std::os::unix::fs::symlink(&precious, folder.join(name)).unwrap();
        }
        let lock = begin_in(place.path()).unwrap().1;
        assert!(File::open(&precious).unwrap().try_lock().is_ok(), "it is not what is locked");
        assert!(!folder.join(LOCK).is_symlink());
        write(&folder.join(NAME), &provenance("1")).unwrap();
        sweep(&folder, NAME, &[]).unwrap();
        assert_eq!(names(&folder), [LOCK, NAME]);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "x");
        drop(lock);

        // nor is the folder itself one
        std::fs::rename(&folder, place.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(place.path().join("elsewhere"), &folder).unwrap();
        assert!(matches!(begin_in(place.path()), Err(HubError::Leftover { .. })));
    }

    #[test]
    fn a_lock_of_a_folder_that_has_got_its_name_keeps_nobody_out_of_another() {
        let place = tempfile::tempdir().unwrap();
        let (folder, lock) = begin_in(place.path()).unwrap();
        assert!(is_at(&lock, &folder.join(LOCK)));
        std::fs::rename(&folder, place.path().join("model")).unwrap();
        assert!(!is_at(&lock, &folder.join(LOCK)));
        begin_in(place.path()).unwrap();
        assert!(!cfg!(unix) || !is_at(&lock, &folder.join(LOCK)));
    }
}
