//! Words of papers and of other tools, and what stands for them here.
//!
//! Who writes `top_k: 2` or `batch_size 16` has not misspelt anything, so the nearest name is of no help: an entry says
//! which names mean the same, and how it is written where none of them may stand.

use crate::diag::did_you_mean;

/// What a word that is unknown where it stands was probably meant to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// One of the words that may stand there.
    Word(&'a str),
    /// Something that is written otherwise, or elsewhere; how, as advice.
    Otherwise(&'static str),
}

/// What an unknown word was probably meant to say where only `candidates` may stand: a known word for the same thing, or
/// else one that is spelt alike ([`did_you_mean`]). A word that means something elsewhere is misspelt only if it is one
/// edit away.
pub fn meant<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<Meant<'a>> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wanted = plain(word);
    let entry = SYNONYMS.iter().find(|entry| entry.words.iter().any(|known| plain(known) == wanted));
    let same = |name: &&str| candidates.clone().into_iter().find(|candidate| candidate == name);
    let known = entry.and_then(|entry| entry.names.iter().find_map(same));
    let misspelt = || {
        let near = did_you_mean(word, candidates.clone())?;
        (entry.is_none() || strsim::damerau_levenshtein(word, near) <= 1).then_some(near)
    };
    let near = known.or_else(misspelt);
    near.map(Meant::Word).or_else(|| entry.map(|entry| Meant::Otherwise(entry.advice)))
}

/// Words with one meaning.
struct Synonym {
    /// How others call it, and the name itself if it is often written in another place.
    words: &'static [&'static str],
    /// What it is called here, most specific first.
    names: &'static [&'static str],
    /// How to write it where none of the names may stand.
    advice: &'static str,
}

