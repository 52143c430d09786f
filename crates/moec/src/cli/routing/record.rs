//! The record of a routed text: JSON lines that say which character went to which experts, and hold what replays it.

use crate::cli::exit::{Exit, Failure};
use moec_ir::{Data, Invariant, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Version of the lines.
pub(crate) const SCHEMA: &str = "moec.route/1";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// The first line: what was run on which text.
    Run(Header),
    /// What replays a window.
    Window(Window),
    /// Where a character went in a layer.
    Route(Route),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) schema: String,
    pub(crate) run: String,
    /// Step of the checkpoint.
    pub(crate) checkpoint: u64,
    /// SHA-256 of its parameters.
    pub(crate) model_sha256: String,
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) seed: u64,
    /// Length of a window, T.
    pub(crate) context: usize,
    pub(crate) text: String,
    pub(crate) layers: Vec<Layer>,
}

/// A layer with a router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) path: String,
    /// Routing strategy, or the kind of the layer.
    pub(crate) strategy: String,
    /// Number of experts, E.
    pub(crate) experts: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) window: usize,
    /// State of the generator.
    pub(crate) rng: [i32; 4],
    /// Every choice of the graph.
    pub(crate) routes: BTreeMap<String, Array<i32>>,
    /// Random numbers that were drawn.
    pub(crate) noise: BTreeMap<String, Array<f32>>,
    /// Logits of the window's characters, `[T, V]` row after row, without those of the filling.
    pub(crate) logits: Vec<f32>,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Array<T> {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<T>,
}

impl Array<i32> {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self { shape: tensor.shape().to_vec(), data: tensor.as_i32().invariant("choices are whole numbers").to_vec() }
    }

    pub(crate) fn tensor(&self) -> Option<Tensor> {
        Tensor::new(self.shape.clone(), Data::I32(self.data.clone()))
    }
}

impl Array<f32> {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self { shape: tensor.shape().to_vec(), data: tensor.to_f32() }
    }
}

/// Where a character went in a layer. The vectors are parallel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) layer: String,
    /// Number of the character in the text.
    pub(crate) position: usize,
    pub(crate) character: char,
    pub(crate) experts: Vec<usize>,
    pub(crate) weights: Vec<f32>,
    /// Whether the expert had no room.
    pub(crate) dropped: Vec<bool>,
}

impl Route {
    /// The expert with the largest weight, the first of equals.
    fn first(&self) -> Option<usize> {
        let mut best: Option<(usize, f32)> = None;
        for (&expert, &weight) in self.experts.iter().zip(&self.weights) {
            if best.is_none_or(|(_, w)| weight > w) {
                best = Some((expert, weight));
            }
        }
        best.map(|(expert, _)| expert)
    }

    /// The experts that worked on the character, by weight, the largest first; of equals the first chosen.
    pub(crate) fn ranked(&self) -> Vec<usize> {
        let mut slots: Vec<usize> = (0..self.experts.len()).filter(|&slot| !self.dropped[slot]).collect();
        slots.sort_by(|&a, &b| self.weights[b].total_cmp(&self.weights[a]));
        slots.into_iter().map(|slot| self.experts[slot]).collect()
    }

    /// The expert that worked on the character with the `slot`-th largest weight, from 1.
    pub(crate) fn choice(&self, slot: usize) -> Option<usize> {
        self.ranked().get(slot.checked_sub(1)?).copied()
    }

    /// The experts that worked on the character, with their weights.
    fn kept(&self) -> BTreeMap<usize, f32> {
        let all = self.experts.iter().zip(&self.weights).zip(&self.dropped);
        all.filter(|(_, dropped)| !**dropped).map(|((&expert, &weight), _)| (expert, weight)).collect()
    }
}

/// A whole record.
pub(crate) struct Record {
    pub(crate) header: Header,
    pub(crate) windows: Vec<Window>,
    pub(crate) routes: Vec<Route>,
}

impl Record {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let failure = Failure::file("read", path, &e);
            Failure::new(Exit::Data, failure.to_string()).help("give a file that `moec route RUN --text TEXT` wrote")
        })?;
        let damaged = |number: usize, why: &str| {
            Failure::new(Exit::Data, format!("{}: line {number} is not of a record: {why}", path.display()))
                .help("give a file that `moec route RUN --text TEXT` wrote")
        };
        let (mut header, mut windows, mut routes) = (None, Vec::new(), Vec::new());
        for (i, line) in text.lines().enumerate() {
            match serde_json::from_str(line).map_err(|e| damaged(i + 1, &e.to_string()))? {
                Line::Run(found) if i == 0 && found.schema == SCHEMA => header = Some(found),
                Line::Run(_) => return Err(damaged(i + 1, &format!("it must begin one {SCHEMA} record"))),
                Line::Window(window) => windows.push(window),
                Line::Route(route) => routes.push(route),
            }
        }
        let header = header.ok_or_else(|| damaged(1, "the file is empty or begins in the middle"))?;
        Ok(Self { header, windows, routes })
    }

    /// The lines, in the order in which they are read.
    pub(crate) fn to_lines(&self) -> Result<String, serde_json::Error> {
        let run = [Line::Run(self.header.clone())];
        let windows = self.windows.iter().cloned().map(Line::Window);
        let routes = self.routes.iter().cloned().map(Line::Route);
        let mut text = String::new();
        for line in run.into_iter().chain(windows).chain(routes) {
            text.push_str(&serde_json::to_string(&line)?);
            text.push('\n');
        }
        Ok(text)
    }
}

