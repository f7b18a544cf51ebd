//! Keys, consortium, signatures, round and approvals: made by the program's own commands, as people would type them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use fedprune_federation::consortium::DOCUMENT_LIMIT as CONSORTIUM_LIMIT;
use fedprune_federation::round::DOCUMENT_LIMIT as ROUND_LIMIT;
use fedprune_federation::{Consortium, Height, Rotation, Round, RoundId};

use crate::error::{TestnetError, at};
use crate::files::{Folder, read_text};
use crate::manifest::{Manifest, RoundOption, Silo, Source};
use crate::ports::Reserved;
use crate::program::{Answer, Program};
use crate::{Bundle, Bundled, Observer, Progress};

/// What a manifest's sources are on this machine.
pub(crate) struct Sources {
    pub(crate) model: PathBuf,
    /// By silo.
    pub(crate) data: Vec<Vec<PathBuf>>,
    /// By silo.
    pub(crate) ballots: Vec<Option<PathBuf>>,
}

/// A testnet whose nodes can start.
pub(crate) struct Prepared {
    pub(crate) consortium: Consortium,
    pub(crate) round: Round,
}

/// Finds the model and texts; writes the bundled ones if they are asked for.
pub(crate) fn sources(
    manifest: &Manifest,
    base: &Path,
    folder: &Path,
    bundle: Bundle<'_>,
) -> Result<Sources, TestnetError> {
    let asks = |source: &Source| matches!(source, Source::Bundled(_));
    let wanted = asks(&manifest.model) || manifest.silos.iter().any(|silo| silo.data.iter().any(asks));
    let bundled = if wanted {
        bundle(folder).map_err(|source| TestnetError::Bundle { path: folder.to_owned(), source })?
    } else {
        Bundled::default()
    };
    let text = |silo: &Silo, source: &Source| match source {
        Source::Path(path) => Ok(base.join(path)),
        Source::Bundled(name) => bundled.texts.get(name).cloned().ok_or_else(|| TestnetError::NoSuchText {
            silo: silo.name.clone(),
            text: name.clone(),
            known: bundled.texts.keys().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", "),
        }),
    };
    let data = manifest.silos.iter().map(|silo| silo.data.iter().map(|source| text(silo, source)).collect());
    Ok(Sources {
        model: match &manifest.model {
            Source::Bundled(_) => bundled.model.clone(),
            Source::Path(path) => base.join(path),
        },
        data: data.collect::<Result<_, _>>()?,
        ballots: manifest.silos.iter().map(|silo| silo.ballot.as_ref().map(|path| base.join(path))).collect(),
    })
}

/// Makes everything that nodes need before they start, and settles whose turn it is that is disturbed.
pub(crate) fn prepare(
    manifest: &mut Manifest,
    model: &Path,
    folder: &Folder,
    ports: &[Reserved],
    program: &Program<'_>,
    observe: Observer<'_>,
) -> Result<Prepared, TestnetError> {
    observe(Progress::Step("keys and consortium"));
    let (consortium_file, round_file) = (folder.consortium(), folder.round());
    program.run(words(&[&"consortium", &"new", &"--name", &manifest.name, &"--out", &consortium_file]))?;
    for (silo, port) in manifest.silos.iter().zip(ports) {
        let home = folder.home(&silo.name);
        let made = program.run(words(&[&"key", &"new", &"--home", &home]))?;
        let key = field(&made, "public_key")?;
        let mut add = words(&[&"consortium", &"add", &consortium_file, &"--name", &silo.name, &"--key", &key]);
        for address in addresses(port.port()) {
            add.extend(words(&[&"--address", &address]));
        }
        // made beside the other one, so that members can sign what the round comes to
        add.extend(words(&[&"--attestation-key", &home.join("attestation-key.public.pem")]));
        program.run(add)?;
    }
    sign(manifest, folder, program)?;

    observe(Progress::Step("round and approvals"));
    let mut new =
        words(&[&"round", &"new", &"--consortium", &consortium_file, &"--model", &model, &"--out", &round_file]);
    new.extend(round_options(manifest));
    let made = program.run(new)?;
    for silo in &manifest.silos {
        let home = folder.home(&silo.name);
        program.run(words(&[&"round", &"approve", &round_file, &"--home", &home, &"--model", &model, &"--yes"]))?;
    }
    let prepared = read_back(folder, &made)?;
    if prepared.consortium.members().len() != manifest.silos.len() {
        return Err(unusable(&made, "the consortium has other members than the manifest has silos".to_owned()));
    }
    settle_aggregators(manifest, &prepared);
    Ok(prepared)
}

/// Where a node listens and is dialled.
pub(crate) fn addresses(port: u16) -> [String; 2] {
    [format!("/ip4/127.0.0.1/tcp/{port}"), format!("/ip4/127.0.0.1/udp/{port}/quic-v1")]
}

/// Each signs and passes the list on; when the last has signed, all take the full list.
fn sign(manifest: &Manifest, folder: &Folder, program: &Program<'_>) -> Result<(), TestnetError> {
    let signatures = |silo: &Silo| folder.home(&silo.name).join("consortium.signatures");
    let mut before: Option<&Silo> = None;
    for silo in &manifest.silos {
        let home = folder.home(&silo.name);
        let mut sign = words(&[&"consortium", &"sign", &folder.consortium(), &"--home", &home]);
        if let Some(before) = before {
            sign.extend(words(&[&"--merge", &signatures(before)]));
        }
        program.run(sign)?;
        before = Some(silo);
    }
    let Some((last, others)) = manifest.silos.split_last() else { return Ok(()) };
    for silo in others {
        let home = folder.home(&silo.name);
        program.run(words(&[&"consortium", &"sign", &"--home", &home, &"--merge", &signatures(last)]))?;
    }
    Ok(())
}

