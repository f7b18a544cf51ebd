//! Manifests drawn from a seed: who takes part, what goes wrong, and what must come of it all the same.
//!
//! What is expected follows from what was drawn. At most f members are *faulty*: absent, dead for good, or lying; any
//! number of others are *disturbed*: killed and started again, paused, with a wrong clock or a full disk for a while,
//! behind links that lose, delay or stop bytes and heal. Then every honest member that is up at the end comes to the
//! same mask, the ballots of all undisturbed members are in it, and nobody but the liars is accused. One seed in eight
//! draws one member more that is missing from the beginning than may fail: then nothing may be decided, and nobody is
//! accused either.
//!
//! A round may be over within a second. So that links are disturbed while it lasts, that begins with the first node or
//! at an event that comes before anything is decided, and concerns nodes that are there.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::simulator::Random;

/// Fewest and most silos that are drawn.
const SILOS: (u64, u64) = (4, 7);
/// One seed in so many draws more missing members than may fail.
const STALLS_ONE_IN: u64 = 8;
/// How long a round that must stall is watched, in seconds.
const STALL_SECONDS: u64 = 20;
/// How long a round may take, in seconds, on a machine that has other things to do.
const ROUND_SECONDS: u64 = 180;

/// Names of silos.
const NAMES: [&str; 7] = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove"];
/// Bundled texts.
const TEXTS: [&str; 4] = ["austen_emma", "melville_moby_dick", "speeches_1945_1953", "speeches_1953_1958"];
/// Points of its own code that every honest node passes, whatever the others do.
const CERTAIN_POINTS: [&str; 4] = ["header-written", "held-written", "settled-written", "mid-apply"];
/// Points that a node passes before it votes.
const EARLY_POINTS: [&str; 2] = ["ballot-stored", "header-written"];
/// Events that every honest node prints before the round is decided.
const EARLY_EVENTS: [&str; 3] = ["joined", "computing", "ballot"];
/// Ways to lie, as `fedprune-lying-node` calls them, for rounds in which each member derives the mask.
const LIES: [&str; 8] =
    ["mute", "silent-aggregator", "second-ballot", "first-ballot", "two-results", "forged", "withheld-body", "flood"];
/// Another one, for rounds in which the aggregator does.
const ELECTED_LIES: [&str; 8] =
    ["mute", "silent-aggregator", "second-ballot", "first-ballot", "wrong-mask", "forged", "withheld-body", "flood"];

/// What becomes of one silo.
struct Silo {
    name: &'static str,
    /// Lines of its own table.
    lines: Vec<String>,
    faulty: bool,
    disturbed: bool,
    lies: bool,
}

/// The manifest of a seed, as a text; the same one for the same seed.
pub fn generate(seed: u64) -> String {
    let mut random = Random::named(seed, "manifest");
    let count = random.between(SILOS.0, SILOS.1) as usize;
    let may_fail = (count - 1) / 3;
    let stalls = random.below(STALLS_ONE_IN) == 0;
    let iterative = !stalls && random.per_mille(200);
    let elected = random.per_mille(350);
    let mut silos: Vec<Silo> = NAMES
        .into_iter()
        .take(count)
        .map(|name| Silo { name, lines: Vec::new(), faulty: false, disturbed: false, lies: false })
        .collect();
    let mut perturbations = Vec::new();
    let order = random.sample(count, count);
    let faulty = if stalls { may_fail + 1 } else { random.between(0, may_fail as u64) as usize };
    for number in order.iter().take(faulty) {
        if let Some(silo) = silos.get_mut(*number) {
            fail(silo, stalls, elected, &mut random);
        }
    }
    let mut calm = true;
    if !stalls {
        for number in order.iter().skip(faulty) {
            if random.per_mille(350)
                && let Some(silo) = silos.get_mut(*number)
            {
                perturbations.extend(disturb(silo, &mut random));
            }
        }
        for _ in 0..random.below(3) {
            let (lines, harmless) = disturb_links(&silos, &mut random);
            calm &= harmless;
            perturbations.push(lines);
        }
    }
    write(seed, &silos, &perturbations, &Terms { stalls, iterative, elected, calm }, &mut random)
}

/// What all silos have in common.
struct Terms {
    stalls: bool,
    iterative: bool,
    elected: bool,
    /// Whether all links pass ballots in time.
    calm: bool,
}

