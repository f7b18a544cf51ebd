//! The commands that set a testnet up and look it over, as a user would type them.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{TestnetError, at};
use crate::files::{last_lines, read_from};
use crate::process::{Group, in_words as status_in_words};

/// How long one of these commands may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(600);
/// Most bytes that one of these commands answers.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(5);

/// The program under test.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// Where everything that is typed and answered is kept.
    pub(crate) log: PathBuf,
    pub(crate) stop: &'a dyn Fn() -> bool,
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// As it was typed.
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The last lines of its standard error.
    pub(crate) said: String,
}

impl Program<'_> {
    /// The program with arguments, `--format json` among them.
    pub(crate) fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Command {
        let mut command = Command::new(self.path);
        command.args(arguments);
        command.args(["--format", "json"]);
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, takes too long, or someone asked to stop.
    pub(crate) fn ask(&self, mut command: Command) -> Result<Answer, TestnetError> {
        let typed = in_words(&command);
        let log = || OpenOptions::new().create(true).append(true).open(&self.log).map_err(at("write", &self.log));
        let mut errors = log()?;
        writeln!(errors, "$ {typed}").map_err(at("write", &self.log))?;
        let said_from = errors.metadata().map_err(at("read", &self.log))?.len();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut group = Group::spawn(&mut command).map_err(at("start", self.path))?;
        let answer = group.child_mut().stdout.take().map(|output| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                output.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes).map(|_| bytes)
            })
        });
        let started = Instant::now();
        let status = loop {
            if let Some(status) = group.poll().map_err(at("look at", self.path))? {
                break status;
            }
            if (self.stop)() {
                return Err(TestnetError::Stopped);
            }
            if started.elapsed() > COMMAND_LIMIT {
                return Err(TestnetError::CommandTime { command: typed, seconds: COMMAND_LIMIT.as_secs() });
            }
            std::thread::sleep(TICK);
        };
        let stdout = match answer.map(std::thread::JoinHandle::join) {
            Some(Ok(bytes)) => bytes.map_err(at("read", self.path))?,
            _ => Vec::new(),
        };
        log()?.write_all(&stdout).map_err(at("write", &self.log))?;
        let said = last_lines(&read_from(&self.log, said_from)).join("\n");
        Ok(Answer { command: typed, status, stdout, said })
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// As [`Program::ask`], and when it fails.
    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> Result<Answer, TestnetError> {
        let answer = self.ask(self.command(arguments))?;
        if answer.status.success() {
            return Ok(answer);
        }
        let Answer { command, status, said, .. } = answer;
        Err(TestnetError::Command { command, status: status_in_words(status), said })
    }
}

impl Answer {
    /// What was answered, if it is JSON.
    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.stdout).ok()
    }
}

/// A command as it can be typed.
pub(crate) fn in_words(command: &Command) -> String {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    words.join(" ")
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
