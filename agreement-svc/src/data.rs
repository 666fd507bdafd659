//! The data files: the policy, the templates and their history, the vendor's table of documents.
//!
//! Templates are loaded once, into an empty database; afterwards they change only by publishing
//! (TPL-3).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use chassis::clock::Clock;
use chassis::database::Database;
use serde::Deserialize;
use uuid::Uuid;

use crate::rules::Time;
use crate::rules::event::Event;
use crate::rules::policy::Policy;
use crate::rules::template::{AgreementType, Document, Template, Version, document_problems, language_tag};
use crate::store::change::{ChangeError, change_internal};
use crate::store::template::{template_publish, template_table_is_empty, template_update};

const DEFAULT_POLICY: &str = include_str!("../data/policy.json");
const DEFAULT_TEMPLATES: &str = include_str!("../data/templates.json");

/// Languages by country, ISO 3166-1 alpha-2.
type Languages = BTreeMap<String, Vec<String>>;

/// The templates to load into an empty database.
#[derive(Debug)]
pub struct Templates(Vec<(Template, Vec<Vec<Document>>)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplatesFile {
    templates: Vec<TemplateEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateEntry {
    template_id: Uuid,
    name: String,
    agreement_type: AgreementType,
    retired_at: Option<Time>,
    versions: Vec<VersionEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionEntry {
    effective_from: Time,
    /// `null` is never.
    #[serde(deserialize_with = "Option::deserialize")]
    reaccept_by: Option<Time>,
    link: String,
    documents: Languages,
}

/// A row of the vendor's table of countries and languages.
#[derive(Deserialize)]
struct LanguagesRow {
    iso2: String,
    languages: String,
}

/// The policy in a file, or the default one.
///
/// # Errors
/// A file that cannot be read or holds an invalid policy; the message names the period.
pub fn read_policy(path: Option<&Path>) -> anyhow::Result<Policy> {
    let text = text_of(path, DEFAULT_POLICY)?;
    serde_json::from_str(&text).with_context(|| format!("the policy {}", name_of(path)))
}

/// The templates in a file, or the default ones. A table of countries and languages (columns `iso2`
/// and `languages`, separated by semicolons) replaces the documents that the file lists.
///
/// # Errors
/// A file that cannot be read or is invalid; the message names the template or the country.
pub fn read_templates(path: Option<&Path>, table: Option<&Path>) -> anyhow::Result<Templates> {
    let text = text_of(path, DEFAULT_TEMPLATES)?;
    let name = || format!("the templates {}", name_of(path));
    let file: TemplatesFile = serde_json::from_str(&text).with_context(name)?;
    let table = table.map(read_languages).transpose()?;
    let mut templates = vec![];
    for mut entry in file.templates {
        if let Some(table) = &table {
            for version in &mut entry.versions {
                version.documents = table.clone();
            }
        }
        templates.push(read_template(entry).with_context(name)?);
    }
    Ok(Templates(templates))
}

fn read_template(entry: TemplateEntry) -> anyhow::Result<(Template, Vec<Vec<Document>>)> {
    let id = entry.template_id;
    let mut versions: Vec<Version> = vec![];
    let mut documents = vec![];
    for version in entry.versions {
        let times = [Some(version.effective_from), version.reaccept_by, entry.retired_at];
        if times.into_iter().flatten().any(|time| time.timestamp_subsec_nanos() % 1000 != 0) {
            bail!("{id}: times must be in whole microseconds");
        }
        if versions.last().is_some_and(|last| last.effective_from >= version.effective_from) {
            bail!("{id}: {} is not later than the version before", version.effective_from);
        }
        if version.reaccept_by.is_some_and(|by| by < version.effective_from) {
            bail!("{id}: reaccept_by lies before {}", version.effective_from);
        }
        let texts = read_documents(&version.link, &version.documents).with_context(|| id.to_string())?;
        versions.push(Version {
            number: u32::try_from(versions.len()).unwrap_or(u32::MAX) + 1,
            effective_from: version.effective_from,
            reaccept_by: version.reaccept_by,
            published_at: version.effective_from,
            document_count: u32::try_from(texts.len()).unwrap_or(u32::MAX),
        });
        documents.push(texts);
    }
    ensure!(!versions.is_empty(), "{id} has no version");
    let template = Template {
        id,
        name: entry.name,
        agreement_type: entry.agreement_type,
        retired_at: entry.retired_at,
        revision: 0,
        versions,
    };
    Ok((template, documents))
}

fn read_documents(link: &str, languages: &Languages) -> anyhow::Result<Vec<Document>> {
    let mut documents = vec![];
    for (country, languages) in languages {
        for language in languages {
            documents.push(Document {
                country: country.clone(),
                language: language_tag(language).unwrap_or_else(|| language.clone()),
                link: link.to_owned(),
                sha256: String::new(),
            });
        }
    }
    match document_problems(&documents).first() {
        None => Ok(documents),
        Some(bad) => bail!("{} {}", bad.field, bad.problem),
    }
}

fn read_languages(path: &Path) -> anyhow::Result<Languages> {
    let name = path.display();
    let wrong = |error: csv::Error| anyhow!("the document table {name}: {error}");
    let mut languages = Languages::new();
    for row in csv::Reader::from_path(path).map_err(wrong)?.deserialize() {
        let row: LanguagesRow = row.map_err(wrong)?;
        let tags = row.languages.split(';').map(|tag| tag.trim().to_owned()).collect();
        let is_first = languages.insert(row.iso2.clone(), tags).is_none();
        ensure!(is_first, "the document table {name}: {} is listed twice", row.iso2);
    }
    Ok(languages)
}

impl Templates {
    /// Stores them if the database has no template yet, as the first events of its history.
    ///
    /// # Errors
    /// The database's.
    pub async fn load(self, database: &Database, clock: &Clock) -> Result<(), ChangeError> {
        change_internal(database, clock, move |change| {
            if !template_table_is_empty(change.connection)? {
                return Ok(());
            }
            for (mut template, documents) in self.0 {
                let versions = std::mem::take(&mut template.versions);
                for (version, documents) in versions.into_iter().zip(documents) {
                    let is_new = template.versions.is_empty();
                    template.versions.push(Version { published_at: change.now, ..version });
                    template_publish(change, &mut template, is_new, &documents, Uuid::nil())?;
                }
                if let Some(retired_at) = template.retired_at {
                    let by = Uuid::nil();
                    let retired = Event::TemplateRetired { template_id: template.id, retired_at, by };
                    template.revision = change.record(&retired)?;
                    template_update(change.connection, &template)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn text_of(path: Option<&Path>, default: &str) -> anyhow::Result<String> {
    match path {
        None => Ok(default.to_owned()),
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            // Editors on Windows write a byte order mark, which JSON does not allow.
            Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
        }
    }
}

fn name_of(path: Option<&Path>) -> String {
    path.map_or_else(|| "that ship with the service".into(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_ship_are_read() {
        read_policy(None).unwrap();
        let templates = read_templates(None, None).unwrap().0;
        assert_eq!(templates.len(), 2);
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        fs::write(&path, format!("\u{feff}{DEFAULT_POLICY}")).unwrap();
        read_policy(Some(&path)).unwrap();
    }

    #[test]
    fn a_policy_that_requires_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        for (text, complaint) in [
            (r#"{"periods": []}"#, "no periods"),
            (
                r#"{"periods": [{"from": "2020-01-01T00:00:00Z", "dashboard": "MANDATORY", "api": "MANDATORY", "agreement_types": []}]}"#,
                "names no agreement type",
            ),
            (r#"{"periods": [], "extra": 1}"#, "unknown field"),
            ("", "EOF"),
        ] {
            fs::write(&path, text).unwrap();
            let refused = format!("{:#}", read_policy(Some(&path)).unwrap_err());
            assert!(refused.contains(complaint), "{refused}");
        }
    }

    #[test]
    fn the_vendors_table_of_countries_is_taken_whole() {
        let Ok(samples) = std::env::var("VENDOR_SAMPLES") else {
            eprintln!("SKIPPED: VENDOR_SAMPLES does not name a folder of samples");
            return;
        };
        let table = Path::new(&samples).join("mca-country-language.csv");
        let templates = read_templates(None, Some(&table)).unwrap().0;
        let (_, documents) = &templates[1];
        let countries: std::collections::BTreeSet<_> = documents[0].iter().map(|d| &d.country).collect();
        assert_eq!(countries.len(), 246);
        assert!(documents[0].iter().any(|d| d.country == "YE" && d.language == "ar-SA"));
    }
}
