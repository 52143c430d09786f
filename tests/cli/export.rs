//! `moec export`: what it writes and what it leaves alone. That PyTorch computes the same is held by tests/interchange.

use super::{Lab, expect};
use std::fs;
use std::path::Path;

#[test]
fn a_model_becomes_a_folder_with_source_code() {
    let lab = Lab::new();
    let (run, folder) = (lab.at("run"), lab.at("python"));
    lab.train(&run, &["--device", "interpreter", "--steps", "1"], 0);
    let said = expect(&["export", &run, "--to", "pytorch", &folder], 0).err;
    assert!(said.contains("wrote the model of step 1") && said.contains("model.py --prompt"), "{said}");
    let read = |name: &str| fs::read_to_string(Path::new(&folder).join(name)).unwrap();
    let code = read("model.py");
    assert!(code.contains("class Model(nn.Module):") && code.contains("def load(cls, folder):"), "{code}");
    // The spec stands in the file, and only what is used stands at its top.
    assert!(code.contains(&fs::read_to_string(&lab.spec).unwrap().lines().next().unwrap().to_string()), "{code}");
    assert!(code.contains("def sort_by_expert(") && !code.contains("def balanced_assignment("), "{code}");
    let characters: Vec<String> = serde_json::from_str(&read("vocabulary.json")).unwrap();
    assert!(characters.len() == 28 && characters.contains(&"q".to_string()), "{characters:?}");
    let tensors = moec_runtime::read_tensors(&Path::new(&folder).join("model.safetensors")).unwrap();
    assert!(tensors.contains_key("embed.token.weight"), "{:?}", tensors.keys());
    assert!(!tensors.keys().any(|name| name.starts_with("adamw")), "{:?}", tensors.keys());

    // What is there stays, unless it may be replaced.
    let refused = expect(&["export", &run, "--to", "pytorch", &folder], 1).err;
    assert!(refused.contains("is not empty") && refused.contains("--force"), "{refused}");
    expect(&["export", &run, "--to", "pytorch", "-o", &folder, "--force"], 0);
    let refused = expect(&["export", &run, "--to", "pytorch", &lab.data], 2).err;
    assert!(refused.contains("is no folder"), "{refused}");
    let new = format!("{run}/checkpoints/step-00000099/model");
    for own in [run.clone(), format!("{run}/checkpoints"), new] {
        let refused = expect(&["export", &run, "--to", "pytorch", &own, "--force"], 2).err;
        assert!(refused.contains("a folder of the run"), "{refused}");
    }

    // The place is said once.
    expect(&["export", &run, "--to", "pytorch"], 2);
    expect(&["export", &run, "--to", "pytorch", &folder, "-o", &folder], 2);
    expect(&["export", &run, "--to", "jax", &folder], 2);
}
