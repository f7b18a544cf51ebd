//! Settings of a home: flag > environment > `HOME/config.toml` > default.
//!
//! An option that has a variable of the environment is a setting: the same name, with `_` for `-`, is a key of
//! `config.toml`. Nothing lists them but the options themselves. The file is merged here and nowhere else, before the
//! command line is parsed for good: what it says becomes the default of its option, checked by the option's own parser.
//! Paths in it are relative to its folder, so that they mean the same whoever starts the node.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use fedprune_federation::document;
use serde::Serialize;
use toml::{Spanned, Value};

use crate::args::{self as arguments, Arguments, NodeCommand};
use crate::exit::Usage;
use crate::files::{program, read_small, shell};
use crate::output::tame;

/// The name of the file.
pub const FILE: &str = "config.toml";
/// Most bytes of it.
pub const LIMIT_BYTES: usize = 64 << 10;
/// Most characters of a line of comment in a new file.
const COMMENT_CHARS: usize = 100;

/// What is in the way of parsing.
pub enum Refusal {
    /// The command line; clap says it as it does, help and version included.
    CommandLine(clap::Error),
    /// The file.
    File(anyhow::Error),
}

/// One setting as it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// As in `config.toml`.
    pub key: String,
    /// As they would be typed; empty if it is not set.
    pub values: Vec<String>,
    /// `flag`, `environment`, `file`, `default` or `not set`.
    pub source: &'static str,
    /// Which variable, or which line of which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// The answer of `fedprune node run --show-settings`.
#[derive(Debug, Clone, Serialize)]
pub struct SettingsReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    settings: Vec<Setting>,
}

crate::report!(SettingsReport);

/// Values of a file by the id of their option, with the line of each.
type FromFile = BTreeMap<String, (Vec<OsString>, usize)>;

/// The whole command line with values of the environment left out of help, since they are not part of the program.
pub fn command() -> Command {
    hide_values(Arguments::command())
}

fn hide_values(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(hide_values)
}

/// Whether an option is a setting.
fn is_setting(arg: &Arg) -> bool {
    arg.get_env().is_some() && arg.get_long().is_some() && arg.get_id() != "home" && !arg.is_global_set()
}

/// The name of a setting in the file.
fn key_of(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

/// The options of all settings, each once, in the order of `node run`; those of other commands come after.
fn options(command: &Command) -> Vec<Arg> {
    let mut found: Vec<Arg> = Vec::new();
    let of_node = ["node", "run"].map(str::to_owned);
    collect(at(command, &of_node).unwrap_or(command), &mut found);
    collect(command, &mut found);
    found
}

fn collect(command: &Command, found: &mut Vec<Arg>) {
    for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
        if !found.iter().any(|known| known.get_long() == arg.get_long()) {
            found.push(arg.clone());
        }
    }
    command.get_subcommands().for_each(|child| collect(child, found));
}

/// All settings with the options that take them, by key.
fn settings(command: &Command) -> BTreeMap<String, Arg> {
    options(command).into_iter().map(|arg| (key_of(&arg), arg)).collect()
}

/// Parses the arguments of this process.
///
/// # Errors
/// [`Refusal`].
pub fn parse() -> Result<Arguments, Refusal> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let strict = command();
    // What the file may still supply is not missed the first time. If that fails, the strict parser says so better.
    let Ok(first) = relaxed(strict.clone()).try_get_matches_from(&words) else {
        return finish(strict, &words, None, None);
    };
    let Some(home) = deepest(&first).1.try_get_one::<PathBuf>("home").ok().flatten().cloned() else {
        return finish(strict, &words, None, None);
    };
    let file = home.join(FILE);
    if file.symlink_metadata().is_err() {
        return finish(strict, &words, Some(&home), None);
    }
    let (path, _) = deepest(&first);
    if !at(&strict, &path).is_some_and(|command| command.get_arguments().any(is_setting)) {
        return finish(strict, &words, Some(&home), None);
    }
    let from_file = read(&file, &strict).map_err(Refusal::File)?;
    let merged = merge(strict, &path, &from_file);
    finish(merged, &words, Some(&home), Some((&file, &from_file)))
}

