//! Templates, their versions and documents.

use std::collections::{BTreeMap, BTreeSet};

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::{find_rows, query};
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::change::{Change, documents_digest};
use super::schema::{template, template_document, template_version};

use crate::rules::Time;
use crate::rules::event::Event;
use crate::rules::template::{AgreementType, Document, Template, Version};

/// Rows of one insert: SQLite allows 32,766 bound values, and a document has six.
const DOCUMENTS_PER_INSERT: usize = 1000;

type Row = (String, String, String, Option<NaiveDateTime>, i64);
type DocumentRow = (String, i32, String, String, String, String);
type VersionRow = (String, i32, NaiveDateTime, Option<NaiveDateTime>, NaiveDateTime, i32);

fn read(
    (id, name, agreement_type, retired_at, revision): Row,
    versions: Vec<Version>,
) -> Result<Template, Error> {
    if versions.is_empty() {
        return Err(at("template", &id).corrupt("versions"));
    }
    Ok(Template {
        agreement_type: at("template", &id).named("agreement_type", agreement_type.parse().ok())?,
        id: at("template", &id).parse("id", &id)?,
        name,
        retired_at: retired_at.map(utc),
        revision,
        versions,
    })
}

fn read_version(row: VersionRow) -> Result<(String, Version), Error> {
    let (template_id, number, effective_from, reaccept_by, published_at, document_count) = row;
    let count = |value: i32, column| {
        u32::try_from(value).map_err(|_| at("template_version", &template_id).corrupt(column))
    };
    let version = Version {
        number: count(number, "number")?,
        effective_from: utc(effective_from),
        reaccept_by: reaccept_by.map(utc),
        published_at: utc(published_at),
        document_count: count(document_count, "document_count")?,
    };
    Ok((template_id, version))
}

/// The templates of the given ids or types, by type and age, each with its versions.
fn load(connection: &mut Connection, rows: Vec<Row>) -> Result<Vec<Template>, Error> {
    let ids: Vec<String> = rows.iter().map(|row| row.0.clone()).collect();
    let version_rows: Vec<VersionRow> = find_rows!(connection, template_version::template_id, &ids, is_of => {
        template_version::table
            .filter(is_of)
            .order((template_version::template_id, template_version::number))
            .select((
                template_version::template_id,
                template_version::number,
                template_version::effective_from,
                template_version::reaccept_by,
                template_version::published_at,
                template_version::document_count,
            ))
    })?;
    let mut versions: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for row in version_rows {
        let (template_id, version) = read_version(row)?;
        versions.entry(template_id).or_default().push(version);
    }
    rows.into_iter()
        .map(|row| {
            let versions = versions.remove(&row.0).unwrap_or_default();
            read(row, versions)
        })
        .collect()
}

pub(crate) fn template_find(connection: &mut Connection, id: Uuid) -> Result<Option<Template>, Error> {
    Ok(templates_find(connection, &[id])?.pop())
}

