//! Small models and layers with numbers for all their tensors, for the tests of this folder.

use std::collections::BTreeMap;

use moec_ir::{DType, Data, Graph, Op, Precision, Tensor, TensorType, random};
use moec_model::{CheckOptions, Form, InitScheme, Layer, LowerOptions, Mode, Model, NoisePolicy, Registry, check};
use moec_syntax::{SourceFile, parse};

/// A model that must pass its checks.
pub(crate) fn model(text: &str) -> Model {
    let source = SourceFile::new("test", text);
    let file = parse(&source).unwrap();
    let checked = check(&source, &file, &Registry::with_builtins(), &CheckOptions::default());
    assert!(!checked.has_errors(), "{:?}", checked.diagnostics);
    checked.model.unwrap()
}

/// The layers between `embed` and `unembed`.
pub(crate) fn layers(width: usize, body: &str) -> Vec<Layer> {
    let text = format!("model m {{ context 5  vocab 7  embed(width: {width})  {body}  unembed }}");
    let mut layers = model(&text).layers;
    layers.pop();
    layers.remove(0);
    layers
}

/// A small vocabulary, losses, noise of its own.
pub(crate) fn options(mode: Mode, batch: usize) -> LowerOptions {
    LowerOptions {
        mode,
        batch,
        vocab: 7,
        loss: true,
        noise: NoisePolicy::Generated,
        init: InitScheme::KaimingNormal,
        precision: Precision::F32,
        routes: false,
        form: Form::Sequences,
    }
}

/// Standard normal numbers that depend on the name only.
pub(crate) fn numbers(name: &str, ty: &TensorType) -> Tensor {
    let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let keys = random::keys(random::state(seed, 1), 5);
    let values = (0..ty.elements()).map(|i| 0.5 * random::normal_at(keys, i as u32));
    Tensor::new(ty.shape.clone(), Data::F64(values.collect())).unwrap()
}

/// Random values for every parameter and float input of a graph, and for `tokens` and `targets` small numbers.
pub(crate) fn bindings(graph: &Graph) -> BTreeMap<String, Tensor> {
    let mut bindings = BTreeMap::new();
    for id in graph.ids() {
        if let Op::Input { name, ty } | Op::Parameter { name, ty } | Op::State { name, ty, .. } = &graph.node(id).op {
            let value = match (ty.dtype, name.as_str()) {
                (DType::F32, _) => numbers(name, ty),
                (DType::I32, "rng") => Tensor::ints(random::state(3, 4)),
                (DType::I32, _) => Tensor::ints((0..ty.elements() as i32).map(|i| (i * i + 3) % 7).collect::<Vec<_>>()),
            };
            bindings.insert(name.clone(), value);
        }
    }
    bindings
}
