//! The columns of a file, and the words of its cells.

use anyhow::{bail, ensure};
use chassis::form::text::normalized;
use csv::StringRecord;

const CUSTOMER: [&str; 2] = ["CustomerTenantId", "CustomerId"];
const FIRST_NAME: &str = "FirstName";
const LAST_NAME: &str = "LastName";
const EMAIL: &str = "Email";
const PHONE: &str = "PhoneNumber";
const TEMPLATE: &str = "TemplateId";
const AGREED_AT: &str = "DateAgreed";
pub(super) const COMPLETED: &str = "PartnerAttestationCompleted";

/// Columns that attest something.
const READ: [&str; 9] =
    [CUSTOMER[0], CUSTOMER[1], FIRST_NAME, LAST_NAME, EMAIL, PHONE, TEMPLATE, AGREED_AT, COMPLETED];

/// The other columns that the vendor's own tool exports. Every other column is refused: a misspelt one would be
/// ignored, and its values with it.
const IGNORED: [&str; 2] = ["CustomerAccountLink", "LastAgreementDate"];

/// How much of a column's name an error shows.
const SHOWN_MAX: usize = 40;

/// From where on two names are likely to mean the same.
const ALIKE: f64 = 0.88;

/// Where in a row something stands.
pub(super) struct Columns {
    pub(super) customer: usize,
    pub(super) first_name: usize,
    pub(super) last_name: usize,
    pub(super) email: usize,
    pub(super) phone: Option<usize>,
    pub(super) template: Option<usize>,
    pub(super) agreed_at: Option<usize>,
    pub(super) completed: Option<usize>,
    /// As the header names them. Spreadsheets end lines with separators for columns that were emptied: those have no
    /// name, and hold nothing.
    names: Vec<String>,
}

/// Whether a header's cell names a column that is read or ignored.
pub(super) fn is_known(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| READ.iter().chain(&IGNORED).any(|known| is_name(name, known)))
}

fn is_name(given: &str, known: &str) -> bool {
    given.trim().eq_ignore_ascii_case(known)
}

impl Columns {
    /// Reads the header.
    ///
    /// # Errors
    /// A column that is missing, that stands there twice, or that is not known.
    pub(super) fn find(header: &StringRecord) -> anyhow::Result<Self> {
        let find = |name: &str| {
            let mut found = (0..header.len()).filter(|column| is_name(&header[*column], name));
            match (found.next(), found.next()) {
                (_, Some(_)) => bail!("has the column {name} twice"),
                (column, None) => Ok(column),
            }
        };
        let required = |name: &str| match find(name)? {
            Some(column) => Ok(column),
            None => bail!("does not name the column {name}{}", misspelt(header, name)),
        };
        let customer = match CUSTOMER.map(find) {
            [Ok(Some(_)), Ok(Some(_))] => {
                bail!("has the columns {} and {}, which mean the same; delete one", CUSTOMER[0], CUSTOMER[1])
            }
            [Ok(Some(column)), Ok(None)] | [Ok(None), Ok(Some(column))] => column,
            [Ok(None), Ok(None)] => bail!(
                "does not name the column {} (or {}){}; a comma, a semicolon or a tab separates columns",
                CUSTOMER[0],
                CUSTOMER[1],
                misspelt(header, CUSTOMER[0])
            ),
            [Err(twice), _] | [_, Err(twice)] => return Err(twice),
        };
        let columns = Self {
            customer,
            first_name: required(FIRST_NAME)?,
            last_name: required(LAST_NAME)?,
            email: required(EMAIL)?,
            phone: find(PHONE)?,
            template: find(TEMPLATE)?,
            agreed_at: find(AGREED_AT)?,
            completed: find(COMPLETED)?,
            names: header.iter().map(|name| name.trim().to_owned()).collect(),
        };
        let unknown = header.iter().filter(|name| !name.trim().is_empty() && !is_known(name.as_bytes()));
        let unknown: Vec<String> = unknown.map(|name| shown(name) + &meant(name)).collect();
        ensure!(
            unknown.is_empty(),
            "has columns that are not known: {}; rename or delete them",
            unknown.join(", ")
        );
        Ok(columns)
    }

