//! `fedprune node install`: a systemd unit that runs the node of a home, with as few rights as it needs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_model::DeviceName;
use fedprune_node::storage::home::Home;
use serde::Serialize;

use super::preflight::needed_memory_bytes;
use crate::args::NodeInstallOptions;
use crate::files::{absolute, check_new, create_document, program, shell};
use crate::output::{facts, tame};
use crate::settings::{FILE, Setting};

/// The name of the unit.
const UNIT: &str = "fedprune-node.service";
/// Where units of the system are.
const SYSTEM_FOLDER: &str = "/etc/systemd/system";

/// The answer of `fedprune node install`.
#[derive(Debug, Serialize)]
pub struct InstallReport {
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    text: String,
    warnings: Vec<String>,
    /// What to type next.
    next: Vec<String>,
}

crate::report!(InstallReport);

/// Writes or prints a unit.
///
/// # Errors
/// A home that is none, a unit that exists already, or a path that no unit can name.
pub fn run(options: &NodeInstallOptions, settings: &[Setting]) -> anyhow::Result<InstallReport> {
    if !options.home.is_dir() {
        bail!(
            "`{}` is not a folder; make a home with: {} init --home {}",
            options.home.display(),
            program(),
            shell(&options.home)
        );
    }
    let home =
        options.home.canonicalize().with_context(|| format!("cannot tell where `{}` is", options.home.display()))?;
    let mut warnings = Vec::new();
    let in_file = |key: &str| settings.iter().any(|setting| setting.key == key && setting.source == "file");
    if !in_file("model") {
        let file = home.join(FILE);
        warnings.push(if file.exists() {
            format!("`{}` says no `model`, without which the service does not start", file.display())
        } else {
            format!(
                "`{}` is missing, without which the service does not start: {} init --home {}",
                file.display(),
                program(),
                shell(&home)
            )
        });
    }
    let owner = owner(&home)?;
    if owner == "root" && !options.user {
        warnings.push(format!(
            "`{0}` is root's, and so the node would run as root; make a user for it: \
             useradd --system --home-dir {1} fedprune; chown -R fedprune: {1}",
            home.display(),
            shell(&home)
        ));
    }
    let memory = options.memory_max.clone().or_else(|| suggested_memory(options));
    let text = unit(options, &home, &owner, memory.as_deref())?;
    if options.print {
        return Ok(InstallReport { unit: None, text, warnings, next: Vec::new() });
    }
    let path = match &options.out {
        Some(path) => absolute(path)?,
        None => default_path(options.user)?,
    };
    if options.out.is_none()
        && options.user
        && let Some(folder) = path.parent()
    {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    }
    check_new(&path)?;
    create_document(&path, text.as_bytes())?;
    let user = if options.user { " --user" } else { "" };
    let name = path.file_name().map_or_else(|| UNIT.to_owned(), |name| name.to_string_lossy().into_owned());
    let next = vec![
        format!("systemctl{user} daemon-reload"),
        format!("systemctl{user} enable --now {name}"),
        format!("journalctl{user} -fu {name}"),
    ];
    Ok(InstallReport { unit: Some(path.to_string_lossy().into_owned()), text, warnings, next })
}

fn default_path(user: bool) -> anyhow::Result<PathBuf> {
    if !user {
        return Ok(Path::new(SYSTEM_FOLDER).join(UNIT));
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let config = config.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    Ok(config
        .context("the environment does not say where units of this user go; give --out FILE")?
        .join("systemd/user")
        .join(UNIT))
}

/// Who owns a folder, by name where the system has one.
fn owner(folder: &Path) -> anyhow::Result<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = std::fs::metadata(folder).with_context(|| format!("cannot look at `{}`", folder.display()))?.uid();
        let users = crate::files::read_small(Path::new("/etc/passwd"), 1 << 20).unwrap_or_default();
        let users = String::from_utf8_lossy(&users).into_owned();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == id.to_string()).then(|| name.to_owned())
        });
        Ok(name.unwrap_or_else(|| id.to_string()))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        bail!("there are no systemd services on this system")
    }
}

