//! MultiHash (Roller et al. 2021, arXiv 2106.04426, section 3): both maps of a feed-forward layer are split into as many
//! blocks of output channels as there are hashes, and each hash of the token chooses one of E weights for its block.
//!
//! `v = relu([A_1(k_1) x, .., A_M(k_M) x])`, `y = [B_1(k_1) v, .., B_M(k_M) v]` with `k_m = table[m, token]`. A token and
//! a hash are a slot, block m of bucket k is expert `m * E + k`, so each map is one grouped product over N*M rows.

use moec_ir::{DType, Data, Op, Tensor, TensorType, Value};

use super::{LowerError, Lowering, Rows};
use crate::model::MultiHash;
use crate::router::{Gather, Source};
use crate::routers::drawn_bucket;
use crate::state::{StateInit, StateSource};

impl Lowering {
    pub(super) fn multi_hash(&mut self, hash: &MultiHash, width: usize, x: Value) -> Value {
        let (hashes, buckets, vocab) = (hash.hashes, hash.buckets, self.options.vocab);
        let tokens = self.b().shape(x).first().copied().unwrap_or(0);
        // Entries and blocks are numbered in f32, which holds whole numbers up to here.
        if hashes.saturating_mul(vocab.max(buckets)) > 1 << 24 {
            let message = format!("{hashes} hashes of {vocab} tokens into {buckets} buckets are too many to number");
            self.error.get_or_insert(LowerError::Size(message));
            return x;
        }
        let table = hash_tables(hash, vocab);
        let table = self.emitter.state("table", table.ty().clone(), StateInit::Text(table));
        let source =
            Source { ids: self.token_ids, time: self.sequence_length, gathers: &self.gathers, newest: self.newest() };
        let b = &mut self.emitter.builder;
        let ids = source.ids(b);
        let ids = b.to_float(ids);
        let ids = b.broadcast_last(ids, hashes);
        // Row m of the table starts at m * V, block m of the weights at m * E.
        let along = |b: &mut moec_ir::Builder, step: usize| {
            let steps = b.ramp(hashes, step as i32);
            let steps = b.to_float(steps);
            b.broadcast(steps, [tokens, hashes])
        };
        let rows_of_table = along(b, vocab);
        let entry = b.add(ids, rows_of_table);
        let entry = b.to_index(entry, hashes * vocab);
        let table = b.reshape(table, [hashes * vocab]);
        let bucket = b.lookup(entry, table);
        let bucket = b.to_float(bucket);
        let blocks = along(b, buckets);
        let block = b.add(bucket, blocks);
        let experts = hashes * buckets;
        let block = b.to_index(block, experts);
        if self.options.routes {
            let ones = b.fill(1.0, [tokens, hashes]);
            let path = b.path("");
            self.expose(&path, experts, (block, ones), (block, ones));
        }
        let b = self.b();
        let offsets = b.op(Op::SortByExpert { experts, rows: tokens * hashes }, &[block]);
        let gather = Gather { order: offsets.result(1), positions: offsets.result(2) };
        let rows = Rows::Experts { experts, offsets };
        let y = self.inside(1.0 / buckets as f64, |l| {
            let v = l.hashed_map("up", x, gather, rows, (width, hash.hidden, hashes));
            let v = l.activation(hash.activation, v);
            l.hashed_map("down", v, gather, rows, (hash.hidden, width, hashes))
        });
        self.dropout(y, hash.dropout)
    }

    /// `x [N, input] -> [N, output]`, block m of the output by the weights that hash m chose.
    fn hashed_map(
        &mut self,
        name: &str,
        x: Value,
        gather: Gather,
        rows: Rows,
        (input, output, hashes): (usize, usize, usize),
    ) -> Value {
        let tokens = self.b().shape(x).first().copied().unwrap_or(0);
        let sorted = self.b().op(Op::Dispatch { weighted: false }, &[x, gather.order, gather.positions]);
        let y = self.linear(name, sorted, rows, (input, output / hashes), true);
        let b = self.b();
        // Back to slots: each is a row of its own.
        let positions = b.reshape(gather.positions, [tokens * hashes, 1]);
        let slots = b.op(Op::Combine { weighted: false }, &[y, gather.order, positions]);
        b.reshape(slots, [tokens, output])
    }
}

/// The tables of all hashes, i32 `[M, V]`: independent random tables.
fn hash_tables(hash: &MultiHash, vocab: usize) -> StateSource {
    let MultiHash { hashes, buckets, seed, .. } = *hash;
    let shape = vec![hashes, vocab];
    StateSource::new(TensorType { dtype: DType::I32, shape: shape.clone() }, move |_| {
        let table = (0..hashes * vocab).map(|i| drawn_bucket(seed, i, buckets)).collect();
        Tensor::new(shape.clone(), Data::I32(table)).ok_or_else(|| "the hash tables are too large".to_string())
    })
}
