//! True and false, as spreadsheets write them.

use chassis::form::text::normalized;

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
