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
    /// What is wrong with the value; empty if nothing is known to be.
    pub error: &'static str,
}

/// What a refusal says of the particulars.
#[derive(Default)]
pub(super) struct Wrong {
    /// The bad fields, by their paths in the contract.
    paths: Vec<String>,
    is_domain_taken: bool,
}

impl Wrong {
    /// Reads a refusal; nothing is wrong with the particulars if it is about something else.
    pub(super) fn read(status: &Status) -> Self {
        if has_reason(status, ErrorReason::DomainTaken) {
            return Self { paths: vec!["company.domain".into()], is_domain_taken: true };
        }
        let paths = bad_fields(status).into_iter().filter(|field| field.starts_with("company."));
        Self { paths: paths.collect(), is_domain_taken: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

impl Company {
    /// With the code of the country in upper case, as the contract has it.
    pub(super) fn normalized(self) -> Self {
        Self { company_country: self.company_country.trim().to_uppercase(), ..self }
    }

    /// As the contract has it. The language is that of the page.
    pub(super) fn profile(&self, texts: &Texts) -> CompanyProfile {
        let Self { company_name, domain, company_country, first_name, last_name, email, phone } =
            self.clone();
        CompanyProfile {
            company_name,
            domain: domain.trim().into(),
            country: company_country,
            primary_contact: Some(Contact { first_name, last_name, email: email.trim().into(), phone }),
            language: texts.tag.into(),
        }
    }

    /// The fields of the form.
    pub(super) fn fields(&self, texts: &'static Texts, wrong: &Wrong) -> Vec<Field> {
        let [name, domain, country, first, last, email, phone] = &texts.company_fields;
        type Row<'a> = (&'static str, &'static str, &'a [&'static str; 3], &'a String, [&'static str; 3]);
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
        let error = |path: &str, value: &str, of_form: &'static str| match path {
            _ if !wrong.paths.iter().any(|wrong| wrong == path) => "",
            _ if value.trim().is_empty() => texts.field_missing,
            "company.domain" if wrong.is_domain_taken => texts.domain_taken,
            _ => of_form,
        };
        let field = |(name, path, [label, hint, of_form], value, typing): Row<'_>| Field {
            name,
            label,
            hint,
            error: error(path, value, of_form),
            value: value.clone(),
            autocomplete: typing[0],
            inputmode: typing[1],
            autocapitalize: typing[2],
            is_required: name != "phone",
        };
        fields.map(field).into()
    }
}
