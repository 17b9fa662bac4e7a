//! The run in two small charts: the reward, and what the optimized layer does to the entropy, over the steps.

use super::probe;
use crate::run::jsonl::read_jsonl;
use serde_json::Value;
use std::path::Path;
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

/// Dots of a chart; a cell is 2 wide and 4 high.
const WIDTH: u32 = 120;
const HEIGHT: u32 = 20;

/// From the run's files, so that a resumed run is shown whole; none where there is nothing to draw.
pub fn of_run(dir: &Path) -> Option<String> {
    let metrics: Vec<Value> = read_jsonl(&dir.join("metrics.jsonl")).ok()?;
    let probe: Vec<probe::Row> = read_jsonl(&probe::path(dir)).unwrap_or_default();
    let reward = metrics.iter().filter_map(|row| Some((row["step"].as_f64()?, row["reward_mean"].as_f64()?)));
    // By the layer that the run began with, whatever later phases optimize.
    let layer = probe.first().and_then(|row| row.layer).unwrap_or_default();
    let of = |row: &probe::Row| row.profile.entropy_change.layer.get(layer.checked_sub(1)?).copied();
    let change = probe.iter().filter_map(|row| Some((row.step as f64, of(row)?)));
    let charts = [
        draw("reward", &reward.collect::<Vec<_>>()),
        draw(&format!("entropy change dH of layer {layer}, nats"), &change.collect::<Vec<_>>()),
    ];
    let charts: Vec<String> = charts.into_iter().flatten().collect();
    (!charts.is_empty()).then(|| charts.join("\n"))
}

/// A line through points by step; none through fewer than two.
fn draw(title: &str, points: &[(f64, f64)]) -> Option<String> {
    let points: Vec<(f32, f32)> =
        points.iter().filter(|(_, y)| y.is_finite()).map(|(x, y)| (*x as f32, *y as f32)).collect();
    let ((first, _), (last, _)) = (points.first()?, points.last()?);
    if last <= first {
        return None;
    }
    let (low, high) = points.iter().fold((f32::MAX, f32::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    // A flat line has no range of its own.
    let room = if high > low { 0.0 } else { 0.5 };
    let shape = Shape::Lines(&points);
    let mut chart = Chart::new_with_y_range(WIDTH, HEIGHT, *first, *last, low - room, high + room);
    let digits = LabelFormat::Custom(Box::new(|y| format!("{y:.3}")));
    let chart = chart.lineplot(&shape).x_label_format(LabelFormat::None).y_label_format(digits);
    chart.figures();
    Some(format!("{title}, steps {first} to {last}\n{}", chart.to_string().trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_a_title_and_a_few_narrow_lines_with_its_range() {
        let chart = draw("reward", &[(1.0, 0.25), (2.0, 0.5), (4.0, 0.75), (5.0, f64::NAN)]).unwrap();
        let lines: Vec<&str> = chart.lines().collect();
        assert_eq!(lines[0], "reward, steps 1 to 4");
        assert!(lines.len() <= 7 && lines.iter().all(|line| line.chars().count() <= 80), "{chart}");
        assert!(lines[1].ends_with(" 0.750") && chart.ends_with(" 0.250"), "{chart}");
        assert!(draw("flat", &[(1.0, 0.5), (2.0, 0.5)]).is_some());
        assert_eq!((draw("one", &[(1.0, 0.5)]), draw("none", &[])), (None, None));
    }
}