/// The names of the sub-commands that were chosen, and the matches of the last.
fn deepest(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = inner;
    }
    (path, matches)
}

fn at<'a>(command: &'a Command, path: &[String]) -> Option<&'a Command> {
    path.iter().try_fold(command, |command, name| command.find_subcommand(name))
}

/// The same with no setting required.
fn relaxed(command: Command) -> Command {
    command.mut_args(|arg| if is_setting(&arg) { arg.required(false) } else { arg }).mut_subcommands(relaxed)
}

/// The command line with the values of a file in place of defaults, for the sub-command at `path`.
fn merge(command: Command, path: &[String], from_file: &FromFile) -> Command {
    match path.split_first() {
        Some((name, rest)) => command.mut_subcommand(name.clone(), |child| merge(child, rest, from_file)),
        None => command.mut_args(|arg| match from_file.get(arg.get_id().as_str()) {
            Some((values, _)) if is_setting(&arg) => arg.required(false).default_values(values.clone()),
            _ => arg,
        }),
    }
}

fn finish(
    mut command: Command,
    words: &[OsString],
    home: Option<&Path>,
    file: Option<(&PathBuf, &FromFile)>,
) -> Result<Arguments, Refusal> {
    let matches = match command.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        Err(error) => return Err(Refusal::CommandLine(with_tip(error, &command, words, home))),
    };
    let (path, chosen) = deepest(&matches);
    let typed = |id: &str| {
        let known = matches!(chosen.try_contains_id(id), Ok(true));
        known && chosen.value_source(id) == Some(ValueSource::CommandLine)
    };
    if typed("ballot") && typed("data") {
        let message = "a ballot that was computed elsewhere reads no text; drop --ballot or --data";
        return Err(Refusal::CommandLine(command.error(ErrorKind::ArgumentConflict, message)));
    }
    let mut arguments =
        Arguments::from_arg_matches(&matches).map_err(|error| Refusal::CommandLine(error.format(&mut command)))?;
    // a ballot that is typed goes before text of the environment or the file
    if let (true, arguments::Command::Node(NodeCommand::Run(run))) = (typed("ballot"), &mut arguments.command) {
        run.data.clear();
    }
    if let Some(chosen_command) = at(&command, &path) {
        arguments.settings = shown(chosen_command, chosen, file);
    }
    Ok(arguments)
}