/// The documents as the commands left them, read by the library that nodes read them with.
fn read_back(folder: &Folder, made: &Answer) -> Result<Prepared, TestnetError> {
    let consortium_text = read_text(&folder.consortium(), CONSORTIUM_LIMIT)?;
    let consortium = Consortium::parse(&consortium_text)
        .map_err(|error| unusable(made, format!("`{}`: {error}", folder.consortium().display())))?;
    let round = Round::parse(&read_text(&folder.round(), ROUND_LIMIT)?, &consortium)
        .map_err(|error| unusable(made, format!("`{}`: {error}", folder.round().display())))?;
    Ok(Prepared { consortium, round })
}

/// Gives each fault of an aggregator to the silo whose turn it is.
fn settle_aggregators(manifest: &mut Manifest, prepared: &Prepared) {
    let quorum = prepared.consortium.quorum();
    for asked in std::mem::take(&mut manifest.aggregator_faults) {
        let rotation = Rotation::new(prepared.round.id(), Height(asked.height), quorum);
        let member = rotation.aggregator(asked.view).as_usize();
        // silos are in the order of members
        if let Some(silo) = manifest.silos.get_mut(member) {
            silo.faults.push(asked.fault);
        }
    }
    // what comes after a last death cannot happen
    for silo in &mut manifest.silos {
        silo.faults.sort_by_key(|fault| fault.ends_after.is_none());
        let last = silo.faults.iter().position(|fault| fault.ends_after.is_none());
        silo.faults.truncate(last.map_or(silo.faults.len(), |last| last + 1));
    }
}

fn round_options(manifest: &Manifest) -> Vec<OsString> {
    let mut options = Vec::new();
    for (name, value) in &manifest.round {
        let option = format!("--{}", name.replace('_', "-"));
        match value {
            RoundOption::Switch(true) => options.push(option.into()),
            RoundOption::Switch(false) => {}
            RoundOption::Number(number) => options.extend(words(&[&option, &number.to_string()])),
            RoundOption::Text(text) => options.extend(words(&[&option, &text])),
            RoundOption::List(texts) => texts.iter().for_each(|text| options.extend(words(&[&option, &text]))),
        }
    }
    options
}

/// Arguments of several kinds of text.
pub(crate) fn words(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

fn field(answer: &Answer, name: &str) -> Result<String, TestnetError> {
    let json = answer.json();
    let value = json.as_ref().and_then(|json| json.get(name)?.as_str());
    value.map(str::to_owned).ok_or_else(|| unusable(answer, format!("its answer has no text `{name}`")))
}

fn unusable(answer: &Answer, problem: String) -> TestnetError {
    TestnetError::Answer { command: answer.command.clone(), problem }
}

/// How a silo's node is started.
#[derive(Debug, Clone)]
pub struct NodeArguments {
    /// The member's own folder.
    pub home: PathBuf,
    /// In which round.
    pub round: RoundId,
    /// The base model.
    pub model: PathBuf,
    /// Its text.
    pub data: Vec<PathBuf>,
    /// A ballot that it hands in instead of computing one.
    pub ballot: Option<PathBuf>,
    /// Where the pruned model goes.
    pub out: PathBuf,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Where it dials others, by name, instead of where the consortium says.
    pub dial: Vec<(String, String)>,
    /// How far its clock is ahead of the machine's, in milliseconds.
    pub clock_skew_ms: i64,
    /// How long it helps others once it has finished.
    pub linger_seconds: u64,
}

impl NodeArguments {
    pub(crate) fn of(
        silo: &Silo,
        number: usize,
        sources: &Sources,
        folder: &Folder,
        port: u16,
        round: &Round,
        linger_seconds: u64,
    ) -> Self {
        Self {
            home: folder.home(&silo.name),
            round: round.id(),
            model: sources.model.clone(),
            data: sources.data.get(number).cloned().unwrap_or_default(),
            ballot: sources.ballots.get(number).cloned().flatten(),
            out: folder.pruned(&silo.name),
            listen: addresses(port).into(),
            dial: Vec::new(),
            clock_skew_ms: silo.clock_skew_ms,
            linger_seconds,
        }
    }

    /// As the program takes them.
    pub fn words(&self) -> Vec<OsString> {
        let mut arguments = words(&[&"node", &"run", &"--home", &self.home]);
        arguments.extend(words(&[&"--round", &self.round.to_string(), &"--model", &self.model]));
        if !self.data.is_empty() {
            arguments.push("--data".into());
            arguments.extend(self.data.iter().map(|path| path.clone().into_os_string()));
        }
        if let Some(ballot) = &self.ballot {
            arguments.extend(words(&[&"--ballot", ballot]));
        }
        arguments.extend(words(&[&"--out", &self.out]));
        for address in &self.listen {
            arguments.extend(words(&[&"--listen", address]));
        }
        for (member, address) in &self.dial {
            arguments.extend(words(&[&"--dial", &format!("{member}={address}")]));
        }
        if self.clock_skew_ms != 0 {
            // in one word: it may start with a dash
            arguments.push(format!("--clock-skew-ms={}", self.clock_skew_ms).into());
        }
        arguments.extend(words(&[&"--linger", &self.linger_seconds.to_string()]));
        arguments
    }
}

/// Keeps the manifest with what came of it.
pub(crate) fn keep_manifest(folder: &Folder, text: &str) -> Result<(), TestnetError> {
    let path = folder.manifest();
    std::fs::write(&path, text).map_err(at("write", &path))
}
