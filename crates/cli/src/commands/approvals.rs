//! Signed approvals: the one of a round, beside its document, and the log of all, `HOME/approvals.jsonl`.
//!
//! One line an approval, oldest first, each naming the digest of the one before it: a line that was changed does not
//! verify, and one that was taken out is missed by the next. Whoever holds the key can write another log; who keeps the
//! last digest elsewhere will see that.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::{Approval, ConsortiumId, RoundId, SignedApproval, SigningKey, VerifyingKey};
use fedprune_mask::Digest;
use serde::{Deserialize, Serialize};

use crate::files::{read_small, replace_document, sync_folder};

/// Most bytes of an `approval.json`, as nodes have it; ours have up to 3,000.
const MAX_APPROVAL_BYTES: usize = 4096;
/// Most bytes of the log: some ten thousand approvals.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// `approval.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApprovalFile {
    pub round: RoundId,
    pub consortium: ConsortiumId,
    /// Milliseconds since 1970 by this machine's clock.
    pub approved_unix_ms: u64,
    /// What wrote it.
    pub program: String,
    /// Absent where an older program wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedApproval>,
}

impl ApprovalFile {
    /// The approval of a round's folder; none if there is none, or something else.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join("approval.json");
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_small(&path, MAX_APPROVAL_BYTES)?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Writes it in place of an older one.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        if text.len() > MAX_APPROVAL_BYTES {
            bail!(
                "the approval has {} bytes, more than the {MAX_APPROVAL_BYTES} of any; shorten person or role",
                text.len()
            );
        }
        replace_document(&folder.join("approval.json"), text.as_bytes())
    }

    /// The signed approval, if it is of this round and signed with this key.
    ///
    /// # Errors
    /// A signature that does not verify, or of another round.
    pub fn checked(&self, round: RoundId, key: &VerifyingKey) -> anyhow::Result<Option<&Approval>> {
        let Some(signed) = &self.signed else { return Ok(None) };
        let approval = signed.check(key)?;
        if approval.round != round || self.round != round {
            bail!("the approval is of round {}, and not of round {round}: approve the round again", approval.round);
        }
        Ok(Some(approval))
    }
}

/// Where the log is.
pub(super) fn log_path(home: &Path) -> PathBuf {
    home.join("approvals.jsonl")
}