/// Twice what computing a ballot needs, in whole gibibytes, if round and model are there to tell.
fn suggested_memory(options: &NodeInstallOptions) -> Option<String> {
    let checkpoint = Checkpoint::open(options.model.as_deref()?).ok()?;
    let home = Home::inspect(&options.home).ok()?;
    let consortium = home.consortium().ok()?;
    let (round, _) = home.round(&consortium, options.round).ok()?;
    let needed = needed_memory_bytes(&round, &checkpoint, &options.device).saturating_mul(2);
    Some(format!("{}G", needed.div_ceil(1 << 30)))
}

/// A word of a command line of systemd: quoted, without specifiers or variables.
fn word(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    let text = text.with_context(|| format!("`{}` has a name that no unit can hold; move it", path.display()))?;
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

/// A path of a list of paths, where `$` has no meaning.
fn listed(path: &Path) -> anyhow::Result<String> {
    Ok(word(path)?.replace("$$", "$"))
}

fn unit(options: &NodeInstallOptions, home: &Path, owner: &str, memory: Option<&str>) -> anyhow::Result<String> {
    let fedprune = std::env::current_exe().context("the system does not say where this program lies")?;
    let (fedprune, place) = (word(&fedprune)?, word(home)?);
    let mut unit = format!(
        "\
# Made by `fedprune node install`. Settings are in config.toml of the home folder.
[Unit]
Description=fedprune node
Documentation=https://github.com/fedprune/fedprune/blob/main/docs/operator.md
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
ExecStart={fedprune} node run --home {place}
Restart=on-failure
RestartSec=10
# not understood, network or membership, refused: repeating does not help
RestartPreventExitStatus=2 3 4
# what a node exits with that was asked to stop
SuccessExitStatus=130
TimeoutStopSec=60
UMask=0077
"
    );
    if !options.user {
        let _ = writeln!(unit, "User={owner}");
    }
    match memory {
        Some(memory) => {
            let _ = writeln!(unit, "MemoryMax={memory}");
        }
        None => unit.push_str("# twice what `fedprune preflight` says that the model needs\n# MemoryMax=8G\n"),
    }
    unit.push_str("\n# It may write in its home alone, and gains nothing.\nNoNewPrivileges=yes\n");
    if options.user {
        unit.push_str("# what hides folders needs the system's manager\n");
    } else {
        let _ = write!(
            unit,
            "\
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
CapabilityBoundingSet=
",
            listed(home)?
        );
    }
    // a private /tmp would hide a home that lies there
    if !options.user && !home.starts_with("/tmp") && !home.starts_with("/var/tmp") {
        unit.push_str("PrivateTmp=yes\n");
    }
    unit.push_str(
        "\
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
",
    );
    if matches!(options.device.device, DeviceName::Cpu) {
        unit.push_str("MemoryDenyWriteExecute=yes\n");
        if !options.user {
            unit.push_str("PrivateDevices=yes\n");
        }
    }
    let target = if options.user { "default.target" } else { "multi-user.target" };
    let _ = write!(unit, "\n[Install]\nWantedBy={target}\n");
    Ok(unit)
}

impl InstallReport {
    fn text(&self) -> String {
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        match &self.unit {
            None => {
                // what is printed is a unit, warnings included
                let warnings: String =
                    self.warnings.iter().map(|warning| format!("# warning: {}\n", tame(warning))).collect();
                format!("{warnings}{}", self.text)
            }
            Some(unit) => {
                let next: String = self.next.iter().map(|command| format!("\nnext: {command}")).collect();
                format!("{}{warnings}{next}", facts(&[("unit", unit.clone())]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_mean_nothing_to_systemd() {
        let escaped = |path: &str| word(Path::new(path)).unwrap();
        assert_eq!(escaped("/a b"), "\"/a b\"");
        assert_eq!(escaped("/50%/$x"), "\"/50%%/$$x\"");
        assert_eq!(escaped("/a\"\\"), "\"/a\\\"\\\\\"");
        assert_eq!(listed(Path::new("/$x%")).unwrap(), "\"/$x%%\"");
        assert!(word(Path::new("/a\nExecStart=/bin/sh")).is_err());
    }
}
