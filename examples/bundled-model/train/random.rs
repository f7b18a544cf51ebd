//! Random numbers that depend on nothing but a key and a counter.
//!
//! The training program keeps no generator state: every draw is a pure function of the seed, the
//! step and the place of use. A run that is resumed therefore draws what it would have drawn had it
//! never stopped, and the backward pass of dropout draws the forward pass's mask again instead of
//! storing it.

/// The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014) over `key` advanced `counter` times by the golden gamma.
pub fn draw(key: u64, counter: u64) -> u64 {
    let mut bits = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A key for one use (`purpose`) of the stream `key`, independent of the keys of other purposes.
pub fn derive(key: u64, purpose: u64) -> u64 {
    draw(draw(key, 0x5eed), purpose)
}

/// A whole number below `bound`, by multiplication (the bias, `bound / 2^64`, is far below what any
/// training run could notice).
pub fn below(key: u64, counter: u64, bound: usize) -> usize {
    ((u128::from(draw(key, counter)) * bound as u128) >> 64) as usize
}

/// `count` draws of the normal distribution with mean 0 and standard deviation `deviation`
/// (Box–Muller).
pub fn normal(key: u64, count: usize, deviation: f64) -> Vec<f32> {
    let unit = |counter: u64| (draw(key, counter) >> 11) as f64 / (1u64 << 53) as f64;
    (0..count as u64)
        .map(|i| {
            let radius = (-2.0 * (1.0 - unit(2 * i)).ln()).sqrt();
            let angle = std::f64::consts::TAU * unit(2 * i + 1);
            (deviation * radius * angle.cos()) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_draws_and_another_key_others() {
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(derive(7, 0), derive(7, 1));
        // The published first output of SplitMix64 for seed 0.
        assert_eq!(draw(0, 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn normal_draws_have_the_deviation_asked_for() {
        let draws = normal(1, 20_000, 0.5);
        let mean = draws.iter().map(|&x| f64::from(x)).sum::<f64>() / draws.len() as f64;
        let square = draws.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((square.sqrt() - 0.5).abs() < 0.01, "deviation {}", square.sqrt());
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let draws: Vec<usize> = (0..1000).map(|i| below(3, i, 5)).collect();
        assert!(draws.iter().all(|&d| d < 5));
        assert!((0..5).all(|value| draws.contains(&value)));
    }
}
