//! Whether everything came as the manifest expects: what nodes said is compared, transcripts are audited by the
//! program's own auditor, and the ballots are tallied once more by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fedprune_federation::round::Strategy;
use fedprune_mask::Digest;
use serde_json::Value;

use crate::error::{TestnetError, at};
use crate::files::Folder;
use crate::manifest::{Contributors, Expect, Outcome, Silo};
use crate::prepare::{Prepared, words};
use crate::process::in_words as status_in_words;
use crate::program::{Answer, Program};
use crate::report::Check;
use crate::supervise::{Finished, Record};

/// Kind of finding that the auditor has for two statements where one may be.
const EQUIVOCATION: &str = "equivocation";

/// What is compared.
pub(crate) struct Judge<'a> {
    pub(crate) silos: &'a [Silo],
    pub(crate) records: &'a [Record],
    pub(crate) expect: &'a Expect,
    pub(crate) prepared: &'a Prepared,
    pub(crate) model: &'a Path,
    pub(crate) folder: &'a Folder,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Judgement {
    pub(crate) checks: Vec<Check>,
    /// Whose log tells more about the first problem.
    pub(crate) silo: Option<usize>,
    pub(crate) mask_root: Option<Digest>,
    /// By silo.
    pub(crate) audits: Vec<Option<String>>,
}

/// A problem, and whose it is.
type Problem = (Option<usize>, String);

impl Judgement {
    fn note(&mut self, what: String, problem: Option<Problem>) {
        if let Some((silo, _)) = &problem
            && self.checks.iter().all(|check| check.problem.is_none())
        {
            self.silo = *silo;
        }
        self.checks.push(Check { what, problem: problem.map(|(_, problem)| problem) });
    }
}

impl<'a> Judge<'a> {
    /// Nodes that had to finish, with what they said last.
    fn finished(&self) -> impl Iterator<Item = (usize, &'a Silo, &'a Record, &'a Finished)> {
        let all = self.silos.iter().zip(self.records).enumerate();
        all.filter(|(_, (silo, _))| silo.must_finish())
            .filter_map(|(number, (silo, record))| Some((number, silo, record, record.finished.as_ref()?)))
    }

    /// Compares what nodes said with each other and with the manifest.
    pub(crate) fn compare(&self) -> Judgement {
        let mut judgement = Judgement { audits: vec![None; self.silos.len()], ..Judgement::default() };
        let expected = self.expect.outcome;
        if expected == Outcome::Stalled {
            let decided = self.records.iter().position(|record| !record.decided.is_empty());
            let name = |number: usize| self.silos.get(number).map_or("", |silo| silo.name.as_str());
            judgement.note(
                format!("nothing is decided within {} s", self.expect.within.as_secs()),
                decided.map(|number| (Some(number), format!("silo `{}` has decided", name(number)))),
            );
            return judgement;
        }
        let other = self.finished().find(|(.., finished)| finished.outcome != expected);
        judgement.note(
            format!("every node ends `{}`", name_of(expected)),
            other.map(|(number, silo, _, finished)| {
                (Some(number), format!("silo `{}` ended `{}`", silo.name, name_of(finished.outcome)))
            }),
        );
        if expected == Outcome::Agreed {
            self.compare_masks(&mut judgement);
            self.compare_contributors(&mut judgement);
        }
        judgement
    }

