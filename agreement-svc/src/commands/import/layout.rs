//! How a file is written: its encoding, the lines before its header, its separator. Spreadsheets choose them by the
//! country and language of the computer, and do not say which.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

use anyhow::bail;
use csv::{ByteRecord, ReaderBuilder};

use super::columns::{Column, is_known};

/// The header, and what stands before it, has to end within so many bytes.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// What Excel, LibreOffice and Google write, the first first.
const SEPARATORS: [u8; 3] = *b",;\t";

/// The layout of a file, found out from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    encoding: Encoding,
    /// Bytes before the header, in UTF-8.
    header_at: u64,
    /// The header's number among the lines.
    pub(super) header_line: u64,
    separator: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// With the length of its byte order mark.
    Utf8(u64),
    Utf16LittleEndian,
    Utf16BigEndian,
}

impl Layout {
    /// Finds out how a file is written.
    ///
    /// # Errors
    /// An encoding that is not read. A code page such as Windows-1252 shows only later, where a letter is no UTF-8. It is
    /// refused, too: the bytes do not say which code page it is, and a guess would attest persons by wrong names.
    pub(super) fn of(file: &File, known: &[Column]) -> anyhow::Result<Self> {
        let mut layout =
            Self { encoding: Encoding::of(file)?, header_at: 0, header_line: 1, separator: SEPARATORS[0] };
        let mut head = vec![];
        layout.encoding.text(file)?.take(HEAD_BYTES_MAX).read_to_end(&mut head)?;
        let mut announced = None;
        let mut rest = head.as_slice();
        while !rest.is_empty() {
            let mut lines = rest.splitn(2, |byte| *byte == b'\n');
            let line = lines.next().unwrap_or_default();
            match Preamble::of(line) {
                Preamble::None => break,
                Preamble::Separator(separator) => announced = Some(separator),
                Preamble::Ignored => {}
            }
            rest = lines.next().unwrap_or_default();
            layout.header_line += 1;
        }
        layout.header_at = (head.len() - rest.len()) as u64;
        // A file that was converted may still announce the separator that it had before.
        let mut most = 0;
        for separator in announced.into_iter().chain(SEPARATORS) {
            let mut header = ByteRecord::new();
            let reader = ReaderBuilder::new().has_headers(false).delimiter(separator).from_reader(rest);
            let is_read = { reader }.read_byte_record(&mut header).unwrap_or(false);
            let known = header.iter().filter(|name| is_known(known, name)).count();
            if is_read && known > most {
                (most, layout.separator) = (known, separator);
            }
        }
        Ok(layout)
    }

    /// Reads the file from its header on.
    pub(super) fn reader(self, file: &File) -> io::Result<csv::Reader<impl Read>> {
        let mut text = self.encoding.text(file)?;
        io::copy(&mut text.by_ref().take(self.header_at), &mut io::sink())?;
        let records = Records::of(text, self.separator, self.header_line);
        let mut reader = ReaderBuilder::new();
        Ok(reader.has_headers(false).flexible(true).delimiter(self.separator).from_reader(records))
    }
}

impl Encoding {
    pub(super) fn of(mut file: &File) -> anyhow::Result<Self> {
        let mut start = vec![];
        file.rewind()?;
        file.take(4).read_to_end(&mut start)?;
        match start.as_slice() {
            [0xef, 0xbb, 0xbf, ..] => Ok(Self::Utf8(3)),
            [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] => bail!("it is UTF-32; save it as CSV UTF-8"),
            [0xff, 0xfe, ..] => Ok(Self::Utf16LittleEndian),
            [0xfe, 0xff, ..] => Ok(Self::Utf16BigEndian),
            [b'P', b'K', 3, 4] => bail!("it is a workbook; save its sheet as CSV UTF-8"),
            start if start.contains(&0) => {
                bail!("it has no byte order mark and is not UTF-8; save it as CSV UTF-8")
            }
            _ => Ok(Self::Utf8(0)),
        }
    }

    /// The whole file in UTF-8, without its byte order mark, each line ended by LF alone.
    pub(super) fn text(self, mut file: &File) -> io::Result<Box<dyn Read + '_>> {
        let mark = if let Self::Utf8(mark) = self { mark } else { 2 };
        file.seek(io::SeekFrom::Start(mark))?;
        let file = BufReader::new(file);
        Ok(match self {
            Self::Utf8(_) => Box::new(Lines::of(file)),
            Self::Utf16LittleEndian => Box::new(Lines::of(Utf16::new(file, u16::from_le_bytes))),
            Self::Utf16BigEndian => Box::new(Lines::of(Utf16::new(file, u16::from_be_bytes))),
        })
    }
}

