//! Flag > environment > file > default, for every setting; homes as `fedprune init` makes them; services.

#![allow(clippy::print_stdout, reason = "says when nothing is checked")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(folder: &Path, environment: &[(String, String)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fedprune-under-test"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FEDPRUNE_") {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().cloned()).args(arguments).current_dir(folder).output().expect("the program starts")
}

fn json(folder: &Path, environment: &[(String, String)], arguments: &[&str]) -> Value {
    let output = run(folder, environment, &[arguments, &["--format", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A value of a setting for the file, the environment and the command line: none is the default.
fn values(key: &str) -> [&'static str; 3] {
    match key {
        "mdns" | "relay" | "dcutr" | "autonat" => ["true", "false", "true"],
        "linger" | "threads" => ["11", "12", "13"],
        "device" => ["cuda:1", "cuda:2", "cuda:3"],
        "dtype" => ["f16", "bf16", "f32"],
        "listen" => ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/3"],
        "dial" => ["a=/ip4/127.0.0.1/tcp/1", "b=/ip4/127.0.0.1/tcp/2", "c=/ip4/127.0.0.1/tcp/3"],
        "round" => [
            "1111111111111111111111111111111111111111111111111111111111111111",
            "2222222222222222222222222222222222222222222222222222222222222222",
            "3333333333333333333333333333333333333333333333333333333333333333",
        ],
        "model" | "data" => ["/from/file", "/from/environment", "/from/flag"],
        "field" => ["file", "environment", "flag"],
        other => panic!("`{other}` is a new setting: give it values here"),
    }
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    json(at, &[], &["init", "--home", "home"]);
    let config = at.join("home/config.toml");
    let show = |environment: &[(String, String)], more: &[&str]| {
        let arguments = ["node", "run", "--home", "home", "--show-settings"];
        let base: Vec<&str> = arguments.into_iter().chain(more.iter().copied()).collect();
        json(at, environment, &base)["settings"].as_array().unwrap().clone()
    };
    let required = ["--model", "/any"];
    let all: Vec<String> =
        show(&[], &required).iter().map(|setting| setting["key"].as_str().unwrap().to_owned()).collect();
    assert!(all.len() >= 13, "{all:?}");
    let quoted = ["mdns", "relay", "dcutr", "autonat", "linger", "threads"];
    for key in &all {
        let [file, environment, flag] = values(key);
        let line =
            if quoted.contains(&key.as_str()) { format!("{key} = {file}\n") } else { format!("{key} = \"{file}\"\n") };
        let variable = (format!("FEDPRUNE_{}", key.to_uppercase()), environment.to_owned());
        let option = format!("--{}={flag}", key.replace('_', "-"));
        let more: Vec<&str> = if key == "model" { Vec::new() } else { required.to_vec() };
        let found = |environment: &[(String, String)], more: &[&str]| {
            let settings = show(environment, more);
            let setting = settings.iter().find(|setting| setting["key"] == key.as_str()).unwrap().clone();
            let values: Vec<&str> = setting["values"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            (setting["source"].as_str().unwrap().to_owned(), values.join(" "), setting["place"].clone())
        };
        std::fs::write(&config, "\n".to_owned() + &line).unwrap();
        let (source, value, place) = found(&[], &more);
        assert_eq!((source.as_str(), value.as_str()), ("file", file), "{key}");
        assert!(place.as_str().unwrap().ends_with("home/config.toml, line 2"), "{place}");
        let (source, value, place) = found(std::slice::from_ref(&variable), &more);
        assert_eq!(
            (source.as_str(), value.as_str(), place.as_str()),
            ("environment", environment, Some(variable.0.as_str())),
            "{key}"
        );
        let with_flag: Vec<&str> = more.iter().copied().chain([option.as_str()]).collect();
        let (source, value, _) = found(std::slice::from_ref(&variable), &with_flag);
        assert_eq!((source.as_str(), value.as_str()), ("flag", flag), "{key}");
        std::fs::write(&config, "").unwrap();
        if key != "model" {
            let (source, value, _) = found(&[], &more);
            let expected = ["default", "not set"].contains(&source.as_str());
            assert!(expected && value != file, "{key}: {source} {value}");
        }
    }
}

#[test]
fn paths_of_the_file_are_relative_to_its_folder_and_other_commands_take_them_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let made = json(at, &[], &["init", "--home", "a/home", "--model", "here/model", "--data", "x.txt", "y"]);
    assert_eq!(made["key_kept"], false);
    let text = std::fs::read_to_string(at.join("a/home/config.toml")).unwrap();
    let absolute = at.canonicalize().unwrap().join("here/model");
    assert!(text.contains(&format!("model = \"{}\"", absolute.display())), "{text}");
    std::fs::write(at.join("a/home/config.toml"), "model = \"model\"\ndata = [\"notes\", \"/else/where\"]\n").unwrap();
    let shown = json(at, &[], &["node", "run", "--home", "a/home", "--show-settings"]);
    let of = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).unwrap()["values"].clone()
    };
    assert_eq!(of("model"), serde_json::json!(["a/home/model"]));
    assert_eq!(of("data"), serde_json::json!(["a/home/notes", "/else/where"]));
    // the home may come from the environment, and its file with it
    let home = ("FEDPRUNE_HOME".to_owned(), "a/home".to_owned());
    let shown = json(at, &[home], &["node", "run", "--show-settings"]);
    assert_eq!(shown["settings"].as_array().unwrap().len(), of_all(at));
    // nothing is overwritten
    let again = run(at, &[], &["init", "--home", "a/home"]);
    assert_eq!(again.status.code(), Some(1));
    // a key that was there is kept
    let key = std::fs::read(at.join("a/home/key.pem")).unwrap();
    std::fs::remove_file(at.join("a/home/config.toml")).unwrap();
    assert_eq!(json(at, &[], &["init", "--home", "a/home"])["key_kept"], true);
    assert_eq!(std::fs::read(at.join("a/home/key.pem")).unwrap(), key);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| std::fs::metadata(at.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a/home"), mode("a/home/key.pem"), mode("a/home/config.toml")), (0o700, 0o600, 0o600));
}

fn of_all(at: &Path) -> usize {
    let shown = json(at, &[], &["node", "run", "--home", "a/home", "--show-settings"]);
    shown["settings"].as_array().unwrap().len()
}

#[test]
fn systemd_takes_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let home = "a home 50%";
    json(at, &[], &["init", "--home", home, "--model", "model", "--data", "notes"]);
    for (name, more) in [("system", vec![]), ("user", vec!["--user"]), ("limited", vec!["--memory-max", "3G"])] {
        let unit = format!("fedprune-{name}.service");
        let mut arguments = vec!["node", "install", "--home", home, "--out", &unit];
        arguments.extend(more);
        let made = json(at, &[], &arguments);
        assert!(made["next"][1].as_str().unwrap().contains(&unit), "{made:#}");
        let text = std::fs::read_to_string(at.join(&unit)).unwrap();
        assert!(text.contains("a home 50%%\"") && text.contains("NoNewPrivileges=yes"), "{text}");
        assert_eq!(text.contains("ProtectSystem=strict") && text.contains("\nUser="), name != "user", "{text}");
        assert_eq!(text.contains("\nMemoryMax=3G"), name == "limited", "{text}");
        let again = run(at, &[], &arguments);
        assert_eq!(again.status.code(), Some(1), "{}", String::from_utf8_lossy(&again.stderr));
        let mode = if name == "user" { "--user" } else { "--system" };
        let analyze = Command::new("systemd-analyze")
            .env("XDG_RUNTIME_DIR", at)
            .args([mode, "verify", "--man=no"])
            .arg(at.join(&unit))
            .output();
        match analyze {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let ours: Vec<&str> = said.lines().filter(|line| line.contains(&unit)).collect();
                assert!(output.status.success() && ours.is_empty(), "{unit}: {said}\n{text}");
            }
            Err(error) => {
                // standard error of tests is theirs
                let said = "systemd-analyze is not here, and the unit was not verified";
                let _ = writeln!(std::io::stderr(), "{said}: {error}");
            }
        }
    }
    let printed = run(at, &[], &["node", "install", "--home", home, "--print"]);
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.lines().any(|line| line.starts_with("ExecStart=")), "{printed}");
}
