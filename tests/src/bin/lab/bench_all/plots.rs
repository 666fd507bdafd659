//! The plots: lines over a logarithmic axis, as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;

use super::growth::Grown;
use super::page;
use super::series::Series;
use crate::load::number;

/// A line, by its name.
pub(super) struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A plot: its file's name without ending, title and axes.
pub(super) struct Plot {
    pub name: String,
    title: String,
    x: &'static str,
    y: &'static str,
    lines: Vec<Line>,
}

/// The plots of the calls: for each call its rate and p99 by calls in flight, a line for each database.
pub(super) fn of_calls(series: &[&Series]) -> Vec<Plot> {
    let mut names: Vec<&str> = series.iter().map(|series| series.name).collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    let mut plots = vec![];
    for name in names {
        let of_call = series.iter().filter(|series| series.name == name);
        let lines = |value: &dyn Fn(&Series) -> f64| {
            let mut lines: Vec<Line> = vec![];
            for series in of_call.clone() {
                let backend = series.backend.map(|backend| backend.to_string()).unwrap_or_default();
                let point = (number(series.in_flight), value(series));
                match lines.iter_mut().find(|line| line.name == backend) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name: backend, points: vec![point] }),
                }
            }
            lines
        };
        let file = file_name(name);
        let (x, rate, p99) = ("calls in flight", "calls a second", "p99, ms");
        let rates = lines(&|series| series.median().rate);
        let latencies = lines(&|series| milliseconds(series.median().p99));
        plots.push(Plot { name: format!("{file}-rate"), title: name.into(), x, y: rate, lines: rates });
        plots.push(Plot { name: format!("{file}-p99"), title: name.into(), x, y: p99, lines: latencies });
    }
    plots
}

/// The plot of p99 by the number of customers, a line for each call and database.
pub(super) fn of_growth(grown: &[Grown]) -> Plot {
    let line = |grown: &Grown| Line {
        name: format!("{}, {}", grown.call, grown.backend),
        points: grown.points.iter().map(|(count, p99)| (number(*count), milliseconds(*p99))).collect(),
    };
    Plot {
        name: "p99-by-customers".into(),
        title: "p99 by customers, 64 calls in flight".into(),
        x: "customers",
        y: "p99, ms",
        lines: grown.iter().map(line).collect(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The first word of a call's name in lower case.
fn file_name(call: &str) -> String {
    call.split(',').next().unwrap_or(call).to_lowercase()
}

/// From below the least to above the greatest of some numbers.
fn range(numbers: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let low = numbers.clone().fold(f64::INFINITY, f64::min);
    let high = numbers.fold(low, f64::max);
    low / 1.3..high * 1.3
}

impl Plot {
    /// Writes the file. What the lines are called stands beside them.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn draw(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        const SIZE: (u32, u32) = (820, 380);
        const LINES_WIDTH: u32 = 600;
        const NAME_HEIGHT: usize = 20;
        let file = folder.join(format!("{}.svg", self.name));
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let y_max = points().map(|point| point.1).fold(0.0, f64::max) * 1.1;
        let area = SVGBackend::new(&file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (lines, names) = area.split_horizontally(LINES_WIDTH);
        let mut chart = ChartBuilder::on(&lines)
            .margin(12)
            .caption(&self.title, ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(range(points().map(|point| point.0)).log_scale(), 0.0..y_max)?;
        let whole = |value: &f64| page::count(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x).y_desc(self.y).x_label_formatter(&whole).y_label_formatter(&whole);
        mesh.light_line_style(WHITE).draw()?;
        for ((n, line), y) in self.lines.iter().enumerate().zip((60..).step_by(NAME_HEIGHT)) {
            let style = Palette99::pick(n).stroke_width(2);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(3))?;
            names.draw(&PathElement::new([(0, y), (16, y)], style))?;
            names.draw(&Text::new(line.name.as_str(), (22, y - 6), ("sans-serif", 13)))?;
        }
        area.present()?;
        Ok(())
    }
}
