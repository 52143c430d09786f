//! Hash layers: the expert of a token is looked up in a fixed table (Roller et al. 2021).

use std::cmp::Reverse;

use moec_ir::random;
use moec_ir::{DType, Data, Invariant, Tensor, TensorType, Value, internal_error};

use crate::argument::{Arguments, DefaultValue, Interval, ParameterSpec, ParameterType};
use crate::router::{Compares, Reads, Routing, RoutingContext, RoutingStrategy, Traits};
use crate::state::{StateSource, TrainingText};

/// `y = f_{table[key]}(x)` with weight 1: nothing is trained, and the same key meets the same expert in every layer with
/// the same arguments. The table is a state: it is made when a run starts and kept in its checkpoints.
///
/// The key is the token, the token before it, both (bigram), or the position. Tables:
/// - `random`: every key independently;
/// - `balanced`: keys by descending frequency in the training text, each to the expert with the least load so far;
/// - `clustered`: k-means on the token vectors of a trained model, one expert per cluster;
/// - `dispersed`: the same clusters, but the members of each are dealt out over the experts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hash;

const PARAMETERS: &[ParameterSpec] = &[
    ParameterSpec::optional(
        "by",
        ParameterType::Choice(&["token", "previous", "bigram", "position"]),
        DefaultValue::Word("token"),
        "what is hashed",
    ),
    ParameterSpec::optional(
        "table",
        ParameterType::Choice(&["random", "balanced", "clustered", "dispersed"]),
        DefaultValue::Word("balanced"),
        "how the table is made",
    ),
    ParameterSpec::optional(
        "seed",
        ParameterType::Int(Interval::at_least(0.0)),
        DefaultValue::Int(0),
        "seed of a random table and of the first centres of clusters",
    ),
    ParameterSpec::optional(
        "from",
        ParameterType::Text,
        DefaultValue::Absent("none"),
        "folder of the run whose token vectors are clustered, from the folder of the spec",
    ),
];

impl RoutingStrategy for Hash {
    fn name(&self) -> &str {
        "hash"
    }

    fn summary(&self) -> &str {
        "the expert that a fixed table gives for the token, the one before it, both, or the position"
    }

    fn parameters(&self) -> &[ParameterSpec] {
        PARAMETERS
    }

    fn references(&self) -> &[&str] {
        &["Roller et al. 2021, Hash Layers For Large Sparse Models, arXiv 2106.04426"]
    }

    fn equations(&self) -> &str {
        "key = id_t | id_{t-1} | (id_{t-1}, id_t) | t      the first token of a sequence follows a mark of its own
e = table[key],  w = 1
table: random      uniform, from the seed
       balanced    most frequent key first, each to the expert with the least load so far
       clustered   k-means with E centres on the token vectors of the run in `from`
       dispersed   the members of each cluster are dealt out over the experts
Parameters: none. State: table i32, [V], [V + 1], [(V + 1) V] or [T] by what is hashed.
Cost: a look-up. No key can be split, so max/mean load is at least E times the share of the most frequent key."
    }

    fn check(&self, arguments: &Arguments, _: usize) -> Result<(), String> {
        let (by, table) = (arguments.word("by"), arguments.word("table"));
        let clusters = matches!(table, "clustered" | "dispersed");
        match (clusters, arguments.text("from")) {
            (true, _) if matches!(by, "bigram" | "position") => {
                Err(format!("cannot make a {table} table by {by}: clusters are made of token vectors"))
            }
            (true, None) => {
                Err(format!("needs `from: \"RUN\"` for a {table} table: the run whose token vectors it clusters"))
            }
            (false, Some(_)) => Err(format!("has no use for `from` with a {table} table")),
            _ => Ok(()),
        }
    }

    fn experts_per_token(&self, _: &Arguments, _: usize, _: usize) -> f64 {
        1.0
    }

    fn traits(&self, arguments: &Arguments) -> Traits {
        let by = arguments.word("by");
        let compares = if matches!(by, "previous" | "bigram") { Compares::PreviousToken } else { Compares::None };
        Traits {
            reads: Reads { activations: false, token_ids: by != "position", positions: by == "position" },
            compares,
            compares_when_sampling: compares,
            ..Traits::default()
        }
    }

