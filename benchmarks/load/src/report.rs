//! What a run found, as JSON.

use std::fmt;
use std::time::Duration;

pub struct Report {
    latencies: Vec<Duration>,
    elapsed: Duration,
    /// With those that were answered before counting began.
    answered: u64,
    pacing: Option<Pacing>,
}

/// How an open loop went.
pub struct Pacing {
    /// How late the generator itself dealt with the requests.
    lateness: Vec<Duration>,
    /// Requests that were answered before the end.
    in_time: u64,
    /// Requests that were never answered. Their latencies are how long they have waited.
    unanswered: u64,
}

impl Pacing {
    pub fn new(mut lateness: Vec<Duration>, in_time: u64, unanswered: u64) -> Self {
        lateness.sort_unstable();
        Pacing { lateness, in_time, unanswered }
    }
}

impl Report {
    pub fn new(mut latencies: Vec<Duration>, elapsed: Duration, answered: u64) -> Self {
        latencies.sort_unstable();
        Report { latencies, elapsed, answered, pacing: None }
    }

    pub fn paced(self, pacing: Pacing) -> Self {
        Report { pacing: Some(pacing), ..self }
    }
}

/// What `share` of the sorted durations do not exceed, in microseconds.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(last)).map_or(0.0, |duration| duration.as_secs_f64() * 1e6)
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.answered;
        let requests = self.latencies.len();
        let seconds = self.elapsed.as_secs_f64();
        write!(
            formatter,
            r#"{{"requests": {requests}, "answered": {answered}, "seconds": {seconds:.6}, "rate": {:.1}, "latency_us": {{"p50": {:.1}, "p90": {:.1}, "p99": {:.1}, "p999": {:.1}, "max": {:.1}}}"#,
            requests as f64 / seconds,
            percentile(&self.latencies, 0.5),
            percentile(&self.latencies, 0.9),
            percentile(&self.latencies, 0.99),
            percentile(&self.latencies, 0.999),
            percentile(&self.latencies, 1.0),
        )?;
        if let Some(pacing) = &self.pacing {
            write!(
                formatter,
                r#", "in_time": {}, "unanswered": {}, "late_us": {{"p50": {:.1}, "p99": {:.1}, "max": {:.1}}}"#,
                pacing.in_time,
                pacing.unanswered,
                percentile(&pacing.lateness, 0.5),
                percentile(&pacing.lateness, 0.99),
                percentile(&pacing.lateness, 1.0),
            )?;
        }
        formatter.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(numbers: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        numbers.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_of_the_sorted_durations() {
        let sorted = milliseconds(0..1000);
        assert_eq!(percentile(&sorted, 0.5), 500e3);
        assert_eq!(percentile(&sorted, 0.999), 999e3);
        assert_eq!(percentile(&sorted, 1.0), 999e3);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn only_an_open_loop_reports_how_late_it_sent() {
        let closed = Report::new(milliseconds([2, 1]), Duration::from_secs(1), 2);
        assert!(!closed.to_string().contains("late_us"));
        let open = closed.paced(Pacing::new(milliseconds([3, 1, 2]), 2, 1)).to_string();
        assert!(open.ends_with(
            r#""in_time": 2, "unanswered": 1, "late_us": {"p50": 2000.0, "p99": 3000.0, "max": 3000.0}}"#
        ));
    }
}
