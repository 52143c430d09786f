//! What the machine can do at most, on all threads: float32 multiply-adds without memory, and the traffic of a triad.
//!
//! Answers every line `go N` on standard input with N lines `{"step":I,"ms":T,"gflops":G,"gbs":B}`.

use std::io::{BufRead, Write};
use std::time::Instant;

/// Multiply-adds of one accumulator in one measurement.
const ROUNDS: u64 = 4_000_000;
/// Elements of each of the triad's three arrays, over all threads: well beyond the caches.
const TRIAD: usize = 48 << 20;

/// Twelve independent chains of the widest multiply-add there is; returns the number of operations.
#[cfg(target_arch = "x86_64")]
fn multiply_add() -> u64 {
    use std::arch::x86_64::*;

    macro_rules! chains {
        ($name:ident, $feature:literal, $set:ident, $fma:ident) => {
            #[target_feature(enable = $feature)]
            fn $name() {
                let (x, y) = ($set(0.999), $set(0.001));
                // Opaque, or the compiler sees that all chains are one.
                let mut chains = std::hint::black_box([$set(1.0); 12]);
                for _ in 0..ROUNDS {
                    for chain in &mut chains {
                        *chain = $fma(*chain, x, y);
                    }
                }
                std::hint::black_box(chains);
            }
        };
    }
    chains!(wide, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);
    chains!(narrow, "avx,fma", _mm256_set1_ps, _mm256_fmadd_ps);

    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there.
        unsafe { wide() };
        ROUNDS * 12 * 16 * 2
    } else if is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma") {
        // SAFETY: the features are there.
        unsafe { narrow() };
        ROUNDS * 12 * 8 * 2
    } else {
        portable()
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add() -> u64 {
    portable()
}

/// The same for processors that are not known here, as wide as the compiler makes it.
fn portable() -> u64 {
    let (x, y) = (std::hint::black_box(0.999f32), std::hint::black_box(0.001f32));
    let mut chains = std::hint::black_box([[1.0f32; 4]; 24]);
    for _ in 0..ROUNDS {
        for chain in &mut chains {
            for lane in chain {
                *lane = lane.mul_add(x, y);
            }
        }
    }
    std::hint::black_box(chains);
    ROUNDS * 24 * 4 * 2
}

/// GFLOP/s of all threads together.
fn peak(threads: usize) -> f64 {
    let begun = Instant::now();
    let operations: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(multiply_add)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    operations as f64 / begun.elapsed().as_secs_f64() * 1e-9
}

/// GB/s of `a = b + s * c` over all threads; the line of `a` that is read before it is written does not count.
fn triad(threads: usize, a: &mut [f32], b: &[f32], c: &[f32]) -> f64 {
    let part = a.len().div_ceil(threads);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for ((a, b), c) in a.chunks_mut(part).zip(b.chunks(part)).zip(c.chunks(part)) {
            scope.spawn(move || {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = *b + 0.5 * *c;
                }
            });
        }
    });
    (3 * size_of_val(a)) as f64 / begun.elapsed().as_secs_f64() * 1e-9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut a, b, c) = (vec![0.0; TRIAD], vec![1.0; TRIAD], vec![2.0; TRIAD]);
    let mut out = std::io::stdout().lock();
    let threads = std::thread::available_parallelism()?.get();
    triad(threads, &mut a, &b, &c);
    writeln!(out, r#"{{"ready":true}}"#)?;
    out.flush()?;
    let mut step = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let count: usize = line.strip_prefix("go ").ok_or("expected `go N`")?.trim().parse()?;
        for _ in 0..count {
            let begun = Instant::now();
            let (gflops, gbs) = (peak(threads), triad(threads, &mut a, &b, &c));
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            step += 1;
            writeln!(out, r#"{{"step":{step},"ms":{ms:.4},"gflops":{gflops:.3},"gbs":{gbs:.3}}}"#)?;
            out.flush()?;
        }
    }
    std::hint::black_box(&a);
    Ok(())
}