/// What a line before the header is.
enum Preamble {
    /// It is the header.
    None,
    /// Excel's `sep=;`.
    Separator(u8),
    /// Empty cells, or the `#TYPE` of PowerShell's Export-Csv.
    Ignored,
}

impl Preamble {
    fn of(line: &[u8]) -> Self {
        let text = line.trim_ascii();
        if text.iter().all(|byte| b",;\t\" ".contains(byte)) {
            return Self::Ignored;
        }
        let text = text.strip_prefix(b"\"").unwrap_or(text);
        let begins = |start: &[u8]| text.get(..start.len()).is_some_and(|it| it.eq_ignore_ascii_case(start));
        // A separator may be a tab, which is blank at the end of the line.
        let separator = line.iter().skip_while(|byte| **byte != b'=').nth(1);
        match separator {
            _ if begins(b"#TYPE") => Self::Ignored,
            Some(separator)
                if begins(b"sep=") && (separator.is_ascii_punctuation() || *separator == b'\t') =>
            {
                Self::Separator(*separator)
            }
            _ => Self::None,
        }
    }
}

/// Text whose lines end in CRLF, CR or LF, with LF alone: errors name lines, and the parser counts only that.
struct Lines<R> {
    text: R,
    /// The last byte was CR, so that LF after it ends no other line.
    is_ended: bool,
}

impl<R> Lines<R> {
    fn of(text: R) -> Self {
        Self { text, is_ended: false }
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.text.read(buffer)?;
            let mut kept = 0;
            for n in 0..read {
                let byte = buffer[n];
                if byte != b'\n' || !self.is_ended {
                    buffer[kept] = if byte == b'\r' { b'\n' } else { byte };
                    kept += 1;
                }
                self.is_ended = byte == b'\r';
            }
            if kept > 0 || read == 0 {
                return Ok(kept);
            }
        }
    }
}

/// Records in which every quoted cell ends where its quote does. The parser would take what follows a closing quote for a part
/// of the cell, and the rest of the file for one cell if the quote is never closed, so that rows would vanish. It leaves out
/// empty lines, which count as rows in a spreadsheet; they become a record of empty cells.
struct Records<R> {
    text: R,
    separator: u8,
    at: CellPart,
    /// Of the byte that is read next, and of the cell that it is in.
    line: u64,
    cell_line: u64,
    /// Checked, and not taken yet from its beginning.
    ready: io::Cursor<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellPart {
    RowStart,
    Start,
    Plain,
    Quoted,
    /// Behind a quote in a quoted cell: its end, or the first of two that mean one.
    Quote,
}

impl<R: Read> Records<R> {
    fn of(text: R, separator: u8, line: u64) -> Self {
        Self { text, separator, at: CellPart::RowStart, line, cell_line: line, ready: io::Cursor::default() }
    }

    fn check_more(&mut self) -> io::Result<()> {
        const BYTES: u64 = 8192;
        let mut bytes = vec![];
        self.text.by_ref().take(BYTES).read_to_end(&mut bytes)?;
        if bytes.is_empty() && self.at == CellPart::Quoted {
            return Err(self.problem("begins with a quote that is never closed"));
        }
        let mut checked = Vec::with_capacity(bytes.len());
        for byte in bytes {
            let is_start = matches!(self.at, CellPart::RowStart | CellPart::Start);
            if is_start {
                self.cell_line = self.line;
            }
            let next = match (self.at, byte) {
                (CellPart::Quoted, b'"') => CellPart::Quote,
                (CellPart::Quoted, _) => CellPart::Quoted,
                (CellPart::RowStart | CellPart::Start | CellPart::Quote, b'"') => CellPart::Quoted,
                (CellPart::RowStart, b'\n') => {
                    checked.push(self.separator);
                    CellPart::RowStart
                }
                (_, b'\n') => CellPart::RowStart,
                (_, byte) if byte == self.separator => CellPart::Start,
                (CellPart::Quote, _) => return Err(self.problem("goes on behind its closing quote")),
                _ => CellPart::Plain,
            };
            self.at = next;
            self.line += u64::from(byte == b'\n');
            checked.push(byte);
        }
        self.ready = io::Cursor::new(checked);
        Ok(())
    }

    fn problem(&self, what: &str) -> io::Error {
        let line = self.cell_line;
        let sentence = format!(
            "line {line}: a cell {what}; put quotes around the whole cell and write each quote in it twice, as spreadsheets do"
        );
        io::Error::new(io::ErrorKind::InvalidData, sentence)
    }
}

impl<R: Read> Read for Records<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.ready.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        self.check_more()?;
        self.ready.read(buffer)
    }
}