    fn lower(&self, context: &mut RoutingContext<'_>, arguments: &Arguments) -> Routing {
        let by = arguments.word("by");
        if by == "bigram" && (context.vocab() + 1).saturating_mul(context.vocab()) > MOST_KEYS {
            let most = MOST_KEYS.isqrt() - 1;
            context.refuse(format!("cannot tell the pairs of {} tokens apart, at most of {most}", context.vocab()));
        }
        let key = key(context, by);
        let source = table(
            context.experts(),
            (context.vocab(), context.context()),
            by,
            arguments.word("table"),
            arguments.size("seed"),
            arguments.text("from").map(str::to_string),
        );
        let table = context.state_from_text("table", source);
        let tokens = context.token_count();
        let b = context.builder();
        let expert = b.lookup(key, table);
        let chosen = b.reshape(expert, [tokens, 1]);
        let weights = b.fill(1.0, [tokens, 1]);
        Routing::token_choice(chosen, weights)
    }
}

/// Most keys of a table: keys are computed in f32, which holds whole numbers up to here.
const MOST_KEYS: usize = 1 << 24;

/// Index into the table, i32 `[N]`.
fn key(context: &mut RoutingContext<'_>, by: &str) -> Value {
    let vocab = context.vocab();
    match by {
        "token" => context.token_ids(),
        "position" => context.positions(),
        by => {
            // Row 0 is for the first token of a sequence, which follows none.
            let previous = context.previous_ids();
            let bigram = (by == "bigram").then(|| context.token_ids());
            let b = context.builder();
            let previous = b.to_float(previous);
            let row = b.add_scalar(previous, 1.0);
            match bigram {
                None => b.to_index(row, vocab + 1),
                Some(ids) => {
                    let row = b.scale(row, vocab as f64);
                    let ids = b.to_float(ids);
                    let pair = b.add(row, ids);
                    b.to_index(pair, (vocab + 1).saturating_mul(vocab).min(MOST_KEYS))
                }
            }
        }
    }
}

/// How the table is made.
fn table(
    experts: usize,
    (vocab, time): (usize, usize),
    by: &str,
    made: &str,
    seed: usize,
    from: Option<String>,
) -> StateSource {
    let keys = match by {
        "previous" => vocab + 1,
        "bigram" => (vocab + 1).saturating_mul(vocab),
        "position" => time,
        "token" => vocab,
        other => internal_error!("nothing is hashed by {other}"),
    };
    let ty = TensorType { dtype: DType::I32, shape: vec![keys] };
    let (by, made) = (by.to_string(), made.to_string());
    StateSource::new(ty, move |text| {
        let entries = match (made.as_str(), &from) {
            ("balanced", _) => balanced(&frequencies(text, &by, keys, time), experts, 1),
            ("clustered" | "dispersed", Some(run)) => {
                let vectors = (text.embeddings)(run)?;
                let clusters = cluster(&vectors, experts, seed);
                let entries = if made == "dispersed" { dispersed(&clusters, experts) } else { clusters };
                // The mark before the first token belongs to no cluster.
                if by == "previous" { [0].into_iter().chain(entries).collect() } else { entries }
            }
            ("random", _) => (0..keys).map(|key| drawn_bucket(seed, key, experts)).collect(),
            (made, _) => internal_error!("a {made} table without a run, which the check asks for"),
        };
        Tensor::new(vec![keys], Data::I32(entries)).ok_or_else(|| "the hash table has the wrong size".to_string())
    })
}

/// A bucket drawn uniformly for a key: the same for the same seed, key and number of buckets.
pub(crate) fn drawn_bucket(seed: usize, key: usize, buckets: usize) -> i32 {
    let u = uniform(seed, 0, key);
    ((u * buckets as f64) as usize).min(buckets.saturating_sub(1)) as i32
}

/// Different buckets drawn for a key, each uniformly from those that are left.
pub(crate) fn drawn_buckets(seed: usize, key: usize, buckets: usize, choices: usize) -> Vec<i32> {
    let mut left: Vec<i32> = (0..buckets as i32).collect();
    (0..choices.min(buckets)).map(|i| left.remove(drawn_bucket(seed, key * choices + i, left.len()) as usize)).collect()
}

/// A number uniform on [0, 1) for a seed, a purpose and an index.
fn uniform(seed: usize, purpose: u64, index: usize) -> f64 {
    /// Keeps the draws of hash tables apart from other uses of a seed.
    const HASH: u32 = 0x6861_7368;
    random::uniform(random::bits(random::keys(random::state(seed as u64, purpose), HASH), index as u32))
}

/// How often each key occurs in the training text.
fn frequencies(text: &TrainingText<'_>, by: &str, keys: usize, time: usize) -> Vec<u64> {
    let mut counts = vec![0; keys];
    let index = |token: i32| usize::try_from(token).invariant("tokens are numbered from 0 on");
    let mut add = |key: usize| *counts.get_mut(key).invariant("each token has a number of the vocabulary") += 1;
    match by {
        "previous" => text.tokens.iter().for_each(|&t| add(index(t) + 1)),
        "bigram" => {
            text.tokens.windows(2).for_each(|pair| add((index(pair[0]) + 1) * text.vocab + index(pair[1])));
        }
        // Every position occurs equally often.
        "position" => (0..time).for_each(add),
        "token" => text.tokens.iter().for_each(|&t| add(index(t))),
        other => internal_error!("no table counts by {other}"),
    }
    counts
}

