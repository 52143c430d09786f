//! The counter-based random number generator, shared word for word by the reference evaluator and the kernels.
//!
//! Element `i` of a random node depends on (seed, step, key, i) and nothing else: no state is carried, so the same
//! bits come out for any thread count, a dropout mask is recomputed in the backward pass, and a resumed run continues
//! exactly. The generator state on the device is `i32[4]`: seed low, seed high, step low, step high.
//!
//! The mixer is the 32-bit finaliser `lowbias32` (C. Wellons, "Prospecting for hash functions", 2018), applied twice
//! with two keys derived from (seed, step, key).

/// The finaliser: a bijection of 32 bits with low avalanche bias.
pub fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Weyl increment that separates counters before mixing: 2^32 divided by the golden ratio, made odd.
pub const GOLDEN: u32 = 0x9e37_79b9;

/// The generator state as it is passed to a run.
pub fn state(seed: u64, step: u64) -> [i32; 4] {
    [seed as u32 as i32, (seed >> 32) as u32 as i32, step as u32 as i32, (step >> 32) as u32 as i32]
}

/// The two keys of a node's stream.
pub fn keys(state: [i32; 4], key: u32) -> (u32, u32) {
    let [s0, s1, t0, t1] = state.map(|w| w as u32);
    let a = mix(mix(mix(key ^ GOLDEN).wrapping_add(s0)).wrapping_add(t0));
    let b = mix(mix(mix(a ^ s1).wrapping_add(t1)).wrapping_add(key));
    (a, b)
}

/// 32 random bits of element `counter` of the stream with the given keys.
pub fn bits((a, b): (u32, u32), counter: u32) -> u32 {
    mix(mix(counter.wrapping_mul(GOLDEN) ^ a).wrapping_add(b))
}

/// Uniform on [0, 1) with 24 bits, exact in f32.
pub fn uniform(bits: u32) -> f64 {
    f64::from(bits >> 8) / f64::from(1u32 << 24)
}

/// Standard normal by Box and Muller (1958) from two words: `sqrt(-2 ln u) cos(2 pi v)` with `u` in (0, 1].
pub fn normal(u_bits: u32, v_bits: u32) -> f64 {
    let u = f64::from((u_bits >> 8) + 1) / f64::from(1u32 << 24);
    let v = uniform(v_bits);
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

/// Words that make normal element `i`: counters `2i` and `2i + 1` (modulo 2^32).
pub fn normal_at(keys: (u32, u32), element: u32) -> f64 {
    let c = element.wrapping_mul(2);
    normal(bits(keys, c), bits(keys, c.wrapping_add(1)))
}

/// Words below this are dropped: `rate * 2^32`, rounded down.
pub fn dropout_threshold(rate: f64) -> u32 {
    (rate.clamp(0.0, 1.0) * 4_294_967_296.0).min(4_294_967_295.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_uniform_and_normal() {
        let k = keys(state(42, 7), 3);
        let n = 200_000u32;
        let (mut mean, mut square, mut nmean, mut nsquare, mut fourth) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for i in 0..n {
            let u = uniform(bits(k, i));
            let z = normal_at(k, i);
            mean += u;
            square += u * u;
            nmean += z;
            nsquare += z * z;
            fourth += z * z * z * z;
        }
        let n = f64::from(n);
        assert!((mean / n - 0.5).abs() < 3e-3, "{}", mean / n);
        assert!((square / n - 1.0 / 3.0).abs() < 3e-3);
        assert!((nmean / n).abs() < 1e-2);
        assert!((nsquare / n - 1.0).abs() < 1.5e-2);
        assert!((fourth / n - 3.0).abs() < 0.1);
    }

    #[test]
    fn streams_differ_by_seed_step_key_and_element() {
        let base = bits(keys(state(1, 1), 1), 1);
        for other in [
            bits(keys(state(2, 1), 1), 1),
            bits(keys(state(1, 2), 1), 1),
            bits(keys(state(1, 1), 2), 1),
            bits(keys(state(1, 1), 1), 2),
            bits(keys(state(1 << 40, 1), 1), 1),
            bits(keys(state(1, 1 << 40), 1), 1),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn neighbouring_streams_are_uncorrelated() {
        let (a, b) = (keys(state(0, 0), 0), keys(state(0, 1), 0));
        let n = 100_000u32;
        let c: f64 =
            (0..n).map(|i| (uniform(bits(a, i)) - 0.5) * (uniform(bits(b, i)) - 0.5)).sum::<f64>() / f64::from(n);
        assert!(c.abs() < 1e-3, "{c}");
    }
}