/// Makes a silo faulty.
fn fail(silo: &mut Silo, early: bool, elected: bool, random: &mut Random) {
    silo.faulty = true;
    match random.below(if early { 2 } else { 4 }) {
        0 => silo.lines.push("start = false".to_owned()),
        1 if early => silo.lines.push(format!("kill = {{ point = \"{}\" }}", one_of(&EARLY_POINTS, random))),
        1 => silo.lines.push(format!("kill = {{ point = \"{}\" }}", one_of(&CERTAIN_POINTS, random))),
        _ => {
            silo.lies = true;
            let lie = one_of(if elected { &ELECTED_LIES } else { &LIES }, random);
            silo.lines.push(format!("lie = \"{lie}\""));
        }
    }
}

/// Disturbs the process of an honest silo, which is up again at the end.
fn disturb(silo: &mut Silo, random: &mut Random) -> Option<String> {
    let name = silo.name;
    let again = random.between(100, 2500);
    let event = one_of(&EARLY_EVENTS, random);
    // a wrong clock and a late start change nothing that is agreed on
    silo.disturbed = true;
    Some(match random.below(6) {
        0 => {
            let days = random.between(1, 3000) as i64;
            let skew_ms = if random.per_mille(500) { -days } else { days } * 86_400_000;
            silo.lines.push(format!("clock_skew_ms = {skew_ms}"));
            silo.disturbed = false;
            return None;
        }
        1 => {
            silo.lines.push(format!("start_after_ms = {again}"));
            silo.disturbed = false;
            return None;
        }
        2 => {
            let point = one_of(&CERTAIN_POINTS, random);
            perturbation(
                "kill",
                &[("who", quoted(name)), ("point", quoted(point)), ("restart_after_ms", again.to_string())],
            )
        }
        3 => perturbation(
            "restart",
            &[("who", quoted(name)), ("event", quoted(event)), ("restart_after_ms", again.to_string())],
        ),
        4 => perturbation("pause", &[("who", quoted(name)), ("event", quoted(event)), ("for_ms", again.to_string())]),
        _ => {
            let bytes = random.between(20_000, 1_000_000).to_string();
            perturbation(
                "disk-full",
                &[("who", quoted(name)), ("file_bytes", bytes), ("restart_after_ms", again.to_string())],
            )
        }
    })
}

/// Disturbs links; whether ballots pass in time all the same.
fn disturb_links(silos: &[Silo], random: &mut Random) -> (String, bool) {
    let begins = ("event", quoted(one_of(&EARLY_EVENTS, random)));
    let lasts = ("for_ms", random.between(500, 4000).to_string());
    // with at most f faulty members there are three at least
    let honest: Vec<&str> = silos.iter().filter(|silo| !silo.faulty).map(|silo| silo.name).collect();
    let name = one_of(&honest, random);
    let one_way = ("one_way", random.per_mille(300).to_string());
    match random.below(5) {
        0 => (perturbation("delay", &[("delay_ms", random.between(5, 120).to_string())]), true),
        1 => (perturbation("loss", &[("loss_per_mille", random.between(10, 60).to_string())]), false),
        2 => {
            let rate = ("bytes_per_second", random.between(60_000, 400_000).to_string());
            (perturbation("slow", &[("who", quoted(name)), one_way, rate]), false)
        }
        3 => (perturbation("disconnect", &[("who", quoted(name)), begins, lasts]), false),
        _ => {
            // somebody honest is on each side
            let size = random.between(1, (honest.len() as u64).saturating_sub(1)) as usize;
            let members = random.sample(honest.len(), size);
            let names: Vec<String> =
                members.iter().filter_map(|member| honest.get(*member)).map(|name| quoted(name)).collect();
            (perturbation("partition", &[("groups", format!("[[{}]]", names.join(", "))), begins, lasts]), false)
        }
    }
}

fn perturbation(what: &str, keys: &[(&str, String)]) -> String {
    let mut text = format!("[[perturb]]\nwhat = \"{what}\"\n");
    for (key, value) in keys {
        let _ = writeln!(text, "{key} = {value}"); // a string takes everything
    }
    text
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn one_of<'a>(all: &[&'a str], random: &mut Random) -> &'a str {
    all.get(random.index(all.len())).copied().unwrap_or_default()
}