/// The whole log, every signature and every link checked: `keys` are those that this member has, newest first, and had.
///
/// # Errors
/// Naming the line that was changed, or before which one is missing.
pub(super) fn read_log(home: &Path, keys: &[VerifyingKey]) -> anyhow::Result<Vec<SignedApproval>> {
    let path = log_path(home);
    match File::open(&path) {
        Ok(file) => Ok(read_open(file, &path, keys)?.0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

/// Refuses a log that lacks the approval of a round of this home: a chain does not tell that its end was cut off.
///
/// # Errors
/// Naming the approval that is not in the log.
pub(super) fn nothing_cut_off(home: &Path, log: &[SignedApproval]) -> anyhow::Result<()> {
    let rounds = home.join("rounds");
    let entries = match std::fs::read_dir(&rounds) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", rounds.display())),
    };
    for entry in entries {
        let folder = entry.with_context(|| format!("cannot read `{}`", rounds.display()))?.path();
        let Some(signed) = ApprovalFile::read(&folder)?.and_then(|file| file.signed) else { continue };
        if !log.contains(&signed) {
            bail!(
                "`{}` is not in `{}`: lines of that were taken out, or it was moved away",
                folder.join("approval.json").display(),
                log_path(home).display()
            );
        }
    }
    Ok(())
}

/// Also returns how many bytes whole lines have: what follows was torn when it was written.
fn read_open(file: File, path: &Path, keys: &[VerifyingKey]) -> anyhow::Result<(Vec<SignedApproval>, u64)> {
    let mut text = String::new();
    let read = file.take(MAX_LOG_BYTES + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read `{}`", path.display()))?;
    if text.len() as u64 > MAX_LOG_BYTES {
        bail!("`{}` has more than {MAX_LOG_BYTES} bytes; move it away to begin another", path.display());
    }
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut log: Vec<SignedApproval> = Vec::new();
    for (line, entry) in text[..whole].lines().enumerate() {
        let unusable = || format!("line {} of `{}` does not count", line + 1, path.display());
        let signed: SignedApproval = serde_json::from_str(entry).with_context(unusable)?;
        // what was approved before the key was renewed stays approved by the key of then
        if !keys.iter().skip(1).any(|key| signed.check(key).is_ok()) {
            let newest = keys.first().with_context(unusable)?;
            signed.check(newest).with_context(unusable)?;
        }
        let before = log.last().map(SignedApproval::digest);
        if signed.approval.previous != before {
            bail!("an approval is missing before line {} of `{}`, or lines were moved", line + 1, path.display());
        }
        log.push(signed);
    }
    Ok((log, whole as u64))
}

/// Signs an approval with the newest of `keys` as the next of the log, and writes it there before anywhere else.
///
/// # Errors
/// A log that does not verify: nothing is added to it.
pub(super) fn append(
    home: &Path,
    mut approval: Approval,
    key: &SigningKey,
    keys: &[VerifyingKey],
) -> anyhow::Result<SignedApproval> {
    let path = log_path(home);
    let failed = || format!("cannot write `{}`", path.display());
    let mut options = File::options();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(failed)?;
    // two who approve at once would both follow the same one
    file.lock().with_context(failed)?;
    let (log, whole) = read_open(file.try_clone().with_context(failed)?, &path, keys)?;
    file.set_len(whole).with_context(failed)?;
    file.seek(SeekFrom::End(0)).with_context(failed)?;
    approval.previous = log.last().map(SignedApproval::digest);
    let signed = approval.sign(key)?;
    let line = format!("{}\n", serde_json::to_string(&signed)?);
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    sync_folder(home);
    Ok(signed)
}

/// The digest that a copy kept elsewhere would be compared with.
pub(super) fn head(log: &[SignedApproval]) -> Option<Digest> {
    log.last().map(SignedApproval::digest)
}

/// Who approved, and as what, for people.
pub(super) fn who(approval: &Approval) -> String {
    match (approval.person.as_str(), approval.role.as_str()) {
        ("", "") => "–".to_owned(),
        (person, "") => person.to_owned(),
        (person, role) => format!("{person}, {role}"),
    }
}

#[cfg(test)]
mod tests {
    use fedprune_federation::MemberIndex;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[7; 32]).unwrap()
    }

    fn approval(number: u8) -> Approval {
        Approval {
            round: RoundId(Digest([number; 32])),
            consortium: ConsortiumId(Digest([1; 32])),
            member: MemberIndex(0),
            ballot: None,
            calibration: None,
            preview: None,
            policy: None,
            approved_unix_ms: u64::from(number),
            person: "Ada".to_owned(),
            role: String::new(),
            program: "fedprune".to_owned(),
            previous: None,
        }
    }

    #[test]
    fn approvals_follow_each_other_and_none_can_be_changed_moved_or_taken_out() {
        let home = tempfile::tempdir().unwrap();
        for number in 1..=4 {
            append(home.path(), approval(number), &key(), &[key().verifying_key()]).unwrap();
        }
        let log = read_log(home.path(), &[key().verifying_key()]).unwrap();
        assert_eq!(log.len(), 4);
        assert_eq!(log[3].approval.previous, Some(log[2].digest()));
        assert_eq!(head(&log), Some(log[3].digest()));
        let text = std::fs::read_to_string(log_path(home.path())).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let changed = lines[1].replace("Ada", "Eve");
        for (tampered, expected) in [
            ([lines[0], &changed, lines[2]].join("\n"), "line 2"),
            ([lines[0], lines[2], lines[3]].join("\n"), "missing before line 2"),
            ([lines[1], lines[0]].join("\n"), "missing before line 1"),
            (lines[1..].join("\n"), "missing before line 1"),
        ] {
            std::fs::write(log_path(home.path()), format!("{tampered}\n")).unwrap();
            let error = format!("{:#}", read_log(home.path(), &[key().verifying_key()]).unwrap_err());
            assert!(error.contains(expected), "{error}");
            assert!(
                append(home.path(), approval(9), &key(), &[key().verifying_key()]).is_err(),
                "nothing is added to it"
            );
        }
        std::fs::write(log_path(home.path()), &text).unwrap();
        let other = SigningKey::from_seed(&[8; 32]).unwrap();
        assert!(read_log(home.path(), &[other.verifying_key()]).is_err());
        // a renewed key goes on where the one before it ended, and approves nothing in its name
        let both = [other.verifying_key(), key().verifying_key()];
        append(home.path(), approval(5), &other, &both).unwrap();
        assert_eq!(read_log(home.path(), &both).unwrap().len(), 5);
        assert!(read_log(home.path(), &both[1..]).is_err());
    }

    #[test]
    fn a_log_whose_end_was_cut_off_lacks_an_approval_of_a_round() {
        let home = tempfile::tempdir().unwrap();
        for number in 1..=2 {
            let signed = append(home.path(), approval(number), &key(), &[key().verifying_key()]).unwrap();
            let folder = home.path().join("rounds").join(number.to_string());
            std::fs::create_dir_all(&folder).unwrap();
            let file = ApprovalFile {
                round: signed.approval.round,
                consortium: signed.approval.consortium,
                approved_unix_ms: u64::from(number),
                program: "fedprune".to_owned(),
                signed: Some(signed),
            };
            file.write(&folder).unwrap();
        }
        let log = read_log(home.path(), &[key().verifying_key()]).unwrap();
        nothing_cut_off(home.path(), &log).unwrap();
        for kept in 0..2 {
            let error = nothing_cut_off(home.path(), &log[..kept]).unwrap_err().to_string();
            assert!(error.contains("approval.json` is not in"), "{error}");
        }
    }

    #[test]
    fn a_line_that_was_torn_when_power_failed_is_written_over() {
        let home = tempfile::tempdir().unwrap();
        append(home.path(), approval(1), &key(), &[key().verifying_key()]).unwrap();
        let mut torn = std::fs::read(log_path(home.path())).unwrap();
        torn.extend_from_slice(b"{\"approval\":{\"rou");
        std::fs::write(log_path(home.path()), torn).unwrap();
        append(home.path(), approval(2), &key(), &[key().verifying_key()]).unwrap();
        assert_eq!(read_log(home.path(), &[key().verifying_key()]).unwrap().len(), 2);
    }

    #[test]
    fn the_file_beside_the_round_is_checked() {
        let home = tempfile::tempdir().unwrap();
        let signed = append(home.path(), approval(1), &key(), &[key().verifying_key()]).unwrap();
        let file = ApprovalFile {
            round: signed.approval.round,
            consortium: signed.approval.consortium,
            approved_unix_ms: 1,
            program: "fedprune".to_owned(),
            signed: Some(signed.clone()),
        };
        file.write(home.path()).unwrap();
        let read = ApprovalFile::read(home.path()).unwrap().unwrap();
        assert_eq!(read, file);
        assert_eq!(read.checked(file.round, &key().verifying_key()).unwrap(), Some(&signed.approval));
        assert!(read.checked(RoundId(Digest([9; 32])), &key().verifying_key()).is_err());
        let mut forged = file.clone();
        forged.signed.as_mut().unwrap().approval.person = "Eve".to_owned();
        assert!(forged.checked(file.round, &key().verifying_key()).is_err());
        std::fs::write(home.path().join("approval.json"), "{}").unwrap();
        assert_eq!(ApprovalFile::read(home.path()).unwrap(), None);
    }
}
