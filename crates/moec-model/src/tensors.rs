//! Tensors that a recipe speaks of: which stay as they start, `freeze(router: true)`, and which start smaller or larger than others,
//! `init_scale(tensors: "*.proj.weight", factor: 0.2)`.

use std::fmt;

use moec_ir::Init;

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

/// Which tensors start otherwise than `init` says.
#[derive(Clone, Debug, PartialEq)]
pub struct InitScale {
    /// Names with commas between them, in which `*` stands for anything.
    pub tensors: String,
    /// What their first values are multiplied by.
    pub factor: f64,
}

/// Why a recipe does not speak of what was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorsError {
    /// A pattern fits no tensor.
    Nothing {
        /// The setting in which it stands.
        setting: &'static str,
        /// The pattern.
        pattern: String,
        /// The name that is most like it.
        near: Option<String>,
    },
    /// No parameter is left.
    Everything,
}

impl fmt::Display for TensorsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorsError::Nothing { setting, pattern, .. } => {
                write!(f, "`{setting}` names `{pattern}`, and the model has no such tensor")
            }
            TensorsError::Everything => f.write_str("`freeze` leaves nothing to train"),
        }
    }
}

impl std::error::Error for TensorsError {}

/// Patterns of names.
struct Patterns<'a>(Vec<&'a str>);

impl<'a> Patterns<'a> {
    /// What a setting says, if every pattern fits one of the names.
    fn of<'n>(
        setting: &'static str,
        text: Option<&'a str>,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<Self, TensorsError> {
        let patterns: Vec<&str> = text.into_iter().flat_map(|text| text.split(',')).map(str::trim).collect();
        match patterns.iter().find(|pattern| !names.clone().any(|name| fits(pattern, name))) {
            Some(pattern) => {
                let near = moec_syntax::did_you_mean(pattern, names).map(str::to_string);
                Err(TensorsError::Nothing { setting, pattern: (*pattern).to_string(), near })
            }
            None => Ok(Self(patterns)),
        }
    }

    /// Whether one of them fits a name.
    fn fit(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| fits(pattern, name))
    }
}

impl Lowered {
    /// Lets tensors start smaller or larger. What starts at a constant, as gains and some biases do, stays.
    ///
    /// # Errors
    /// When a pattern fits no tensor that starts at random.
    pub fn scale_init(&mut self, scale: &InitScale) -> Result<(), TensorsError> {
        let is_drawn = |init: &Init| !matches!(init, Init::Constant(_));
        let names = self.parameters.iter().filter(|(_, init)| is_drawn(init)).map(|(name, _)| name.as_str());
        let patterns = Patterns::of("init_scale", Some(&scale.tensors), names)?;
        for (name, init) in &mut self.parameters {
            if is_drawn(init) && patterns.fit(name) {
                *init = init.times(scale.factor);
            }
        }
        Ok(())
    }

    /// The parameters that are trained, in order of declaration.
    ///
    /// # Errors
    /// When a pattern fits no tensor, or no parameter is left.
    pub fn trained(&self, freeze: &Freeze) -> Result<Vec<String>, TensorsError> {
        let names = || self.parameters.iter().map(|(name, _)| name.as_str());
        let patterns = Patterns::of("freeze", freeze.tensors.as_deref(), names())?;
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
            of_part || patterns.fit(name)
        };
        let trained: Vec<String> = names().filter(|name| !is_frozen(name)).map(str::to_string).collect();
        if trained.is_empty() { Err(TensorsError::Everything) } else { Ok(trained) }
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