/// Says where a value came from that nobody typed, and where one that is missing may be written down.
fn with_tip(mut error: clap::Error, command: &Command, words: &[OsString], home: Option<&Path>) -> clap::Error {
    let tip = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(ContextValue::String(named))) => {
            let long = named.trim_start_matches("--").split([' ', '=', '[']).next().unwrap_or_default();
            let typed = words.iter().any(|word| word.to_string_lossy().starts_with(&format!("--{long}")));
            let arg = options(command).into_iter().find(|arg| arg.get_long() == Some(long));
            let variable = arg.and_then(|arg| arg.get_env().map(|name| name.to_string_lossy().into_owned()));
            variable
                .filter(|name| !typed && std::env::var_os(name).is_some())
                .map(|name| format!("nobody typed this: it is the value of the environment's {name}"))
        }
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing))) => {
            let keys: Vec<String> = options(command)
                .iter()
                .filter(|arg| {
                    missing
                        .iter()
                        .any(|missing| missing.starts_with(&format!("--{} ", arg.get_long().unwrap_or_default())))
                })
                .map(|arg| format!("`{}`", key_of(arg)))
                .collect();
            let homeless = missing.iter().any(|missing| missing.starts_with("--home "));
            (!keys.is_empty() && !homeless).then(|| match home.filter(|home| !home.exists()) {
                Some(home) => {
                    let home = crate::files::shell(home);
                    format!("there is no folder `{home}`; `fedprune init --home {home}` makes one, with its settings")
                }
                None => {
                    format!("{} may also stand in {FILE} of the home, which `fedprune init` makes", keys.join(", "))
                }
            })
        }
        _ => None,
    };
    if let Some(tip) = tip {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Each setting of a command with its values and where they come from.
fn shown(command: &Command, matches: &ArgMatches, file: Option<(&PathBuf, &FromFile)>) -> Vec<Setting> {
    let of = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let from_file = file.and_then(|(path, values)| values.get(id).map(|(_, line)| (path, line)));
        let raw = matches.try_get_raw(id).ok().flatten();
        let values: Vec<String> =
            raw.map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect()).unwrap_or_default();
        let (source, place) = match (matches.value_source(id), from_file) {
            (Some(ValueSource::CommandLine), _) => ("flag", None),
            (Some(ValueSource::EnvVariable), _) => {
                ("environment", arg.get_env().map(|name| name.to_string_lossy().into_owned()))
            }
            (Some(ValueSource::DefaultValue), Some((path, line))) => {
                ("file", Some(format!("{}, line {line}", path.display())))
            }
            (Some(ValueSource::DefaultValue), None) => ("default", None),
            _ => ("not set", None),
        };
        Setting { key: key_of(arg), values, source, place }
    };
    command.get_arguments().filter(|arg| is_setting(arg)).map(of).collect()
}

impl SettingsReport {
    /// Of a home.
    pub fn new(home: &Path, settings: &[Setting]) -> Self {
        Self { file: home.join(FILE), settings: settings.to_vec() }
    }

    fn text(&self) -> String {
        let row = |setting: &Setting| {
            let place = setting.place.as_ref().map_or_else(String::new, |place| format!(" ({place})"));
            let values = if setting.values.is_empty() { "–".to_owned() } else { setting.values.join(" ") };
            [setting.key.clone(), values, format!("{}{place}", setting.source)]
        };
        let rows: Vec<[String; 3]> = self.settings.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        let line = |[key, values, source]: &[String; 3]| {
            format!("{key:<first$}  {:<second$}  {}\n", tame(values), tame(source))
        };
        let text: String = rows.iter().map(line).collect();
        format!("{text}\nedit {} to change what the file says", shell(&self.file))
    }
}

/// Reads a file and checks every key and value.
fn read(path: &Path, command: &Command) -> anyhow::Result<FromFile> {
    let bytes = read_small(path, LIMIT_BYTES)?;
    let shown = path.display();
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        Usage(format!("`{shown}` is no text: {error}; write it anew, such as `{} init` does", program()))
    })?;
    let settings = settings(command);
    let wrong = |line: usize, problem: String| Usage(format!("`{shown}` line {line}: {problem}"));
    let entries: BTreeMap<Spanned<String>, Spanned<Value>> =
        document::read(text, LIMIT_BYTES).map_err(|error| Usage(format!("`{shown}` {error}")))?;
    let mut values = FromFile::new();
    for (key, value) in &entries {
        let line = line_of(text, key.span().start);
        let Some(arg) = settings.get(key.get_ref()) else {
            let known: Vec<String> = settings.keys().map(|key| format!("`{key}`")).collect();
            let found: String = key.get_ref().chars().take(64).collect();
            return Err(
                wrong(line, format!("there is no setting `{found}`; the settings are {}", known.join(", "))).into()
            );
        };
        let key = key.get_ref();
        let line = line_of(text, value.span().start);
        let words = words(arg, value.get_ref())
            .map_err(|expected| wrong(line, format!("`{key}` is {}, and must be {expected}", kind(value.get_ref()))))?;
        check(arg, &words).map_err(|problem| wrong(line, format!("`{key}` cannot be used: {problem}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let words = if is(arg, TypeId::of::<PathBuf>()) {
            words.iter().map(|word| folder.join(word).into_os_string()).collect()
        } else {
            words
        };
        values.insert(arg.get_id().to_string(), (words, line));
    }
    Ok(values)
}

/// A value by its kind.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

fn line_of(text: &str, start: usize) -> usize {
    let before = text.as_bytes().get(..start).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1)
}

