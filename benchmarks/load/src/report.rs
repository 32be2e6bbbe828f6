//! What a run found, as JSON.

use std::fmt;
use std::time::Duration;

pub struct Report {
    latencies: Vec<Duration>,
    elapsed: Duration,
    /// With those that were answered before counting began.
    answered: u64,
}

impl Report {
    pub fn new(mut latencies: Vec<Duration>, elapsed: Duration, answered: u64) -> Self {
        latencies.sort_unstable();
        Report { latencies, elapsed, answered }
    }

    /// The latency that `share` of the requests did not exceed, in microseconds.
    fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(last)).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.answered;
        let requests = self.latencies.len();
        let seconds = self.elapsed.as_secs_f64();
        write!(
            formatter,
            r#"{{"requests": {requests}, "answered": {answered}, "seconds": {seconds:.6}, "rate": {:.1}, "latency_us": {{"p50": {:.1}, "p90": {:.1}, "p99": {:.1}, "p999": {:.1}, "max": {:.1}}}}}"#,
            requests as f64 / seconds,
            self.percentile(0.5),
            self.percentile(0.9),
            self.percentile(0.99),
            self.percentile(0.999),
            self.percentile(1.0),
        )
    }
}
