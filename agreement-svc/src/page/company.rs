//! The particulars of a company that becomes a customer with its acceptance: a form, before the agreement is shown,
//! because country and language choose the text.

use proto::agreement::CompanyProfile;
use proto::types::{Contact, ErrorReason};
use serde::Deserialize;
use tonic::Status;

use super::problem::{bad_fields, has_reason};
use super::texts::Texts;

/// What the form carries.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Company {
    company_name: String,
    domain: String,
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
    pub is_required: bool,
    pub is_wrong: bool,
}

impl Company {
    pub(super) fn is_given(&self) -> bool {
        !self.company_name.is_empty()
    }

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
        let fields = [
            ("company_name", "company.company_name", name, &self.company_name, "organization"),
            ("domain", "company.domain", domain, &self.domain, "off"),
            ("company_country", "company.country", country, &self.company_country, "country"),
            ("first_name", "company.primary_contact.first_name", first, &self.first_name, "given-name"),
            ("last_name", "company.primary_contact.last_name", last, &self.last_name, "family-name"),
            ("email", "company.primary_contact.email", email, &self.email, "email"),
            ("phone", "company.primary_contact.phone", phone, &self.phone, "tel"),
        ];
        type Row<'a> =
            (&'static str, &'static str, &'a (&'static str, &'static str), &'a String, &'static str);
        let field = |(name, path, (label, hint), value, autocomplete): Row<'_>| Field {
            name,
            label,
            hint,
            value: value.clone(),
            autocomplete,
            is_required: name != "phone",
            is_wrong: wrong.iter().any(|wrong| wrong == path),
        };
        fields.map(field).into()
    }
}