fn is(arg: &Arg, id: TypeId) -> bool {
    arg.get_value_parser().type_id() == id
}

fn is_switch(arg: &Arg) -> bool {
    is(arg, TypeId::of::<bool>())
}

fn is_number(arg: &Arg) -> bool {
    [TypeId::of::<u64>(), TypeId::of::<u32>(), TypeId::of::<u16>(), TypeId::of::<usize>()]
        .into_iter()
        .any(|id| is(arg, id))
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.get_num_args().is_some_and(|range| range.max_values() > 1)
}

/// The words that would be typed for a value of the file.
fn words(arg: &Arg, value: &Value) -> Result<Vec<OsString>, &'static str> {
    if let (true, Value::Array(items)) = (is_list(arg), value) {
        let words: Option<Vec<OsString>> = items.iter().map(|item| item.as_str().map(OsString::from)).collect();
        return words.ok_or("a list of strings");
    }
    match value {
        Value::Boolean(switch) if is_switch(arg) => Ok(vec![switch.to_string().into()]),
        Value::Integer(number) if is_number(arg) => Ok(vec![number.to_string().into()]),
        Value::String(text) if !is_switch(arg) && !is_number(arg) => Ok(vec![text.into()]),
        _ if is_switch(arg) => Err("true or false"),
        _ if is_number(arg) => Err("a whole number"),
        _ if is_list(arg) => Err("a list of strings"),
        _ => Err("a string"),
    }
}

/// Lets the option's own parser look at the values.
fn check(arg: &Arg, words: &[OsString]) -> Result<(), String> {
    let long = arg.get_long().unwrap_or_default().to_owned();
    // alone, so that it stands in no relation to others
    let mut alone = Arg::new("value").long(long.clone()).action(ArgAction::Append).num_args(1);
    alone = alone.value_parser(arg.get_value_parser().clone());
    let typed = words.iter().map(|word| {
        let mut typed = OsString::from(format!("--{long}="));
        typed.push(word);
        typed
    });
    let command = Command::new("setting").no_binary_name(true).disable_help_flag(true).arg(alone);
    let error = match command.try_get_matches_from(typed) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if let Some(source) = std::error::Error::source(&error) {
        return Err(source.to_string());
    }
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => format!("`{value}` is none of its values"),
        _ => "it has a value that it cannot have".to_owned(),
    };
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
            let valid: Vec<String> = valid.iter().map(|value| format!("`{value}`")).collect();
            Err(format!("{value}; use one of {}", valid.join(", ")))
        }
        _ => Err(value),
    }
}

/// A new file, with every setting explained; `given` are those that are set, as they would be typed.
///
/// # Errors
/// When a path is no Unicode, which TOML cannot hold.
pub fn template(given: &[(&str, Vec<PathBuf>)]) -> anyhow::Result<String> {
    let mut text = "\
# Settings of this member's node. What is typed goes before the environment, the environment before this file, this
# file before the default. A line that begins with # does nothing: remove the # to change a setting.
# Relative paths are relative to this folder. `fedprune node run --show-settings` says what came out, and why.
"
    .to_owned();
    for arg in options(&command()) {
        let key = key_of(&arg);
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let help = if defaults.is_empty() || help.contains("[default:") {
            help
        } else {
            format!("{help} [default: {}]", defaults.join(" "))
        };
        let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        text.push('\n');
        for line in wrapped(&format!("{help}. Flag --{}, environment {variable}.", arg.get_long().unwrap_or_default()))
        {
            text.push_str(&format!("# {line}\n"));
        }
        match given.iter().find(|(name, values)| *name == key && !values.is_empty()) {
            Some((_, values)) => {
                let values = values
                    .iter()
                    .map(|value| value.to_str().map(str::to_owned))
                    .collect::<Option<Vec<_>>>()
                    .with_context(|| {
                    format!("`{key}` has a path that is no Unicode, which `{FILE}` cannot hold")
                })?;
                text.push_str(&format!("{key} = {}\n", in_toml(&arg, &values)));
            }
            None => {
                let placeholder = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
                let values = if defaults.is_empty() { placeholder.into_iter().collect() } else { defaults };
                text.push_str(&format!("# {key} = {}\n", in_toml(&arg, &values)));
            }
        }
    }
    Ok(text)
}