/// How alike two records are in a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LayerDifference {
    pub(crate) layer: String,
    /// Characters that were compared.
    pub(crate) characters: usize,
    /// Share of characters whose expert with the largest weight is the same.
    pub(crate) equal_first: f64,
    /// Share of characters on which the same experts worked, the dropped left out.
    pub(crate) equal_sets: f64,
    /// Largest difference of an expert's weight; 0 is the weight of one that did not work on the character.
    pub(crate) largest_weight_difference: f64,
}

/// Compares two records of the same text, layer by layer in the order of the first.
///
/// # Errors
/// When the texts differ or the records have no layer in common.
pub(crate) fn difference(a: &Record, b: &Record) -> Result<Vec<LayerDifference>, Failure> {
    if a.header.text != b.header.text {
        return Err(
            Failure::new(Exit::Data, "the records are of different texts").help("record both with the same --text")
        );
    }
    let other: BTreeMap<(&str, usize), &Route> = b.routes.iter().map(|r| ((r.layer.as_str(), r.position), r)).collect();
    let mut layers = Vec::new();
    for layer in &a.header.layers {
        let pairs: Vec<(&Route, &Route)> = a
            .routes
            .iter()
            .filter(|r| r.layer == layer.path)
            .filter_map(|r| Some((r, *other.get(&(r.layer.as_str(), r.position))?)))
            .collect();
        if pairs.is_empty() {
            continue;
        }
        let share = |equal: &dyn Fn(&Route, &Route) -> bool| {
            pairs.iter().filter(|(a, b)| equal(a, b)).count() as f64 / pairs.len() as f64
        };
        let weights = pairs.iter().flat_map(|(a, b)| {
            let (a, b) = (a.kept(), b.kept());
            let experts: BTreeSet<usize> = a.keys().chain(b.keys()).copied().collect();
            let weight = |of: &BTreeMap<usize, f32>, e| f64::from(of.get(&e).copied().unwrap_or(0.0));
            experts.into_iter().map(move |e| (weight(&a, e) - weight(&b, e)).abs()).collect::<Vec<_>>()
        });
        layers.push(LayerDifference {
            layer: layer.path.clone(),
            characters: pairs.len(),
            equal_first: share(&|a, b| a.first() == b.first()),
            equal_sets: share(&|a, b| a.kept().keys().eq(b.kept().keys())),
            largest_weight_difference: weights.fold(0.0, f64::max),
        });
    }
    if layers.is_empty() {
        return Err(Failure::new(Exit::Data, "the records have no layer in common"));
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (&'a str, usize, &'a [usize], &'a [f32], &'a [bool]);

    fn record(routes: &[Row<'_>]) -> Record {
        let layer = |path: &str| Layer { path: path.into(), strategy: "softmax_top_k".into(), experts: 4 };
        let header = Header {
            schema: SCHEMA.into(),
            run: "runs/x".into(),
            checkpoint: 3,
            model_sha256: String::new(),
            model: "x".into(),
            device: "cpu".into(),
            seed: 0,
            context: 4,
            text: "ab".into(),
            layers: vec![layer("blocks.0.moe"), layer("blocks.1.moe")],
        };
        let route = |&(layer, position, experts, weights, dropped): &Row<'_>| Route {
            layer: layer.to_string(),
            position,
            character: 'a',
            experts: experts.to_vec(),
            weights: weights.to_vec(),
            dropped: dropped.to_vec(),
        };
        Record { header, windows: Vec::new(), routes: routes.iter().map(route).collect() }
    }

    #[test]
    fn differences_are_counted_by_layer() {
        let none = [false, false];
        let a = record(&[
            ("blocks.0.moe", 0, &[1, 2], &[0.75, 0.25], &none),
            ("blocks.0.moe", 1, &[3, 0], &[0.5, 0.5], &none),
            ("blocks.1.moe", 0, &[1, 2], &[0.75, 0.25], &[false, true]),
        ]);
        let b = record(&[
            ("blocks.0.moe", 0, &[2, 1], &[0.625, 0.375], &none),
            ("blocks.0.moe", 1, &[3, 1], &[0.5, 0.5], &none),
            ("blocks.1.moe", 0, &[1], &[0.75], &[false]),
        ]);
        let found = difference(&a, &b).unwrap();
        let row = |layer: &str, characters, equal_first, equal_sets, largest_weight_difference| LayerDifference {
            layer: layer.into(),
            characters,
            equal_first,
            equal_sets,
            largest_weight_difference,
        };
        assert_eq!(found, [row("blocks.0.moe", 2, 0.5, 0.5, 0.5), row("blocks.1.moe", 1, 1.0, 1.0, 0.0)]);
        let same = difference(&a, &a).unwrap();
        assert!(same.iter().all(|r| (r.equal_first, r.equal_sets, r.largest_weight_difference) == (1.0, 1.0, 0.0)));

        let mut other = record(&[]);
        assert!(difference(&a, &other).is_err());
        other.header.text = "ac".into();
        assert!(difference(&a, &other).unwrap_err().to_string().contains("different texts"));
    }

    #[test]
    fn records_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let mut written = record(&[("blocks.0.moe", 0, &[1, 2], &[0.1, 1e-8], &[false, true])]);
        written.windows.push(Window {
            window: 0,
            rng: [1, -2, 3, 4],
            routes: BTreeMap::from([("route.top_k".to_string(), Array { shape: vec![1, 2], data: vec![1, -1] })]),
            noise: BTreeMap::new(),
            logits: vec![0.1, -3.5e-7],
        });
        std::fs::write(&path, written.to_lines().unwrap()).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!((read.header, read.windows, read.routes), (written.header, written.windows, written.routes));
        for wrong in ["", "{}\n", "{\"kind\":\"route\"}\n"] {
            std::fs::write(&path, wrong).unwrap();
            assert_eq!(Record::read(&path).err().unwrap().exit(), Exit::Data);
        }
    }
}
