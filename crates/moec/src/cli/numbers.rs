//! What a run reported as other tools take it: number by number, each with a name of its own.

use moec_runtime::Metric;
use serde_json::Value;

/// A number that a run reported.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Number {
    pub(crate) step: u64,
    /// As in `metrics.jsonl`, with its unit.
    pub(crate) name: String,
    /// Path of the layer that it is about.
    pub(crate) layer: Option<String>,
    /// Number of the expert that it is about.
    pub(crate) expert: Option<usize>,
    pub(crate) value: f64,
}

impl Number {
    /// Its name with the layer and the expert that it is about: `load_rows/blocks.0.moe/3`.
    pub(crate) fn tag(&self) -> String {
        let about = [self.layer.clone(), self.expert.map(|expert| expert.to_string())];
        std::iter::once(self.name.clone()).chain(about.into_iter().flatten()).collect::<Vec<_>>().join("/")
    }
}

/// The numbers of a line of `metrics.jsonl`, by name; those of layers where the layers are.
pub(crate) fn numbers(metric: &Metric) -> Vec<Number> {
    // What is written to the file is what is listed, fields of later versions included.
    let Ok(Value::Object(fields)) = serde_json::to_value(metric) else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |name: String, layer: Option<&str>, expert, value: &Value| {
        found.extend(value.as_f64().map(|value| Number {
            step: metric.step(),
            name,
            layer: layer.map(str::to_string),
            expert,
            value,
        }));
    };
    for (name, value) in fields.iter().filter(|(name, _)| *name != "step") {
        let Value::Array(layers) = value else {
            add(name.clone(), None, None, value);
            continue;
        };
        for layer in layers.iter().filter_map(Value::as_object) {
            let path = layer.get("path").and_then(Value::as_str);
            for (name, value) in layer {
                match value {
                    Value::Array(experts) => {
                        experts.iter().enumerate().for_each(|(e, value)| add(name.clone(), path, Some(e), value));
                    }
                    Value::Object(several) => {
                        several.iter().for_each(|(of, value)| add(format!("{name}.{of}"), path, None, value));
                    }
                    value => add(name.clone(), path, None, value),
                }
            }
        }
    }
    found
}

/// Seconds of training, which stand for the time of what a run reported: its lines do not say when they were written, and
/// what is sent a second time must not have another time.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrainingTime {
    seconds: f64,
    last: u64,
}

impl TrainingTime {
    /// Seconds at the next line of the file.
    pub(crate) fn at(&mut self, metric: &Metric) -> f64 {
        if let Metric::Train(train) = metric {
            self.seconds += 1e-3 * train.step_ms * train.step.saturating_sub(self.last) as f64;
            self.last = train.step;
        }
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_line_is_listed() {
        let line = |text: &str| numbers(&Metric::from_line(text).unwrap());
        let train =
            line(r#"{"schema":1,"kind":"train","step":10,"loss_nats":3.5,"lr":0.001,"step_ms":2,"tokens_per_s":9}"#);
        let named: Vec<(&str, f64)> = train.iter().map(|n| (n.name.as_str(), n.value)).collect();
        assert_eq!(named, [("loss_nats", 3.5), ("lr", 0.001), ("step_ms", 2.0), ("tokens_per_s", 9.0)]);
        let evaluation = line(
            r#"{"schema":1,"kind":"evaluation","step":20,"train_loss_nats":3,"layers":[{"path":"a,b","load_rows":[4,0],
            "load_max_over_mean":2,"experts_without_tokens":1,"entropy_nats":0.5,"dropped_share":0,"balance":1.5,
            "auxiliary":{"load":0.25}}]}"#,
        );
        let tags: Vec<String> = evaluation.iter().map(Number::tag).collect();
        assert_eq!(
            tags,
            [
                "auxiliary.load/a,b",
                "balance/a,b",
                "dropped_share/a,b",
                "entropy_nats/a,b",
                "experts_without_tokens/a,b",
                "load_max_over_mean/a,b",
                "load_rows/a,b/0",
                "load_rows/a,b/1",
                "train_loss_nats"
            ]
        );
        assert_eq!(evaluation.iter().map(|n| n.value).sum::<f64>(), 0.25 + 1.5 + 0.5 + 1.0 + 2.0 + 4.0 + 3.0);
    }

    #[test]
    fn time_is_that_of_steps() {
        let mut time = TrainingTime::default();
        let train = |step: u64, ms: u64| {
            let line = format!(
                r#"{{"schema":1,"kind":"train","step":{step},"loss_nats":1,"lr":1,"step_ms":{ms},"tokens_per_s":1}}"#
            );
            Metric::from_line(&line).unwrap()
        };
        assert_eq!(time.at(&train(10, 500)), 5.0);
        let evaluation = r#"{"schema":1,"kind":"evaluation","step":10,"train_loss_nats":3,"layers":[]}"#;
        assert_eq!(time.at(&Metric::from_line(evaluation).unwrap()), 5.0);
        assert_eq!(time.at(&train(12, 1000)), 7.0);
    }
}
