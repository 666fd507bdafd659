//! Attestations, from the vendor's CSV file or from its answers in JSON.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use chassis::clock::Time;
use chassis::form::timestamp;
use csv::StringRecord;
use proto::agreement::ImportAttestationsRequest;
use proto::types::{AttestationDetails, ShownText};
use serde::Deserialize;
use uuid::Uuid;

use super::columns::{Column, Columns};
use super::layout::Encoding;
use super::report::{RowOutcome, RowResult};
use super::rows::{RequestIds, Row, contact, date, refused};
use super::table::Table;
use super::truth::truth;
use crate::config::ImportAttestations;

const CUSTOMER: &str = "CustomerTenantId";
const FIRST_NAME: &str = "FirstName";
const LAST_NAME: &str = "LastName";
const EMAIL: &str = "Email";
const PHONE: &str = "PhoneNumber";
const TEMPLATE: &str = "TemplateId";
const AGREED_AT: &str = "DateAgreed";
const TITLE: &str = "JobTitle";
const EVIDENCE: &str = "EvidenceReference";
const EVIDENCE_SHA256: &str = "EvidenceSha256";
const ON_BEHALF_OF: &str = "OnBehalfOf";
const REFERENCE: &str = "ExternalReference";
const SHOWN_COUNTRY: &str = "ShownCountry";
const SHOWN_LANGUAGE: &str = "ShownLanguage";
const SHOWN_SHA256: &str = "ShownSha256";
const COMPLETED: &str = "PartnerAttestationCompleted";

const COLUMNS: [Column; 18] = [
    Column::required(&[CUSTOMER, "CustomerId"]),
    Column::required(&[FIRST_NAME]),
    Column::required(&[LAST_NAME]),
    Column::required(&[EMAIL]),
    Column::optional(&[PHONE]),
    Column::optional(&[TEMPLATE]),
    Column::optional(&[AGREED_AT]),
    Column::optional(&[COMPLETED]),
    Column::optional(&[TITLE]),
    Column::optional(&[EVIDENCE]),
    Column::optional(&[EVIDENCE_SHA256]),
    Column::optional(&[ON_BEHALF_OF]),
    Column::optional(&[REFERENCE]),
    Column::optional(&[SHOWN_COUNTRY]),
    Column::optional(&[SHOWN_LANGUAGE]),
    Column::optional(&[SHOWN_SHA256]),
    Column::ignored(&["CustomerAccountLink"]),
    Column::ignored(&["LastAgreementDate"]),
];

/// Reads the file, or the files of a folder.
///
/// # Errors
/// What cannot be read, by line and column, and never by its contents.
pub(super) fn read(settings: &ImportAttestations) -> anyhow::Result<Vec<Row<ImportAttestationsRequest>>> {
    let path = settings.file.as_path();
    let records = if path.is_dir() {
        ensure!(
            settings.customer_id.is_none(),
            "--customer-id names one customer; a folder has a file for each, with its id as the name"
        );
        let mut files = files_of(path)?;
        files.sort();
        let mut records = vec![];
        for file in &files {
            records.append(&mut json_records(file, None)?);
        }
        records
    } else if is_json(path) {
        json_records(path, settings.customer_id)?
    } else {
        ensure!(
            settings.customer_id.is_none(),
            "--customer-id is for FILE.json; the column {CUSTOMER} of a CSV file names the customer of each row"
        );
        csv_records(settings)?
    };
    let mut request_ids = RequestIds::default();
    let mut rows: Vec<_> = records.into_iter().map(|record| record.row(settings, &mut request_ids)).collect();
    sort_by_date(&mut rows);
    Ok(rows)
}

