//! Where the time of a callback or an iteration went, from what was seen of its thread.
//!
//! The processor time and the time in the run queue are the system's. The rest of the time the thread was asleep: what it waited
//! for then is estimated from samples, each of which stands for half of the time since the one before and until the one after it.
//! What happened before the observation began is taken to have been like the rest.

use super::run_monitor::Run;
use super::thread_state::ThreadTimes;

/// What a thread did at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    Runnable,
    WaitingForGil,
    Asleep,
}

/// Whether waits for the GIL can be told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GilWaits {
    /// There is no GIL.
    Never,
    Sampled,
    Unknown,
}

/// The parts of a duration, in seconds; None for what is not known. If all are known they add up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Breakdown {
    pub processor: Option<f64>,
    pub waiting_for_gil: Option<f64>,
    pub not_scheduled: Option<f64>,
    pub asleep: Option<f64>,
}

/// What was seen of a run's thread since the run was first seen. Times are in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    pub run: Run,
    /// The system's number of the thread.
    pub thread: u64,
    pub began: u64,
    times: Option<ThreadTimes>,
    last: (u64, Option<Sample>),
    samples: u32,
    waiting_for_gil: u64,
    asleep: u64,
}

impl Observation {
    pub fn new(run: Run, thread: u64, now: u64, times: Option<ThreadTimes>) -> Observation {
        Observation {
            run,
            thread,
            began: now,
            times,
            last: (now, None),
            samples: 0,
            waiting_for_gil: 0,
            asleep: 0,
        }
    }

    pub fn add(&mut self, now: u64, sample: Option<Sample>) {
        let (then, before) = std::mem::replace(&mut self.last, (now, sample));
        self.samples += u32::from(sample.is_some());
        let half = now.wrapping_sub(then) / 2;
        for part in [before, sample] {
            match part {
                Some(Sample::WaitingForGil) => self.waiting_for_gil += half,
                Some(Sample::Asleep) => self.asleep += half,
                Some(Sample::Runnable) | None => {}
            }
        }
    }

    /// Breaks down the `duration` of the run, which has ended. `times` are those of its thread by then, and it was observed for
    /// `observed`, in seconds.
    pub fn breakdown(
        &self,
        duration: f64,
        observed: f64,
        times: Option<ThreadTimes>,
        gil: GilWaits,
    ) -> Breakdown {
        let (Some(before), Some(after)) = (self.times, times) else { return Breakdown::default() };
        if observed <= 0.0 {
            return Breakdown::default();
        }
        let scale = duration / observed;
        let processor = (after.processor - before.processor).clamp(0.0, observed);
        let mut breakdown = Breakdown { processor: Some(processor * scale), ..Breakdown::default() };
        let (Some(queued), Some(queued_until)) = (before.not_scheduled, after.not_scheduled) else {
            return breakdown;
        };
        let not_scheduled = (queued_until - queued).clamp(0.0, observed - processor);
        breakdown.not_scheduled = Some(not_scheduled * scale);
        let rest = (observed - processor - not_scheduled).max(0.0) * scale;
        let share = match gil {
            GilWaits::Never => 0.0,
            GilWaits::Sampled if self.samples > 0 => {
                // If it was never found asleep, it hardly was.
                self.waiting_for_gil as f64 / (self.waiting_for_gil + self.asleep).max(1) as f64
            }
            GilWaits::Sampled | GilWaits::Unknown => return breakdown,
        };
        breakdown.waiting_for_gil = Some(rest * share);
        breakdown.asleep = Some(rest * (1.0 - share));
        breakdown
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const RUN: Run = Run { number: 1, began: 0 };

    fn times(processor: f64, not_scheduled: Option<f64>) -> Option<ThreadTimes> {
        Some(ThreadTimes { processor, not_scheduled })
    }

    fn observation() -> Observation {
        Observation::new(RUN, 1, 100, times(1.0, Some(2.0)))
    }

    #[test]
    fn the_parts_add_up_to_the_duration() {
        let mut seen = observation();
        seen.add(100, Some(Sample::Asleep));
        seen.add(200, Some(Sample::WaitingForGil));
        seen.add(300, Some(Sample::WaitingForGil));
        seen.add(400, Some(Sample::Runnable));
        // 150 + 50 ticks of waiting for the GIL, 50 of sleep.
        let parts = seen.breakdown(2.0, 1.0, times(1.2, Some(2.3)), GilWaits::Sampled);
        let near =
            |part: Option<f64>, seconds: f64| assert!((part.unwrap() - seconds).abs() < 1e-9, "{parts:?}");
        near(parts.processor, 0.4);
        near(parts.not_scheduled, 0.6);
        near(parts.waiting_for_gil, 0.8);
        near(parts.asleep, 0.2);
    }

    #[test]
    fn no_part_is_negative_and_none_is_longer_than_the_run() {
        for (processor, delay) in [(9.0, 9.0), (0.0, 0.0), (1.5, 9.0)] {
            let parts = observation().breakdown(1.0, 1.0, times(processor, Some(delay)), GilWaits::Never);
            let all = [parts.processor, parts.waiting_for_gil, parts.not_scheduled, parts.asleep];
            assert!(all.iter().all(|part| (0.0..=1.0).contains(&part.unwrap())), "{parts:?}");
            assert!((all.iter().map(|part| part.unwrap()).sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let later = times(1.5, Some(2.0));
        assert_eq!(observation().breakdown(1.0, 1.0, None, GilWaits::Never), Breakdown::default());
        assert_eq!(observation().breakdown(1.0, 0.0, later, GilWaits::Never), Breakdown::default());
        let no_delay = observation().breakdown(1.0, 1.0, times(1.5, None), GilWaits::Sampled);
        assert_eq!(no_delay, Breakdown { processor: Some(0.5), ..Breakdown::default() });
        let expected = Breakdown { processor: Some(0.5), not_scheduled: Some(0.0), ..Breakdown::default() };
        assert_eq!(observation().breakdown(1.0, 1.0, later, GilWaits::Unknown), expected);
        assert_eq!(observation().breakdown(1.0, 1.0, later, GilWaits::Sampled), expected, "no sample");
        let mut unreadable = observation();
        unreadable.add(200, None);
        assert_eq!(unreadable.breakdown(1.0, 1.0, later, GilWaits::Sampled), expected);
    }
}
