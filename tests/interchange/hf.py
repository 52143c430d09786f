"""Models of Hugging Face's transformers, and models of moec in that form, have the same losses on both sides.

Small models with random weights are made here, imported and evaluated; models are trained, exported and read by transformers.

usage: hf.py MOEC
"""
import filecmp, json, os, subprocess, sys, tempfile
from pathlib import Path
from string import Template

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

MOEC = sys.argv[1]
TEXT = "".join(chr(97 + (i * i + i // 7) % 11) + (" " if i % 5 == 0 else "") for i in range(3000))
VOCAB, CONTEXT = len(set(TEXT)), 9
# Within it, losses of float32 are the same.
CLOSE = 1e-5

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA = dict(
    vocab_size=VOCAB, hidden_size=12, intermediate_size=19, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
    max_position_embeddings=CONTEXT, rope_parameters=ROPE, rms_norm_eps=3e-5, bos_token_id=None, eos_token_id=None,
)
GPT2 = dict(
    vocab_size=VOCAB, n_positions=CONTEXT, n_embd=12, n_layer=2, n_head=3, n_inner=17, activation_function="gelu",
    bos_token_id=None, eos_token_id=None,
)
MIXTRAL = dict(LLAMA, num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=False)
OLMOE = dict(LLAMA, num_experts=5, num_experts_per_tok=2)
QWEN3 = dict(LLAMA, head_dim=4)
QWEN2_MOE = dict(
    LLAMA, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=7, shared_expert_intermediate_size=6
)
QWEN3_MOE = dict(QWEN3, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=7)

# Title, class, and its configuration.
MODELS = [
    ("gpt2", "GPT2", GPT2),
    ("gpt2, relu, untied", "GPT2", dict(GPT2, activation_function="relu", tie_word_embeddings=False, n_inner=None)),
    ("llama", "Llama", LLAMA),
    ("llama, biases, tied", "Llama", dict(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("mistral", "Mistral", dict(LLAMA, sliding_window=None)),
    ("mistral, grouped", "Mistral", dict(LLAMA, sliding_window=None, num_key_value_heads=1)),
    ("llama, grouped, biases", "Llama", dict(LLAMA, num_key_value_heads=1, attention_bias=True)),
    ("qwen3, grouped", "Qwen3", dict(QWEN3, num_key_value_heads=1)),
    ("qwen2", "Qwen2", LLAMA),
    ("qwen3", "Qwen3", QWEN3),
    ("qwen3, biases", "Qwen3", dict(QWEN3, attention_bias=True)),
    ("mixtral", "Mixtral", MIXTRAL),
    ("mixtral, 1 of 3, tied", "Mixtral", dict(MIXTRAL, num_local_experts=3, num_experts_per_tok=1, tie_word_embeddings=True)),
    ("mixtral, grouped, a window", "Mixtral", dict(MIXTRAL, sliding_window=4, num_key_value_heads=1)),
    ("olmoe", "Olmoe", OLMOE),
    ("olmoe, normalised", "Olmoe", dict(OLMOE, norm_topk_prob=True, attention_bias=True)),
    ("qwen3_moe", "Qwen3Moe", QWEN3_MOE),
    ("qwen2_moe", "Qwen2Moe", QWEN2_MOE),
    ("qwen2_moe, no biases", "Qwen2Moe", dict(QWEN2_MOE, qkv_bias=False, norm_topk_prob=True)),
    ("qwen3_moe, normalised", "Qwen3Moe", dict(QWEN3_MOE, norm_topk_prob=True, tie_word_embeddings=True)),
]

# Title, class, and what stands in the spec for $embed, $norm, $attention, $forward and $unembed.
ROTARY, DENSE = ", positions: rotary", "mlp(hidden: 19, activation: swiglu, bias: false)"
TRAINED = [
    ("gpt2", "gpt2", "", "layer_norm", "bias: true", "mlp(hidden: 17, activation: gelu)", "bias: false"),
    ("gpt2, folded", "gpt2", ", positions: none", "layer_norm", "scale: width", "mlp(hidden: 17, activation: silu, bias: false)", "tied: true, bias: false"),
    ("llama", "llama", ROTARY, "rms_norm", "output_bias: false", DENSE, "bias: false"),
    ("llama, folded", "llama", ROTARY, "rms_norm", "scale: width", DENSE.replace("false", "true"), "tied: true, bias: false"),
    ("qwen2", "qwen2", ROTARY, "rms_norm(epsilon: 1e-4)", "bias: true, output_bias: false, dropout: 0.1", DENSE, "bias: false"),
    (
        "mixtral", "mixtral", ROTARY, "rms_norm", "output_bias: false",
        f"moe(experts: 5 * {DENSE}, route: softmax_top_k(k: 2, bias: false), balance: [switch, z])", "bias: false",
    ),
    (
        "mixtral, grouped, a window", "mixtral", ROTARY, "rms_norm", "kv_heads: 1, window: 4, output_bias: false, scale: width",
        f"moe(experts: 5 * {DENSE}, route: softmax_top_k(k: 2, bias: false))", "bias: false",
    ),
    (
        "qwen2, grouped", "qwen2", ROTARY, "rms_norm", "kv_heads: 1, bias: true, output_bias: false, scale: width", DENSE,
        "bias: false",
    ),
    (
        "mixtral, folded", "mixtral", ROTARY, "rms_norm", "output_bias: false, scale: width",
        f"moe(experts: 5 * {DENSE}, route: noisy_top_k(k: 3, bias: false), balance: [load])", "bias: false",
    ),
    ("qwen3, folded", "qwen3", ROTARY, "rms_norm", "norm: head, output_bias: false, scale: width", DENSE, "bias: false"),
    (
        "olmoe, folded", "olmoe", ROTARY, "rms_norm", "norm: width, output_bias: false, scale: width",
        f"moe(experts: 5 * {DENSE}, route: softmax_top_k(k: 2, normalize: all, bias: false))", "bias: false",
    ),
    (
        "qwen2_moe", "qwen2_moe", ROTARY, "rms_norm", "bias: true, output_bias: false",
        f"moe(experts: 5 * {DENSE}, shared: 1 * {DENSE}, shared_gate: true, route: softmax_top_k(k: 2, bias: false))",
        "bias: false",
    ),
    (
        "qwen3_moe", "qwen3_moe", ROTARY, "rms_norm(epsilon: 1e-4)", "norm: head, norm_epsilon: 1e-4, output_bias: false",
        f"moe(experts: 5 * {DENSE}, route: softmax_top_k(k: 2, bias: false))", "tied: true, bias: false",
    ),
]

SPEC = Template("""model m {
  context 9
  vocab characters
  embed(width: 12$embed)
  repeat 2 {
    residual { $norm  attention(heads: 3, $attention) }
    residual { $norm  $forward }
  }
  $norm
  unembed($unembed)
}
train { batch 5  steps 12  optimizer adamw(lr: 4e-3)  init normal(std: 0.4)  evaluate(every: 0, batches: 1) }
""")

# What the language cannot say, with the field that is named.
REFUSED = [
    ("Llama", dict(LLAMA, num_key_value_heads=2), "num_key_value_heads"),
    ("Llama", dict(LLAMA, head_dim=8), "head_dim"),
    ("Llama", dict(LLAMA, rope_parameters=dict(ROPE, rope_theta=5e5)), "rope_theta"),
    ("Llama", dict(LLAMA, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)), "rope_scaling"),
    ("Llama", dict(LLAMA, hidden_act="gelu"), "hidden_act"),
    ("Mistral", dict(LLAMA, sliding_window=4), "sliding_window"),
    ("Qwen2", dict(LLAMA, use_sliding_window=True, sliding_window=4, max_window_layers=0), "sliding_window"),
    ("Mixtral", dict(MIXTRAL, router_jitter_noise=0.1), "router_jitter_noise"),
    ("GPT2", dict(GPT2, activation_function="gelu_new"), "activation_function"),
    ("GPT2", dict(GPT2, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    ("Olmoe", dict(OLMOE, clip_qkv=1.0), "clip_qkv"),
    ("Qwen3Moe", dict(QWEN3_MOE, mlp_only_layers=[0]), "mlp_only_layers"),
    ("Qwen3Moe", dict(QWEN3_MOE, decoder_sparse_step=2), "decoder_sparse_step"),
    ("GPTNeoX", dict(vocab_size=VOCAB, hidden_size=12, num_attention_heads=3, num_hidden_layers=1, intermediate_size=9), "gpt_neox"),
]


def run(*arguments, code=0):
    done = subprocess.run([MOEC, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, f"moec {arguments}: {done.returncode}\n{done.stderr}"
    return done


def evaluated(folder):
    return json.loads(run("eval", folder, "--split", "val", "--json").stdout)["loss_nats"]


def model_class(name):
    return getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))


def read(name, folder):
    return model_class(name).from_pretrained(folder, experts_implementation="eager").eval()


def random_model(name, configuration):
    torch.manual_seed(11)
    # PyTorch's grouped products want widths that are multiples of 4, and those here are awkward.
    model = model_class(name)(getattr(transformers, f"{name}Config")(**configuration, experts_implementation="eager"))
    with torch.no_grad():
        for parameter in model.parameters():
            # Also what starts at 0 or 1: otherwise a bias that is lost would not show.
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.eval()


@torch.no_grad()
def loss(model):
    """The mean over the windows of `moec eval`, of the same tenth of the text."""
    ids = {character: i for i, character in enumerate(sorted(set(TEXT)))}
    held_out = torch.tensor([ids[character] for character in TEXT[int(len(TEXT) * 0.9) :]])
    windows = (len(held_out) - 1) // CONTEXT
    tokens = held_out[: windows * CONTEXT].view(windows, CONTEXT)
    targets = held_out[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
    logits = torch.cat([model(batch).logits for batch in tokens.split(32)])
    return F.cross_entropy(logits.double().flatten(0, 1), targets.flatten()).item()


class Table:
    """Losses on both sides."""

    def __init__(self):
        print(f"{'':12} {'':24} {'moec eval':>12} {'transformers':>12} {'difference':>12}")

    def row(self, kind, title, ours, theirs):
        print(f"{kind:12} {title:24} {ours:12.7f} {theirs:12.7f} {abs(ours - theirs):12.1e}")
        assert abs(ours - theirs) < CLOSE, f"{kind} {title}"


def same_tensors(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def check_imports(folder, data, table):
    for number, (title, name, configuration) in enumerate(MODELS):
        model, saved, imported = random_model(name, configuration), folder / f"saved{number}", folder / f"imported{number}"
        model.save_pretrained(saved)
        said = run("import", saved, "--data", data, "--out", imported).stderr
        assert f"took the {VOCAB} characters" in said, said
        table.row("imported", title, evaluated(imported), loss(model))
        # And out again: the same numbers under the same names.
        again = folder / f"again{number}"
        run("export", imported, "--to", "hf", again)
        same_tensors(saved, again)
        table.row("and back", title, evaluated(imported), loss(read(name, again)))


def check_exports(folder, data, table):
    for number, (title, name, embed, norm, attention, forward, unembed) in enumerate(TRAINED):
        parts = dict(embed=embed, norm=norm, attention=attention, forward=forward, unembed=unembed)
        file, trained, exported = folder / f"{number}.moe", folder / f"run{number}", folder / f"exported{number}"
        file.write_text(SPEC.substitute(parts))
        run("train", file, "--data", data, "--out", trained, "--quiet", "--sample", "0")
        said = run("export", trained, "--to", "hf", exported).stderr
        assert "folded" not in title or "folded" in said, said
        model = transformers.AutoModelForCausalLM.from_pretrained(exported, experts_implementation="eager").eval()
        assert model.config.model_type == name
        table.row("exported", title, evaluated(trained), loss(model))
        # Back, by the characters that lie beside the weights, and out again: the same bytes.
        imported, again = folder / f"reimported{number}", folder / f"reexported{number}"
        said = run("import", exported, "--from", "hf", "--data", data, "--out", imported).stderr
        assert "took the" not in said, said
        run("export", imported, "--to", "hf", again)
        same = filecmp.cmpfiles(exported, again, ["config.json", "model.safetensors", "vocabulary.json"], shallow=False)
        assert len(same[0]) == 3, same
        assert abs(evaluated(imported) - evaluated(trained)) < 1e-6


def check_refusals(folder, data):
    for number, (name, configuration, expected) in enumerate(REFUSED):
        saved = folder / f"refused{number}"
        getattr(transformers, f"{name}Config")(**configuration).save_pretrained(saved)
        said = run("import", saved, "--data", data, "--out", folder / "none", code=3).stderr
        assert expected in said, f"{name} {configuration}\n{said}"
    saved = folder / "tokens"
    random_model("Llama", dict(LLAMA, vocab_size=VOCAB + 3)).save_pretrained(saved)
    said = run("import", saved, "--data", data, "--out", folder / "none", code=3).stderr
    assert f"the model has {VOCAB + 3} tokens" in said, said


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "text.txt"
        data.write_text(TEXT)
        table = Table()
        check_imports(folder, data, table)
        check_exports(folder, data, table)
        check_refusals(folder, data)
        print(f"{len(REFUSED) + 1} configurations are refused by the field that is the reason")


main()