/// Those of the templates that exist.
pub(crate) fn templates_find(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<Template>, Error> {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let rows = find_rows!(&mut *connection, template::id, &ids, is_it => template::table.filter(is_it))?;
    load(connection, rows)
}

/// All templates of the types, live or retired.
pub(crate) fn template_list(
    connection: &mut Connection,
    types: &[AgreementType],
) -> Result<Vec<Template>, Error> {
    let names: Vec<&str> = types.iter().map(AgreementType::into_str).collect();
    let rows: Vec<Row> = query!(connection, c => {
        template::table.filter(template::agreement_type.eq_any(&names)).order(template::id).load(c)
    })?;
    load(connection, rows)
}

/// The live template of a type.
pub(crate) fn template_live(
    connection: &mut Connection,
    of: AgreementType,
    now: Time,
) -> Result<Option<Uuid>, Error> {
    let id: Option<String> = query!(connection, c => {
        template::table
            .filter(template::agreement_type.eq(of.into_str()))
            .filter(template::retired_at.is_null().or(template::retired_at.gt(now.naive_utc())))
            .order(template::retired_at.is_null().desc())
            .select(template::id)
            .first(c)
            .optional()
    })?;
    id.map(|id| at("template", &id).parse("id", &id)).transpose()
}

pub(crate) fn template_table_is_empty(connection: &mut Connection) -> Result<bool, Error> {
    let found: Option<String> =
        query!(connection, c => template::table.select(template::id).first(c).optional())?;
    Ok(found.is_none())
}

/// Records and stores the last version of a template, and the template itself if it is new.
pub(crate) fn template_publish(
    change: &mut Change<'_>,
    template: &mut Template,
    is_new: bool,
    documents: &[Document],
    by: Uuid,
) -> Result<(), Error> {
    let Some(version) = template.versions.last().cloned() else { return Ok(()) };
    template.revision = change.record(&Event::TemplateVersionPublished {
        template_id: template.id,
        name: template.name.clone(),
        agreement_type: template.agreement_type,
        number: version.number,
        effective_from: version.effective_from,
        reaccept_by: version.reaccept_by,
        documents_sha256: documents_digest(documents),
        by,
    })?;
    if is_new {
        template_insert(change.connection, template)?;
    } else {
        template_update(change.connection, template)?;
    }
    version_insert(change.connection, template, &version, documents)
}

/// Stores a template without its versions.
fn template_insert(connection: &mut Connection, new: &Template) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(template::table)
            .values((
                template::id.eq(new.id.to_string()),
                template::name.eq(&new.name),
                template::agreement_type.eq(new.agreement_type.into_str()),
                template::retired_at.eq(new.retired_at.map(|at| at.naive_utc())),
                template::revision.eq(new.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Stores when a template was retired, and its revision.
pub(crate) fn template_update(connection: &mut Connection, changed: &Template) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(template::table.find(changed.id.to_string()))
            .set((
                template::retired_at.eq(changed.retired_at.map(|at| at.naive_utc())),
                template::revision.eq(changed.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

fn version_insert(
    connection: &mut Connection,
    of: &Template,
    new: &Version,
    documents: &[Document],
) -> Result<(), Error> {
    let template_id = of.id.to_string();
    let number = i32::try_from(new.number).unwrap_or(i32::MAX);
    query!(connection, c => {
        diesel::insert_into(template_version::table)
            .values((
                template_version::template_id.eq(&template_id),
                template_version::number.eq(number),
                template_version::agreement_type.eq(of.agreement_type.into_str()),
                template_version::effective_from.eq(new.effective_from.naive_utc()),
                template_version::reaccept_by.eq(new.reaccept_by.map(|at| at.naive_utc())),
                template_version::published_at.eq(new.published_at.naive_utc()),
                template_version::document_count.eq(i32::try_from(new.document_count).unwrap_or(i32::MAX)),
            ))
            .execute(c)
    })?;
    for chunk in documents.chunks(DOCUMENTS_PER_INSERT) {
        let rows: Vec<_> = chunk
            .iter()
            .map(|document| {
                (
                    template_document::template_id.eq(&template_id),
                    template_document::number.eq(number),
                    template_document::country.eq(&document.country),
                    template_document::language.eq(&document.language),
                    template_document::link.eq(&document.link),
                    template_document::sha256.eq(&document.sha256),
                )
            })
            .collect();
        query!(connection, c => diesel::insert_into(template_document::table).values(&rows).execute(c))?;
    }
    Ok(())
}

/// The documents of a version, of one country where one is named, in the order of country and language, after a pair.
pub(crate) fn document_list(
    connection: &mut Connection,
    (template_id, number): (Uuid, u32),
    country: Option<&str>,
    (after_country, after_language): (&str, &str),
    limit: i64,
) -> Result<Vec<Document>, Error> {
    let rows: Vec<(String, String, String, String)> = query!(connection, c => {
        let in_country =
            template_document::country.eq(after_country).and(template_document::language.gt(after_language));
        let mut list = template_document::table
            .filter(template_document::template_id.eq(template_id.to_string()))
            .filter(template_document::number.eq(i32::try_from(number).unwrap_or(i32::MAX)))
            .filter(template_document::country.gt(after_country).or(in_country))
            .order((template_document::country, template_document::language))
            .limit(limit)
            .select((
                template_document::country,
                template_document::language,
                template_document::link,
                template_document::sha256,
            ))
            .into_boxed();
        if let Some(country) = country {
            list = list.filter(template_document::country.eq(country));
        }
        list.load(c)
    })?;
    let document = |(country, language, link, sha256)| Document { country, language, link, sha256 };
    Ok(rows.into_iter().map(document).collect())
}

/// The documents that requests for some countries can be served of some versions: those of the countries and the United
/// States.
pub(crate) fn documents_of(
    connection: &mut Connection,
    versions: &BTreeSet<(Uuid, u32)>,
    countries: &[&str],
) -> Result<BTreeMap<(Uuid, u32), Vec<Document>>, Error> {
    let countries: Vec<&str> = countries.iter().copied().chain(["US"]).collect();
    let ids: Vec<String> = versions.iter().map(|(id, _)| id.to_string()).collect();
    let numbers: Vec<i32> = versions.iter().map(|(_, n)| i32::try_from(*n).unwrap_or(i32::MAX)).collect();
    let rows: Vec<DocumentRow> = query!(connection, c => {
        template_document::table
            .filter(template_document::template_id.eq_any(&ids))
            .filter(template_document::number.eq_any(&numbers))
            .filter(template_document::country.eq_any(&countries))
            .load(c)
    })?;
    let mut documents: BTreeMap<_, Vec<Document>> = BTreeMap::new();
    for (template_id, number, country, language, link, sha256) in rows {
        let row = at("template_document", &template_id);
        let version = (row.parse("template_id", &template_id)?, row.count("number", number)?);
        documents.entry(version).or_default().push(Document { country, language, link, sha256 });
    }
    Ok(documents)
}
