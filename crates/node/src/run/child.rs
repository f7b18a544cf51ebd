//! Processes of the same program that do what may need much memory: computing masks, writing the pruned model.
//!
//! They are killed with the node: a pipe that closes ends the one that waits for it, and dropping the handle
//! kills the other.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fedprune_mask::Digest;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::config::{CHILD_ERROR_BYTES, CHILD_GRACE, MAX_CHILD_LINE_BYTES, NodeConfig};
use super::work::Work;

/// A ballot that the contributing process has written.
#[derive(Debug, Deserialize)]
pub(super) struct Announced {
    pub(super) height: u32,
    pub(super) ballot: PathBuf,
    /// Digest of the token windows that it was made from.
    #[serde(default)]
    pub(super) calibration: Option<Digest>,
}

/// The process that computes our ballots.
pub(super) struct Contributor {
    stdin: Option<ChildStdin>,
    /// Ends the task that owns the process.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// What `mask contribute` is told.
pub(super) fn contribute_arguments(
    config: &NodeConfig,
    member: &str,
    consortium: &Path,
    round: &Path,
    out: &Path,
) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> =
        ["--quiet", "mask", "contribute", "--consortium"].map(Into::into).to_vec();
    arguments.push(consortium.into());
    for (name, value) in [
        ("--round", round.as_os_str()),
        ("--member", member.as_ref()),
        ("--model", config.model.as_os_str()),
        ("--out", out.as_os_str()),
    ] {
        // in one word: a value may start with a dash
        let mut word = std::ffi::OsString::from(name);
        word.push("=");
        word.push(value);
        arguments.push(word);
    }
    for path in &config.data {
        let mut word = std::ffi::OsString::from("--data=");
        word.push(path);
        arguments.push(word);
    }
    arguments.extend(config.compute_arguments.iter().map(Into::into));
    arguments
}

impl Contributor {
    /// Starts it; what it says arrives as [`Work::Announced`], its end as [`Work::ContributorEnded`].
    pub(super) fn start(
        program: &Path,
        arguments: &[std::ffi::OsString],
        work: mpsc::Sender<Work>,
    ) -> std::io::Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let why = tokio::select! {
                why = follow(&mut child, &work) => why,
                _ = stopped => return, // dropping the child kills it
            };
            // the loop has ended if this cannot be sent
            let _ = work.send(Work::ContributorEnded(why)).await;
        });
        Ok(Self { stdin, _stop: stop })
    }

    /// Tells it which mask was agreed on for the next height.
    pub(super) async fn agreed(&mut self, mask: &Path) {
        use std::os::unix::ffi::OsStrExt;
        let Some(stdin) = self.stdin.as_mut() else { return };
        let mut line = mask.as_os_str().as_bytes().to_vec();
        line.push(b'\n');
        // a process that has ended says so itself
        if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
            self.stdin = None;
        }
    }
}

/// Passes on what the process says until it ends; returns why it ended, unless it was done.
async fn follow(child: &mut Child, work: &mpsc::Sender<Work>) -> Option<String> {
    let errors = child.stderr.take().map(|stderr| tokio::spawn(last_of(stderr)));
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut stdout).take(MAX_CHILD_LINE_BYTES).read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if let Ok(announced) = serde_json::from_slice::<Announced>(&line)
                && work.send(Work::Announced(announced)).await.is_err()
            {
                break;
            }
        }
    }
    let status = child.wait().await;
    let said = match errors {
        Some(errors) => errors.await.unwrap_or_default(),
        None => String::new(),
    };
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("the process that computes masks ended with {status}: {}", said.trim())),
        Err(error) => Some(format!("the process that computes masks is lost: {error}")),
    }
}

/// The end of what a process writes to its standard error.
async fn last_of(mut source: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = source.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let excess = kept.len().saturating_sub(CHILD_ERROR_BYTES);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Runs `fedprune` with these arguments to its end.
pub(super) async fn run_to_end(program: &Path, arguments: &[std::ffi::OsString]) -> Result<(), String> {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| format!("cannot run `{}`: {error}", program.display()))?;
    let errors = child.stderr.take().map(|stderr| tokio::spawn(last_of(stderr)));
    let status = child.wait().await.map_err(|error| error.to_string())?;
    let said = match errors {
        Some(errors) => tokio::time::timeout(CHILD_GRACE, errors).await.ok().and_then(Result::ok).unwrap_or_default(),
        None => String::new(),
    };
    if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}: {}", program.display(), said.trim())) }
}
