//! The columns of a file: the names in its header, and the cells of its rows.

use anyhow::{bail, ensure};
use csv::StringRecord;

/// How much of a column's name an error shows.
const SHOWN_MAX: usize = 40;

/// From where on two names are likely to mean the same.
const ALIKE: f64 = 0.88;

/// A column that a file may have.
pub(super) struct Column {
    /// What the header may call it; the others mean the same as the first.
    pub(super) names: &'static [&'static str],
    pub(super) need: Need,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Required,
    Optional,
    /// The vendor's own tool exports it, and nothing reads it. Every other column is refused: a misspelt one would be
    /// ignored, and its values with it.
    Ignored,
}

impl Column {
    pub(super) const fn required(names: &'static [&'static str]) -> Self {
        Self { names, need: Need::Required }
    }

    pub(super) const fn optional(names: &'static [&'static str]) -> Self {
        Self { names, need: Need::Optional }
    }

    pub(super) const fn ignored(names: &'static [&'static str]) -> Self {
        Self { names, need: Need::Ignored }
    }

    fn has_name(&self, given: &str) -> bool {
        self.names.iter().any(|known| given.trim().eq_ignore_ascii_case(known))
    }
}

/// Whether a header's cell names one of the columns.
pub(super) fn is_known(columns: &[Column], name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| columns.iter().any(|column| column.has_name(name)))
}

/// Where in a row something stands.
pub(super) struct Columns {
    known: &'static [Column],
    /// The place of each known column, where the file has it.
    places: Vec<Option<usize>>,
    /// As the header names them. Spreadsheets end lines with separators for columns that were emptied: those have no
    /// name, and hold nothing.
    names: Vec<String>,
}

impl Columns {
    /// Reads the header.
    ///
    /// # Errors
    /// A column that is missing, that stands there twice, or that is not known.
    pub(super) fn find(header: &StringRecord, known: &'static [Column]) -> anyhow::Result<Self> {
        let mut places = vec![];
        for column in known {
            let found: Vec<usize> =
                (0..header.len()).filter(|place| column.has_name(&header[*place])).collect();
            match found.as_slice() {
                [] if column.need == Need::Required => bail!(missing(header, known, column)),
                [] | [_] => places.push(found.first().copied()),
                [first, second, ..] if header[*first].trim().eq_ignore_ascii_case(header[*second].trim()) => {
                    bail!("has the column {} twice", shown(&header[*first]))
                }
                [first, second, ..] => bail!(
                    "has the columns {} and {}, which mean the same; delete one",
                    shown(&header[*first]),
                    shown(&header[*second])
                ),
            }
        }
        let is_unknown = |name: &&str| !name.trim().is_empty() && !is_known(known, name.as_bytes());
        let unknown: Vec<String> =
            header.iter().filter(is_unknown).map(|name| shown(name) + &meant(known, name)).collect();
        ensure!(
            unknown.is_empty(),
            "has columns that are not known: {}; rename or delete them",
            unknown.join(", ")
        );
        Ok(Self { known, places, names: header.iter().map(|name| name.trim().to_owned()).collect() })
    }

    /// Checks that a row has the required cells, and nothing outside the columns. Excel writes no separators for
    /// empty cells at the end of a row, so that the others may be missing.
    ///
    /// # Errors
    /// The column by name or number, and what is wrong with it.
    pub(super) fn check(&self, row: &StringRecord) -> Result<(), String> {
        let named = self.names.len();
        let is_required = |column: &Column| column.need == Need::Required;
        let required = self.known.iter().zip(&self.places).filter(|(column, _)| is_required(column));
        if required.filter_map(|(_, place)| *place).any(|place| place >= row.len()) {
            return Err(format!(
                "column {}: missing; the header names {named} columns",
                self.names[row.len()]
            ));
        }
        let is_unnamed = |column: &usize| self.names.get(*column).is_none_or(String::is_empty);
        let mut outside = (0..row.len()).filter(is_unnamed).filter(|column| !text(row, *column).is_empty());
        match outside.next() {
            None => Ok(()),
            Some(column) if column < named => {
                Err(format!("column {}: has a value and no name in the header", column + 1))
            }
            Some(column) => {
                Err(format!("column {}: one too many; the header names {named} columns", column + 1))
            }
        }
    }

    /// How the header calls a column.
    pub(super) fn name(&self, column: usize) -> String {
        match self.names.get(column) {
            Some(name) if !name.is_empty() => shown(name),
            _ => (column + 1).to_string(),
        }
    }

    /// Whether the file has a column, by the first of its names.
    pub(super) fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// The cell of a column, by the first of its names, without spaces around it. One that is not there is empty.
    pub(super) fn cell<'r>(&self, row: &'r StringRecord, name: &str) -> &'r str {
        self.place(name).map_or("", |place| text(row, place))
    }

    fn place(&self, name: &str) -> Option<usize> {
        let column = self.known.iter().position(|column| column.names[0] == name);
        debug_assert!(column.is_some(), "no column has the name {name}");
        self.places[column?]
    }
}

fn text(row: &StringRecord, column: usize) -> &str {
    row.get(column).unwrap_or_default().trim()
}

/// Whether a row has nothing but separators.
pub(super) fn is_blank(row: &StringRecord) -> bool {
    (0..row.len()).all(|column| text(row, column).is_empty())
}

fn shown(name: &str) -> String {
    name.trim().chars().take(SHOWN_MAX).collect::<String>().escape_debug().to_string()
}

/// The column that an unknown one may be meant to be.
fn meant(known: &[Column], name: &str) -> String {
    let read = known.iter().filter(|column| column.need != Need::Ignored).flat_map(|column| column.names);
    let alike = { read }.find(|known| are_alike(name, known));
    alike.map(|known| format!(" (did you mean {known}?)")).unwrap_or_default()
}

/// Says that a column is missing, and which other may be meant to be it. No other is named: where there is no header,
/// a first row with a person would stand in its place.
fn missing(header: &StringRecord, known: &[Column], column: &Column) -> String {
    let (name, others) = (column.names[0], &column.names[1..]);
    let or = if others.is_empty() { String::new() } else { format!(" (or {})", others.join(", ")) };
    let is_meant = |given: &str| !is_known(known, given.as_bytes()) && are_alike(given, name);
    let alike = header.iter().position(is_meant);
    let alike =
        alike.map(|place| format!(" (column {}: {})", place + 1, shown(&header[place]))).unwrap_or_default();
    let has_names = header.iter().any(|name| is_known(known, name.as_bytes()));
    let separators = if has_names { "" } else { "; a comma, a semicolon or a tab separates columns" };
    format!("does not name the column {name}{or}{alike}{separators}")
}

fn are_alike(given: &str, known: &str) -> bool {
    let letters: String = given.chars().filter(|c| c.is_alphanumeric()).collect();
    strsim::jaro_winkler(&letters.to_lowercase(), &known.to_lowercase()) >= ALIKE
}
