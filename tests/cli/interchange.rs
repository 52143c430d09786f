//! Models that go to other programs and come back: what corresponds goes, and what does not is refused at its place.
//! tests/interchange holds the numbers against those programs.

use super::{Lab, expect, text};
use std::fs;
use std::path::Path;

/// What makeMoE computes otherwise: every one of these once gave a file that it would have read and misunderstood.
const OTHERWISE: &str = "model otherwise {
  context 8
  vocab characters
  embed(width: 16, positions: rotary)
  repeat 2 {
    residual { rms_norm  attention(heads: 2, bias: true) }
    residual {
      rms_norm
      moe(
        experts:  3 * mlp(hidden: 64, activation: gelu),
        route:    switch,
        capacity: capacity(factor: 1.5),
      )
    }
  }
  rms_norm
  unembed
}
train { batch 2  steps 2  evaluate(every: 0, batches: 1) }
";

/// What makeMoE computes once something is put into the weights.
const FOLDED: &str = "model folded {
  context 8
  vocab characters
  embed(width: 12, positions: none)
  repeat 2 {
    residual { layer_norm  attention(heads: 3, output_bias: false) }
    residual {
      layer_norm
      moe(experts: 3 * mlp(hidden: 20, bias: false), route: softmax_top_k(k: 2, bias: false))
    }
  }
  layer_norm
  unembed(tied: true, bias: false)
}
train { batch 2  steps 2  evaluate(every: 0, batches: 1) }
";

/// A trained run of a spec.
fn run_of(lab: &Lab, name: &str, spec: &str) -> String {
    let (file, run) = (text(Path::new(&lab.at(&format!("{name}.moe"))), spec), lab.at(name));
    expect(&["train", &file, "--data", &lab.data, "--out", &run, "--sample", "0", "--quiet"], 0);
    run
}

fn loss(run: &str) -> f64 {
    let json: serde_json::Value = serde_json::from_str(&expect(&["eval", run, "--json"], 0).out).unwrap();
    json["loss_nats"].as_f64().unwrap()
}

#[test]
fn what_makemoe_computes_otherwise_is_refused_at_its_place() {
    let lab = Lab::new();
    let run = run_of(&lab, "otherwise", OTHERWISE);
    let file = lab.at("otherwise.safetensors");
    let refused = expect(&["export", &run, "-o", &file], 2).err;
    assert!(!Path::new(&file).exists());
    let shown = refused.replace(&run, "RUN");
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("makemoe.refused", shown);
    });

    // A spec is held to the same when weights come from there, unless it is to be trusted.
    let run = lab.at("run");
    lab.train(&run, &[], 0);
    expect(&["export", &run, "-o", &file], 0);
    let small = fs::read_to_string(&lab.spec).unwrap();
    for (other, expected) in [
        (small.replace("scale: width", "scale: head"), "write `scale: width`"),
        (small.replace("activation: relu", "activation: gelu"), "expected `activation: relu`"),
        (small.replace("epsilon: 0", "epsilon: 0.01"), "expected `epsilon: 0`"),
    ] {
        let (spec, out) = (text(Path::new(&lab.at("other.moe")), other), lab.at("imported"));
        let import = ["import", &file, "--spec", &spec, "--data", &lab.data, "--out", &out];
        let refused = expect(&import, 2).err;
        assert!(refused.contains(expected) && refused.contains("--trust-spec"), "{refused}");
        expect(&[&import[..], &["--trust-spec"]].concat(), 0);
        // The deviation of noise is a matter of training.
        assert_eq!(loss(&out) == loss(&run), expected.contains("epsilon"));
        fs::remove_dir_all(out).unwrap();
    }
    let refused = expect(&["import", &file, "--data", &lab.data, "--out", &lab.at("none")], 2).err;
    assert!(refused.contains("--spec names the .moe file"), "{refused}");
}

#[test]
fn what_can_be_put_into_weights_is_and_said() {
    let lab = Lab::new();
    let run = run_of(&lab, "folded", FOLDED);
    let file = lab.at("folded.safetensors");
    let said = expect(&["export", &run, "-o", &file], 0).err;
    for part in [
        "folded the scale of attention into the query weights",
        "gave every position a vector of zeros",
        "gave the router noise of deviation 0",
        "gave the experts biases of 0",
        "wrote the token vectors as weights of the scores as well",
        "n_embed = 12, n_head = 3, n_layer = 2, num_experts = 3, top_k = 2",
        "20 wide inside",
    ] {
        assert!(said.replace("\n", " ").contains(part), "{part}: {said}");
    }
    // As a spec that computes what makeMoE does, the weights have the same loss. (There is no noise in evaluation.)
    let spec = FOLDED
        .replace("positions: none", "positions: learned")
        .replace("heads: 3, output_bias: false", "heads: 3, scale: width")
        .replace(", bias: false), route: softmax_top_k(k: 2, bias: false)", "), route: noisy_top_k(k: 2, epsilon: 0)")
        .replace("(tied: true, bias: false)", "");
    let (spec, out) = (text(Path::new(&lab.at("makemoe.moe")), spec), lab.at("imported"));
    expect(&["import", &file, "--spec", &spec, "--data", &lab.data, "--out", &out], 0);
    assert!((loss(&out) - loss(&run)).abs() < 1e-6, "{} {}", loss(&out), loss(&run));
}

/// What Mixtral computes, but for noise that only training has.
const MIXTRAL: &str = "model mixtral {
  context 8
  vocab characters
  embed(width: 12, positions: rotary)
  repeat 2 {
    residual { rms_norm  attention(heads: 3, output_bias: false, scale: width) }
    residual {
      rms_norm
      moe(
        experts: 3 * mlp(hidden: 10, activation: swiglu, bias: false),
        route:   noisy_top_k(k: 2, bias: false),
      )
    }
  }
  rms_norm
  unembed(bias: false)
}
train { batch 2  steps 2  evaluate(every: 0, batches: 1) }
";