/// Longest processing time first: keys by descending frequency, each to the `choices` buckets with the least load so far.
/// Ties go to the lower key and the bucket with fewer keys, then the lower one, so keys that never occur are spread as
/// well. The buckets of key i are entries `i * choices ..` of the result.
pub(crate) fn balanced(frequencies: &[u64], buckets: usize, choices: usize) -> Vec<i32> {
    let mut order: Vec<usize> = (0..frequencies.len()).collect();
    order.sort_by_key(|&key| (Reverse(frequencies[key]), key));
    let mut loads = vec![(0u64, 0usize); buckets.max(1)];
    let mut table = vec![0; frequencies.len() * choices];
    let mut least: Vec<usize> = (0..loads.len()).collect();
    for key in order {
        // Of many experts one is found without sorting them all.
        if choices == 1 {
            least[0] = (0..loads.len()).min_by_key(|&b| (loads[b], b)).invariant("there is a bucket");
        } else {
            least.sort_by_key(|&b| (loads[b], b));
        }
        for (entry, &bucket) in table[key * choices..].iter_mut().zip(least.iter().take(choices)) {
            *entry = bucket as i32;
            loads[bucket].0 += frequencies[key];
            loads[bucket].1 += 1;
        }
    }
    table
}

/// k-means on the rows of `vectors`: k-means++ centres (Arthur & Vassilvitskii 2007) from the seed, then Lloyd's
/// iterations until nothing changes. A cluster that loses all its vectors keeps its centre.
pub(crate) fn cluster(vectors: &Tensor, clusters: usize, seed: usize) -> Vec<i32> {
    let &columns = vectors.shape().last().invariant("token vectors are a matrix");
    let values = vectors.to_f64();
    let rows: Vec<&[f64]> = values.chunks(columns).collect();
    let distance = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum() };
    let mut centres: Vec<Vec<f64>> = Vec::new();
    let mut nearest = vec![f64::INFINITY; rows.len()];
    for draw in 0..clusters.min(rows.len()) {
        let total: f64 = nearest.iter().filter(|d| d.is_finite()).sum();
        let mut target = uniform(seed, 1, draw) * if draw == 0 { rows.len() as f64 } else { total };
        let mut chosen = 0;
        for (row, &weight) in nearest.iter().enumerate() {
            let weight = if draw == 0 { 1.0 } else { weight };
            // A vector that is a centre already has weight 0.
            if weight > 0.0 {
                chosen = row;
                if target < weight {
                    break;
                }
            }
            target -= weight;
        }
        centres.push(rows[chosen].to_vec());
        for (best, row) in nearest.iter_mut().zip(&rows) {
            *best = best.min(distance(row, rows[chosen]));
        }
    }
    let mut assignment = vec![0; rows.len()];
    // More rounds than any table of characters needs; Lloyd's iterations end by themselves.
    for _ in 0..1000 {
        let mut changed = false;
        for (entry, row) in assignment.iter_mut().zip(&rows) {
            let best = (0..centres.len())
                .min_by(|&a, &b| distance(row, &centres[a]).total_cmp(&distance(row, &centres[b])))
                .invariant("there are as many centres as clusters, and at least one");
            changed |= std::mem::replace(entry, best) != best;
        }
        for (c, centre) in centres.iter_mut().enumerate() {
            let members: Vec<usize> = (0..rows.len()).filter(|&r| assignment[r] == c).collect();
            if members.is_empty() {
                continue;
            }
            for (i, value) in centre.iter_mut().enumerate() {
                *value = members.iter().map(|&r| rows[r][i]).sum::<f64>() / members.len() as f64;
            }
        }
        if !changed {
            break;
        }
    }
    assignment.into_iter().map(|c| c as i32).collect()
}

/// Deals the members of each cluster out over the buckets, going on where the last cluster ended: within a cluster the
/// numbers of members in the buckets differ by at most 1.
pub(crate) fn dispersed(clusters: &[i32], buckets: usize) -> Vec<i32> {
    let mut order: Vec<usize> = (0..clusters.len()).collect();
    order.sort_by_key(|&key| (clusters[key], key));
    let mut table = vec![0; clusters.len()];
    for (place, key) in order.into_iter().enumerate() {
        table[key] = (place % buckets.max(1)) as i32;
    }
    table
}