fn in_toml(arg: &Arg, values: &[String]) -> String {
    let one = values.first().cloned().unwrap_or_default();
    if is_switch(arg) || (is_number(arg) && one.parse::<u64>().is_ok()) {
        return one;
    }
    if is_number(arg) {
        return "1".to_owned();
    }
    if is_list(arg) {
        let items = values.iter().map(|value| Value::String(value.clone()).to_string());
        return format!("[{}]", items.collect::<Vec<_>>().join(", "));
    }
    Value::String(one).to_string()
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COMMENT_CHARS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        let error = read(&path, &command()).unwrap_err();
        assert_eq!(crate::exit::code(&error), crate::exit::USAGE);
        format!("{error:#}")
    }

    #[test]
    fn a_new_file_names_every_setting_and_reads_back() {
        let text =
            template(&[("model", vec!["/models/a \"b\"".into()]), ("data", vec!["x".into(), "y".into()])]).unwrap();
        let settings = settings(&command());
        assert!(settings.len() >= 12, "{:?}", settings.keys());
        for key in settings.keys() {
            let lines = text.lines().filter(|line| {
                line.trim_start_matches("# ").strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with(" = "))
            });
            assert_eq!(lines.count(), 1, "`{key}` in:\n{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, &text).unwrap();
        let values = read(&path, &command()).unwrap();
        assert_eq!(values.len(), 2);
        assert_eq!(values["model"].0, ["/models/a \"b\""]);
        assert_eq!(values["data"].0, [folder.path().join("x"), folder.path().join("y")]);
        // what is shown as a default can be set to it
        let defaults: String = text
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| {
                let arg = line.split_once(" = ").and_then(|(key, _)| settings.get(key));
                arg.is_some_and(|arg| !arg.get_default_values().is_empty())
            })
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(defaults.lines().count() >= 6, "{defaults}");
        std::fs::write(&path, &defaults).unwrap();
        read(&path, &command()).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file_and_line() {
        for (text, says) in [
            ("\n\nmodle = \"x\"\n", "line 3: there is no setting `modle`; the settings are `"),
            ("# hello\nlinger = \"600\"\n", "line 2: `linger` is a string, and must be a whole number"),
            ("linger = -1\n", "line 1: `linger` cannot be used: "),
            ("mdns = \"yes\"\n", "line 1: `mdns` is a string, and must be true or false"),
            ("model = [\"a\"]\n", "line 1: `model` is a list, and must be a string"),
            ("data = [\n  \"a\",\n  7,\n]\n", "line 1: `data` is a list, and must be a list of strings"),
            ("device = \"gpu\"\n", "line 1: `device` cannot be used: "),
            ("listen = [\"/ip4/127.0.0.1/tcp/4100\", \"nowhere\"]\n", "line 1: `listen` cannot be used: "),
            ("model = \"a\"\nmodel = \"b\"\n", "line 2: duplicate key"),
            ("model = \n", "line 1: "),
            ("[node]\nmodel = \"a\"\n", "line 1: there is no setting `node`"),
            ("home = \"elsewhere\"\n", "line 1: there is no setting `home`"),
        ] {
            let error = refused(text);
            assert!(error.contains(&format!("{FILE}` ")) && error.contains(says), "{text:?}: {error}");
        }
    }
}
