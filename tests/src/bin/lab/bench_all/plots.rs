//! The plots: lines on logarithmic axes, as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;

use super::growth::Grown;
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
    // A logarithmic axis has no zero.
    const LEAST: f64 = 0.001;
    let low = numbers.clone().fold(f64::INFINITY, f64::min).max(LEAST);
    let high = numbers.fold(LEAST, f64::max);
    low.min(high) / 1.3..high * 1.3
}

impl Plot {
    /// Writes the file.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn draw(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        let file = folder.join(format!("{}.svg", self.name));
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (xs, ys) = (range(points().map(|point| point.0)), range(points().map(|point| point.1)));
        let area = SVGBackend::new(&file, (720, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption(&self.title, ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
        chart.configure_mesh().x_desc(self.x).y_desc(self.y).light_line_style(WHITE).draw()?;
        for (n, line) in self.lines.iter().enumerate() {
            let style = Palette99::pick(n).stroke_width(2);
            let drawn =
                chart.draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(3))?;
            drawn.label(&line.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    }
}
