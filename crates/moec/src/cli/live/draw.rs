//! The live view as characters.

use crate::cli::balance::{bars_in, bars_width};
use crate::cli::live::view::{LayerLoad, View};
use crate::cli::table::shortened;
use crate::cli::units::{duration, grouped, milliseconds};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Paragraph, Widget};
use unicode_width::UnicodeWidthStr;

/// Rows of the chart at least; with fewer there is none.
const CHART: u16 = 6;

/// Rows of what was said last, at most.
pub(super) const SAID: usize = 4;

/// The colours: told apart without red and green, and none where there are to be none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Colours {
    pub(crate) are_on: bool,
}

impl Colours {
    fn of(self, colour: Color) -> Style {
        if self.are_on { Style::new().fg(colour) } else { Style::new() }
    }

    fn loss(self) -> Style {
        Style::new()
    }

    fn train(self) -> Style {
        self.of(Color::Cyan)
    }

    fn validation(self) -> Style {
        self.of(Color::Yellow)
    }

    /// What is there to be looked up.
    fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// Draws the view into an area. What there is no room for is left out from the bottom: what was said, then layers, then the
/// chart.
pub(crate) fn draw(view: &View, colours: Colours, area: Rect, buffer: &mut Buffer) {
    let width = usize::from(area.width);
    let numbers = numbers(view, colours, width);
    let footer = footer(view, colours, width);
    let head = 2 + numbers.len() as u16;
    let room = area.height.saturating_sub(head + 1);
    // The chart has half of what is left, and all that the others do not need.
    let said: Vec<Line> = view.said.iter().rev().take(SAID).rev().map(|line| said(line, width)).collect();
    let layers = 1 + view.layers.len().max(1) as u16;
    let wanted = layers + if said.is_empty() { 0 } else { 1 + said.len() as u16 };
    let chart = if room >= CHART + 2 { (room / 2).max(CHART).max(room.saturating_sub(wanted)) } else { 0 };
    let layers = layers.min(room - chart);
    let said_rows = (room - chart - layers).min(1 + said.len() as u16);
    let [title, bar, lines, plot, table, said_area, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(numbers.len() as u16),
        Constraint::Length(chart),
        Constraint::Length(layers),
        Constraint::Length(said_rows),
        Constraint::Length(1),
    ])
    .areas(area);
    Paragraph::new(headline(view, colours, width)).render(title, buffer);
    Paragraph::new(progress(view, colours, width)).render(bar, buffer);
    Paragraph::new(numbers).render(lines, buffer);
    if plot.height > 0 {
        curves(view, colours, plot, buffer);
    }
    Paragraph::new(loads(view, colours, width, usize::from(table.height))).render(table, buffer);
    if said_area.height > 1 {
        let shown = said.len().min(usize::from(said_area.height) - 1);
        let mut lines = vec![Line::default()];
        lines.extend(said.into_iter().rev().take(shown).rev());
        Paragraph::new(lines).render(said_area, buffer);
    }
    // On a terminal of a row or two it would stand in the place of what matters.
    if area.height > head {
        Paragraph::new(footer).render(foot, buffer);
    }
}

/// Parts beside each other with two blanks between them, on as many lines as they need.
fn flowed(parts: Vec<Span<'static>>, width: usize) -> Vec<Line<'static>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut columns = 0;
    for part in parts {
        let length = part.content.width();
        match lines.last_mut() {
            Some(line) if columns + 2 + length <= width => {
                line.push_span("  ");
                line.push_span(part);
                columns += 2 + length;
            }
            _ => {
                lines.push(Line::from(part));
                columns = length;
            }
        }
    }
    lines
}

fn headline(view: &View, colours: Colours, width: usize) -> Line<'static> {
    let about = &view.about;
    let name = shortened(&about.model, width);
    let rest = format!("on {}, into {}", about.device, about.run);
    let room = width.saturating_sub(name.width() + 1);
    let rest = if room > 8 { format!(" {}", shortened(&rest, room)) } else { String::new() };
    Line::from(vec![Span::styled(name, colours.strong()), Span::raw(rest)])
}

/// The bar, and the steps.
fn progress(view: &View, colours: Colours, width: usize) -> Line<'static> {
    let (step, steps) = (view.clock.step(), view.clock.steps());
    let share = (step as f64 / steps.max(1) as f64).clamp(0.0, 1.0);
    let text = format!(" {:>3.0} %  step {} of {}", (100.0 * share).floor(), grouped(step), grouped(steps));
    let room = width.saturating_sub(text.width());
    if room < 8 {
        return Line::from(shortened(text.trim_start(), width));
    }
    let full = (share * room as f64).floor() as usize;
    Line::from(vec![
        Span::styled("━".repeat(full), colours.validation()),
        Span::styled("─".repeat(room - full), colours.quiet()),
        Span::raw(text),
    ])
}

