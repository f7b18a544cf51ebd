use super::*;

const SILO_A: &str = "[[silo]]\nname = \"a\"\ndata = [\"bundled:emma\", \"texts/a.txt\"]\n";
const SILO_B: &str = "[[silo]]\nname = \"b\"\ndata = [\"b\"]\n";

/// A manifest of two silos, with more at the end.
fn with(more: &str) -> Result<Manifest, ManifestError> {
    let expect = if more.contains("[expect]") { "" } else { "[expect]\n" };
    Manifest::parse(&format!("name = \"t\"\nmodel = \"bundled\"\n{SILO_B}{SILO_A}{more}\n{expect}"))
}

fn refused(more: &str) -> String {
    with(more).expect_err(more).to_string()
}

#[test]
fn says_who_and_what() {
    let manifest =
        with("[round]\nsparsity = \"0.5\"\nnsamples = 8\nweight = [\"a=2\", \"b=3\"]\nmask_only = true\n").unwrap();
    let names: Vec<&str> = manifest.silos.iter().map(|silo| silo.name.as_str()).collect();
    assert_eq!(names, ["a", "b"], "by name, whatever their order in the document");
    assert_eq!(
        manifest.silos[0].data,
        [Source::Bundled("emma".to_owned()), Source::Path(PathBuf::from("texts/a.txt"))]
    );
    assert_eq!(manifest.round["nsamples"], RoundOption::Number(8));
    assert_eq!(manifest.round["mask_only"], RoundOption::Switch(true));
    assert_eq!(manifest.round["weight"], RoundOption::List(vec!["a=2".to_owned(), "b=3".to_owned()]));
    assert_eq!(manifest.expect.within, Duration::from_secs(DEFAULT_SECONDS));
    assert_eq!(manifest.expect.outcome, Outcome::Agreed);
    assert!(manifest.silos.iter().all(Silo::must_finish));
}