    fn compare_masks(&self, judgement: &mut Judgement) {
        let mut roots = self.finished().map(|(number, silo, _, finished)| (number, silo, finished.mask_root));
        let first = roots.next();
        let what = "every node holds the same global mask".to_owned();
        let Some((number, silo, Some(root))) = first else {
            let problem = match first {
                Some((number, silo, _)) => (Some(number), format!("silo `{}` names no mask", silo.name)),
                None => (None, "no node has finished".to_owned()),
            };
            return judgement.note(what, Some(problem));
        };
        let other = roots.find(|(.., other)| *other != Some(root));
        let shown = |root: Option<Digest>| root.map_or("no mask".to_owned(), |root| root.to_string());
        judgement.note(
            what,
            other.map(|(other_number, other, other_root)| {
                let (one, two) = (shown(Some(root)), shown(other_root));
                (Some(other_number), format!("silo `{}` holds {one}, silo `{}` {two}", silo.name, other.name))
            }),
        );
        judgement.mask_root = Some(root);
        if let Some(expected) = self.expect.mask_root {
            let problem = (root != expected).then(|| (Some(number), format!("it is {root}")));
            judgement.note(format!("it is {expected}"), problem);
        }
    }

    fn compare_contributors(&self, judgement: &mut Judgement) {
        let heights = |record: &Record| record.decided.keys().copied().collect::<Vec<_>>();
        let mut nodes = self.finished();
        let Some((number, first, record, _)) = nodes.next() else { return };
        let none = record.decided.is_empty();
        let other = nodes.find(|(_, _, other, _)| heights(other) != heights(record));
        let problem = match other {
            _ if none => Some((Some(number), format!("silo `{}` has decided nothing", first.name))),
            Some((number, silo, ..)) => Some((
                Some(number),
                format!("silos `{}` and `{}` have decided different heights", first.name, silo.name),
            )),
            None => None,
        };
        judgement.note(format!("every node decides the same {} heights", record.decided.len()), problem);
        let include = &self.expect.contributors_include;
        if !include.is_empty() {
            let other = record.decided.iter().find(|(_, found)| !include.is_subset(found));
            judgement.note(
                format!("the ballots of {} count, and maybe others", listed(include)),
                other.map(|(height, found)| {
                    (Some(number), format!("at height {height} those of {} count", listed(found)))
                }),
            );
        }
        let Some(expected) = &self.expect.contributors else { return };
        let fits = |found: &BTreeSet<String>| match expected {
            Contributors::Count(count) => found.len() == *count,
            Contributors::Names(names) => found == names,
        };
        let other = record.decided.iter().find(|(_, found)| !fits(found));
        judgement.note(
            match expected {
                Contributors::Count(count) => format!("ballots of {count} silos count"),
                Contributors::Names(names) => format!("the ballots of {} count", listed(names)),
            },
            other.map(|(height, found)| (Some(number), format!("at height {height} those of {} count", listed(found)))),
        );
    }

