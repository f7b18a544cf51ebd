//! Processes that never outlive their owner, nor their children theirs.
//!
//! Each process leads a process group of its own, so that a signal of the terminal reaches only the runner and a kill
//! reaches everything that the process started. A group is killed on drop, and when its leader ends. Should the runner
//! itself be killed, Linux kills the leader (`PR_SET_PDEATHSIG`); elsewhere the leader lives on until it ends by itself.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

/// A process with everything it started.
#[derive(Debug)]
pub struct Group {
    child: Child,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts a process. The thread that calls this must outlive it: on Linux, the process dies with the thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        command.process_group(0);
        #[cfg(target_os = "linux")]
        {
            let parent = std::process::id();
            let die_with_parent = move || {
                // SAFETY: prctl with PR_SET_PDEATHSIG takes one number and touches no memory of ours.
                if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the request.
                if std::os::unix::process::parent_id() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            };
            // SAFETY: between fork and exec only prctl and getppid are called, which are async-signal-safe, and
            // nothing allocates: the errors are plain numbers.
            unsafe { command.pre_exec(die_with_parent) };
        }
        Ok(Self { child: command.spawn()?, status: None })
    }

    /// The pipes of the process.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the process ended, if it has; what it started is then killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() && self.has_ended()? {
            self.kill_group();
            self.status = Some(self.child.wait()?);
        }
        Ok(self.status)
    }

    /// Asks the process, alone, to end; if it stands still, it goes on to hear that.
    pub fn terminate(&mut self) {
        if self.status.is_none() {
            self.signal_leader(libc::SIGTERM);
            self.resume();
        }
    }

    /// Lets the process alone stand still. Who waits until all its threads do calls this first and [`Group::pause`]
    /// then: a thread that starts another process is out of reach of signals (vfork) until that one runs, which is
    /// never if both are stopped at once.
    pub fn pause_leader(&mut self) {
        if self.status.is_none() {
            self.signal_leader(libc::SIGSTOP);
        }
    }

    /// Lets the process and what it started stand still.
    pub fn pause(&mut self) {
        if self.status.is_none() {
            self.signal_group(libc::SIGSTOP);
        }
    }

    /// Lets them go on.
    pub fn resume(&mut self) {
        if self.status.is_none() {
            self.signal_group(libc::SIGCONT);
        }
    }

    /// The id of the group, which is that of its leader.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process and what it started, at once.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            self.kill_group();
            self.status = self.child.wait().ok();
        }
    }

    fn pid(&self) -> libc::pid_t {
        // process ids of the system, which it hands out as pid_t
        self.child.id() as libc::pid_t
    }

    /// Whether the leader has ended, without taking note of it: until then its id, which names the group, is not
    /// given to any other process.
    fn has_ended(&self) -> io::Result<bool> {
        // SAFETY: siginfo_t is plain data, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the pointer is to a siginfo_t that lives across the call.
        if unsafe { libc::waitid(libc::P_PID, self.child.id() as libc::id_t, &raw mut info, flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: waitid has filled in the fields of a child's signal, or left zeros.
        Ok(unsafe { info.si_pid() } != 0)
    }

    fn signal_leader(&self, signal: libc::c_int) {
        // SAFETY: kill takes two numbers; the id is of a child that was not waited for, hence not another's.
        unsafe { libc::kill(self.pid(), signal) };
    }

    fn kill_group(&self) {
        self.signal_group(libc::SIGKILL);
    }

    fn signal_group(&self, signal: libc::c_int) {
        // SAFETY: killpg takes two numbers; the leader was not waited for, hence the group is its own.
        unsafe { libc::killpg(self.pid(), signal) };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets no file that the process or its children write grow beyond this: writing fails then, as on a full disk, though
/// the system says EFBIG where it would say ENOSPC. Any user may do so.
pub fn limit_files(command: &mut Command, file_bytes: u64) {
    let limit = move || {
        let limit = libc::rlimit { rlim_cur: file_bytes as libc::rlim_t, rlim_max: file_bytes as libc::rlim_t };
        // SAFETY: setrlimit reads one struct that lives across the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signal takes a number and a constant; ignored, the signal makes writing fail instead of ending the
        // process, and programs that it starts inherit that.
        if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only setrlimit and signal are called, which are async-signal-safe, and nothing
    // allocates.
    unsafe { command.pre_exec(limit) };
}

/// Sees to it that this process may have `needed` open files, which `whose` are; children inherit that.
///
/// # Errors
/// When the system does not allow as many, with what to do.
pub(crate) fn allow_open_files(needed: u64, whose: &str) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a struct that lives across the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= needed as libc::rlim_t {
        return Ok(());
    }
    if limit.rlim_max < needed as libc::rlim_t {
        return Err(io::Error::other(format!(
            "{whose} take {needed} open files, and this process may have {} (RLIMIT_NOFILE, the hard limit): raise it \
             (`ulimit -n {needed}`, as root), or let fewer silos take part",
            limit.rlim_max
        )));
    }
    limit.rlim_cur = needed as libc::rlim_t;
    // SAFETY: setrlimit reads one struct that lives across the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Processes of these groups that are there and no zombies, where the system tells (Linux), and otherwise none.
pub fn left_of(groups: &[u32]) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let of_group = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // after the name, which may hold anything: state, parent, group
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let (state, group) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        (groups.contains(&group) && state != "Z").then_some(process)
    };
    entries.filter_map(of_group).collect()
}

/// A status in words: `code 1`, `signal 9`.
pub fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    use super::*;

    /// Whether a process is there and no zombie.
    pub fn runs(pid: u32) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    }

    /// Waits until a process is gone: a kill is certain, and not instantaneous.
    pub fn is_gone(pid: u32) -> bool {
        (0..2000).any(|_| {
            let gone = !runs(pid);
            if !gone {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            gone
        })
    }

    /// A shell that starts a child, says its id, and waits.
    fn with_child(script: &str) -> (Group, u32) {
        let mut group = Group::spawn(Command::new("sh").args(["-c", script]).stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        BufReader::new(group.child_mut().stdout.take().unwrap()).read_line(&mut line).unwrap();
        (group, line.trim().parse().unwrap())
    }

    #[test]
    fn a_dropped_group_is_gone_with_its_children() {
        // neither of them heeds requests to end
        let (group, child) = with_child("trap '' TERM INT; sleep 600 & echo $!; wait; sleep 600");
        let leader = group.child.id();
        assert!(runs(leader) && runs(child));
        drop(group);
        assert!(!runs(leader) && is_gone(child));
    }

    #[test]
    fn children_end_when_their_leader_does() {
        let (mut group, child) = with_child("sleep 600 & echo $!; exit 7");
        let status = (0..2000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            group.poll().unwrap()
        });
        assert_eq!(in_words(status.unwrap()), "code 7");
        assert!(is_gone(child));
        group.terminate();
        group.kill();
        assert_eq!(in_words(group.poll().unwrap().unwrap()), "code 7");
    }

    #[test]
    fn a_paused_group_stands_still_and_goes_on() {
        let (mut group, child) = with_child("sleep 600 & echo $!; wait");
        let stopped = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
        };
        let within = |what: &dyn Fn() -> bool| {
            (0..2000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(2));
                what()
            })
        };
        group.pause();
        assert!(within(&|| stopped(group.id()) && stopped(child)));
        group.resume();
        assert!(within(&|| !stopped(group.id()) && !stopped(child)));
        group.pause();
        assert_eq!(left_of(&[group.id()]).len(), 2);
        group.terminate();
        let status = (0..2000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(2));
            group.poll().unwrap()
        });
        assert!(status.is_some(), "who is asked to end is not left standing");
        assert!(is_gone(child) && left_of(&[group.id()]).is_empty());
    }

    #[test]
    fn a_full_disk_fails_writing_and_ends_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut command = Command::new("sh");
        // the shell's child, too
        command.args(["-c", "head -c 100000 /dev/zero > \"$0\" 2>/dev/null; echo $?"]).arg(&path);
        limit_files(&mut command, 5000);
        let output = command.stdout(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), "0");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 5000);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_dies_with_whoever_started_it() {
        // the thread stands for the runner: the system sends the signal when the thread ends, however it ends
        let group = std::thread::spawn(|| {
            Group::spawn(Command::new("sh").args(["-c", "trap '' TERM INT HUP; sleep 600"])).unwrap()
        })
        .join()
        .unwrap();
        assert!(is_gone(group.child.id()));
    }
}