/// Puts the rows of each customer in the order of their dates, in the places that they have: the server takes no
/// acceptance that is older than the current one. Rows that are not sent come first.
fn sort_by_date(rows: &mut Vec<Row<ImportAttestationsRequest>>) {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        places.entry(&row.customer_id).or_default().push(place);
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let date = |place: &usize| {
        let agreed_at = rows[*place].request.as_ref().ok().and_then(|request| request.agreed_at);
        agreed_at.map(|at| (at.seconds, at.nanos))
    };
    for places in places.values() {
        let mut sorted = places.clone();
        sorted.sort_by_key(date);
        for (place, from) in places.iter().zip(sorted) {
            order[*place] = from;
        }
    }
    let mut taken: Vec<_> = rows.drain(..).map(Some).collect();
    rows.extend(order.into_iter().filter_map(|from| taken[from].take()));
}

/// What a record of either format says.
struct Record {
    number: u64,
    customer_id: String,
    template_id: String,
    /// First name, last name, address, phone.
    contact: [String; 4],
    agreed_at: String,
    details: Option<AttestationDetails>,
    /// The result of a record that says of itself that it is no attestation.
    set_aside: Option<RowResult>,
}

impl Record {
    fn row(
        self,
        settings: &ImportAttestations,
        request_ids: &mut RequestIds,
    ) -> Row<ImportAttestationsRequest> {
        let request = self.request(settings).map(|mut request| {
            request.request_id = request_ids.give(&request);
            request
        });
        let request = self.set_aside.map_or(request, Err);
        Row::new(self.number, &self.customer_id, request)
    }

    /// The request of a record, still without its id. The server checks everything but what cannot be sent.
    fn request(&self, settings: &ImportAttestations) -> Result<ImportAttestationsRequest, RowResult> {
        let agreed_at: Option<Time> = date(AGREED_AT, &self.agreed_at)?.or(settings.agreed_at);
        let agreed_at = agreed_at.ok_or_else(|| refused(AGREED_AT, "is required"))?;
        let template_id = match self.template_id.as_str() {
            "" => settings.template_id.to_string(),
            id => id.to_ascii_lowercase(),
        };
        let [first_name, last_name, email, phone] = &self.contact;
        Ok(ImportAttestationsRequest {
            request_id: String::new(),
            customer_id: self.customer_id.to_ascii_lowercase(),
            template_id,
            contact: Some(contact(first_name, last_name, email, phone)),
            agreed_at: Some(timestamp(agreed_at)),
            details: self.details.clone(),
        })
    }
}

fn csv_records(settings: &ImportAttestations) -> anyhow::Result<Vec<Record>> {
    let Table { columns, rows } = Table::read(&settings.file, &COLUMNS)?;
    ensure!(
        columns.has(AGREED_AT) || settings.agreed_at.is_some(),
        "{} has no column {AGREED_AT}; if all of its rows agreed at the same time, give it with --agreed-at",
        settings.file.display()
    );
    let record = |(number, row): (u64, StringRecord)| {
        let cell = |name| columns.cell(&row, name).to_owned();
        Record {
            number,
            customer_id: cell(CUSTOMER),
            template_id: cell(TEMPLATE),
            contact: [FIRST_NAME, LAST_NAME, EMAIL, PHONE].map(cell),
            agreed_at: cell(AGREED_AT),
            details: Some(AttestationDetails {
                title: cell(TITLE),
                evidence_reference: cell(EVIDENCE),
                evidence_sha256: cell(EVIDENCE_SHA256),
                on_behalf_of: cell(ON_BEHALF_OF),
                external_reference: cell(REFERENCE),
                shown_text: Some(ShownText {
                    country: cell(SHOWN_COUNTRY),
                    language: cell(SHOWN_LANGUAGE),
                    sha256: cell(SHOWN_SHA256),
                })
                .filter(|text| *text != ShownText::default()),
            })
            // A row without them has the request id that earlier versions derived.
            .filter(|details| *details != AttestationDetails::default()),
            set_aside: set_aside(&columns, &row),
        }
    };
    Ok(rows.into_iter().map(record).collect())
}

