//! Tokens that look at earlier ones.

use super::linear::{add_to, dot};
use super::misplaced;
use super::random::Mask;
use super::softmax::log_sum_exp;
use crate::infer::{Check, InferError, f32s};
use crate::op::{AttentionAttrs, Op};
use crate::operands::{Operands, floats};
use crate::tensor::Data;
use crate::types::TensorType;

/// Checks a `qkv` operand; returns N and C.
fn attention_qkv(c: &Check<'_>, i: usize, heads: usize, time: usize) -> Result<(usize, usize), InferError> {
    let (n, c3) = c.float_matrix(i)?;
    c.require(time > 0 && n % time == 0, || format!("{n} tokens are not whole sequences of {time}"))?;
    c.require(heads > 0 && c3 % 3 == 0 && (c3 / 3) % heads == 0, || {
        format!("{} channels are not 3 parts of {heads} heads", c3)
    })?;
    Ok((n, c3 / 3))
}

pub(super) fn infer(op: &Op, c: &Check<'_>) -> Result<Vec<TensorType>, InferError> {
    Ok(match op {
        Op::Attention(a) => {
            let (n, width) = attention_qkv(c, 0, a.heads, a.time)?;
            if a.sink {
                c.is(1, &f32s(&[a.heads]))?;
            }
            if a.dropout.get() > 0.0 {
                c.rng(1 + usize::from(a.sink))?;
            }
            vec![f32s(&[n, width]), f32s(&[n, a.heads])]
        }
        Op::AttentionGrad(a) => {
            let (n, width) = attention_qkv(c, 1, a.heads, a.time)?;
            c.is(0, &f32s(&[n, width]))?;
            c.is(2, &f32s(&[n, width]))?;
            c.is(3, &f32s(&[n, a.heads]))?;
            if a.dropout.get() > 0.0 {
                c.rng(4)?;
            }
            vec![c.ty(1).clone()]
        }
        Op::CachedAttention { heads, sink, .. } => {
            let (n, width) = attention_qkv(c, 0, *heads, 1)?;
            let time = match c.float(1)? {
                &[_, time, _] if time > 0 => time,
                _ => return c.fail(format!("operand 1 must be [S, T, 2C], not {}", c.ty(1))),
            };
            c.is(1, &f32s(&[n, time, 2 * width]))?;
            c.is(2, &TensorType::i32([n]))?;
            if *sink {
                c.is(3, &f32s(&[*heads]))?;
            }
            vec![f32s(&[n, width]), c.ty(1).clone()]
        }
        Op::Rotary { heads, time, positions, .. } => {
            let (n, width) = attention_qkv(c, 0, *heads, *time)?;
            c.require((width / heads).is_multiple_of(2), || {
                format!("rotary positions need an even head width, not {}", width / heads)
            })?;
            if *positions {
                c.is(1, &TensorType::i32([n]))?;
            }
            vec![c.ty(0).clone()]
        }
        other => misplaced(other),
    })
}

pub(super) fn evaluate(op: &Op, x: &Operands<'_>) -> Vec<Data> {
    match op {
        Op::Attention(attrs) => attention(attrs, x),
        Op::AttentionGrad(attrs) => floats(attention_grad(attrs, x)),
        Op::CachedAttention { heads, scale, sink } => cached_attention(*heads, scale.get(), *sink, x),
        Op::Rotary { heads, time, base, inverse, positions } => {
            let position = |token: usize| if *positions { f64::from(x.i(1)[token]) } else { (token % time) as f64 };
            floats(rotary(x, *heads, position, base.get(), *inverse))
        }
        other => misplaced(other),
    }
}

/// Offsets into `qkv [N, 3C]` of the head's query, key and value of token `n`.
struct Heads {
    width: usize,
    head_width: usize,
}

impl Heads {
    fn part<'a>(&self, qkv: &'a [f64], part: usize, n: usize, head: usize) -> &'a [f64] {
        let start = self.start(part, n, head);
        &qkv[start..start + self.head_width]
    }

    fn start(&self, part: usize, n: usize, head: usize) -> usize {
        n * 3 * self.width + part * self.width + head * self.head_width
    }
}

/// Dropout of the attention probabilities, as a factor per element `((b*H + h)*T + query)*T + key`.
fn attention_mask(attrs: &AttentionAttrs, x: &Operands<'_>, rng: usize) -> impl Fn(usize, usize, usize, usize) -> f64 {
    let (heads, time) = (attrs.heads, attrs.time);
    let rate = attrs.dropout.get();
    let mask = (rate > 0.0).then(|| Mask::new(x.rng(rng), attrs.key, rate));
    move |b, h, query, key| {
        mask.as_ref().map_or(1.0, |m| m.apply(1.0, (((b * heads + h) * time + query) * time + key) as u32))
    }
}

/// The scores of a query with that of its head's sink.
fn with_sink(scores: &[f64], sink: Option<f64>) -> Vec<f64> {
    scores.iter().copied().chain(sink).collect()
}

