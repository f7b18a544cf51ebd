//! Checks, findings and notes as they are made.

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::{Height, Ratified, Round};
use fedprune_mask::Digest;

use super::Options;
use crate::report::{Area, Check, Encodings, Fault, Finding, HeightReport, MatrixAgreement, Outcome, Report};

/// Collects what an audit finds.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    checks: Vec<Check>,
    findings: Vec<Finding>,
    notes: Vec<String>,
    heights: Vec<HeightReport>,
    /// Ballots that some height counts.
    pub counted: BTreeSet<Digest>,
    /// How each ballot that could be read says its masks.
    pub encodings: BTreeMap<Digest, Encodings>,
    /// How far ballots agree, matrix by matrix.
    pub agreement: Vec<MatrixAgreement>,
    pub mask_root: Option<Digest>,
}

/// Something differs, and nobody's signature proves who is to blame.
pub(super) fn failed(why: String) -> Outcome {
    Outcome::Failed { member: None, why }
}

/// Something differs, and a member's signature proves that it is to blame.
pub(super) fn blamed(member: String, why: String) -> Outcome {
    Outcome::Failed { member: Some(member), why }
}

impl Ledger {
    /// Notes a comparison.
    pub fn add(
        &mut self,
        area: Area,
        height: Option<Height>,
        subject: String,
        compared: impl Into<String>,
        outcome: Outcome,
    ) {
        self.checks.push(Check { area, height, subject, compared: compared.into(), outcome });
    }

    /// Notes a proven fault, once.
    pub fn find(&mut self, member: String, fault: Fault, height: Height, what: String) {
        let finding = Finding { member, fault, height, what };
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Notes what says nothing against anybody.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// The proven faults so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Keeps what a height came to.
    pub fn height(&mut self, report: HeightReport) {
        if let Some(passed_over) = report.passed_over_in_words() {
            self.note(format!(
                "height {} was decided in view {}; passed over: {passed_over}",
                report.height, report.view
            ));
        }
        self.heights.push(report);
    }

    /// The report.
    pub fn into_report(self, options: &Options<'_>, founded: Option<(&Ratified, &Round)>) -> Report {
        let ids_given = options.consortium.is_some() && options.round.is_some();
        Report {
            verdict: Report::judge(&self.checks, ids_given),
            consortium_name: founded.map(|(consortium, _)| consortium.consortium().name().to_owned()),
            consortium: founded.map(|(consortium, _)| consortium.id()),
            round: founded.map(|(_, round)| round.id()),
            ids_given,
            mask_root: self.mask_root,
            heights: self.heights,
            agreement: self.agreement,
            checks: self.checks,
            findings: self.findings,
            notes: self.notes,
        }
    }
}