/// UTF-16 as UTF-8.
struct Utf16<R> {
    units: R,
    unit: fn([u8; 2]) -> u16,
    /// Decoded, and not taken yet from its beginning.
    ready: io::Cursor<Vec<u8>>,
    /// The first half of a character whose second one was not read yet.
    half: Option<u16>,
}

impl<R: Read> Utf16<R> {
    fn new(units: R, unit: fn([u8; 2]) -> u16) -> Self {
        Self { units, unit, ready: io::Cursor::default(), half: None }
    }

    fn decode_more(&mut self) -> io::Result<()> {
        const BYTES: u64 = 8192;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its UTF-16 is damaged");
        let mut bytes = vec![];
        self.units.by_ref().take(BYTES).read_to_end(&mut bytes)?;
        let (pairs, []) = bytes.as_chunks() else { return Err(damaged()) };
        let mut units: Vec<u16> = self.half.take().into_iter().collect();
        units.extend(pairs.iter().map(|pair| (self.unit)(*pair)));
        if !bytes.is_empty() {
            self.half = units.pop_if(|last| (0xd800..0xdc00).contains(last));
        }
        let text: Result<String, _> = char::decode_utf16(units).collect();
        self.ready = io::Cursor::new(text.map_err(|_| damaged())?.into_bytes());
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.ready.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        self.decode_more()?;
        if self.ready.get_ref().is_empty() && self.half.is_some() {
            self.decode_more()?;
        }
        self.ready.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a few bytes at a time.
    struct Slowly<R>(R, usize);

    impl<R: Read> Read for Slowly<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(self.1);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn quoted_cells_end_where_their_quotes_do() {
        let check = |text: &str, bytes| {
            let mut read = String::new();
            let mut records = Records::of(Slowly(text.as_bytes(), bytes), b';', 3);
            records.read_to_string(&mut read).map(|_| read).map_err(|problem| problem.to_string())
        };
        for (text, expected) in [
            ("a;b\n1;2", Ok("a;b\n1;2")),
            ("a\n\n\n1\n", Ok("a\n;\n;\n1\n")),
            ("\"a\n\n;\";\"\"\n\"say \"\"x\"\"\";2\n", Ok("\"a\n\n;\";\"\"\n\"say \"\"x\"\"\";2\n")),
            // A quote that begins no cell is a letter like others.
            ("5\" pipe; \"x\";b\n", Ok("5\" pipe; \"x\";b\n")),
            ("a;b\n\"Bobby\" Smith;2\n", Err("line 4: a cell goes on behind its closing quote")),
            ("a\n\"x\ny\" ;2\n", Err("line 4: a cell goes on")),
            ("a\n\"row 1\nrow 2\nrow 3\n", Err("line 4: a cell begins with a quote that is never closed")),
            // The quotes of two rows pair.
            ("a;b\n\"x;1\ny;2\n\"z;3\n", Err("line 4: a cell goes on")),
        ] {
            for bytes in [1, 2, 4096] {
                match (check(text, bytes), expected) {
                    (Err(problem), Err(expected)) => {
                        assert!(problem.starts_with(expected), "{text}: {problem}");
                    }
                    (read, expected) => {
                        assert_eq!(read, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
                    }
                }
            }
        }
    }

    /// Lines of every ending, and characters of every length, across whatever is read at a time.
    #[test]
    fn text_is_the_same_however_it_is_cut() {
        let text = "a\r\nb\n\nc\r\rd\u{e9}\u{20ac}\u{1f600}\r\n".repeat(3000);
        let expected = "a\nb\n\nc\n\nd\u{e9}\u{20ac}\u{1f600}\n".repeat(3000);
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [1, 2, 3, 5, 4096, 8191] {
            let mut read = String::new();
            Lines::of(Slowly(text.as_bytes(), bytes)).read_to_string(&mut read).unwrap();
            assert_eq!(read, expected, "{bytes}");
            read.clear();
            let text = Utf16::new(Slowly(units.as_slice(), bytes), u16::from_be_bytes);
            Lines::of(text).read_to_string(&mut read).unwrap();
            assert_eq!(read, expected, "{bytes}");
        }
        for damaged in [&units[..units.len() - 1], b"\xdc\x00\x00a", b"\x00a\xd8\x00"] {
            let read = Utf16::new(damaged, u16::from_be_bytes).read_to_string(&mut String::new());
            assert!(read.is_err(), "{damaged:?}");
        }
    }
}
