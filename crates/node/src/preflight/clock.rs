//! Whether something keeps this machine's clock right, as far as the system can tell.

/// What the system says of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// A time service keeps it.
    Synchronised {
        /// How far it may be off at most, in milliseconds, if that is known.
        most_ms: Option<u64>,
    },
    /// Nothing keeps it.
    Free,
    /// The system does not say.
    Unknown,
}

/// What systemd-timesyncd leaves where it has set the clock.
#[cfg(target_os = "linux")]
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";

/// Asks the system.
///
/// Linux's kernel knows, since time services tell it (`adjtimex(2)`); where it is not asked, such as in a sandbox, the
/// mark of systemd-timesyncd says yes or nothing.
pub fn clock() -> Clock {
    #[cfg(target_os = "linux")]
    {
        let mut state = std::mem::MaybeUninit::<libc::timex>::zeroed();
        // SAFETY: `state` is writable memory of the type that the call fills; zeroed, it asks and changes nothing.
        let answer = unsafe { libc::adjtimex(state.as_mut_ptr()) };
        if answer >= 0 {
            // SAFETY: the call succeeded and filled the structure, which is plain integers and was zeroed before.
            let state = unsafe { state.assume_init() };
            if answer == libc::TIME_ERROR || state.status & libc::STA_UNSYNC != 0 {
                return Clock::Free;
            }
            // microseconds
            return Clock::Synchronised { most_ms: u64::try_from(state.maxerror).ok().map(|most| most.div_ceil(1000)) };
        }
        if std::path::Path::new(TIMESYNC_MARK).exists() {
            return Clock::Synchronised { most_ms: None };
        }
    }
    Clock::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_changes_nothing() {
        let told = |clock| match clock {
            Clock::Synchronised { .. } => 0,
            Clock::Free => 1,
            Clock::Unknown => 2,
        };
        assert_eq!(told(clock()), told(clock()));
    }
}
