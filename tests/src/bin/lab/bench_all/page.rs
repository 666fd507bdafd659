//! The page: sections of tables and plots as Markdown, and how BENCHMARKS.md keeps what was written by hand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::series::Series;
use super::world::Started;

/// Between these markers a page is written by hand.
const BY_HAND: &str = "<!-- by hand -->";
const END_BY_HAND: &str = "<!-- end by hand -->";

/// What stands between the markers of a new page.
const NOTHING_BY_HAND: &str = "\n## Beyond one machine\n\nNot measured.\n\n";

/// Where the plots are, from the root of the repository.
pub(super) const PLOTS: &str = "docs/benchmarks";

/// A part of the page.
pub(super) struct Section {
    pub title: String,
    pub text: String,
    /// The lines of a table.
    pub lines: Vec<String>,
    /// The names of its plots.
    pub plots: Vec<String>,
}

impl Section {
    /// A table of series, each with its part of what it is compared with.
    pub(super) fn of_series(title: &str, text: &str, series: &[&Series], all: &[Series]) -> Self {
        let mut lines = vec![
            "| | in flight | a second | lowest–highest | p50 | p99 | refused a second | of the floor |"
                .to_owned(),
            "|---|---|---|---|---|---|---|---|".to_owned(),
        ];
        for series in series.iter().filter(|series| !series.rounds.is_empty()) {
            let (median, (low, high)) = (series.median(), series.spread());
            let of_floors = series.of_floors(all);
            let of_floors = of_floors.iter().map(|(name, ratio)| format!("{} of {name}", fraction(*ratio)));
            let latency = |time: Duration| if time.is_zero() { String::new() } else { ms(time) };
            lines.push(format!(
                "| {} | {} | {} {} | {}–{} | {} | {} | {} | {} |",
                series.label(),
                series.in_flight,
                count(median.rate),
                series.unit,
                count(low),
                count(high),
                latency(median.p50),
                latency(median.p99),
                count(median.refused),
                of_floors.collect::<Vec<_>>().join("; ")
            ));
        }
        Self { title: title.into(), text: text.into(), lines, plots: vec![] }
    }

    pub(super) fn markdown(&self) -> String {
        let mut page = format!("## {}\n\n{}\n", self.title, self.text);
        if !self.lines.is_empty() {
            page += &format!("\n{}\n", self.lines.join("\n"));
        }
        for plot in &self.plots {
            page += &format!("\n![{plot}]({PLOTS}/{plot}.svg)\n");
        }
        page
    }
}

/// Writes the page, and keeps what was written by hand in the one before.
///
/// # Errors
/// The file system's.
pub(super) fn write(file: &Path, head: &str, sections: &[Section]) -> std::io::Result<()> {
    let before = if file.exists() { fs::read_to_string(file)? } else { String::new() };
    let by_hand = by_hand(&before).unwrap_or(NOTHING_BY_HAND);
    let mut page = head.to_owned();
    for section in sections {
        page += &format!("\n{}", section.markdown());
    }
    page += &format!("\n{BY_HAND}{by_hand}{END_BY_HAND}\n");
    fs::write(file, page)
}

fn by_hand(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once(BY_HAND)?;
    rest.split_once(END_BY_HAND).map(|(by_hand, _)| by_hand)
}

/// Milliseconds, to three digits or so.
pub(super) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.1} ms") }
}

/// A fraction, with a digit more where it is small.
fn fraction(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") }
}

/// A number without fraction, its thousands apart.
pub(super) fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How long both services took to start.
pub(super) fn starts(started: &Started) -> String {
    format!("{}, {}", ms(started.agreements), ms(started.orders))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_by_hand_survives() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("page.md");
        write(&file, "# One\n", &[]).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("Beyond one machine"));
        fs::write(&file, format!("# One\n\n{BY_HAND}\nmine\n{END_BY_HAND}\n")).unwrap();
        write(&file, "# Two\n", &[]).unwrap();
        let page = fs::read_to_string(&file).unwrap();
        assert_eq!(page, format!("# Two\n\n{BY_HAND}\nmine\n{END_BY_HAND}\n"));
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0.0, 999.4, 1000.0, 1_234_567.0].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
