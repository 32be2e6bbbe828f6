//! Each case on either reactor, one after the other: cargo bench

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use reactor_benchmark::cases::{NAMES, case};
use reactor_benchmark::sides::{Hotloop, Mio};

fn compare(criterion: &mut Criterion) {
    for name in NAMES {
        let mut group = criterion.benchmark_group(name);
        for (side, make) in [("mio", case::<Mio> as fn(&str) -> _), ("hotloop", case::<Hotloop>)] {
            group.bench_function(side, |bencher| {
                let mut work = make(name).expect("a case of this name");
                bencher.iter(&mut work);
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = compare
}
criterion_main!(benches);
