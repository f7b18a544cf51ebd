//! A hub on this machine, which answers as the real one does, or as nobody should.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The commit of everything here.
pub const COMMIT: &str = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2";

/// How a body is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sends {
    /// As it is.
    Well,
    /// The connection is closed after so many bytes of each answer.
    CutOff(usize),
    /// As if no part could be asked for.
    Whole,
    /// With another length at its head.
    Announces(u64),
    /// Without a length, and then this instead of it.
    Chunked(Vec<u8>),
    /// Of the right length, with one bit that is another.
    Damaged,
    /// With a head that says it is compressed.
    Compressed,
    /// Part of it, as if another had been asked for.
    WrongRange,
    /// Elsewhere.
    SentOn(String),
    /// Not.
    Status(u16),
    /// Not now, and what is said of when.
    Busy(u16, &'static str),
    /// So many bytes, and then nothing for a minute.
    Stalls(usize),
}

/// What there is, and how it is sent.
pub struct Content {
    pub files: BTreeMap<String, Vec<u8>>,
    pub sends: BTreeMap<String, Sends>,
    /// Changes the list before it is sent.
    pub alters: Box<dyn Fn(&mut Value) + Send>,
    /// What is answered instead of the list: status, head, body.
    pub instead: Option<(u16, String, Vec<u8>)>,
}

/// It answers as long as this lives.
pub struct Server {
    pub address: String,
    content: Arc<Mutex<Content>>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Files above this are stored outside of git.
const LARGE: usize = 100_000;

impl Server {
    /// The files of a folder, beside others that a model folder has no use for.
    pub fn of(folder: &Path) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            files.insert(name, fs::read(&path).expect("a file"));
        }
        files.insert("README.md".to_owned(), b"# a model".to_vec());
        files.insert("pytorch_model.bin".to_owned(), vec![7; 200_000]);
        files.insert("onnx/model.onnx".to_owned(), b"onnx".to_vec());
        files.insert("../config.json".to_owned(), b"{}".to_vec());
        files.insert("/tmp/x".to_owned(), b"x".to_vec());
        Self::with(files)
    }

    /// These files.
    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("its own"));
        let content = Content { files, sends: BTreeMap::new(), alters: Box::new(|_| ()), instead: None };
        let (content, asked) = (Arc::new(Mutex::new(content)), Arc::new(Mutex::new(Vec::new())));
        let server = Self { address, content: Arc::clone(&content), asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (content, asked) = (Arc::clone(&content), Arc::clone(&asked));
                // the other side may be gone at any time
                std::thread::spawn(move || drop(answer(stream, &content, &asked)));
            }
        });
        server
    }

    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no test has panicked in it")
    }

    pub fn sends(&self, file: &str, how: Sends) {
        self.content().sends.insert(file.to_owned(), how);
    }

    /// Changes the list, as long as nothing else does.
    pub fn lists(&self, alters: impl Fn(&mut Value) + Send + 'static) {
        self.content().alters = Box::new(alters);
    }

    /// What was asked for since this was called last: address, range and token.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("no test has panicked in it"))
    }
}

/// What a hub lists of these files.
fn listing(content: &Content) -> Value {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let blob = hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
        let mut sibling = json!({ "rfilename": name, "size": bytes.len(), "blobId": blob });
        if bytes.len() > LARGE {
            sibling["lfs"] = json!({ "sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 132 });
        }
        sibling
    };
    let siblings: Vec<Value> = content.files.iter().map(sibling).collect();
    let mut listing =
        json!({ "id": "owner/model", "sha": COMMIT, "cardData": { "license": "mit" }, "siblings": siblings });
    (content.alters)(&mut listing);
    listing
}

fn head(stream: &mut TcpStream, status: u16, more: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} x\r\nConnection: close\r\n{more}\r\n")
}

fn answer(stream: TcpStream, content: &Mutex<Content>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut lines, mut stream) = (Vec::new(), stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let target = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let line = lines.iter().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        });
        line.unwrap_or_default()
    };
    let (range, token) = (header("range"), header("authorization"));
    asked.lock().expect("unpoisoned").push(format!("{target} {range} {token}").trim().to_owned());

    let path = target.split('?').next().unwrap_or_default();
    if path.starts_with("/api/models/") {
        let (status, more, body) = {
            let content = content.lock().expect("unpoisoned");
            let well = |content: &Content| (200, String::new(), listing(content).to_string().into_bytes());
            content.instead.clone().unwrap_or_else(|| well(&content))
        };
        let length =
            if more.contains("ength:") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        head(&mut stream, status, &format!("{length}{more}"))?;
        return stream.write_all(&body);
    }
    let name = path.strip_prefix(&format!("/owner/model/resolve/{COMMIT}/")).or_else(|| path.strip_prefix("/cdn/"));
    let (file, how) = {
        let content = content.lock().expect("unpoisoned");
        let file = name.and_then(|name| content.files.get(name).cloned());
        (file, name.and_then(|name| content.sends.get(name).cloned()).unwrap_or(Sends::Well))
    };
    let Some(file) = file else {
        return head(&mut stream, 404, "x-error-code: EntryNotFound\r\nContent-Length: 0\r\n");
    };
    let from =
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).and_then(|from| from.parse().ok());
    send(&mut stream, &file, from.filter(|_| how != Sends::Whole), how)
}

/// Sends a file from a byte on, in some way.
fn send(stream: &mut TcpStream, file: &[u8], from: Option<usize>, how: Sends) -> std::io::Result<()> {
    let (start, all) = (from.unwrap_or(0), file.len());
    let rest = &file[start.min(all)..];
    let mut begin = |length: u64, more: &str| {
        let shift = usize::from(how == Sends::WrongRange);
        let range = format!("Content-Range: bytes {}-{}/{all}\r\n", start + shift, all - 1);
        let (status, range) = if from.is_some() { (206, range) } else { (200, String::new()) };
        head(stream, status, &format!("Content-Length: {length}\r\n{range}{more}"))
    };
    match &how {
        Sends::Status(status) => return head(stream, *status, "Content-Length: 0\r\n"),
        Sends::Busy(status, after) => {
            return head(stream, *status, &format!("Retry-After: {after}\r\nContent-Length: 0\r\n"));
        }
        Sends::SentOn(to) => return head(stream, 302, &format!("Location: {to}\r\nContent-Length: 0\r\n")),
        Sends::Chunked(instead) => {
            head(stream, 200, "Transfer-Encoding: chunked\r\n")?;
            for chunk in instead.chunks(50_000) {
                write!(stream, "{:x}\r\n", chunk.len())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            return stream.write_all(b"0\r\n\r\n");
        }
        Sends::Announces(length) => begin(*length, "")?,
        Sends::Compressed => begin(rest.len() as u64, "Content-Encoding: gzip\r\n")?,
        _ => begin(rest.len() as u64, "")?,
    }
    match how {
        Sends::CutOff(bytes) => stream.write_all(&rest[..bytes.min(rest.len())]),
        Sends::Stalls(bytes) => {
            stream.write_all(&rest[..bytes.min(rest.len())])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Sends::Damaged => {
            let mut damaged = rest.to_vec();
            damaged[0] ^= 1;
            stream.write_all(&damaged)
        }
        _ => stream.write_all(rest),
    }
}
