//! Which tensors of a model stay as they start: `freeze(router: true)`.

use std::fmt;

use crate::lower::Lowered;

/// Which tensors stay as they start, as the recipe says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freeze {
    /// The experts of `moe` layers, shared ones too.
    pub experts: bool,
    /// What routers decide by, and the states that they would change.
    pub router: bool,
    /// Everything else.
    pub trunk: bool,
    /// Names with commas between them, in which `*` stands for anything.
    pub tensors: Option<String>,
}

/// Why nothing, or not what was meant, is frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreezeError {
    /// A pattern fits no tensor.
    Nothing {
        /// The pattern.
        pattern: String,
        /// The name that is most like it.
        near: Option<String>,
    },
    /// No parameter is left.
    Everything,
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreezeError::Nothing { pattern, .. } => {
                write!(f, "`freeze` names `{pattern}`, and the model has no such tensor")
            }
            FreezeError::Everything => f.write_str("`freeze` leaves nothing to train"),
        }
    }
}

impl std::error::Error for FreezeError {}

impl Lowered {
    /// The parameters that are trained, in order of declaration.
    ///
    /// # Errors
    /// When a pattern fits no tensor, or no parameter is left.
    pub fn trained(&self, freeze: &Freeze) -> Result<Vec<String>, FreezeError> {
        let names = || self.parameters.iter().map(|(name, _)| name.as_str());
        let patterns: Vec<&str> = freeze.tensors.iter().flat_map(|text| text.split(',')).map(str::trim).collect();
        if let Some(pattern) = patterns.iter().find(|pattern| !names().any(|name| fits(pattern, name))) {
            let near = moec_syntax::did_you_mean(pattern, names()).map(str::to_string);
            return Err(FreezeError::Nothing { pattern: (*pattern).to_string(), near });
        }
        let is_frozen = |name: &str| {
            // The router of a mixture inside an expert is part of both.
            let of_router = self.router_parameters.contains(name);
            // A router of a file may call a tensor as it likes.
            let of_expert = name.split('.').any(|word| match word {
                "experts" | "shared" | "shared_gate" => true,
                "latent" => !of_router,
                _ => false,
            });
            let of_part = (freeze.router && of_router)
                || (freeze.experts && of_expert)
                || (freeze.trunk && !of_router && !of_expert);
            of_part || patterns.iter().any(|pattern| fits(pattern, name))
        };
        let trained: Vec<String> = names().filter(|name| !is_frozen(name)).map(str::to_string).collect();
        if trained.is_empty() { Err(FreezeError::Everything) } else { Ok(trained) }
    }
}

/// Whether a name is like a pattern, in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let (between, end) = rest.rsplit_once('*').map_or(("", rest), |(between, end)| (between, end));
    for part in between.split('*') {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name) in [
            ("embed.token.weight", "embed.token.weight"),
            ("blocks.0.*", "blocks.0.moe.router.weight"),
            ("*.bias", "unembed.bias"),
            ("blocks.*.mlp.*.weight", "blocks.11.mlp.up.weight"),
            ("*", "x"),
            ("a*a", "aa"),
            ("**", ""),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("embed", "embed.token.weight"),
            ("blocks.0.*", "blocks.01.mlp"),
            ("*.bias", "unembed.bias.x"),
            ("a*a", "a"),
            ("", "x"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
