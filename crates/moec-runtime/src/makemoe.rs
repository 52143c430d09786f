//! Import from and export to the state dictionaries of makeMoE (github.com/AviSoori1x/makeMoE), a PyTorch model.
//!
//! | here | makeMoE |
//! |---|---|
//! | `embed.token.weight`, `embed.position.weight` | `token_embedding_table.weight`, `position_embedding_table.weight` |
//! | `blocks.I.layer_norm.gain`, `.shift` | `blocks.I.ln1.weight`, `.bias` |
//! | `blocks.I.attention.qkv.weight` `[3C, C]` | `blocks.I.sa.heads.H.query.weight`, `key`, `value`, each `[D, C]` |
//! | `blocks.I.attention.proj.weight`, `.bias` | `blocks.I.sa.proj.weight`, `.bias` |
//! | `blocks.I.layer_norm_2.gain`, `.shift` | `blocks.I.ln2.weight`, `.bias` |
//! | `blocks.I.moe.router.weight`, `.bias` | `blocks.I.smoe.router.topkroute_linear.weight`, `.bias` |
//! | `blocks.I.moe.noise.weight`, `.bias` | `blocks.I.smoe.router.noise_linear.weight`, `.bias` |
//! | `blocks.I.moe.experts.mlp.up.weight` `[E, F, C]`, `.bias` | `blocks.I.smoe.experts.E.net.0.weight` `[F, C]`, `.bias` |
//! | `blocks.I.moe.experts.mlp.down.weight` `[E, C, F]`, `.bias` | `blocks.I.smoe.experts.E.net.2.weight` `[C, F]`, `.bias` |
//! | `layer_norm.gain`, `.shift` | `ln_f.weight`, `.bias` |
//! | `unembed.weight`, `.bias` | `lm_head.weight`, `.bias` |
//!
//! So every tensor here is some of makeMoE's, one after another along the first axis. The causal masks `..tril` that
//! PyTorch stores as well are left out on import.

use crate::exchange::{ExchangeError, Piece, export_tensors, import_tensors};
use moec_ir::{Op, TOKEN_TABLE, Tensor};
use moec_plan::{Program, StateDecl};
use std::collections::{BTreeMap, BTreeSet};

/// Number of attention heads H of a program's model; `None` without attention or when layers differ.
pub fn attention_heads(program: &Program) -> Option<usize> {
    let steps = program.plans.iter().flat_map(|plan| &plan.steps);
    let heads: BTreeSet<usize> = steps
        .filter_map(|step| match step.kernel().op() {
            Some(Op::Attention(attrs)) => Some(attrs.heads),
            _ => None,
        })
        .collect();
    if heads.len() == 1 { heads.first().copied() } else { None }
}

/// Parameters of a model here, from makeMoE's. Router states and moments of the optimiser are not parameters.
///
/// # Errors
/// When the model has another structure than makeMoE's (the first tensor without a counterpart is named), or a tensor is
/// missing, left over, or of another shape.
pub fn import_makemoe(
    theirs: &BTreeMap<String, Tensor>,
    states: &[StateDecl],
    heads: Option<usize>,
) -> Result<BTreeMap<String, Tensor>, ExchangeError> {
    import_tensors(theirs, states, &|name, shape| pieces(name, shape, heads), &is_mask)
}

/// makeMoE's parameters, from those of a model here; tensors of other kinds are left out.
///
/// # Errors
/// When the model has another structure than makeMoE's (the first tensor without a counterpart is named) or a tensor is
/// missing or of another shape.
pub fn export_makemoe(
    ours: &BTreeMap<String, Tensor>,
    states: &[StateDecl],
    heads: Option<usize>,
) -> Result<BTreeMap<String, Tensor>, ExchangeError> {
    export_tensors(ours, states, &|name, shape| pieces(name, shape, heads))
}

/// Buffers that PyTorch stores with makeMoE's attention: constants, not parameters.
fn is_mask(name: &str) -> bool {
    name == "tril" || name.ends_with(".tril")
}