    /// Has every transcript audited, and the ballots of one tallied by hand.
    ///
    /// # Errors
    /// When a command cannot be run at all.
    pub(crate) fn audit(&self, program: &Program<'_>, judgement: &mut Judgement) -> Result<(), TestnetError> {
        let mut faulty = BTreeSet::new();
        // whoever is honest may say so, also in a round that does not end
        let honest = || self.silos.iter().zip(self.records).filter(|(silo, _)| silo.is_honest());
        let mut equivocators: BTreeSet<String> =
            honest().flat_map(|(_, record)| record.evidence_against.iter().cloned()).collect();
        let shut_out: BTreeSet<String> = honest().flat_map(|(_, record)| record.shut_out.iter().cloned()).collect();
        let mut audited = 0;
        let mut problem: Option<Problem> = None;
        for (number, silo, _, finished) in self.finished() {
            let Some(transcript) = &finished.transcript else {
                problem.get_or_insert((Some(number), format!("silo `{}` names no transcript", silo.name)));
                continue;
            };
            let answer = program.ask(program.command(self.audit_arguments(transcript, finished)))?;
            let json = answer.json().unwrap_or_default();
            let verdict = json.get("verdict").and_then(Value::as_str).unwrap_or("no verdict").to_owned();
            audited += 1;
            for finding in json.get("findings").and_then(Value::as_array).into_iter().flatten() {
                let Some(member) = finding.get("member").and_then(Value::as_str) else { continue };
                faulty.insert(member.to_owned());
                if finding.get("fault").and_then(Value::as_str) == Some(EQUIVOCATION) {
                    equivocators.insert(member.to_owned());
                }
            }
            let found = self.audit_problem(&answer, &json, &verdict, finished);
            if let Some(found) = found {
                problem.get_or_insert((Some(number), format!("the transcript of silo `{}`: {found}", silo.name)));
            }
            if let Some(slot) = judgement.audits.get_mut(number) {
                *slot = Some(verdict);
            }
        }
        if self.expect.outcome != Outcome::Stalled {
            judgement.note(format!("{audited} transcripts are VERIFIED"), problem);
        }
        if let Some(allowed) = &self.expect.accused_only {
            let found: BTreeSet<String> = [&equivocators, &faulty, &shut_out].into_iter().flatten().cloned().collect();
            let problem = (!found.is_subset(allowed)).then(|| (None, format!("it is {}", listed(&found))));
            judgement.note(format!("nobody is accused but maybe {}", listed(allowed)), problem);
        }
        let named = [
            ("the evidence is against", &self.expect.evidence_against, &equivocators),
            ("the auditor names as faulty", &self.expect.fault_named, &faulty),
            ("shut out for what they sent are", &self.expect.shut_out, &shut_out),
        ];
        for (what, expected, found) in named {
            let Some(expected) = expected else { continue };
            let problem = (expected != found).then(|| (None, format!("it is {}", listed(found))));
            judgement.note(format!("{what} {}", listed(expected)), problem);
        }
        Ok(())
    }

    /// `audit verify` with everything that it can be given.
    pub(crate) fn audit_arguments(&self, transcript: &Path, finished: &Finished) -> Vec<std::ffi::OsString> {
        let ids = (self.prepared.consortium.id().to_string(), self.prepared.round.id().to_string());
        let mut arguments =
            words(&[&"audit", &"verify", &transcript, &"--consortium-id", &ids.0, &"--round-id", &ids.1]);
        arguments.extend(words(&[&"--model", &self.model]));
        if let Some(pruned) = &finished.pruned {
            arguments.extend(words(&[&"--pruned", &pruned]));
        }
        arguments
    }

    fn audit_problem(&self, answer: &Answer, json: &Value, verdict: &str, finished: &Finished) -> Option<String> {
        let typed = &answer.command;
        if verdict != "VERIFIED" || !answer.status.success() {
            let why = [&answer.said, verdict].into_iter().find(|text| !text.is_empty()).unwrap_or_default().to_owned();
            return Some(format!("`{typed}` ended with {}: {verdict}\n{why}", status_in_words(answer.status)));
        }
        let root = json.get("mask_root").and_then(Value::as_str).map(str::to_owned);
        if root != finished.mask_root.map(|root| root.to_string()) {
            let root = root.unwrap_or_else(|| "no mask".to_owned());
            return Some(format!("its mask, recomputed, is {root}; `{typed}` tells more"));
        }
        if self.expect.outcome == Outcome::Agreed && finished.pruned.is_none() {
            return Some("its node names no pruned model".to_owned());
        }
        None
    }