fn numbers(view: &View, colours: Colours, width: usize) -> Vec<Line<'static>> {
    let mut times = vec![Span::raw(format!("elapsed {}", duration(view.elapsed.as_secs_f64())))];
    let left = view.clock.left();
    times.push(match left {
        _ if view.stopping => Span::raw("stopping"),
        None => Span::raw("left: once steps are timed"),
        Some(left) => {
            let about = if left.is_timed { "" } else { "about " };
            Span::styled(format!("left {about}{}", duration(left.seconds())), colours.strong())
        }
    });
    if let Some(left) = left
        && left.evaluating >= 1.0
        && !view.stopping
    {
        times.push(Span::raw(format!("of it evaluations {}", duration(left.evaluating))));
    }
    let spent = view.clock.spent();
    if !view.is_compiled {
        times.push(Span::raw("kernels are compiled or loaded for the first step"));
    } else if spent.compiling >= 1.0 {
        times.push(Span::raw(format!("spent compiling {}", duration(spent.compiling))));
    }
    if spent.evaluating >= 1.0 {
        times.push(Span::raw(format!("evaluating {}", duration(spent.evaluating))));
    }
    if spent.saving >= 1.0 {
        times.push(Span::raw(format!("saving {}", duration(spent.saving))));
    }
    let mut now = Vec::new();
    if let Some(metric) = &view.last {
        now.push(Span::styled(format!("loss {:.4}", metric.loss_nats), colours.strong()));
        if let Some(norm) = metric.grad_norm {
            now.push(Span::raw(format!("gradient {norm:.3}")));
        }
    }
    if let Some(seconds) = view.clock.step_seconds().filter(|&seconds| seconds > 0.0) {
        now.push(Span::raw(format!("{} ms/step", milliseconds(1e3 * seconds, 0))));
        now.push(Span::raw(format!("{} tokens/s", grouped((view.about.tokens as f64 / seconds) as u64))));
    }
    let rate = view.about.config.learning_rate(view.clock.step().saturating_sub(1));
    now.push(Span::raw(format!("lr {}", short(rate))));
    let mut lines = flowed(times, width);
    lines.extend(flowed(now, width));
    if let Some((done, batches)) = view.evaluating {
        lines.push(Line::from(format!("evaluating: {} of {} batches", grouped(done as u64), grouped(batches as u64))));
    } else if let Some(evaluation) = &view.evaluation {
        let mut parts = vec![
            Span::raw(format!("evaluation at {}:", grouped(evaluation.step))),
            Span::styled(format!("train {:.4}", evaluation.train_loss_nats), colours.train()),
        ];
        parts.extend(
            evaluation
                .validation_loss_nats
                .map(|loss| Span::styled(format!("val {loss:.4}"), colours.validation().add_modifier(Modifier::BOLD))),
        );
        lines.extend(flowed(parts, width));
    }
    lines
}

