//! A folder to fetch a model into, and the program that does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fedprune_tests::root;
use serde_json::Value;

use crate::server::Server;

/// The file of the bundled model that has its weights.
pub const WEIGHTS: &str = "model.safetensors";

/// The bundled model on a hub, and a folder to fetch it into.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub server: Server,
}

impl Place {
    pub fn new() -> Self {
        Self::of(&root().join("examples/bundled-model/model"))
    }

    pub fn of(model: &Path) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), server: Server::of(model) }
    }

    pub fn command(&self, more: &[&str]) -> Command {
        self.command_at(&self.server.address, more)
    }

    pub fn command_at(&self, endpoint: &str, more: &[&str]) -> Command {
        let mut command = program();
        command.args(["--quiet", "model", "fetch", "owner/model", "--endpoint", endpoint]).args(more);
        command.current_dir(self.folder.path());
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Fetches, which must succeed.
    #[track_caller]
    pub fn fetches(&self) -> Value {
        let output = self.command(&["--format", "json"]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Fetches, which must fail with `code` and say all of `parts`; nothing has the model's name.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) -> String {
        let output = self.command(&[]).output().expect("it starts");
        let message = said(&output);
        assert_eq!(output.status.code(), Some(code), "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is missing from: {message}");
        }
        assert!(!self.path("model").exists());
        message
    }

    /// What lies in the folder that grows, with sizes.
    pub fn growing(&self) -> BTreeMap<String, u64> {
        let Ok(entries) = fs::read_dir(self.path("model.fetching")) else { return BTreeMap::new() };
        let entries = entries.map(|entry| entry.expect("an entry"));
        entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().expect("its size").len()))
            .collect()
    }

    /// As if nothing had been tried.
    pub fn clean(&self) {
        let _ = fs::remove_dir_all(self.path("model.fetching"));
        self.server.asked();
        let mut content = self.server.content();
        content.sends.clear();
        content.instead = None;
        content.alters = Box::new(|_| ());
    }

    /// The weights, as they are sent.
    pub fn weights(&self) -> Vec<u8> {
        self.server.content().files[WEIGHTS].clone()
    }
}

/// The program, whatever proxy, mirror or token whoever runs the tests has.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"));
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy().to_ascii_uppercase();
        if known.ends_with("_PROXY") || known.starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command
}

/// An address of this machine at which nobody is.
pub fn nobody() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its own").to_string()
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
