//! A page about training runs: one HTML file that needs nothing beside it, no network and no script.
//!
//! What is known about the runs is collected elsewhere and handed over as a [`Report`]; [`Report::html`] lays it out. Text
//! of users reaches the page through [`html`], which escapes everything. The few scripts make the page
//! richer, and their hash stands in its policy, so that no other script can run in it. The same report gives the same bytes.

mod characters;
mod curves;
mod heat;
mod html;
mod page;
mod palette;
pub(crate) mod picture;
mod plot;
mod text;

#[cfg(test)]
mod tests;

use crate::diagnosis::{Diagnosis, SpecLine};
use moec_runtime::Metric;

/// How a page begins, by which it is known again.
pub(crate) const SIGNATURE: &str = "<!DOCTYPE html>\n<!-- moec report -->\n";

/// What a page shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Version of the program.
    pub(crate) version: &'static str,
    /// The runs in the order in which they were named.
    pub(crate) runs: Vec<RunReport>,
    /// What the numbers of a training mean.
    pub(crate) columns: Vec<ColumnText>,
}

/// A number of a training, explained.
#[derive(Clone, Debug)]
pub(crate) struct ColumnText {
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) text: &'static str,
}

/// One run.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunReport {
    /// Its folder as it was named.
    pub(crate) path: String,
    /// Name of the model.
    pub(crate) model: String,
    pub(crate) seed: u64,
    /// What was asked for but for the seed: runs that have it in common are shown as one, with what they differ by.
    pub(crate) identity: String,
    /// One line on the model: parameters, layers, routers.
    pub(crate) summary: String,
    /// The spec as written, and the files that it imports with their names.
    pub(crate) spec: String,
    pub(crate) imports: Vec<(String, String)>,
    /// Overrides.
    pub(crate) set: Vec<String>,
    /// What the checker said.
    pub(crate) warnings: Vec<WarningText>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) diagnoses: Vec<Finding>,
    /// What keeps the diagnoses from being complete, if anything does.
    pub(crate) missing: Option<String>,
    /// The faults that were looked for, in the words of who has none of them.
    pub(crate) looked_for: Vec<&'static str>,
    /// Facts in pairs: data, steps, memory.
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) kernels: Vec<KernelTime>,
    /// Name and text of the newest sample.
    pub(crate) sample: Option<(String, String)>,
    /// Commands that make the run again or go on with it.
    pub(crate) commands: Vec<CommandText>,
    /// Where the characters of a text went, or why that is not known.
    pub(crate) routes: Routes,
}

/// A command to be pasted into a shell.
#[derive(Clone, Debug)]
pub(crate) struct CommandText {
    /// What it does.
    pub(crate) what: String,
    pub(crate) line: String,
}

/// A message of the checker.
#[derive(Clone, Debug)]
pub(crate) struct WarningText {
    /// With the lines that it points at.
    pub(crate) rendered: String,
    /// What its code means in general.
    pub(crate) explanation: String,
}

/// A diagnosis with the line to change.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) diagnosis: Diagnosis,
    pub(crate) line: Option<SpecLine>,
}

/// Time of the kernels of one kind in a training step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KernelTime {
    pub(crate) phase: String,
    pub(crate) kernel: String,
    pub(crate) launches: usize,
    pub(crate) ms: f64,
}

/// Where the characters of a text went.
#[derive(Clone, Debug)]
pub(crate) enum Routes {
    /// They are known.
    Of(RoutedText),
    /// They are not, and why.
    Unknown(String),
}

impl Default for Routes {
    fn default() -> Self {
        Routes::Unknown("the run has no router".to_string())
    }
}

/// A text with where its characters went in every layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoutedText {
    /// What text it is.
    pub(crate) source: String,
    /// Step of the checkpoint.
    pub(crate) step: u64,
    pub(crate) characters: Vec<char>,
    pub(crate) layers: Vec<RoutedLayer>,
}

/// A layer with a router.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoutedLayer {
    pub(crate) path: String,
    /// Routing strategy, or the kind of the layer.
    pub(crate) strategy: String,
    /// Number of experts, E.
    pub(crate) experts: usize,
    /// For every character the experts that were chosen, the largest weight first.
    pub(crate) choices: Vec<Vec<Choice>>,
}

/// An expert that was chosen for a character.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: usize,
    pub(crate) weight: f32,
    /// Whether the expert had no room.
    pub(crate) dropped: bool,
}

impl Report {
    /// The page.
    pub(crate) fn html(&self) -> String {
        page::page(self)
    }

    /// The runs that differ only in their seeds, together, in the order of the first of each; by their numbers.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, run) in self.runs.iter().enumerate() {
            match groups.iter_mut().find(|group| self.runs[group[0]].identity == run.identity) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }

    /// The letter of a run's group.
    fn letter(&self, run: usize) -> String {
        let group = self.groups().iter().position(|group| group.contains(&run)).unwrap_or(0);
        letter(group)
    }
}

/// `A` to `Z`, `A1`, ...
fn letter(group: usize) -> String {
    let first = char::from(b'A' + (group % 26) as u8);
    if group < 26 { first.to_string() } else { format!("{first}{}", group / 26) }
}