fn write(seed: u64, silos: &[Silo], perturbations: &[String], terms: &Terms, random: &mut Random) -> String {
    let mut text = format!("# drawn by `fedprune testnet generate --seed {seed}`\nname = \"seed-{seed}\"\n");
    text.push_str("model = \"bundled\"\n\n");
    for silo in silos {
        let data = one_of(&TEXTS, random);
        let _ = writeln!(text, "[[silo]]\nname = \"{}\"\ndata = [\"bundled:{data}\"]", silo.name);
        silo.lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text.push('\n');
    }
    perturbations.iter().for_each(|lines| text.push_str(&format!("{lines}\n")));
    // with all ballots a height does not wait for the time to be over; with a missing member it does
    let missing = silos.iter().any(|silo| silo.faulty);
    let contribution = match (terms.iterative, missing) {
        (true, true) => 4,
        (false, true) => 10,
        (_, false) => 30,
    };
    let strategy = if terms.iterative { "iterative" } else { "one-shot" };
    let tally = if terms.elected { "elected" } else { "every-peer" };
    let _ = writeln!(
        text,
        "[round]\nsparsity = \"0.5\"\nnsamples = 4\nseqlen = 64\nseed = \"from-round\"\nstrategy = \"{strategy}\"\n\
         tally = \"{tally}\"\ncontribution_seconds = {contribution}\nproposal_ms = 2000\nvote_ms = 1000\n\
         growth_ms = 500\n\n[expect]"
    );
    if terms.stalls {
        // nobody lies in such a round
        let _ = writeln!(text, "outcome = \"stalled\"\naccused_only = []\nwithin_seconds = {STALL_SECONDS}");
        return text;
    }
    let undisturbed = |silo: &&Silo| !silo.faulty && !silo.disturbed;
    if terms.calm && !terms.iterative {
        let names: Vec<String> = silos.iter().filter(undisturbed).map(|silo| quoted(silo.name)).collect();
        let _ = writeln!(text, "contributors_include = [{}]", names.join(", "));
    }
    let liars: BTreeSet<String> = silos.iter().filter(|silo| silo.lies).map(|silo| quoted(silo.name)).collect();
    let liars: Vec<String> = liars.into_iter().collect();
    let _ = writeln!(text, "accused_only = [{}]\nwithin_seconds = {ROUND_SECONDS}", liars.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::manifest::{Begin, Disturbance, How, Manifest, Outcome, Silo};

    #[test]
    fn every_seed_is_a_manifest_whose_faults_the_round_survives_or_that_says_that_it_stalls() {
        let (mut stalled, mut lies, mut hows, mut links) = (0, BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for seed in 0..400 {
            let text = generate(seed);
            assert_eq!(text, generate(seed), "the same seed is the same manifest");
            let manifest = Manifest::parse(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            let silos = &manifest.silos;
            let missing = silos.iter().filter(|silo| !silo.must_finish()).count();
            let may_fail = (silos.len() - 1) / 3;
            if manifest.expect.outcome == Outcome::Stalled {
                stalled += 1;
                assert_eq!(missing, may_fail + 1, "{text}");
                assert!(silos.iter().all(|silo| silo.lie.is_none()), "{text}");
                assert_eq!(manifest.expect.accused_only, Some(BTreeSet::new()), "{text}");
            } else {
                assert!(missing <= may_fail, "{text}");
                assert!(manifest.link_faults.iter().all(|fault| {
                    let heals = !matches!(fault.disturbance, Disturbance::Cut | Disturbance::Stall);
                    heals || fault.lasts.is_some()
                }));
                for fault in &manifest.link_faults {
                    // from the first node on, or at what all print before anything is decided
                    let early = match &fault.begins {
                        Begin::After(after) => *after == Duration::ZERO,
                        Begin::Event(who, event) => {
                            let finishes = who.and_then(|who| silos.get(who)).is_none_or(Silo::must_finish);
                            finishes && EARLY_EVENTS.contains(&event.as_str())
                        }
                    };
                    let up = |silo: &usize| silos.get(*silo).is_some_and(Silo::must_finish);
                    assert!(early && fault.pairs.iter().any(|(one, other)| up(one) && up(other)), "{text}");
                }
            }
            lies.extend(silos.iter().filter_map(|silo| silo.lie.clone()));
            hows.extend(silos.iter().flat_map(|silo| &silo.faults).map(|fault| match fault.how {
                How::Kill => "kill",
                How::Restart => "restart",
                How::Pause => "pause",
                How::FullDisk { .. } => "disk-full",
            }));
            links.extend(manifest.link_faults.iter().map(|fault| fault.name));
        }
        assert!((20..100).contains(&stalled), "{stalled}");
        assert_eq!((lies.len(), hows.len(), links.len()), (9, 4, 5), "{lies:?} {hows:?} {links:?}");
    }
}
