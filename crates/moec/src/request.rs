//! What a run was asked for, and the text that says so in its folder.

use crate::error::Error;
use moec_ir::Invariant;
use moec_model::{Model, Recipe, ResolvedModel, ResolvedRecipe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What a run was asked for beyond its spec; kept in `resolved.yaml`, so that a run needs no options to be continued,
/// sampled or evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Which model of the file.
    pub model: Option<String>,
    /// Overrides `path=value`.
    pub set: Vec<String>,
    /// `synthetic`, the name of a known text, or the path of one.
    pub data: String,
    /// SHA-256 of the text, by which it is known wherever it lies; earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
    /// The device that it is trained on, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The texts that the spec imports, directly or not, by their paths from its folder: with them the run can be
    /// loaded when the files are gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub imports: BTreeMap<String, String>,
}

impl Request {
    /// What the run in this folder was asked for.
    ///
    /// # Errors
    /// When there is no run, or its `resolved.yaml` is damaged.
    pub fn read(root: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            request: Request,
        }
        let text = moec_runtime::read_resolved(root)?;
        let head: Head = serde_yaml::from_str(&text)
            .map_err(|e| Error::Request { path: root.join("resolved.yaml"), reason: e.to_string() })?;
        Ok(head.request)
    }

    /// Whether two runs are asked for the same, wherever their text lies and whatever device they are trained on.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let data = match (&self.data_sha256, &other.data_sha256) {
            (Some(a), Some(b)) => a == b,
            _ => self.data == other.data,
        };
        data && (&self.model, &self.set, &self.imports) == (&other.model, &other.set, &other.imports)
    }

    /// The request with the resolved model and recipe below it, as a run keeps them.
    pub(crate) fn with_resolved(&self, model: &Model, recipe: &Recipe) -> String {
        #[derive(Serialize)]
        struct Head<'a> {
            request: &'a Request,
        }
        yaml(&Head { request: self }) + &resolved(model, recipe)
    }
}

/// Whether an override says what is frozen.
pub(crate) fn freezes(given: &str) -> bool {
    let path = given.split('=').next().unwrap_or_default().trim();
    path == "train.freeze" || path.starts_with("train.freeze.")
}

/// The checked model and recipe with every default filled in, as YAML.
pub(crate) fn resolved(model: &Model, recipe: &Recipe) -> String {
    #[derive(Serialize)]
    struct Resolved {
        model: ResolvedModel,
        train: ResolvedRecipe,
    }
    yaml(&Resolved { model: model.to_resolved(), train: recipe.to_resolved() })
}

/// A tree of names, strings and numbers as YAML.
pub(crate) fn yaml(value: &impl Serialize) -> String {
    serde_yaml::to_string(value).invariant("a tree of names, strings and numbers can be written as YAML")
}