/// `3e-4`, `9.14e-4`
fn short(rate: f64) -> String {
    let text = format!("{rate:.2e}");
    match text.split_once('e') {
        Some((digits, power)) if digits.contains('.') => {
            format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

fn curves(view: &View, colours: Colours, area: Rect, buffer: &mut Buffer) {
    let sets = [
        ("loss", &view.loss, colours.loss()),
        ("train", &view.train, colours.train()),
        ("val", &view.validation, colours.validation()),
    ];
    let points = || sets.iter().flat_map(|(_, curve, _)| curve.points()).filter(|(_, y)| y.is_finite());
    if points().next().is_none() {
        let at = view.about.config.log_every;
        let text = match at {
            0 => "the loss is read at evaluations and at the end".to_string(),
            at => format!("the curve of the loss begins at step {}", grouped(at)),
        };
        let line = Rect { y: area.y + area.height / 2, height: 1, ..area };
        Paragraph::new(Line::from(shortened(&text, usize::from(area.width))).style(colours.quiet()))
            .centered()
            .render(line, buffer);
        return;
    }
    let (mut low, mut high) =
        points().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), (_, y)| (l.min(*y), h.max(*y)));
    if high - low < 1e-3 {
        (low, high) = (low - 0.5e-3, high + 0.5e-3);
    }
    let first = points().fold(f64::INFINITY, |x, p| x.min(p.0)).min(view.clock.step() as f64);
    let last = (view.clock.step() as f64).max(first + 1.0);
    let labels =
        |low: f64, high: f64| [format!("{low:.2}"), format!("{:.2}", (low + high) / 2.0), format!("{high:.2}")];
    let steps = [grouped(first as u64), grouped(((first + last) / 2.0) as u64), grouped(last as u64)];
    let shown = sets.iter().filter(|(_, curve, _)| !curve.points().is_empty());
    let datasets = shown.map(|(name, curve, style)| {
        let few = curve.points().len() < 2;
        Dataset::default()
            .name(*name)
            .marker(if few { Marker::Dot } else { Marker::Braille })
            .graph_type(if few { GraphType::Scatter } else { GraphType::Line })
            .style(*style)
            .data(curve.points())
    });
    Chart::new(datasets.collect())
        .x_axis(Axis::default().bounds([first, last]).labels(steps).style(colours.quiet()))
        .y_axis(Axis::default().bounds([low, high]).labels(labels(low, high)).style(colours.quiet()))
        .render(area, buffer);
}

/// The layers of the last evaluation, with a bar for each expert, in so many rows with the heads.
fn loads(view: &View, colours: Colours, width: usize, height: usize) -> Vec<Line<'static>> {
    if view.layers.is_empty() {
        let (config, step) = (&view.about.config, view.clock.step());
        let text = match (&view.evaluation, config.evaluations_after(step)) {
            (Some(_), _) => "no layer of the model has experts".to_string(),
            (None, 0) => "no evaluation is to come that would count the tokens of experts".to_string(),
            (None, _) => {
                let next = (step / config.evaluate_every + 1).saturating_mul(config.evaluate_every).min(config.steps);
                format!("the tokens of experts are counted in evaluations: the first is at step {}", grouped(next))
            }
        };
        return vec![Line::from(shortened(&text, width)).style(colours.quiet())];
    }
    // What bars show anyway is told in numbers only where there is room.
    let heads: &[&str] = match width {
        100.. => &["experts/token", "entropy", "dropped", "max/mean", "idle"],
        _ => &["experts/token", "entropy", "dropped"],
    };
    let numbers: usize = heads.iter().map(|head| 2 + head.len()).sum();
    let longest = view.layers.iter().map(|layer| layer.path.width()).max().unwrap_or(0).max("layer".len());
    let bars_of = |layer: &LayerLoad, room| bars_in(&layer.load, &layer.zero_computation, room);
    let widths = view.layers.iter().map(|layer| bars_width(&layer.load, &layer.zero_computation));
    let experts = widths.max().unwrap_or(0).max("load".len());
    let room = width.saturating_sub(numbers + 2);
    // Of what is left, names may have half, and all that bars do not need.
    let name = longest.min((room / 2).max(room.saturating_sub(experts)));
    let bars = experts.min(room - name);
    let together = view.layers.iter().map(|layer| bars_of(layer, bars).1).max().unwrap_or(1);
    let load = match together {
        1 => "load".to_string(),
        n => format!("load, {n} a bar"),
    };
    let line = |name_of: &str, load: &str, numbers: [String; 5]| {
        let mut text = format!("{:<name$}  {:<bars$}", shortened(name_of, name), shortened(load, bars));
        for (head, number) in heads.iter().zip(numbers) {
            text += &format!("  {number:>0$}", head.len());
        }
        text
    };
    let mut names = [const { String::new() }; 5];
    for (name, head) in names.iter_mut().zip(heads) {
        *name = head.to_string();
    }
    let mut lines = vec![Line::from(line("layer", &load, names)).style(colours.quiet())];
    // The last line may say how many there are beyond it.
    let rows = height.saturating_sub(1);
    let shown = if rows < view.layers.len() { rows.saturating_sub(1) } else { rows };
    let top = view.top.min(view.layers.len().saturating_sub(shown));
    for layer in view.layers.iter().skip(top).take(shown) {
        let numbers = [
            format!("{:.2}", layer.experts_per_token),
            format!("{:.3}", layer.entropy_nats),
            format!("{:.1} %", 100.0 * layer.dropped_share),
            format!("{:.2}", layer.max_over_mean),
            layer.idle.to_string(),
        ];
        lines.push(Line::from(line(&layer.path, &bars_of(layer, bars).0, numbers)));
    }
    if shown < view.layers.len() && rows > 0 {
        let text = format!("layers {} to {} of {}", top + 1, top + shown, view.layers.len());
        lines.push(Line::from(shortened(&text, width)).style(colours.quiet()));
    }
    lines
}

fn said(line: &str, width: usize) -> Line<'static> {
    // Colours of messages are for the scrollback.
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            characters.by_ref().find(|c| c.is_ascii_alphabetic());
        } else if c == '\n' {
            // Broken for the scrollback; here it has one row.
            plain.push(' ');
            while characters.as_str().starts_with(' ') {
                characters.next();
            }
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    Line::from(shortened(&plain, width))
}

fn footer(view: &View, colours: Colours, width: usize) -> Line<'static> {
    let more = if view.layers.len() > 1 { "  ↑ ↓ other layers" } else { "" };
    let text = match view.stopping {
        true => "stopping after this step and saving; Ctrl-C leaves without saving".to_string(),
        false => format!("q stop and save{more}"),
    };
    Line::from(shortened(&text, width)).style(colours.quiet())
}