    /// Checks that a row has the required cells, and nothing outside the columns. Excel writes no separators for
    /// empty cells at the end of a row, so that the others may be missing.
    ///
    /// # Errors
    /// The column by name or number, and what is wrong with it.
    pub(super) fn check(&self, row: &StringRecord) -> Result<(), String> {
        let (named, required) =
            (self.names.len(), [self.customer, self.first_name, self.last_name, self.email]);
        if required.into_iter().any(|column| column >= row.len()) {
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
}

/// The cell without spaces around it; a cell that is not there is empty.
pub(super) fn text(row: &StringRecord, column: usize) -> &str {
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
fn meant(name: &str) -> String {
    let alike = READ.iter().find(|known| are_alike(name, known));
    alike.map(|known| format!(" (did you mean {known}?)")).unwrap_or_default()
}

/// The column that may be meant to be one that is missing. No other is named: where there is no header, a first row
/// with a person would stand in its place.
fn misspelt(header: &StringRecord, missing: &str) -> String {
    let alike = header.iter().position(|name| !is_known(name.as_bytes()) && are_alike(name, missing));
    alike.map(|column| format!(" (column {}: {})", column + 1, shown(&header[column]))).unwrap_or_default()
}

fn are_alike(given: &str, known: &str) -> bool {
    let letters: String = given.chars().filter(|c| c.is_alphanumeric()).collect();
    strsim::jaro_winkler(&letters.to_lowercase(), &known.to_lowercase()) >= ALIKE
}

/// The words of a cell that is true, in the languages in which spreadsheets do not write TRUE, in upper case.
const TRUE: [&str; 26] = [
    "TRUE",
    "1",
    "YES",
    "VRAI",
    "WAHR",
    "VERDADERO",
    "VERO",
    "VERDADEIRO",
    "WAAR",
    "PRAWDA",
    "PRAVDA",
    "SANT",
    "SAND",
    "SANN",
    "TOSI",
    "IGAZ",
    "DOĞRU",
    "ИСТИНА",
    "ІСТИНА",
    "ΑΛΗΘΗΣ",
    "ΑΛΗΘΕΣ",
    "ADEVĂRAT",
    "CERT",
    "EGIA",
    "TÕENE",
    "BENAR",
];

/// The same of one that is false.
const FALSE: [&str; 24] = [
    "FALSE",
    "0",
    "NO",
    "FAUX",
    "FALSCH",
    "FALSO",
    "ONWAAR",
    "FAŁSZ",
    "NEPRAVDA",
    "FALSKT",
    "FALSK",
    "USANN",
    "EPÄTOSI",
    "HAMIS",
    "YANLIŞ",
    "ЛОЖЬ",
    "ХИБНІСТЬ",
    "ΨΕΥΔΗΣ",
    "ΨΕΥΔΕΣ",
    "FALS",
    "FALTSUA",
    "VÄÄR",
    "SALAH",
    "ЛОЖА",
];

/// Whether a cell is true or false; what is neither is `None`.
pub(super) fn truth(cell: &str) -> Option<bool> {
    // In upper case, since Turkish has two letters i.
    let cell = normalized(cell).to_uppercase();
    let is = |words: &[&str]| words.contains(&cell.as_str());
    if is(&TRUE) { Some(true) } else { is(&FALSE).then_some(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_true_or_false_in_every_language_or_neither() {
        for cell in TRUE {
            assert_eq!((truth(cell), truth(&cell.to_lowercase())), (Some(true), Some(true)), "{cell}");
            assert!(!FALSE.contains(&cell), "{cell}");
        }
        for cell in FALSE {
            assert_eq!((truth(cell), truth(&cell.to_lowercase())), (Some(false), Some(false)), "{cell}");
        }
        assert_eq!((truth("yanlış"), truth(" EPA\u{308}TOSI ")), (Some(false), Some(false)));
        for cell in ["", "x", "y", "oui", "TRUE!", "TRUE FALSE", "2", "-1", "#N/A", "\u{feff}TRUE"] {
            assert_eq!(truth(cell), None, "{cell}");
        }
    }
}
