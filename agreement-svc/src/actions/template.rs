//! Templates (TPL-1 to TPL-5): the publication of a version, the template to use instead of a retired one, and the text of a
//! version that was shown.

use std::collections::BTreeSet;

use chassis::database::{Connection, Error};
use strum::VariantArray;
use uuid::Uuid;

use crate::rules::eligibility::{Reacceptance, reacceptance};
use crate::rules::shown::ShownText;
use crate::rules::template::{AgreementType, Document, Reaccept, Template, next_version};
use crate::rules::{BadField, Refusal, Time};
use crate::store::change::{Change, ChangeError};
use crate::store::template::{documents_of, template_find, template_live, template_publish};

/// A version to be published.
pub(crate) struct NewVersion {
    pub template_id: Uuid,
    /// Required for a new template, and then its type.
    pub agreement_type: Option<AgreementType>,
    /// Required for a new template; empty otherwise, or the template's name.
    pub name: String,
    pub effective_from: Option<Time>,
    pub reaccept: Reaccept,
    pub documents: Vec<Document>,
    /// The operator's user who publishes.
    pub by: Uuid,
}

/// Publishes a version, and the template with it where it is new. Gives back the template, and what the version
/// asks of those who accepted an earlier one.
pub(crate) fn publish(
    change: &mut Change<'_>,
    new: &NewVersion,
) -> Result<(Template, Option<Reacceptance>), ChangeError> {
    let known = template_find(change.connection, new.template_id)?;
    let is_new = known.is_none();
    let mut template = match known {
        Some(template) => matching(template, new.agreement_type, &new.name)?,
        None => new_template(change, new)?,
    };
    let count = u32::try_from(new.documents.len()).unwrap_or(u32::MAX);
    let version = next_version(&template, new.effective_from, new.reaccept, count, change.now)?;
    let planned = reacceptance(&template, &version);
    template.versions.push(version);
    template_publish(change, &mut template, is_new, &new.documents, new.by)?;
    Ok((template, planned))
}

/// A known template, if what the request says of it is true.
fn matching(template: Template, of: Option<AgreementType>, name: &str) -> Result<Template, Refusal> {
    let mut bad = vec![];
    if of.is_some_and(|of| of != template.agreement_type) {
        let problem =
            format!("must be absent or {}, which the template has", template.agreement_type.into_str());
        bad.push(BadField { field: "agreement_type".into(), problem });
    }
    if !name.is_empty() && name != template.name {
        bad.push(BadField {
            field: "name".into(),
            problem: "must be absent or the name the template has".into(),
        });
    }
    if !bad.is_empty() {
        return Err(Refusal::Fields(bad));
    }
    Ok(template)
}

fn new_template(change: &mut Change<'_>, new: &NewVersion) -> Result<Template, ChangeError> {
    let name = &new.name;
    let Some(agreement_type) = new.agreement_type.filter(|_| !name.is_empty()) else {
        let missing = [("agreement_type", new.agreement_type.is_none()), ("name", name.is_empty())];
        let missing = missing.into_iter().filter(|(_, is_missing)| *is_missing);
        let required = |(field, _): (&str, bool)| BadField {
            field: field.to_owned(),
            problem: "is required for a new template".to_owned(),
        };
        return Err(Refusal::Fields(missing.map(required).collect()).into());
    };
    if let Some(template_id) = template_live(change.connection, agreement_type, change.now)? {
        return Err(Refusal::TypeHasTemplate { template_id }.into());
    }
    Ok(Template {
        id: new.template_id,
        name: name.to_owned(),
        agreement_type,
        retired_at: None,
        revision: 0,
        versions: vec![],
    })
}

/// The template to use instead of a retired one: the live one of the newest type that has one.
pub(super) fn live_instead_of(
    connection: &mut Connection,
    instead_of: &Template,
    now: Time,
) -> Result<Option<Uuid>, Error> {
    if instead_of.retired_at.is_none() {
        return Ok(None);
    }
    for of in AgreementType::VARIANTS.iter().rev() {
        if let Some(id) = template_live(connection, *of, now)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// What is recorded of the text of a version that a client showed (TPL-5).
pub(crate) fn record_shown(
    change: &mut Change<'_>,
    (template_id, number): (Uuid, u32),
    shown: &ShownText,
) -> Result<ShownText, ChangeError> {
    let version = BTreeSet::from([(template_id, number)]);
    let documents = documents_of(change.connection, &version, &[&shown.country])?;
    Ok(shown.recorded(template_id, &documents.into_values().flatten().collect::<Vec<_>>())?)
}
