//! Reading the reference numbers: safetensors files whose metadata holds the configuration.

use moec_ir::{Data, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One fixture file.
pub struct Fixture {
    /// File name without its extension.
    pub name: String,
    /// The configuration, as strings.
    pub meta: BTreeMap<String, String>,
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Fixture {
    /// A tensor that must be there.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// A whole number of the configuration.
    pub fn int(&self, key: &str) -> usize {
        let text = self.meta.get(key).unwrap_or_else(|| panic!("{}: no {key}", self.name));
        text.parse().unwrap_or_else(|_| panic!("{}: {key} = {text}", self.name))
    }

    /// A text of the configuration.
    pub fn text(&self, key: &str) -> &str {
        self.meta.get(key).map_or("", String::as_str)
    }

    /// Tensors whose names start with `prefix`, without it.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors.iter().filter_map(move |(n, t)| Some((n.strip_prefix(prefix)?, t)))
    }
}

/// The folder of the fixtures: `MOEC_FIXTURES` or the one beside this file.
pub fn folder() -> PathBuf {
    std::env::var_os("MOEC_FIXTURES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures"), PathBuf::from)
}

/// All fixtures of a subfolder (`routing` or `model`) in the order of their names.
pub fn load(subfolder: &str) -> Vec<Fixture> {
    let folder = folder().join(subfolder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert!(!paths.is_empty(), "no fixtures in {}", folder.display());
    paths.iter().map(|p| read(p)).collect()
}

fn read(path: &std::path::Path) -> Fixture {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file
        .iter()
        .map(|(name, view)| {
            let words = view.data().chunks_exact(4).map(|c| [c[0], c[1], c[2], c[3]]);
            let data = match view.dtype() {
                Dtype::F32 => Data::F32(words.map(f32::from_le_bytes).collect()),
                Dtype::I32 => Data::I32(words.map(i32::from_le_bytes).collect()),
                other => panic!("{name}: {other:?}"),
            };
            (name.to_string(), Tensor::new(view.shape().to_vec(), data).unwrap())
        })
        .collect();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    Fixture { name, meta, tensors }
}
