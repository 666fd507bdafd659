//! Conversions of contacts: persons at customers, and where the customers of a partner ask.

use chassis::form::Form;
use proto::{agreement as wire, types};

use crate::rules::party::{Contact, Support, email_problem, is_phone};

pub(in crate::api) fn read_contact(
    form: &mut Form,
    field: &str,
    contact: Option<&types::Contact>,
) -> Contact {
    let absent = types::Contact::default();
    let contact = contact.unwrap_or(&absent);
    let email = read_email(form, &format!("{field}.email"), &contact.email, 1);
    let first_name = form.text(&format!("{field}.first_name"), &contact.first_name, 1, 100);
    let last_name = form.text(&format!("{field}.last_name"), &contact.last_name, 1, 100);
    let phone = read_phone(form, &format!("{field}.phone"), &contact.phone);
    Contact { first_name, last_name, email, phone }
}

fn read_email(form: &mut Form, field: &str, email: &str, min: usize) -> String {
    let read = form.text(field, email, min, 254);
    // As it was sent: composing turns some letters into those of ASCII.
    let problem = email_problem(email.trim()).filter(|_| !read.is_empty() && !form.has_violation(field));
    if let Some(problem) = problem {
        form.violation(field, problem);
    }
    read
}

fn read_phone(form: &mut Form, field: &str, phone: &str) -> String {
    let phone = form.text(field, phone, 0, 50);
    if !phone.is_empty() && !is_phone(&phone) && !form.has_violation(field) {
        form.violation(field, "must have digits, and between them only spaces and + ( ) - . / x");
    }
    phone
}

/// Where a partner's customers ask, if the request says so.
pub(in crate::api) fn read_support(
    form: &mut Form,
    support: Option<&wire::SupportContact>,
) -> Option<Support> {
    let support = support?;
    let email = read_email(form, "support.email", &support.email, 0);
    let phone = read_phone(form, "support.phone", &support.phone);
    let url = form.text("support.url", &support.url, 0, 500);
    if !url.is_empty() && !is_page(&url) && !form.has_violation("support.url") {
        form.violation("support.url", "must be a URL such as https://partner.example/support");
    }
    Some(Support { email, phone, url })
}

/// Whether a text is the address of a page that a mail may show.
fn is_page(url: &str) -> bool {
    let url = url.parse::<http::Uri>().ok().filter(|_| url.starts_with("https://"));
    url.is_some_and(|url| url.host().is_some_and(|host| !host.is_empty()))
}

pub(in crate::api) fn contact(contact: Contact) -> types::Contact {
    let Contact { first_name, last_name, email, phone } = contact;
    types::Contact { first_name, last_name, email, phone }
}

pub(in crate::api) fn support(support: Support) -> Option<wire::SupportContact> {
    let is_set = !support.is_empty();
    let Support { email, phone, url } = support;
    is_set.then_some(wire::SupportContact { email, phone, url })
}