/// What GPT-2 computes.
const GPT2: &str = "model gpt2 {
  context 8
  vocab characters
  embed(width: 12)
  repeat 2 {
    residual { layer_norm  attention(heads: 3, bias: true) }
    residual { layer_norm  mlp(hidden: 48, activation: gelu) }
  }
  layer_norm
  unembed(tied: true, bias: false)
}
train { batch 2  steps 2  evaluate(every: 0, batches: 1) }
";

#[test]
fn a_model_goes_to_transformers_and_comes_back() {
    let lab = Lab::new();
    let run = run_of(&lab, "mixtral", MIXTRAL);
    let folder = lab.at("exported");
    let said = expect(&["export", &run, "--to", "hf", &folder], 0).err.replace('\n', " ");
    for part in ["wrote a MixtralForCausalLM", "folded the scale of attention", "router's noise", "no tokenizer"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let file = |folder: &str, name: &str| fs::read(Path::new(folder).join(name)).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&file(&folder, "config.json")).unwrap();
    assert_eq!((&config["model_type"], &config["num_local_experts"]), (&"mixtral".into(), &3.into()));
    expect(&["export", &run, "--to", "hf", &folder], 1);
    expect(&["export", &run, "--to", "hf", "--force", &folder], 0);
    expect(&["export", &run, "--to", "hf", "--force", &run], 2);
    expect(&["export", &run, "--to", "hf", "--force", &lab.data], 2);

    // The folder says what it is, and everything else but the text.
    let back = lab.at("back");
    expect(&["import", &folder, "--data", &lab.data, "--out", &back], 0);
    assert!((loss(&back) - loss(&run)).abs() < 1e-6, "{} {}", loss(&back), loss(&run));
    let spec = fs::read_to_string(Path::new(&back).join("spec.moe")).unwrap();
    assert!(spec.contains("route:   softmax_top_k(k: 2, normalize: selected, bias: false),"), "{spec}");
    let layout = text(Path::new(&lab.at("back.moe")), &spec);
    expect(&["fmt", "--check", &layout], 0);
    let again = lab.at("again");
    expect(&["export", &back, "--to", "hf", &again], 0);
    for name in ["config.json", "model.safetensors", "vocabulary.json"] {
        assert!(file(&folder, name) == file(&again, name), "{name} differs");
    }
    let short = lab.at("short");
    expect(&["import", &folder, "--data", &lab.data, "--out", &short, "-s", "context=4"], 0);

    let long = expect(&["import", &folder, "--data", &lab.data, "--out", &lab.at("long"), "-s", "context=9"], 2).err;
    assert!(long.contains("the model sees 8 tokens, and `context` is 9"), "{long}");
    // Of learned positions, a shorter window has the first.
    let learned = run_of(&lab, "gpt2", GPT2);
    let gpt2 = lab.at("exported-gpt2");
    expect(&["export", &learned, "--to", "hf", &gpt2], 0);
    let short = lab.at("short-gpt2");
    expect(&["import", &gpt2, "--data", &lab.data, "--out", &short, "-s", "context=5"], 0);
    let positions = |run: &str, step| {
        let file = format!("{run}/checkpoints/step-{step:08}/model.safetensors");
        moec_runtime::read_tensors(Path::new(&file)).unwrap()["embed.position.weight"].to_f32()
    };
    assert_eq!(positions(&short, 0), positions(&learned, 2)[..5 * 12]);

    // Another text has other characters, and a changed configuration another model.
    let import = |more: &[&str], code| {
        let out = lab.at("refused");
        expect(&[&["import", folder.as_str(), "--out", out.as_str()], more].concat(), code).err
    };
    let other = text(Path::new(&lab.at("other.txt")), "Ω and more ".repeat(90));
    assert!(import(&["--data", &other], 3).contains("lacks 'Ω'"));
    fs::remove_file(Path::new(&folder).join("vocabulary.json")).unwrap();
    let refused = import(&["--data", &other], 3);
    assert!(refused.contains("a token is a character here"), "{refused}");
    let refused = import(&["--data", &lab.data, "--spec", &lab.spec], 2);
    assert!(refused.contains("config.json says what the model is"), "{refused}");
    for (field, value, said) in [
        ("num_key_value_heads", 2.into(), "`num_key_value_heads` is 2, expected a divisor of `num_attention_heads`, 3"),
        ("sliding_window", "all".into(), "`sliding_window` is \"all\""),
        ("model_type", "deepseek_v3".into(), "compressed keys and values"),
        ("hidden_size", serde_json::Value::Null, "`hidden_size` is missing"),
    ] {
        let mut changed = config.clone();
        changed[field] = value;
        text(&Path::new(&folder).join("config.json"), changed.to_string());
        let refused = import(&["--data", &lab.data], 3);
        assert!(refused.contains(said), "{refused}");
    }
    text(&Path::new(&folder).join("config.json"), "{");
    assert!(import(&["--data", &lab.data], 3).contains("is no JSON"));
    text(&Path::new(&folder).join("config.json"), config.to_string());
    fs::remove_file(Path::new(&folder).join("model.safetensors")).unwrap();
    assert!(import(&["--data", &lab.data], 3).contains("there is no"));

    // What no class computes is refused at its place, with the class that is nearest.
    let small = lab.at("small");
    lab.train(&small, &[], 0);
    let refused = expect(&["export", &small, "--to", "hf", &lab.at("none")], 2).err;
    for part in ["Mixtral has rotary positions", "Mixtral has `rms_norm`", "Mixtral is nearest to this one"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(!Path::new(&lab.at("none")).exists());
}
