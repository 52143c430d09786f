//! The checked model and recipe with every default filled in, as YAML: what `--emit model` prints and what a run keeps
//! as `resolved.yaml`.

use moec_model::{DataSource, InitScheme, Layer, LayerKind, Model, Positions, Recipe, Schedule, Vocab};
use serde_json::{Value, json};

/// The model and the recipe as YAML.
pub fn yaml(model: &Model, recipe: &Recipe) -> String {
    let value = json!({ "model": model_value(model), "train": recipe_value(recipe) });
    // A tree of strings and numbers cannot fail to serialise.
    serde_yaml::to_string(&value).unwrap_or_else(|e| format!("# {e}\n"))
}

fn model_value(model: &Model) -> Value {
    let vocab = match model.vocab {
        Vocab::Characters => json!("characters"),
        Vocab::Size(n) => json!(n),
    };
    json!({
        "name": model.name,
        "context": model.context,
        "vocab": vocab,
        "causality": model.causality.to_string(),
        "layers": layers(&model.layers),
    })
}

fn layers(list: &[Layer]) -> Vec<Value> {
    list.iter().map(layer).collect()
}

fn layer(layer: &Layer) -> Value {
    let body = match &layer.kind {
        LayerKind::Embed { positions } => {
            let positions = match positions {
                Positions::Learned => "learned",
                Positions::Rotary => "rotary",
                Positions::None => "none",
            };
            json!({ "width": layer.output, "positions": positions })
        }
        LayerKind::Attention(a) => json!({
            "heads": a.heads, "scale": a.scale, "dropout": a.dropout, "bias": a.bias, "rotary": a.rotary,
        }),
        LayerKind::Mlp(m) => json!({
            "hidden": m.hidden, "activation": m.activation.name(), "dropout": m.dropout, "bias": m.bias,
        }),
        LayerKind::Moe(m) => {
            let balance: Vec<Value> =
                m.balance.iter().map(|b| json!({ "loss": b.loss.name, "weight": b.weight })).collect();
            let capacity = m.capacity.map(|c| json!({ "factor": c.factor, "minimum": c.minimum }));
            json!({
                "experts": m.experts,
                "expert": layers(&m.expert),
                "shared": m.shared,
                "shared_expert": layers(&m.shared_expert),
                "route": m.route.to_string(),
                "balance": balance,
                "capacity": capacity,
            })
        }
        LayerKind::LayerNorm { epsilon } | LayerKind::RmsNorm { epsilon } => json!({ "eps": epsilon }),
        LayerKind::Dropout { rate } => json!({ "rate": rate }),
        LayerKind::Linear { bias } => json!({ "width": layer.output, "bias": bias }),
        LayerKind::Activation(_) => json!({}),
        LayerKind::Residual(inner) => json!(layers(inner)),
        LayerKind::Block { index, layers: inner } => return json!({ format!("blocks.{index}"): layers(inner) }),
        LayerKind::Unembed { tied, bias } => json!({ "tied": tied, "bias": bias }),
    };
    json!({ layer.kind.name(): body })
}

fn recipe_value(recipe: &Recipe) -> Value {
    let a = &recipe.optimizer;
    let schedule = match recipe.schedule {
        Schedule::Constant => json!("constant"),
        Schedule::Cosine { warmup, min_lr } => json!({ "cosine": { "warmup": warmup, "min_lr": min_lr } }),
    };
    let init = match recipe.init {
        InitScheme::KaimingNormal => json!("kaiming_normal"),
        InitScheme::Xavier => json!("xavier"),
        InitScheme::Normal { std } => json!({ "normal": { "std": std } }),
        InitScheme::Zeros => json!("zeros"),
    };
    let data = match &recipe.data {
        DataSource::Synthetic => "synthetic",
        DataSource::Named(name) => name,
    };
    json!({
        "data": data,
        "split": recipe.split,
        "batch": recipe.batch,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "optimizer": { "adamw": {
            "lr": a.lr, "beta1": a.beta1, "beta2": a.beta2, "eps": a.eps, "weight_decay": a.weight_decay,
        } },
        "schedule": schedule,
        "clip": recipe.clip,
        "init": init,
        "evaluate": { "every": recipe.evaluate.every, "batches": recipe.evaluate.batches },
        "checkpoint": { "every": recipe.checkpoint_every },
        "log": { "every": recipe.log_every },
    })
}