fn attention(attrs: &AttentionAttrs, x: &Operands<'_>) -> Vec<Data> {
    let (qkv, (n, width3)) = (x.f(0), x.matrix(0));
    let (width, time) = (width3 / 3, attrs.time);
    let at = Heads { width, head_width: width / attrs.heads };
    let mask = attention_mask(attrs, x, 1 + usize::from(attrs.sink));
    let sinks = attrs.sink.then(|| x.f(1));
    let mut y = vec![0.0; n * width];
    let mut lse = vec![0.0; n * attrs.heads];
    for b in 0..n / time {
        for h in 0..attrs.heads {
            for query in 0..time {
                let token = b * time + query;
                let q = at.part(&qkv, 0, token, h);
                let first = attrs.first_seen(query);
                let score = |key| attrs.scale.get() * dot(q, at.part(&qkv, 1, b * time + key, h));
                let scores: Vec<f64> = (first..=query).map(score).collect();
                let l = log_sum_exp(&with_sink(&scores, sinks.as_ref().map(|sinks| sinks[h])));
                lse[token * attrs.heads + h] = l;
                let start = token * width + h * at.head_width;
                let y = &mut y[start..start + at.head_width];
                for (key, score) in (first..).zip(&scores) {
                    let p = (score - l).exp() * mask(b, h, query, key);
                    add_to(y, at.part(&qkv, 2, b * time + key, h), p);
                }
            }
        }
    }
    vec![Data::F64(y), Data::F64(lse)]
}

fn cached_attention(heads: usize, scale: f64, sink: bool, x: &Operands<'_>) -> Vec<Data> {
    let (qkv, mut cache, positions) = (x.f(0), x.f(1).into_owned(), x.i(2));
    let width = x.matrix(0).1 / 3;
    let time = x.shape(1)[1];
    let at = Heads { width, head_width: width / heads };
    let sinks = sink.then(|| x.f(3));
    let mut y = vec![0.0; positions.len() * width];
    for (n, &position) in positions.iter().enumerate() {
        let Ok(position) = usize::try_from(position) else { continue };
        let row = |place: usize| (n * time + place) * 2 * width;
        cache[row(position % time)..][..2 * width].copy_from_slice(&qkv[n * 3 * width + width..][..2 * width]);
        for h in 0..heads {
            let part =
                |place: usize, part: usize| &cache[row(place) + part * width + h * at.head_width..][..at.head_width];
            let q = at.part(&qkv, 0, n, h);
            let seen = (position + 1).min(time);
            let scores: Vec<f64> = (0..seen).map(|place| scale * dot(q, part(place, 0))).collect();
            let l = log_sum_exp(&with_sink(&scores, sinks.as_ref().map(|sinks| sinks[h])));
            let y = &mut y[n * width + h * at.head_width..][..at.head_width];
            for (place, score) in scores.iter().enumerate() {
                add_to(y, part(place, 1), (score - l).exp());
            }
        }
    }
    vec![Data::F64(y), Data::F64(cache)]
}

/// With `p` the probabilities, `d` the dropout factors and `s` the scores: `dv = (p d)ᵀ dy`, `dp = d * (dy vᵀ)`,
/// `ds = p * (dp - sum(dp * p))`, where the sum is `dy . y`; then `dq = scale * ds k` and `dk = scale * dsᵀ q`.
fn attention_grad(attrs: &AttentionAttrs, x: &Operands<'_>) -> Vec<f64> {
    let (dy, qkv, y, lse, (n, width3)) = (x.f(0), x.f(1), x.f(2), x.f(3), x.matrix(1));
    let (width, time, scale) = (width3 / 3, attrs.time, attrs.scale.get());
    let at = Heads { width, head_width: width / attrs.heads };
    let mask = attention_mask(attrs, x, 4);
    let mut dqkv = vec![0.0; n * width3];
    for b in 0..n / time {
        for h in 0..attrs.heads {
            for query in 0..time {
                let token = b * time + query;
                let q = at.part(&qkv, 0, token, h);
                let own = token * width + h * at.head_width..token * width + (h + 1) * at.head_width;
                let inner = dot(&dy[own.clone()], &y[own.clone()]);
                for key in attrs.first_seen(query)..=query {
                    let other = b * time + key;
                    let (k, v) = (at.part(&qkv, 1, other, h), at.part(&qkv, 2, other, h));
                    let p = (scale * dot(q, k) - lse[token * attrs.heads + h]).exp();
                    let d = mask(b, h, query, key);
                    let ds = p * (d * dot(&dy[own.clone()], v) - inner);
                    let mut accumulate = |part, n, values: &[f64], factor| {
                        let start = at.start(part, n, h);
                        add_to(&mut dqkv[start..start + at.head_width], values, factor);
                    };
                    accumulate(0, token, k, scale * ds);
                    accumulate(1, other, q, scale * ds);
                    accumulate(2, other, &dy[own.clone()], p * d);
                }
            }
        }
    }
    dqkv
}

fn rotary(x: &Operands<'_>, heads: usize, position: impl Fn(usize) -> f64, base: f64, inverse: bool) -> Vec<f64> {
    let (mut y, (n, width3)) = (x.f(0).into_owned(), x.matrix(0));
    let at = Heads { width: width3 / 3, head_width: width3 / 3 / heads };
    let half = at.head_width / 2;
    for token in 0..n {
        for i in 0..half {
            let angle = position(token) * base.powf(-2.0 * i as f64 / at.head_width as f64);
            let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
            for part in 0..2 {
                for h in 0..heads {
                    let first = at.start(part, token, h) + i;
                    let (a, b) = (y[first], y[first + half]);
                    y[first] = a * cos - b * sin;
                    y[first + half] = a * sin + b * cos;
                }
            }
        }
    }
    y
}
