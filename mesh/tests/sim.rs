//! Many real routers in one seeded world of [`plexus_mesh::testing`]: three hundred troubled lives, each with a quiet
//! end after which every route must be right. `cargo xtask sim` lives longer ones.
//!
//! `PLEXUS_SIM_SEED=n` lives that seed alone, `PLEXUS_SIM_SEEDS=n` so many of them.

use plexus_mesh::testing::life::live;
use plexus_mesh::testing::measure::measure;

/// Sizes from 4 to 15: small worlds find more in the same time.
fn size(seed: u64) -> usize {
    4 + (seed % 12) as usize
}

fn check(seed: u64) -> u64 {
    match live(seed, size(seed), 9) {
        Ok(world) => world.trace(),
        Err(error) => panic!("seed {seed}: {error}; again with PLEXUS_SIM_SEED={seed}"),
    }
}

#[test]
fn routers_agree_after_trouble() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("PLEXUS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PLEXUS_SIM_SEEDS").unwrap_or(300),
    };
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    check(seed);
                }
            });
        }
    });
}

/// Far more routers than a troubled life has in the time of `make test`: everybody starts, one in a hundred comes and
/// goes, the middle is cut and mended, and all routes are right. `make verify` has a thousand, and a troubled life of four
/// hundred, half of them hops.
#[test]
fn a_large_mesh_has_every_route_right() {
    let verify = std::env::var_os("PLEXUS_VERIFY").is_some();
    let report = measure(1, if verify { 1000 } else { 300 }).expect("every route is right");
    assert!(report.start.messages > 0 && report.heal.messages > 0, "{report:?}");
    if verify {
        live(1, 400, 3).expect("seed 1 of four hundred nodes");
    }
}

#[test]
fn a_seed_gives_one_life() {
    assert_eq!(check(7), check(7));
    assert_ne!(check(7), check(19));
}
