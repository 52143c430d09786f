//! How routers spread their tokens, as text: a bar for each expert, and the table at the end of a training.

use crate::cli::table::Table;
use moec_runtime::LayerBalance;
use unicode_width::UnicodeWidthStr;

/// Heads of the numbers of a layer. The first is there where a layer has it.
const NUMBERS: [&str; 6] = ["experts/token", "max/mean", "idle", "entropy", "dropped", "balance"];

/// The balance of all layers on one line: the worst of each number, and the mean of the experts of a token.
pub(crate) fn summary(layers: &[LayerBalance]) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let worst = |f: fn(&LayerBalance) -> f64| layers.iter().map(f).fold(0.0, f64::max);
    let idle: usize = layers.iter().map(|l| l.experts_without_tokens).sum();
    let dropped = worst(|l| l.dropped_share);
    let dropped = if dropped > 0.0 { format!("  dropped {:.1} %", 100.0 * dropped) } else { String::new() };
    let experts = experts_per_token(layers).map(|mean| format!("  experts/token {mean:.2}")).unwrap_or_default();
    format!(
        "{experts}  max/mean {:.2}  idle {idle}  balance {:.2}{dropped}",
        worst(|l| l.load_max_over_mean),
        worst(|l| l.balance)
    )
}

/// The mean over the layers of the experts that computed for a token, of those where it varies; `None` if it does in none.
pub(crate) fn experts_per_token(layers: &[LayerBalance]) -> Option<f64> {
    let measured: Vec<f64> = layers.iter().filter_map(|layer| layer.experts_per_token).collect();
    (!measured.is_empty()).then(|| measured.iter().sum::<f64>() / measured.len() as f64)
}

/// One row per mixture layer, with the load of every expert as a bar. Where a row is wider than `width`, bars and balance
/// losses stand below the numbers.
pub(crate) fn panel(layers: &[LayerBalance], width: usize) -> Vec<String> {
    let losses = |layer: &LayerBalance| {
        let losses: Vec<String> = layer.auxiliary.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        losses.join("  ")
    };
    let left_out = usize::from(experts_per_token(layers).is_none());
    let heads = NUMBERS.into_iter().skip(left_out);
    let mut table = Table::new(&["layer", "load"].into_iter().chain(heads.clone()).collect::<Vec<_>>(), 2);
    let mut numbers = Table::new(&["layer"].into_iter().chain(heads).collect::<Vec<_>>(), 1);
    for layer in layers {
        let cells = [
            layer.experts_per_token.map_or("-".to_string(), |experts| format!("{experts:.2}")),
            format!("{:.2}", layer.load_max_over_mean),
            layer.experts_without_tokens.to_string(),
            format!("{:.3}", layer.entropy_nats),
            format!("{:.1} %", 100.0 * layer.dropped_share),
            format!("{:.3}", layer.balance),
        ];
        let cells = cells.into_iter().skip(left_out);
        let bars = bars(&layer.load_rows, &layer.zero_computation_rows);
        table.row([layer.path.clone(), bars].into_iter().chain(cells.clone()));
        numbers.row([layer.path.clone()].into_iter().chain(cells));
    }
    let mut lines = table.lines(usize::MAX);
    for (line, layer) in lines.iter_mut().skip(1).zip(layers) {
        let losses = losses(layer);
        if !losses.is_empty() {
            *line += "  ";
            *line += &losses;
        }
    }
    if lines.iter().all(|line| line.width() <= width) {
        return lines;
    }
    let lines = numbers.lines(width);
    let heads = lines.len().saturating_sub(layers.len());
    let mut out: Vec<String> = lines.iter().take(heads).cloned().collect();
    let room = width.saturating_sub(2).max(1);
    for (line, layer) in lines.into_iter().skip(heads).zip(layers) {
        out.push(line);
        let bars: Vec<char> = bars(&layer.load_rows, &layer.zero_computation_rows).chars().collect();
        out.extend(bars.chunks(room).map(|part| format!("  {}", part.iter().collect::<String>())));
        let mut line = String::new();
        for (name, value) in &layer.auxiliary {
            let loss = format!("  {name} {value:.4}");
            if !line.is_empty() && line.width() + loss.width() > width {
                out.push(std::mem::take(&mut line));
            }
            line += &loss;
        }
        if !line.is_empty() {
            out.push(line);
        }
    }
    out
}

/// One block character per expert, its height the load relative to twice the mean, and behind a line those of experts that
/// compute nothing.
pub(crate) fn bars(load: &[f64], zero_computation: &[f64]) -> String {
    bars_in(load, zero_computation, bars_width(load, zero_computation)).0
}

/// Characters that [`bars`] takes.
pub(crate) fn bars_width(load: &[f64], zero_computation: &[f64]) -> usize {
    load.len() + if zero_computation.is_empty() { 0 } else { 1 + zero_computation.len() }
}