#[test]
fn says_what_is_expected() {
    let root = "ab".repeat(32);
    let expect = format!(
        "[expect]\ncontributors = [\"a\"]\nmask_root = \"{root}\"\nwithin_seconds = 5\nevidence_against = []\n"
    );
    let expect = with(&expect).unwrap().expect;
    assert_eq!(expect.contributors, Some(Contributors::Names(BTreeSet::from(["a".to_owned()]))));
    assert_eq!(expect.mask_root, Some(root.parse().unwrap()));
    assert_eq!((expect.evidence_against, expect.fault_named), (Some(BTreeSet::new()), None));
    assert_eq!(with("[expect]\ncontributors = 2").unwrap().expect.contributors, Some(Contributors::Count(2)));
    assert_eq!(with("[expect]\noutcome = \"abandoned\"").unwrap().expect.outcome, Outcome::Abandoned);
    for (wrong, why) in [
        ("contributors = 3", "3 of 2 silos"),
        ("contributors = [\"c\"]", "`c` is no silo"),
        ("contributors = true", "a number of silos or a list of their names"),
        ("fault_named = [\"c\"]", "`c` is no silo"),
        ("outcome = \"won\"", "won"),
        ("outcome = \"abandoned\"\ncontributors = 2", "no mask"),
        ("within_seconds = 0", "use 1 to"),
        ("within_seconds = 86401", "use 1 to"),
        ("mask_root = \"ab\"", "64 hexadecimal digits"),
    ] {
        let error = refused(&format!("[expect]\n{wrong}\n"));
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

#[test]
fn unknown_keys_are_refused_with_their_line() {
    for wrong in ["", "[expect]\n", "[[perturb]]\nwho = \"a\"\nafter_ms = 1\n"] {
        let error = refused(&format!("{wrong}colour = \"red\"\n"));
        assert!(error.starts_with("line ") && error.contains("colour"), "{error}");
    }
    assert!(refused("kill = { pint = \"x\" }").contains("pint"));
    assert!(matches!(refused("[expect\n"), error if error.starts_with("line 9: ")));
}

#[test]
fn paths_stay_below_the_manifest() {
    for path in ["../x", "/etc/passwd", "a/../../x", "a/..", "--out", "", "a\\nb", &"x".repeat(MAX_TEXT_BYTES + 1)] {
        for manifest in [
            format!("name = \"t\"\nmodel = \"{path}\"\n{SILO_A}[expect]\n"),
            format!("name = \"t\"\nmodel = \"bundled\"\n[[silo]]\nname = \"a\"\ndata = [\"{path}\"]\n[expect]\n"),
            format!("name = \"t\"\nmodel = \"bundled\"\n[[silo]]\nname = \"a\"\nballot = \"{path}\"\n[expect]\n"),
        ] {
            assert!(matches!(Manifest::parse(&manifest), Err(ManifestError::Value { .. })), "{manifest}");
        }
    }
    assert!(with("ballot = \"./made/a.ballot\"").is_ok());
}

#[test]
fn names_are_fit_for_folders_and_arguments() {
    for name in ["", "A", "a b", "..", "a/b", "-a", "é", &"a".repeat(MAX_NAME_BYTES + 1), "aggregator"] {
        let silo =
            format!("name = \"t\"\nmodel = \"bundled\"\n[[silo]]\nname = \"{name}\"\ndata = [\"x\"]\n[expect]\n");
        assert!(Manifest::parse(&silo).is_err(), "{name}");
    }
    assert!(refused("[[silo]]\nname = \"a\"\ndata = [\"x\"]\n").contains("two silos are called `a`"));
}

#[test]
fn everything_is_bounded() {
    assert_eq!(
        Manifest::parse(&" ".repeat(MANIFEST_LIMIT + 1)),
        Err(DocumentError::TooLarge { bytes: MANIFEST_LIMIT + 1, limit: MANIFEST_LIMIT }.into())
    );
    let silos =
        |count: usize| (0..count).map(|n| format!("[[silo]]\nname = \"s{n}\"\ndata = [\"x\"]\n")).collect::<String>();
    let manifest = |silos: String| Manifest::parse(&format!("name = \"t\"\nmodel = \"m\"\n{silos}[expect]\n"));
    assert_eq!(manifest(silos(MAX_SILOS)).unwrap().silos.len(), MAX_SILOS);
    assert!(manifest(silos(MAX_SILOS + 1)).unwrap_err().to_string().contains("65 silos"));
    assert!(manifest(String::new()).is_err());
    let paths = vec!["\"x\""; MAX_DATA_PATHS + 1].join(",");
    assert!(refused(&format!("[[silo]]\nname = \"c\"\ndata = [{paths}]\n")).contains("at most 64 paths"));
    assert!(refused("start_after_ms = 86400001").contains("more than a day"));
    let options: String = (0..=MAX_ROUND_OPTIONS).map(|n| format!("o{n} = 1\n")).collect();
    assert!(refused(&format!("[round]\n{options}")).contains("at most 64 options"));
    let kills = "[[perturb]]\nwho = \"a\"\nafter_ms = 1\nrestart_after_ms = 1\n";
    assert!(with(&kills.repeat(MAX_FAULTS)).is_ok());
    assert!(refused(&kills.repeat(MAX_FAULTS + 1)).contains("at most 16 kills"));
}

#[test]
fn options_of_the_round_are_options() {
    for (option, why) in [
        ("\"--out\" = 1", "no option"),
        ("\"Sparsity\" = 1", "no option"),
        ("out = \"x\"", "the runner itself"),
        ("model = \"x\"", "the runner itself"),
        ("sparsity = \"--out\"", "without `-`"),
        ("sparsity = 0.5", "a text in quotes"),
        ("weight = [\"-x\"]", "without `-`"),
    ] {
        let error = refused(&format!("[round]\n{option}\n"));
        assert!(error.contains(why), "{option}: {error}");
    }
}

#[test]
fn kills_say_when_and_can_happen() {
    let silo = with("kill = { event = \"ballot\", restart_after_ms = 5 }").unwrap().silos.remove(0);
    let ends_after = Some(Duration::from_millis(5));
    assert_eq!(silo.faults, [Fault { how: How::Kill, when: When::Event("ballot".to_owned()), ends_after }]);
    assert!(silo.must_finish());
    assert!(!with("kill = { point = \"header-written\" }").unwrap().silos[0].must_finish());
    for (wrong, why) in [
        ("kill = {}", "one of `point`, `event` and `after_ms`"),
        ("kill = { point = \"x\", after_ms = 1 }", "one of"),
        ("kill = { event = \"finished\" }", "earlier event"),
        ("kill = { point = \"x\" }\nstart = false", "never starts"),
        ("kill = { point = \"x\" }\nfail_at = \"y\"", "one of the two"),
        ("kill = { point = \"x\" }\n[[perturb]]\nwho = \"a\"\nafter_ms = 1", "only the last"),
        ("[[perturb]]\nwho = \"c\"\nafter_ms = 1", "no silo has this name"),
        ("[[perturb]]\nwho = \"a\"\nview = 1\nafter_ms = 1", "who = \"aggregator\""),
        (
            "kill = { after_ms = 1 }\n[[silo]]\nname = \"c\"\ndata = [\"c\"]\n[[perturb]]\nwho = \"b\"\nafter_ms = 1\n[[perturb]]\nwho = \"c\"\nafter_ms = 1",
            "no node is left",
        ),
        ("start = false\n[[perturb]]\nwho = \"aggregator\"\npoint = \"x\"", "it may be `a`"),
    ] {
        let error = refused(wrong);
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

/// A node learns of these when it starts, and a pause does not start it.
#[test]
fn what_needs_a_start_does_not_follow_a_pause() {
    let pause = "[[perturb]]\nwhat = \"pause\"\nwho = \"a\"\nevent = \"joined\"\nfor_ms = 7\n";
    let kill = "[[perturb]]\nwho = \"a\"\npoint = \"x\"\nrestart_after_ms = 1\n";
    let full = "[[perturb]]\nwhat = \"disk-full\"\nwho = \"a\"\nfile_bytes = 5000\nrestart_after_ms = 1\n";
    let restart = "[[perturb]]\nwhat = \"restart\"\nwho = \"a\"\nevent = \"ballot\"\nrestart_after_ms = 1\n";
    for (next, what) in [(kill, "a kill at point `x`"), (full, "a full disk")] {
        for before in [pause.to_owned(), format!("{kill}{pause}{pause}")] {
            let error = refused(&format!("{before}{next}"));
            assert!(
                error.starts_with("`silo a: pause`") && error.contains(what) && error.contains("`restart`"),
                "{error}"
            );
        }
        assert!(with(&format!("{next}{pause}")).is_ok());
        assert!(with(&format!("{pause}{restart}{next}")).is_ok());
    }
    assert!(with(&format!("{pause}{restart}{pause}")).is_ok());
    // whose they are is known later
    let of_aggregators = format!("{pause}{kill}").replace("\"a\"", "\"aggregator\"");
    let mut manifest = with(&of_aggregators).unwrap();
    manifest.silos[1].faults = manifest.aggregator_faults.drain(..).map(|asked| asked.fault).collect();
    let error = manifest.check_faults().unwrap_err().to_string();
    assert!(error.starts_with("`silo b: pause`"), "{error}");
}

#[test]
fn an_aggregator_is_named_by_its_turn() {
    let manifest = with("[[perturb]]\nwho = \"aggregator\"\nview = 1\npoint = \"proposal-written\"\n").unwrap();
    let when = When::Point("proposal-written".to_owned());
    let fault = Fault { how: How::Kill, when, ends_after: None };
    assert_eq!(manifest.aggregator_faults, [AggregatorFault { height: 0, view: 1, fault }]);
}

#[test]
fn a_silo_needs_a_text_or_a_ballot_unless_it_never_starts() {
    assert!(refused("[[silo]]\nname = \"c\"\n").contains("it has no text"));
    assert!(with("[[silo]]\nname = \"c\"\nstart = false\n").is_ok());
    assert!(with("[[silo]]\nname = \"c\"\nballot = \"c.ballot\"\n").is_ok());
}

/// A perturbation, after two silos.
fn perturbed(lines: &str) -> Result<Manifest, ManifestError> {
    with(&format!("[[perturb]]\n{lines}\n"))
}

#[test]
fn processes_are_paused_restarted_and_run_out_of_disk() {
    let of = |lines: &str| perturbed(lines).unwrap().silos.swap_remove(1).faults.remove(0);
    let ms = |given| Some(Duration::from_millis(given));
    let paused = of("what = \"pause\"\nwho = \"b\"\nevent = \"joined\"\nfor_ms = 700");
    let when = When::Event("joined".to_owned());
    assert_eq!(paused, Fault { how: How::Pause, when: when.clone(), ends_after: ms(700) });
    let restarted = of("what = \"restart\"\nwho = \"b\"\nevent = \"joined\"\nrestart_after_ms = 7");
    assert_eq!(restarted, Fault { how: How::Restart, when, ends_after: ms(7) });
    let full = of("what = \"disk-full\"\nwho = \"b\"\nfile_bytes = 50000\nrestart_after_ms = 7");
    assert_eq!(full, Fault { how: How::FullDisk { file_bytes: 50_000 }, when: When::Start, ends_after: ms(7) });
    let silo = with("lie = \"mute\"\nclock_skew_ms = -5000").unwrap().silos.remove(0);
    assert_eq!((silo.lie.as_deref(), silo.clock_skew_ms, silo.must_finish()), (Some("mute"), -5000, false));
    assert!(refused("clock_skew_ms = 315360000001").contains("clock_skew_ms"));
    assert!(refused("lie = \"\"").contains("silo a: lie"));
}

#[test]
fn faults_of_links_name_every_pair() {
    let of = |lines: &str| perturbed(lines).unwrap().link_faults.remove(0);
    let both = BTreeSet::from([(0, 1), (1, 0)]);
    let delay = of("what = \"delay\"\ndelay_ms = 40");
    assert_eq!((delay.disturbance, &delay.pairs), (Disturbance::Delay(Duration::from_millis(40)), &both));
    assert_eq!((delay.begins, delay.lasts), (Begin::After(Duration::ZERO), None));
    let loss = of("what = \"loss\"\nwho = \"b\"\nloss_per_mille = 20\none_way = true\nafter_ms = 5\nfor_ms = 9");
    assert_eq!((loss.disturbance, loss.pairs), (Disturbance::Loss { per_mille: 20 }, BTreeSet::from([(1, 0)])));
    assert_eq!((loss.begins, loss.lasts), (Begin::After(Duration::from_millis(5)), Some(Duration::from_millis(9))));
    let slow = of("what = \"slow\"\nwho = \"a\"\nto = [\"b\"]\nbytes_per_second = 20000\nevent = \"ballot\"");
    assert_eq!((slow.disturbance, &slow.pairs), (Disturbance::Slow { bytes_per_second: 20_000 }, &both));
    assert_eq!(slow.begins, Begin::Event(Some(0), "ballot".to_owned()));
    let apart = of("what = \"partition\"\ngroups = [[\"a\"]]\nevent = \"ballot\"");
    assert_eq!((apart.disturbance, &apart.pairs), (Disturbance::Stall, &both), "those left over are a group");
    assert_eq!(apart.begins, Begin::Event(None, "ballot".to_owned()));
    assert_eq!(of("what = \"disconnect\"\nwho = \"a\"").disturbance, Disturbance::Cut);
}

#[test]
fn perturbations_that_cannot_be_name_their_key() {
    for (wrong, why) in [
        ("what = \"flood\"\nwho = \"a\"", "flood"),
        ("after_ms = 1", "say `who`"),
        ("what = \"pause\"\nwho = \"a\"\nafter_ms = 1", "`for_ms`"),
        ("what = \"restart\"\nwho = \"a\"\nafter_ms = 1", "`restart_after_ms`"),
        ("what = \"pause\"\nwho = \"a\"\nafter_ms = 1\nfor_ms = 1\npoint = \"x\"", "`point` does not go with"),
        ("what = \"disk-full\"\nwho = \"a\"", "give `file_bytes`"),
        ("what = \"disk-full\"\nwho = \"a\"\nfile_bytes = 1", "use 4096 to"),
        ("what = \"disk-full\"\nwho = \"aggregator\"\nfile_bytes = 5000", "no silo has this name"),
        ("what = \"delay\"", "give `delay_ms`"),
        ("what = \"delay\"\ndelay_ms = 10001", "use 1 to 10000"),
        ("what = \"loss\"\nloss_per_mille = 501", "use 1 to 500"),
        ("what = \"slow\"\nbytes_per_second = 1", "use 1000 to"),
        ("what = \"slow\"\nbytes_per_second = 1000\nrestart_after_ms = 1", "`restart_after_ms` does not go with"),
        ("what = \"delay\"\ndelay_ms = 1\nwho = \"c\"", "no silo is called `c`"),
        ("what = \"delay\"\ndelay_ms = 1\none_way = true", "give `who`"),
        ("what = \"disconnect\"\nwho = \"a\"\none_way = true", "`one_way` does not go with"),
        ("what = \"delay\"\ndelay_ms = 1\nwho = \"a\"\nto = [\"a\"]", "no link is between"),
        ("what = \"delay\"\ndelay_ms = 1\nevent = \"ballot\"\nafter_ms = 1", "not both"),
        ("what = \"delay\"\ndelay_ms = 1\nfor_ms = 86400001", "more than a day"),
        ("what = \"partition\"", "give `groups`"),
        ("what = \"partition\"\ngroups = [[\"a\", \"b\"]]", "no link is between"),
        ("what = \"partition\"\ngroups = [[\"a\"], [\"a\"]]", "twice"),
        ("what = \"partition\"\ngroups = [[\"a\"]]\nwho = \"b\"", "not both"),
    ] {
        let error = perturbed(wrong).expect_err(wrong).to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
    let many = "[[perturb]]\nwhat = \"delay\"\ndelay_ms = 1\n";
    assert!(with(&many.repeat(MAX_LINK_FAULTS)).is_ok());
    assert!(refused(&many.repeat(MAX_LINK_FAULTS + 1)).contains("at most 64 faults of links"));
    let include = |names: &str| with(&format!("[expect]\ncontributors_include = [{names}]\n"));
    assert_eq!(include("\"a\"").unwrap().expect.contributors_include, BTreeSet::from(["a".to_owned()]));
    assert!(include("\"c\"").unwrap_err().to_string().contains("`c` is no silo"));
    assert!(refused("[expect]\noutcome = \"stalled\"\ncontributors_include = [\"a\"]\n").contains("no mask"));
    assert!(refused("[expect]\noutcome = \"stalled\"\nfault_named = []\n").contains("no transcript"));
    assert!(with("[expect]\noutcome = \"stalled\"\naccused_only = []\nshut_out = [\"a\"]\n").is_ok());
}