/// Every entry; a word stands in one of them.
const SYNONYMS: &[Synonym] = &[
    // Layers.
    Synonym {
        words: &["ffn", "feed_forward", "fc"],
        names: &["mlp"],
        advice: "two linear maps with an activation between them are the layer `mlp(hidden: ..)`",
    },
    Synonym {
        words: &["dense"],
        names: &[],
        advice: "one map is the layer `linear(width: ..)`, two with an activation between them are `mlp(hidden: ..)`",
    },
    Synonym {
        words: &["self_attention", "multi_head_attention", "causal_self_attention", "mha", "attn"],
        names: &["attention"],
        advice: "causal self-attention is the layer `attention(heads: ..)`",
    },
    Synonym {
        words: &["embedding", "token_embedding", "wte"],
        names: &["embed"],
        advice: "vectors of the tokens are the layer `embed(width: ..)`, which begins a model",
    },
    Synonym {
        words: &["lm_head", "head", "to_logits"],
        names: &["unembed"],
        advice: "scores of the vocabulary are the layer `unembed`, which ends a model",
    },
    Synonym { words: &["norm", "ln"], names: &[], advice: "the norms are the layers `layer_norm` and `rms_norm`" },
    Synonym {
        words: &["skip", "shortcut"],
        names: &["residual"],
        advice: "what is added to its own input stands in `residual { .. }`",
    },
    Synonym {
        words: &["swiglu", "geglu", "glu"],
        names: &[],
        advice: "a gated activation has weights of its own: write `mlp(hidden: .., activation: swiglu)`",
    },
    Synonym {
        words: &["mixture_of_experts", "sparse_moe"],
        names: &["moe"],
        advice: "a mixture of experts is the layer `moe(experts: 8 * mlp(..), route: ..)`",
    },
    // Arguments of layers.
    Synonym {
        words: &["n_kv_heads", "num_kv_heads", "num_key_value_heads", "n_head_kv", "query_groups"],
        names: &["kv_heads"],
        advice: "the number of heads of keys and values is an argument of the layer: `attention(heads: 8, kv_heads: 2)`",
    },
    Synonym {
        words: &["n_head", "n_heads", "num_heads", "num_attention_heads"],
        names: &["heads"],
        advice: "the number of heads is an argument of the layer: `attention(heads: 8)`",
    },
    Synonym {
        words: &["n_embd", "n_embed", "d_model", "embed_dim", "embedding_dim", "emb_dim", "dim", "out_features"],
        names: &["width"],
        advice: "the width of the model is an argument of its first layer: `embed(width: 128)`",
    },
    Synonym {
        words: &["hidden_size", "hidden_dim", "d_ff", "ffn_dim", "intermediate_size", "expert_dim"],
        names: &["hidden", "width"],
        advice: "the width between the maps of an expert is an argument of the layer: `mlp(hidden: 512)`",
    },
    Synonym {
        words: &["p", "drop", "prob", "dropout_rate", "rate"],
        names: &["rate", "dropout"],
        advice: "a share of numbers to drop is `dropout: 0.1` in `attention` and `mlp`, or the layer `dropout(rate: 0.1)`",
    },
    Synonym {
        words: &["eps", "epsilon"],
        names: &["eps", "epsilon"],
        advice: "an epsilon is an argument of `layer_norm`, `rms_norm`, `noisy_top_k` and `adamw`",
    },
    Synonym {
        words: &["act", "act_fn", "nonlinearity", "hidden_act"],
        names: &["activation"],
        advice: "an activation is a layer, such as `relu`, or an argument: `mlp(hidden: .., activation: gelu)`",
    },
    Synonym {
        words: &["use_bias", "add_bias"],
        names: &["bias"],
        advice: "`bias: true` and `bias: false` are arguments of the layers that can have one",
    },
    Synonym {
        words: &["tie_weights", "weight_tying", "tie_word_embeddings"],
        names: &["tied"],
        advice: "the vectors of the tokens are used twice with `unembed(tied: true)`",
    },
    Synonym {
        words: &["pos_emb", "positional", "position", "pe"],
        names: &["positions"],
        advice: "how positions enter is an argument of the first layer: `embed(width: .., positions: learned)`",
    },
    Synonym {
        words: &["rope", "rotary"],
        names: &["rotary"],
        advice: "rotary positions are an argument of the first layer: `embed(width: .., positions: rotary)`",
    },
    // Experts and their router.
    Synonym {
        words: &["num_experts", "n_experts", "n_expert", "num_local_experts", "experts"],
        names: &["experts"],
        advice: "the experts are an argument of `moe`, with their number: `experts: 8 * mlp(hidden: 512)`",
    },
    Synonym {
        words: &["n_shared_experts", "num_shared_experts", "shared_experts", "shared"],
        names: &["shared"],
        advice: "experts that every token goes to are an argument of `moe`: `shared: 1 * mlp(hidden: 512)`",
    },
    Synonym {
        words: &["moe_latent_size", "latent_size", "latent_dim"],
        names: &["latent"],
        advice: "the width of latent experts is an argument of `moe`: `latent: 64`",
    },
    Synonym {
        words: &["top_k", "k", "num_experts_per_tok", "experts_per_token", "num_selected"],
        names: &["k", "softmax_top_k"],
        advice: "how many experts a token goes to is an argument of the router: `route: softmax_top_k(k: 2)`",
    },
    Synonym {
        words: &["router", "gate", "gating", "routing", "route"],
        names: &["route"],
        advice: "the router is an argument of `moe`: `route: softmax_top_k(k: 2)`",
    },
    Synonym {
        words: &["top2", "softmax", "mixtral"],
        names: &[],
        advice: "the best two experts, weighted by a softmax of their scores, are `softmax_top_k(k: 2)`",
    },
    Synonym { words: &["top1"], names: &["switch"], advice: "one expert a token is the router `switch`" },
    Synonym {
        words: &["noisy_top2", "noisy"],
        names: &[],
        advice: "noise on the scores is the router `noisy_top_k(k: 2)`",
    },
    Synonym {
        words: &["deepseek", "sigmoid", "loss_free", "aux_free"],
        names: &["sigmoid_top_k"],
        advice: "sigmoid scores, balanced by biases instead of a loss, are the router `sigmoid_top_k(k: 2, ..)`",
    },
    Synonym {
        words: &["norm_topk_prob", "renormalize", "renormalise"],
        names: &["renormalise", "normalize"],
        advice: "whether weights are normalised is an argument of some routers; `moec routers` lists them",
    },
    Synonym {
        words: &["capacity", "capacity_factor", "expert_capacity"],
        names: &["factor", "capacity_factor"],
        advice: "a capacity is an argument of `moe`, beside `route`: `capacity: capacity(factor: 1.25)`",
    },
    Synonym {
        words: &[
            "load_balancing",
            "load_balancing_loss",
            "load_balance",
            "aux_loss",
            "router_aux_loss_coef",
            "balance",
        ],
        names: &["switch"],
        advice: "balance losses are an argument of `moe`, beside `route`: `balance: [switch(weight: 0.01)]`",
    },
    Synonym {
        words: &["z_loss", "router_z_loss", "router_z_loss_coef"],
        names: &["z"],
        advice: "balance losses are an argument of `moe`, beside `route`: `balance: [z(weight: 0.001)]`",
    },
    Synonym {
        words: &["importance_loss", "cv_squared", "cv2"],
        names: &["importance"],
        advice: "balance losses are an argument of `moe`, beside `route`: `balance: [importance(weight: 0.01)]`",
    },
    Synonym {
        words: &["load_loss"],
        names: &["load"],
        advice: "balance losses are an argument of `moe`, beside `route`: `balance: [load(weight: 0.01)]`",
    },
    Synonym {
        words: &["coef", "coefficient", "alpha", "loss_weight"],
        names: &["weight"],
        advice: "the factor of a balance loss is its `weight`: `switch(weight: 0.01)`",
    },
    // The model and its training.
    Synonym {
        words: &["block_size", "context_length", "seq_len", "max_seq_len", "n_ctx", "max_position_embeddings"],
        names: &["context"],
        advice: "the number of tokens that a model sees is written in the model: `context 32`",
    },
    Synonym {
        words: &["vocab_size", "n_vocab"],
        names: &["vocab"],
        advice: "how text becomes tokens is written in the model: `vocab characters`",
    },
    Synonym {
        words: &["lr", "learning_rate", "max_lr"],
        names: &["lr"],
        advice: "the learning rate is an argument of the optimizer: `optimizer adamw(lr: 1e-3)`",
    },
    Synonym {
        words: &["weight_decay", "wd"],
        names: &["weight_decay"],
        advice: "weight decay is an argument of the optimizer: `optimizer adamw(weight_decay: 0.1)`",
    },
    Synonym {
        words: &["betas", "beta1", "beta2", "momentum"],
        names: &[],
        advice: "it is an argument of the optimizer: `optimizer adamw(beta1: 0.9, beta2: 0.95)`, `optimizer sgd(momentum: 0.9)`",
    },
    Synonym {
        words: &["adam"],
        names: &["adamw"],
        advice: "the optimizer is written in `train`: `optimizer adamw(lr: 1e-3, weight_decay: 0)`",
    },
    Synonym {
        words: &["max_iters", "max_steps", "num_steps", "total_steps", "train_steps", "iterations", "iters"],
        names: &["steps"],
        advice: "the length of the training is written in `train`: `steps 5000`",
    },
    Synonym {
        words: &["epochs", "num_epochs", "max_epochs"],
        names: &[],
        advice: "training is counted in steps of a batch each: `steps 5000`",
    },
    Synonym {
        words: &["batch_size", "train_batch_size", "micro_batch_size"],
        names: &["batch"],
        advice: "the number of sequences of a step is written in `train`: `batch 16`",
    },
    Synonym {
        words: &[
            "gradient_accumulation_steps",
            "gradient_accumulation",
            "grad_accum",
            "grad_accum_steps",
            "accumulation_steps",
            "accumulate_grad_batches",
            "micro_batches",
        ],
        names: &["accumulate"],
        advice: "the number of batches of a step is written in `train`: `accumulate 4`",
    },
    Synonym {
        words: &["ema", "ema_decay", "use_ema", "weight_averaging", "swa"],
        names: &["average"],
        advice: "a moving average of the parameters is written in `train`: `average(decay: 0.999)`",
    },
    Synonym {
        words: &["warmup", "warmup_steps", "warmup_iters"],
        names: &["warmup"],
        advice: "a warm-up is an argument of the schedule: `schedule cosine(warmup: 100)`",
    },
    Synonym {
        words: &["min_lr", "lr_min", "eta_min"],
        names: &["min_lr"],
        advice: "the last learning rate is an argument of the schedule: `schedule cosine(min_lr: 1e-4)`",
    },
    Synonym {
        words: &["scheduler", "lr_scheduler", "lr_schedule", "decay_lr"],
        names: &["schedule"],
        advice: "how the learning rate changes is written in `train`: `schedule cosine(warmup: 100)`",
    },
    Synonym {
        words: &["grad_clip", "gradient_clipping", "max_grad_norm", "clip_grad_norm", "max_norm"],
        names: &["clip"],
        advice: "the bound on the norm of the gradient is written in `train`: `clip 1.0`",
    },
    Synonym {
        words: &["eval_interval", "eval_every", "eval_steps", "val_interval", "evaluate_every"],
        names: &["every"],
        advice: "evaluation is one setting: `evaluate(every: 250, batches: 50)`",
    },
    Synonym {
        words: &["eval_iters", "eval_batches", "val_batches"],
        names: &["batches"],
        advice: "evaluation is one setting: `evaluate(every: 250, batches: 50)`",
    },
    Synonym {
        words: &["early_stopping", "early_stopping_patience", "early_stop"],
        names: &["patience"],
        advice: "training that ends after evaluations without a better held-out loss is written `evaluate(patience: 5)`",
    },
    Synonym {
        words: &["save_best", "save_best_only", "keep_best", "load_best_model_at_end"],
        names: &["best"],
        advice: "that the checkpoint with the best held-out loss is kept is written `checkpoint(best: true)`",
    },
    Synonym {
        words: &["log_interval", "log_every", "print_every"],
        names: &["every"],
        advice: "how often progress is reported is written `log(every: 10)`",
    },
    Synonym {
        words: &["save_every", "save_interval", "save_steps", "checkpoint_every", "checkpoint_interval"],
        names: &["every"],
        advice: "how often a checkpoint is saved is written `checkpoint(every: 1000)`",
    },
    Synonym {
        words: &["dataset", "corpus", "train_data"],
        names: &["data"],
        advice: "the text to train on is written in `train`: `data \"corpus.txt\"`",
    },
    Synonym {
        words: &["val_split", "validation_split", "test_size", "val_fraction"],
        names: &[],
        advice: "the share of the text that is trained on is written in `train`: `split 0.9` holds out a tenth",
    },
    Synonym {
        words: &["train_split", "train_ratio"],
        names: &["split"],
        advice: "the share of the text that is trained on is written in `train`: `split 0.9`",
    },
    Synonym {
        words: &["fp16", "float16", "f16"],
        names: &[],
        advice: "numbers of 16 bits are bfloat16 here, which have the range of float32, so that losses need no scaling: \
                 `precision bf16`; `f32` does without",
    },
    Synonym { words: &["bfloat16"], names: &["bf16"], advice: "bfloat16 is written `precision bf16`" },
    Synonym { words: &["fp32", "float32"], names: &["f32"], advice: "float32 is written `precision f32`" },
    Synonym {
        words: &["random_seed", "manual_seed", "random_state"],
        names: &["seed"],
        advice: "the seed is written in `train`: `seed 1337`",
    },
    Synonym {
        words: &["initializer", "initialization", "initialisation", "weight_init"],
        names: &["init"],
        advice: "how weights start is written in `train`: `init kaiming_normal`",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synonym_comes_before_what_is_spelt_alike() {
        let router = ["k", "epsilon", "noise_at_evaluation", "bias"];
        assert_eq!(meant("top_k", router), Some(Meant::Word("k")));
        assert_eq!(meant("topK", router), Some(Meant::Word("k")));
        assert_eq!(meant("eps", router), Some(Meant::Word("epsilon")));
        assert_eq!(meant("biass", router), Some(Meant::Word("bias")));
        assert_eq!(meant("quantum", router), None);
        assert!(matches!(meant("swiglu", ["silu", "relu"]), Some(Meant::Otherwise(_))));
        assert_eq!(meant("head", ["heads", "scale"]), Some(Meant::Word("heads")), "though it is a layer elsewhere");
        let Some(Meant::Otherwise(advice)) = meant("capacity", router) else { panic!() };
        assert!(advice.contains("`moe`, beside `route`"), "{advice}");
        assert_eq!(meant("batch_size", ["batch", "steps"]), Some(Meant::Word("batch")));
        assert_eq!(meant("hidden_size", ["width", "bias"]), Some(Meant::Word("width")));
        assert_eq!(meant("hidden_size", ["width", "hidden"]), Some(Meant::Word("hidden")));
    }

    #[test]
    fn a_word_has_one_meaning() {
        let mut seen = std::collections::BTreeMap::new();
        for entry in SYNONYMS {
            for word in entry.words {
                let plain = word.replace('_', "").to_lowercase();
                assert_eq!(seen.insert(plain, entry.advice), None, "`{word}` stands twice");
            }
        }
    }
}
