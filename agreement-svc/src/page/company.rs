//! The particulars of a company that becomes a customer with its acceptance: a form, before the agreement is shown,
//! because country and language choose the text.

use proto::agreement::CompanyProfile;
use proto::types::{Contact, ErrorReason};
use serde::Deserialize;
use tonic::Status;

use super::problem::{bad_fields, has_reason};
use super::texts::Texts;

/// What the form carries.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Company {
    pub company_name: String,
    pub domain: String,
    company_country: String,
    first_name: String,
    last_name: String,
    email: String,
    phone: String,
}

/// A field of the form, as a page shows it.
pub(super) struct Field {
    pub name: &'static str,
    pub label: &'static str,
    pub hint: &'static str,
    pub value: String,
    /// What browsers fill in.
    pub autocomplete: &'static str,
    /// Which keyboard a telephone shows.
    pub inputmode: &'static str,
    pub autocapitalize: &'static str,
    pub is_required: bool,
    pub is_wrong: bool,
}

impl Company {
    /// As the contract has it. The language is that of the page.
    pub(super) fn profile(&self, texts: &Texts) -> CompanyProfile {
        let Self { company_name, domain, company_country, first_name, last_name, email, phone } =
            self.clone();
        CompanyProfile {
            company_name,
            domain: domain.trim().into(),
            country: company_country.trim().to_uppercase(),
            primary_contact: Some(Contact { first_name, last_name, email: email.trim().into(), phone }),
            language: texts.tag.into(),
        }
    }

    /// The fields that a refusal is about; none if it is about something else.
    pub(super) fn wrong(status: &Status) -> Vec<String> {
        if has_reason(status, ErrorReason::DomainTaken) {
            return vec!["company.domain".into()];
        }
        bad_fields(status).into_iter().filter(|field| field.starts_with("company.")).collect()
    }

    /// The fields of the form.
    pub(super) fn fields(&self, texts: &'static Texts, wrong: &[String]) -> Vec<Field> {
        let [name, domain, country, first, last, email, phone] = &texts.company_fields;
        type Row<'a> =
            (&'static str, &'static str, &'a (&'static str, &'static str), &'a String, [&'static str; 3]);
        #[rustfmt::skip]
        let fields: [Row<'_>; 7] = [
            ("company_name", "company.company_name", name, &self.company_name, ["organization", "text", "words"]),
            ("domain", "company.domain", domain, &self.domain, ["off", "url", "none"]),
            ("company_country", "company.country", country, &self.company_country, ["country", "text", "characters"]),
            ("first_name", "company.primary_contact.first_name", first, &self.first_name, ["given-name", "text", "words"]),
            ("last_name", "company.primary_contact.last_name", last, &self.last_name, ["family-name", "text", "words"]),
            ("email", "company.primary_contact.email", email, &self.email, ["email", "email", "none"]),
            ("phone", "company.primary_contact.phone", phone, &self.phone, ["tel", "tel", "none"]),
        ];
        let field = |(name, path, (label, hint), value, typing): Row<'_>| Field {
            name,
            label,
            hint,
            value: value.clone(),
            autocomplete: typing[0],
            inputmode: typing[1],
            autocapitalize: typing[2],
            is_required: name != "phone",
            is_wrong: wrong.iter().any(|wrong| wrong == path),
        };
        fields.map(field).into()
    }
}