/// The tensors of makeMoE that make one of ours, in order.
fn pieces(name: &str, shape: &[usize], heads: Option<usize>) -> Result<Vec<Piece>, ExchangeError> {
    let whole = |theirs: String| Ok(vec![Piece::new(theirs, shape)]);
    match name {
        TOKEN_TABLE => return whole("token_embedding_table.weight".into()),
        "embed.position.weight" => return whole("position_embedding_table.weight".into()),
        "layer_norm.gain" => return whole("ln_f.weight".into()),
        "layer_norm.shift" => return whole("ln_f.bias".into()),
        "unembed.weight" => return whole("lm_head.weight".into()),
        "unembed.bias" => return whole("lm_head.bias".into()),
        _ => {}
    }
    let none = || ExchangeError::NoCounterpart { name: name.to_string() };
    let (block, rest) = name.strip_prefix("blocks.").and_then(|r| r.split_once('.')).ok_or_else(none)?;
    let block = format!("blocks.{block}");
    let experts = |layer: usize, kind: &str| match shape {
        [experts, part @ ..] if !part.is_empty() => Ok((0..*experts)
            .map(|e| Piece::new(format!("{block}.smoe.experts.{e}.net.{layer}.{kind}"), part))
            .collect()),
        _ => Err(none()),
    };
    match rest {
        "layer_norm.gain" => whole(format!("{block}.ln1.weight")),
        "layer_norm.shift" => whole(format!("{block}.ln1.bias")),
        "layer_norm_2.gain" => whole(format!("{block}.ln2.weight")),
        "layer_norm_2.shift" => whole(format!("{block}.ln2.bias")),
        "attention.qkv.weight" => {
            let heads = heads.unwrap_or(0);
            match shape {
                [rows, width] if heads > 0 && rows % (3 * heads) == 0 => {
                    let part = vec![rows / (3 * heads), *width];
                    let names = ["query", "key", "value"].into_iter().flat_map(|kind| {
                        let block = &block;
                        (0..heads).map(move |h| format!("{block}.sa.heads.{h}.{kind}.weight"))
                    });
                    Ok(names.map(|name| Piece::new(name, part.clone())).collect())
                }
                _ => Err(ExchangeError::Heads { name: name.to_string(), heads }),
            }
        }
        "attention.proj.weight" => whole(format!("{block}.sa.proj.weight")),
        "attention.proj.bias" => whole(format!("{block}.sa.proj.bias")),
        "moe.router.weight" => whole(format!("{block}.smoe.router.topkroute_linear.weight")),
        "moe.router.bias" => whole(format!("{block}.smoe.router.topkroute_linear.bias")),
        "moe.noise.weight" => whole(format!("{block}.smoe.router.noise_linear.weight")),
        "moe.noise.bias" => whole(format!("{block}.smoe.router.noise_linear.bias")),
        "moe.experts.mlp.up.weight" => experts(0, "weight"),
        "moe.experts.mlp.up.bias" => experts(0, "bias"),
        "moe.experts.mlp.down.weight" => experts(2, "weight"),
        "moe.experts.mlp.down.bias" => experts(2, "bias"),
        _ => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::{Data, StateRole, TensorType};
    use moec_plan::StateKind;

    /// V, T, C, H, E, F of the model in these tests; layers are numbered past 9 to catch sorting by text.
    const SIZES: [usize; 6] = [5, 4, 6, 3, 2, 7];
    const LAYERS: [usize; 2] = [0, 11];

    fn states() -> Vec<StateDecl> {
        let [v, t, c, _, e, f] = SIZES;
        let mut states = Vec::new();
        let mut declare = |name: String, shape: &[usize]| {
            states.push(StateDecl { name, ty: TensorType::f32(shape), kind: StateKind::Parameter });
        };
        declare(TOKEN_TABLE.into(), &[v, c]);
        declare("embed.position.weight".into(), &[t, c]);
        for l in LAYERS {
            for (name, shape) in [
                ("layer_norm.gain", vec![c]),
                ("layer_norm.shift", vec![c]),
                ("attention.qkv.weight", vec![3 * c, c]),
                ("attention.proj.weight", vec![c, c]),
                ("attention.proj.bias", vec![c]),
                ("layer_norm_2.gain", vec![c]),
                ("layer_norm_2.shift", vec![c]),
                ("moe.router.weight", vec![e, c]),
                ("moe.router.bias", vec![e]),
                ("moe.noise.weight", vec![e, c]),
                ("moe.noise.bias", vec![e]),
                ("moe.experts.mlp.up.weight", vec![e, f, c]),
                ("moe.experts.mlp.up.bias", vec![e, f]),
                ("moe.experts.mlp.down.weight", vec![e, c, f]),
                ("moe.experts.mlp.down.bias", vec![e, c]),
            ] {
                declare(format!("blocks.{l}.{name}"), &shape);
            }
        }
        declare("layer_norm.gain".into(), &[c]);
        declare("layer_norm.shift".into(), &[c]);
        declare("unembed.weight".into(), &[v, c]);
        declare("unembed.bias".into(), &[v]);
        let moment = "adamw.m.unembed.bias".to_string();
        states.push(StateDecl { name: moment, ty: TensorType::f32([v]), kind: StateKind::State(StateRole::Optimizer) });
        states
    }

    /// Every element of the model has another value.
    fn ours() -> BTreeMap<String, Tensor> {
        let mut next = 0;
        let parameters = states().into_iter().filter(|s| s.kind == StateKind::Parameter);
        parameters
            .map(|s| {
                let values = (next..next + s.ty.elements()).map(|i| i as f32).collect();
                next += s.ty.elements();
                (s.name, Tensor::new(s.ty.shape, Data::F32(values)).unwrap())
            })
            .collect()
    }

    fn row(tensor: &Tensor, row: usize) -> Vec<f64> {
        let width = tensor.shape().last().copied().unwrap();
        tensor.to_f64()[row * width..(row + 1) * width].to_vec()
    }

    #[test]
    fn round_trip_with_makemoes_names() {
        let ours = ours();
        let theirs = export_makemoe(&ours, &states(), Some(3)).unwrap();
        // 2 embeddings, 4 at the end, and per layer 4 norm, 9 + 2 attention, 4 router, 8 experts.
        assert_eq!(theirs.len(), 2 + 4 + 2 * (4 + 9 + 2 + 4 + 8));
        // Row 0 of head 1's keys is row C + D of qkv.
        let key = &theirs["blocks.11.sa.heads.1.key.weight"];
        assert_eq!(key.shape(), [2, 6]);
        assert_eq!(row(key, 0), row(&ours["blocks.11.attention.qkv.weight"], 6 + 2));
        let value = &theirs["blocks.0.sa.heads.2.value.weight"];
        assert_eq!(row(value, 1), row(&ours["blocks.0.attention.qkv.weight"], 17));
        let down = &theirs["blocks.0.smoe.experts.1.net.2.weight"];
        assert_eq!(down.shape(), [6, 7]);
        assert_eq!(row(down, 0), row(&ours["blocks.0.moe.experts.mlp.down.weight"], 6));
        assert_eq!(theirs["blocks.0.smoe.experts.1.net.0.bias"].shape(), [7]);
        assert_eq!(theirs["ln_f.bias"], ours["layer_norm.shift"]);

        let mut stored = theirs.clone();
        let mask = Tensor::new([4, 4], Data::F32(vec![1.0; 16])).unwrap();
        stored.insert("blocks.0.sa.heads.0.tril".into(), mask);
        assert_eq!(import_makemoe(&stored, &states(), Some(3)).unwrap(), ours);
    }

    #[test]
    fn other_structures_are_refused_by_name() {
        let theirs = export_makemoe(&ours(), &states(), Some(3)).unwrap();
        let import = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut theirs = theirs.clone();
            change(&mut theirs);
            import_makemoe(&theirs, &states(), Some(3)).unwrap_err()
        };
        let name = || "ln_f.bias".to_string();
        assert_eq!(import(&|t| drop(t.remove("ln_f.bias"))), ExchangeError::Missing { name: name() });
        let extra = import(&|t| drop(t.insert("blocks.0.smoe.experts.2.net.0.bias".into(), Tensor::floats([0.0; 7]))));
        assert_eq!(extra, ExchangeError::LeftOver { name: "blocks.0.smoe.experts.2.net.0.bias".into() });
        let wrong = import(&|t| drop(t.insert(name(), Tensor::floats([0.0; 5]))));
        assert_eq!(wrong.to_string(), "tensor `ln_f.bias` is f32[5], the model needs f32[6]");
        for (name, shape) in [
            ("blocks.0.mlp.up.weight", vec![7, 6]),
            ("blocks.0.attention.qkv.bias", vec![18]),
            ("blocks.x", vec![1]),
            ("blocks.0.moe.experts.mlp.up.bias", vec![]),
        ] {
            let state = StateDecl { name: name.into(), ty: TensorType::f32(shape), kind: StateKind::Parameter };
            let error = import_makemoe(&theirs, std::slice::from_ref(&state), Some(3)).unwrap_err();
            assert_eq!(error, ExchangeError::NoCounterpart { name: name.into() });
            assert_eq!(export_makemoe(&ours(), &[state], Some(3)).unwrap_err(), error);
        }
        for heads in [None, Some(0), Some(4)] {
            let error = export_makemoe(&ours(), &states(), heads).unwrap_err();
            assert!(matches!(error, ExchangeError::Heads { .. }), "{error}");
        }
        let mut incomplete = ours();
        incomplete.remove("unembed.bias");
        let error = export_makemoe(&incomplete, &states(), Some(3)).unwrap_err();
        assert_eq!(error, ExchangeError::Missing { name: "unembed.bias".into() });
    }
}