/// The result of a row whose `PartnerAttestationCompleted` is not true.
fn set_aside(columns: &Columns, row: &StringRecord) -> Option<RowResult> {
    if !columns.has(COMPLETED) {
        return None;
    }
    match truth(columns.cell(row, COMPLETED)) {
        Some(true) => None,
        Some(false) => Some(RowResult::locally(RowOutcome::Skipped, "", &format!("{COMPLETED} is false"))),
        None => Some(refused(
            COMPLETED,
            "must be true or false, in a language in which spreadsheets write them, or 1, 0, yes or no",
        )),
    }
}

/// The vendor's answer to `GET /v1/customers/{id}/agreements`. It does not name the customer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agreements {
    total_count: Option<u64>,
    items: Vec<Agreement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agreement {
    primary_contact: Option<Person>,
    template_id: Option<String>,
    date_agreed: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Person {
    first_name: Option<String>,
    last_name: Option<String>,
    email: Option<String>,
    phone_number: Option<String>,
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// The JSON files of a folder. Other files are refused, because nothing would read them, but for those that a system
/// hides in every folder.
fn files_of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        ensure!(
            is_json(&path),
            "{}: a folder may have only files CUSTOMER_ID.json; move it elsewhere",
            path.display()
        );
        files.push(path);
    }
    ensure!(!files.is_empty(), "{}: has no file CUSTOMER_ID.json", folder.display());
    Ok(files)
}

/// The agreements of one customer. A record's number is its place in the answer.
fn json_records(path: &Path, customer_id: Option<Uuid>) -> anyhow::Result<Vec<Record>> {
    let name = path.display();
    let named = || path.file_stem().and_then(|stem| Uuid::try_parse(stem.to_str()?).ok());
    let Some(customer_id) = customer_id.or_else(named) else {
        bail!(
            "{name}: does not say whose agreements they are; name it CUSTOMER_ID.json or give --customer-id"
        );
    };
    let file = File::open(path).with_context(|| name.to_string())?;
    let text = Encoding::of(&file).and_then(|encoding| Ok(std::io::read_to_string(encoding.text(&file)?)?));
    let text = text.with_context(|| name.to_string())?;
    // An error of the library may quote what it found.
    let answer: Agreements = serde_json::from_str(&text).map_err(|error| {
        let problem = match error.classify() {
            serde_json::error::Category::Data => {
                "not the vendor's answer, which has items, each with primaryContact, templateId and dateAgreed"
            }
            _ => "not JSON; save the vendor's answer as it came",
        };
        anyhow!("{name}: line {}, column {}: {problem}", error.line(), error.column())
    })?;
    let items = answer.items;
    if let Some(total) = answer.total_count {
        let held = items.len() as u64;
        ensure!(total == held, "{name}: totalCount is {total}, and it has {held} items; fetch it again");
    }
    let record = |(number, item): (u64, Agreement)| {
        let person = item.primary_contact.unwrap_or_default();
        let contact = [person.first_name, person.last_name, person.email, person.phone_number];
        let template_id = item.template_id.unwrap_or_default();
        // The vendor's answers have agreements of several types, so no default is right.
        let set_aside = template_id.is_empty().then(|| refused("templateId", "is required"));
        Record {
            number,
            customer_id: customer_id.to_string(),
            template_id,
            contact: contact.map(Option::unwrap_or_default),
            agreed_at: item.date_agreed.unwrap_or_default(),
            details: None,
            set_aside,
        }
    };
    Ok((1..).zip(items).map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The default template is for CSV files only: the vendor's answers may have agreements of any type.
    #[test]
    fn an_agreement_without_a_template_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agreements.json");
        let item = |template: &str| format!(r#"{{"dateAgreed": "2024-08-26T00:00:00"{template}}}"#);
        let items = [item(r#", "templateId": "117a77b0-9360-443b-8795-c6dedc750cf9""#), item("")].join(",");
        std::fs::write(&path, format!(r#"{{"totalCount": 2, "items": [{items}]}}"#)).unwrap();
        let records = json_records(&path, Some(Uuid::from_u128(1))).unwrap();
        let are_set_aside: Vec<_> = records.iter().map(|record| record.set_aside.is_some()).collect();
        assert_eq!(are_set_aside, [false, true]);
    }
}
