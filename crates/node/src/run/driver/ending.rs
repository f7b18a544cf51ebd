//! How a node ends, and how it says how it is doing.

use std::time::Instant;

use fedprune_federation::machine::Outcome;

use super::super::conclude::{ConcludeInputs, conclude};
use super::super::config::{GRACE, LOOKED_AT_GRACE, TOLD_TO_STAY, TRAFFIC_INTERVAL};
use super::super::error::NodeError;
use super::super::events::NodeEvent;
use super::super::model::chain;
use super::super::status::Status;
use super::super::work::Work;
use super::{Driver, Ending, Parts, ending_of};

impl Driver<'_> {
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        let inputs = ConcludeInputs::gather(&self.parts, outcome, self.seconds.clone(), self.totals());
        let work = self.work.clone();
        tokio::spawn(async move {
            let result = conclude(inputs).await;
            let _ = work.send(Work::Concluded(result)).await;
        });
    }

    pub(super) fn finish(&mut self, outcome: Outcome) {
        if self.finished.is_some() {
            return;
        }
        self.finished = Some((outcome, Instant::now()));
        self.contributor = None;
        let (sent, received) = self.totals();
        let conclusion = self.concluded.clone();
        let event = NodeEvent::Finished {
            outcome: if outcome == Outcome::Agreed { "agreed" } else { "abandoned" },
            mask_root: conclusion.as_ref().and_then(|conclusion| conclusion.mask_root),
            transcript: conclusion.as_ref().map(|conclusion| conclusion.transcript.clone()).unwrap_or_default(),
            pruned: conclusion.and_then(|conclusion| conclusion.pruned),
            sent_bytes: sent.total(),
            received_bytes: received.total(),
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
        };
        self.status(None);
        self.say(&event);
        // all are told that we need nobody any more
        for member in self.connected.clone() {
            self.ask_member(member);
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn ending(&self) -> Option<Ending> {
        let (outcome, since) = self.finished?;
        let everybody = self.finished_members.len().saturating_add(1) >= self.parts.names.len();
        let told = self.observed.as_ref().is_none_or(|observed| observed.is_told(LOOKED_AT_GRACE));
        let over = since.elapsed() >= self.parts.config.linger || (everybody && told && since.elapsed() >= GRACE);
        over.then_some(ending_of(outcome))
    }

    /// Says once that this node is through and stays for others: it looks idle, and is not.
    pub(super) fn tell_for_whom_we_stay(&mut self) {
        let Some((_, since)) = self.finished.filter(|_| !self.told_to_stay) else { return };
        let left = self.parts.config.linger.saturating_sub(since.elapsed());
        if since.elapsed() < TOLD_TO_STAY || left.is_zero() {
            return;
        }
        let me = self.parts.machine.me().as_usize();
        let done: Vec<usize> = self.finished_members.iter().map(|member| member.as_usize()).collect();
        let others = self.parts.names.iter().enumerate().filter(|(at, _)| *at != me && !done.contains(at));
        let members: Vec<String> = others.map(|(_, name)| name.clone()).collect();
        self.told_to_stay = true;
        if !members.is_empty() {
            self.say(&NodeEvent::Staying { members, seconds: left.as_secs() });
        }
    }

    pub(super) async fn end(mut self, ending: Ending) -> Result<Ending, NodeError> {
        self.contributor = None;
        tokio::task::block_in_place(|| self.parts.wal.sync())?;
        self.refresh_transcript();
        self.status(Some(if ending == Ending::Stopped { "stopped" } else { self.phase() }));
        self.parts.network.shutdown().await;
        self.write_catalogue(true);
        self.parts.catalogue.close();
        let (sent, received) = self.totals();
        self.say(&NodeEvent::Closed { sent_bytes: sent.total(), received_bytes: received.total(), sent, received });
        Ok(ending)
    }

    /// Adds to the transcript what arrived after it was written: late results above all.
    pub(super) fn refresh_transcript(&mut self) {
        let Some(conclusion) = &self.concluded else { return };
        let outcome = self.finished.map_or(Outcome::Agreed, |(outcome, _)| outcome);
        let inputs = ConcludeInputs::gather(&self.parts, outcome, self.seconds.clone(), self.totals());
        let folder = conclusion.transcript.clone();
        if let Err(error) = tokio::task::block_in_place(|| inputs.write_transcript(&folder)) {
            self.say(&NodeEvent::Warning { text: format!("the transcript was not completed: {}", chain(&error)) });
        }
    }

    pub(super) fn write_catalogue(&mut self, last: bool) {
        let traffic = self.parts.network.traffic();
        let totals = (traffic.sent, traffic.received);
        let Parts { catalogue, machine, blobs, .. } = &mut self.parts;
        if let Some(text) = tokio::task::block_in_place(|| catalogue.write(totals, last, machine, blobs)) {
            self.say(&NodeEvent::Warning { text });
        }
    }

    /// How this node is doing; `ended` is how this process ends, if it does.
    pub(super) fn status_now(&self, ended: Option<&'static str>) -> Status {
        let (sent, received) = self.totals();
        let connected: Vec<String> = self.connected.iter().map(|member| self.name(*member)).collect();
        Status {
            member: self.parts.name.clone(),
            round: self.parts.model.round.id().0,
            running: ended.is_none(),
            phase: ended.unwrap_or_else(|| self.phase()).to_owned(),
            waits_for: self.parts.machine.shortage().map(|shortage| shortage.to_string()),
            height: self.parts.machine.current().0,
            heights: self.parts.machine.heights(),
            connected,
            members: self.parts.names.len(),
            addresses: self.addresses.iter().cloned().collect(),
            sent_bytes: sent.total(),
            received_bytes: received.total(),
            sent,
            received,
            shut_out: self.shut_out.clone(),
            program: self.parts.config.version.to_string(),
            other_programs: self.programs.clone(),
            seconds: self.started.elapsed().as_secs_f64(),
            mask_root: self.concluded.as_ref().and_then(|conclusion| conclusion.mask_root),
            transcript: self.concluded.as_ref().map(|conclusion| conclusion.transcript.clone()),
            pruned: self.concluded.as_ref().and_then(|conclusion| conclusion.pruned.clone()),
            page: self.parts.served.page,
            metrics: self.parts.served.metrics,
        }
    }

    /// Writes `status.json`; `ended` is how this process ends, if it does.
    pub(super) fn status(&mut self, ended: Option<&'static str>) {
        self.publish(ended);
        let status = self.status_now(ended);
        let now = Instant::now();
        if let Some((before, since)) = &self.status
            && before.tells_the_same(&status)
            && now.duration_since(*since) < TRAFFIC_INTERVAL
            && ended.is_none()
        {
            return;
        }
        // the node does not depend on it
        let _ = status.write(&self.parts.folder.status());
        self.status = Some((status, now));
    }

    pub(super) fn phase(&self) -> &'static str {
        let machine = &self.parts.machine;
        match self.finished {
            Some((Outcome::Agreed, _)) => "agreed",
            Some((Outcome::Abandoned(_), _)) => "abandoned",
            None if !machine.has_joined() => "joining",
            None if machine.current().0 >= machine.heights() => "writing the pruned model",
            None => machine.stage(),
        }
    }
}

/// The most memory that this process had: `VmHWM` where there is `/proc`.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