    /// Tallies the ballots of one transcript with `fedprune tally`; only a one-shot round has one tally.
    ///
    /// # Errors
    /// When the ballots cannot be laid out, or the command cannot be run.
    pub(crate) fn tally_by_hand(
        &self,
        program: &Program<'_>,
        judgement: &mut Judgement,
    ) -> Result<Vec<PathBuf>, TestnetError> {
        let terms = self.prepared.round.terms();
        let Some((number, silo, record, finished)) = self.finished().next() else { return Ok(Vec::new()) };
        let (Strategy::OneShot, Outcome::Agreed, Some(transcript), Some(contributors)) =
            (terms.strategy, self.expect.outcome, &finished.transcript, record.decided.get(&0))
        else {
            return Ok(Vec::new());
        };
        let what =
            format!("`fedprune tally` of the ballots in the transcript of silo `{}` comes to the same mask", silo.name);
        let ballots = match self.lay_out(transcript, contributors)? {
            Ok(ballots) => ballots,
            Err(problem) => {
                judgement.note(what, Some((Some(number), problem)));
                return Ok(Vec::new());
            }
        };
        let mut tally = words(&[&"tally"]);
        tally.extend(ballots.iter().map(|path| path.clone().into_os_string()));
        let group = terms.global_group.to_string();
        let out = self.folder.by_hand().join("global.tally");
        tally.extend(words(&[&"--model", &self.model, &"--global-group", &group, &"--out", &out]));
        let members = contributors.iter().filter_map(|name| self.prepared.consortium.index_by_name(name));
        let weights: Vec<u32> =
            members.filter_map(|member| terms.tally_weights.get(member.as_usize()).copied()).collect();
        if weights.iter().any(|weight| *weight != 1) {
            let weights: Vec<String> = weights.iter().map(u32::to_string).collect();
            tally.extend(words(&[&"--weights", &weights.join(",")]));
        }
        let answer = program.ask(program.command(tally))?;
        let root = answer.json().and_then(|json| Some(json.get("mask_root")?.as_str()?.to_owned()));
        let problem = match (answer.status.success(), root) {
            (true, Some(root)) if Some(&root) == finished.mask_root.map(|root| root.to_string()).as_ref() => None,
            (true, root) => Some(format!("it comes to {}", root.unwrap_or_else(|| "none".to_owned()))),
            (false, _) => Some(format!("it ended with {}:\n{}", status_in_words(answer.status), answer.said)),
        };
        judgement.note(what, problem.map(|problem| (Some(number), problem)));
        Ok(ballots)
    }

    /// Copies the ballots that count under the names of their silos, as `fedprune tally` wants them.
    fn lay_out(
        &self,
        transcript: &Path,
        contributors: &BTreeSet<String>,
    ) -> Result<Result<Vec<PathBuf>, String>, TestnetError> {
        let by_hand = self.folder.by_hand();
        std::fs::create_dir(&by_hand).map_err(at("create", &by_hand))?;
        let headers = transcript.join("heights/0000/headers");
        let (headers, bodies) = (names_in(&headers)?, names_in(&transcript.join("bodies"))?);
        let mut ballots = Vec::new();
        for name in contributors {
            let Some(member) = self.prepared.consortium.index_by_name(name) else {
                return Ok(Err(format!("`{name}` is no member")));
            };
            // headers are called MEMBER-DIGEST.bin with the first digits of the body's name
            let prefix = format!("{:04}-", member.0);
            let digests = headers.iter().filter_map(|header| header.strip_prefix(&prefix)?.strip_suffix(".bin"));
            let body = digests.filter_map(|digest| bodies.iter().find(|body| body.starts_with(digest))).next();
            let Some(body) = body else {
                return Ok(Err(format!("it has no ballot of silo `{name}`, whose ballot counts")));
            };
            let copy = by_hand.join(format!("{name}.ballot"));
            std::fs::copy(transcript.join("bodies").join(body), &copy).map_err(at("write", &copy))?;
            ballots.push(copy);
        }
        Ok(Ok(ballots))
    }
}

/// Most files of one folder of a transcript that are looked at: headers and bodies of all silos, twice.
const MAX_NAMES: usize = 4 * crate::manifest::MAX_SILOS;

fn names_in(folder: &Path) -> Result<Vec<String>, TestnetError> {
    let entries = std::fs::read_dir(folder).map_err(at("read", folder))?;
    let names =
        entries.take(MAX_NAMES).map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>, _>>().map_err(at("read", folder))?;
    names.sort();
    Ok(names)
}

fn name_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Agreed => "agreed",
        Outcome::Abandoned => "abandoned",
        Outcome::Stalled => "stalled",
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "nobody".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
