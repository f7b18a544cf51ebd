//! The learning rate over a run, bounded by a number of steps, by time, or by both.

/// Learning rate: linear warm-up, then half a cosine down to a fraction of the peak.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Highest learning rate, reached at the end of the warm-up.
    pub peak: f64,
    /// Learning rate at the end, as a fraction of the peak.
    pub final_fraction: f64,
    /// Warm-up, in steps.
    pub warm_up_steps: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Seconds of the whole run, if time bounds it too.
    pub seconds: Option<f64>,
}

impl Schedule {
    /// How much of the run is done, from 0 to 1, after `step` steps and `elapsed_s` seconds: the
    /// larger of the two fractions, so that the cosine ends when the run does whichever bound is
    /// met first.
    pub fn progress(&self, step: u64, elapsed_s: f64) -> f64 {
        let by_steps = step as f64 / self.steps.max(1) as f64;
        let by_time = self.seconds.map_or(0.0, |seconds| elapsed_s / seconds.max(f64::MIN_POSITIVE));
        by_steps.max(by_time).clamp(0.0, 1.0)
    }

    /// The learning rate of the step numbered `step` from 0, begun after `elapsed_s` seconds.
    pub fn learning_rate(&self, step: u64, elapsed_s: f64) -> f64 {
        let warm_up = ((step + 1) as f64 / self.warm_up_steps.max(1) as f64).min(1.0);
        let cosine = (1.0 + (std::f64::consts::PI * self.progress(step, elapsed_s)).cos()) / 2.0;
        self.peak * warm_up * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule =
        Schedule { peak: 0.01, final_fraction: 0.1, warm_up_steps: 10, steps: 1000, seconds: None };

    #[test]
    fn the_rate_rises_then_falls_to_the_final_fraction() {
        assert!((SCHEDULE.learning_rate(0, 0.0) - 0.001).abs() < 1e-6);
        assert!((SCHEDULE.learning_rate(9, 0.0) - 0.01).abs() < 1e-4);
        assert!((SCHEDULE.learning_rate(500, 0.0) - 0.0055).abs() < 1e-6);
        assert!((SCHEDULE.learning_rate(1000, 0.0) - 0.001).abs() < 1e-9);
        let rates: Vec<f64> = (10..=1000).map(|step| SCHEDULE.learning_rate(step, 0.0)).collect();
        assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]));
    }

    #[test]
    fn time_ends_the_run_when_it_is_met_first() {
        let timed = Schedule { seconds: Some(60.0), ..SCHEDULE };
        assert_eq!(timed.progress(10, 30.0), 0.5);
        assert_eq!(timed.progress(900, 30.0), 0.9);
        assert_eq!(timed.progress(10, 90.0), 1.0);
        assert_eq!(SCHEDULE.progress(10, 1e9), 0.01);
    }
}