/// The same in at most `room` characters: where there are more experts, each is the fullest of several neighbours, and it is
/// returned of how many.
pub(crate) fn bars_in(load: &[f64], zero_computation: &[f64], room: usize) -> (String, usize) {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mean = load.iter().sum::<f64>() / load.len().max(1) as f64;
    let together = match (zero_computation.len(), bars_width(load, zero_computation) <= room) {
        (_, true) => 1,
        (0, false) => load.len().div_ceil(room.max(1)).max(1),
        // Either group may end with a bar of fewer, and there is the line between them.
        (others, false) => (load.len() + others).div_ceil(room.saturating_sub(2).max(1)),
    };
    let bar = |group: &[f64]| {
        let fullest = group.iter().copied().fold(0.0, f64::max);
        if fullest <= 0.0 {
            return '·';
        }
        let height = if mean > 0.0 { fullest / mean * 4.0 } else { 0.0 };
        BLOCKS[(height as usize).min(BLOCKS.len() - 1)]
    };
    let mut text: String = load.chunks(together).map(bar).collect();
    if !zero_computation.is_empty() {
        text.push('|');
        text.extend(zero_computation.chunks(together).map(bar));
    }
    (text, together)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn layer(path: &str, experts: usize) -> LayerBalance {
        LayerBalance {
            path: path.into(),
            load_rows: (0..experts).map(|e| e as f64).collect(),
            zero_computation_rows: Vec::new(),
            experts_per_token: None,
            load_max_over_mean: 1.75,
            experts_without_tokens: 1,
            entropy_nats: 0.5884,
            dropped_share: 0.125,
            balance: 1.038,
            auxiliary: BTreeMap::from([("importance".to_string(), 0.0674), ("load".to_string(), 0.0376)]),
        }
    }

    #[test]
    fn a_panel_fits_every_terminal() {
        let layers = [layer("blocks.0.moe", 8), layer("blocks.10.mixture_of_depths.moe", 8)];
        assert_eq!(
            panel(&layers, 120).join("\n"),
            "\
layer                            load      max/mean  idle  entropy  dropped  balance
blocks.0.moe                     ·▂▃▄▅▆▇█      1.75     1    0.588   12.5 %    1.038  importance 0.0674  load 0.0376
blocks.10.mixture_of_depths.moe  ·▂▃▄▅▆▇█      1.75     1    0.588   12.5 %    1.038  importance 0.0674  load 0.0376"
        );
        assert_eq!(
            panel(&layers, 60).join("\n"),
            "\
layer              max/mean  idle  entropy  dropped  balance
blocks.0.moe           1.75     1    0.588   12.5 %    1.038
  ·▂▃▄▅▆▇█
  importance 0.0674  load 0.0376
blocks.1…pths.moe      1.75     1    0.588   12.5 %    1.038
  ·▂▃▄▅▆▇█
  importance 0.0674  load 0.0376"
        );
        let many = [layer("blocks.0.moe", 256)];
        for width in 60..=200 {
            for layers in [&layers[..], &many] {
                let panel = panel(layers, width);
                assert!(panel.iter().all(|line| line.width() <= width), "{width}: {}", panel.join("\n"));
            }
        }
    }

    #[test]
    fn experts_per_token_are_shown_where_they_vary() {
        let some = LayerBalance { experts_per_token: Some(1.25), ..layer("blocks.0.moe", 3) };
        let layers = [some, layer("blocks.1.moe", 3)];
        assert_eq!(
            panel(&layers, 120).join("\n"),
            "\
layer         load  experts/token  max/mean  idle  entropy  dropped  balance
blocks.0.moe  ·▅█            1.25      1.75     1    0.588   12.5 %    1.038  importance 0.0674  load 0.0376
blocks.1.moe  ·▅█               -      1.75     1    0.588   12.5 %    1.038  importance 0.0674  load 0.0376"
        );
        assert!(summary(&layers).starts_with("  experts/token 1.25  max/mean"));
        assert!(summary(&layers[1..]).starts_with("  max/mean"));
    }

    #[test]
    fn bars_show_load_relative_to_the_mean() {
        assert_eq!(bars(&[1.0, 1.0, 1.0], &[]), "▅▅▅");
        assert_eq!(bars(&[0.0, 4.0, 0.0, 0.0], &[]), "·█··");
        assert_eq!(bars(&[], &[]), "");
        assert_eq!(bars(&[0.0, 0.0], &[]), "··");
    }

    #[test]
    fn experts_that_compute_nothing_stand_apart() {
        assert_eq!(bars(&[1.0, 3.0], &[2.0, 0.0, 9.0]), "▃▇|▅·█");
        assert_eq!(bars_in(&[1.0, 3.0], &[2.0, 0.0, 9.0], 5), ("▇|▅█".into(), 2));
        for room in 3..12 {
            assert!(bars_in(&[1.0; 7], &[1.0; 3], room).0.chars().count() <= room, "{room}");
        }
    }

    #[test]
    fn neighbours_are_put_together_where_there_is_no_room() {
        assert_eq!(bars_in(&[1.0, 3.0, 2.0, 2.0], &[], 4), ("▃▇▅▅".into(), 1));
        assert_eq!(bars_in(&[1.0, 3.0, 2.0, 2.0], &[], 3), ("▇▅".into(), 2));
        assert_eq!(bars_in(&[], &[], 0), (String::new(), 1));
    }
}
