//! Customers, from a CSV file.

use chassis::form::text::normalized;
use chassis::form::timestamp;
use csv::StringRecord;
use proto::agreement::ImportCustomersRequest;

use super::columns::{Column, Columns};
use super::report::RowResult;
use super::rows::{RequestIds, Row, contact, date};
use super::table::Table;
use crate::config::ImportCustomers;

const CUSTOMER: &str = "CustomerTenantId";
const COMPANY: &str = "CompanyName";
const DOMAIN: &str = "Domain";
const COUNTRY: &str = "Country";
const LANGUAGE: &str = "Language";
const FIRST_NAME: &str = "FirstName";
const LAST_NAME: &str = "LastName";
const EMAIL: &str = "Email";
const PHONE: &str = "PhoneNumber";
const PROVIDER: &str = "ProviderId";
const RESELLER: &str = "ResellerId";
const FIRST_PURCHASE: &str = "FirstPurchaseDate";

const REFERENCE: &str = "ExternalReference";

const COLUMNS: [Column; 13] = [
    Column::required(&[CUSTOMER, "CustomerId"]),
    Column::required(&[COMPANY]),
    Column::required(&[DOMAIN]),
    Column::required(&[COUNTRY]),
    Column::optional(&[LANGUAGE]),
    Column::required(&[FIRST_NAME]),
    Column::required(&[LAST_NAME]),
    Column::required(&[EMAIL]),
    Column::optional(&[PHONE]),
    Column::optional(&[PROVIDER]),
    Column::optional(&[RESELLER]),
    Column::optional(&[FIRST_PURCHASE]),
    Column::optional(&[REFERENCE]),
];

/// Reads the file.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn read(settings: &ImportCustomers) -> anyhow::Result<Vec<Row<ImportCustomersRequest>>> {
    let table = Table::read(&settings.file, &COLUMNS)?;
    let mut request_ids = RequestIds::default();
    let mut row = |(number, record): &(u64, StringRecord)| {
        let request = request(&table.columns, record).map(|mut request| {
            request.request_id = request_ids.give(&request);
            request
        });
        Row::new(*number, table.columns.cell(record, CUSTOMER), request)
    };
    Ok(table.rows.iter().map(&mut row).collect())
}

/// The request of a row, still without its id. The server checks everything but what cannot be sent.
fn request(columns: &Columns, record: &StringRecord) -> Result<ImportCustomersRequest, RowResult> {
    let cell = |name| columns.cell(record, name);
    let id = |name| cell(name).to_ascii_lowercase();
    Ok(ImportCustomersRequest {
        request_id: String::new(),
        customer_id: id(CUSTOMER),
        company_name: normalized(cell(COMPANY)),
        domain: cell(DOMAIN).to_lowercase(),
        country: cell(COUNTRY).to_ascii_uppercase(),
        language: cell(LANGUAGE).to_owned(),
        primary_contact: Some(contact(cell(FIRST_NAME), cell(LAST_NAME), cell(EMAIL), cell(PHONE))),
        provider_id: id(PROVIDER),
        reseller_id: id(RESELLER),
        first_purchase_at: date(FIRST_PURCHASE, cell(FIRST_PURCHASE))?.map(timestamp),
        external_reference: normalized(cell(REFERENCE)),
    })
}
