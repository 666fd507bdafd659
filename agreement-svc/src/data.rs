//! The data files: the policy, the templates and their history, the vendor's table of documents.
//!
//! Templates are loaded once, into an empty database; afterwards they change only by publishing
//! (TPL-3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use chassis::clock::Clock;
use chassis::database::Database;
use serde::Deserialize;
use serde_json::Value;
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
    /// Of the documents that have none of their own.
    link: String,
    /// By country: each a language, or an [`OwnDocument`].
    documents: BTreeMap<String, Vec<Value>>,
}

/// A document with a link of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a language tag, or an object with language, link and sha256")]
struct OwnDocument {
    language: String,
    link: String,
    #[serde(default)]
    sha256: String,
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
/// and `languages`, separated by semicolons) replaces the documents that the file lists, but for those that have a link of
/// their own.
///
/// # Errors
/// A file that cannot be read or is invalid; the message names the template, its version, the country and the language.
pub fn read_templates(path: Option<&Path>, table: Option<&Path>) -> anyhow::Result<Templates> {
    let text = text_of(path, DEFAULT_TEMPLATES)?;
    let name = || format!("the templates {}", name_of(path));
    let file: TemplatesFile = serde_json::from_str(&text).with_context(name)?;
    let table = table.map(read_languages).transpose()?;
    let mut templates = vec![];
    for entry in file.templates {
        templates.push(read_template(entry, table.as_ref()).with_context(name)?);
    }
    Ok(Templates(templates))
}

fn read_template(
    entry: TemplateEntry,
    table: Option<&Languages>,
) -> anyhow::Result<(Template, Vec<Vec<Document>>)> {
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
        let number = versions.len() + 1;
        let texts = read_documents(&version, table).with_context(|| format!("{id}: version {number}"))?;
        versions.push(Version {
            number: u32::try_from(number).unwrap_or(u32::MAX),
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

fn read_documents(version: &VersionEntry, table: Option<&Languages>) -> anyhow::Result<Vec<Document>> {
    let shared = |country: &str, language: &str| Document {
        country: country.to_owned(),
        language: written(language),
        link: version.link.clone(),
        sha256: String::new(),
    };
    let mut documents = vec![];
    for (country, entries) in &version.documents {
        for entry in entries {
            match (entry.as_str(), table) {
                (Some(language), None) => documents.push(shared(country, language)),
                (Some(_), Some(_)) => {}
                (None, _) => documents.push(read_own(country, entry)?),
            }
        }
    }
    let own: BTreeSet<_> = documents.iter().map(|own| (own.country.clone(), own.language.clone())).collect();
    for (country, languages) in table.into_iter().flatten() {
        let listed = languages.iter().map(|language| shared(country, language));
        documents.extend(listed.filter(|of| !own.contains(&(of.country.clone(), of.language.clone()))));
    }
    let Some((place, bad)) = document_problems(&documents).into_iter().next() else { return Ok(documents) };
    match place.and_then(|place| documents.get(place)) {
        None => bail!("{} {}", bad.field, bad.problem),
        Some(Document { country, language, .. }) => {
            let field = bad.field.rsplit('.').next().unwrap_or_default();
            bail!("{country} {language}: {field} {}", bad.problem)
        }
    }
}

fn read_own(country: &str, entry: &Value) -> anyhow::Result<Document> {
    let named = || match entry.get("language").and_then(Value::as_str) {
        Some(language) => format!("{country} {language}"),
        None => country.to_owned(),
    };
    let OwnDocument { language, link, sha256 } = OwnDocument::deserialize(entry).with_context(named)?;
    Ok(Document { country: country.to_owned(), language: written(&language), link, sha256 })
}

/// A language tag as it is usually written; what is none is left for the check.
fn written(language: &str) -> String {
    language_tag(language).unwrap_or_else(|| language.to_owned())
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
        let countries: BTreeSet<_> = documents[0].iter().map(|d| &d.country).collect();
        assert_eq!(countries.len(), 246);
        assert!(documents[0].iter().any(|d| d.country == "YE" && d.language == "ar-SA"));
    }

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A template with these documents in its second version.
    fn read_with(documents: &str, table: Option<&str>) -> anyhow::Result<Vec<Document>> {
        let folder = tempfile::tempdir()?;
        let (file, csv) = (folder.path().join("templates.json"), folder.path().join("table.csv"));
        let version = |from: &str, documents: &str| {
            format!(
                r#"{{"effective_from": "{from}", "reaccept_by": null, "link": "https://example.com", "documents": {documents}}}"#
            )
        };
        let (first, second) = (
            version("2020-01-01T00:00:00Z", r#"{"US": ["en-US"]}"#),
            version("2021-01-01T00:00:00Z", documents),
        );
        let text = format!(
            r#"{{"templates": [{{"template_id": "00000000-0000-0000-0000-000000000001", "name": "Agreement",
            "agreement_type": "MICROSOFT_CUSTOMER_AGREEMENT", "versions": [{first}, {second}]}}]}}"#
        );
        fs::write(&file, text)?;
        if let Some(table) = table {
            fs::write(&csv, table)?;
        }
        let templates = read_templates(Some(&file), table.map(|_| csv.as_path()))?.0;
        Ok(templates[0].1[1].clone())
    }

    /// Country, language, link and digest.
    fn parts(documents: Vec<Document>) -> Vec<[String; 4]> {
        let parts = documents.into_iter().map(|d| [d.country, d.language, d.link, d.sha256]);
        let mut parts: Vec<_> = parts.collect();
        parts.sort_unstable();
        parts
    }

    const OWN: &str = r#"{"US": ["en-US"], "FR": ["en-US", {"language": "fr-fr", "link": "https://example.com/fr", "sha256": "DIGEST"},
        {"language": "br-FR", "link": "https://example.com/br"}]}"#;

    #[test]
    fn a_document_may_have_a_link_and_a_digest_of_its_own() {
        assert_eq!(
            parts(read_with(&OWN.replace("DIGEST", DIGEST), None).unwrap()),
            [
                ["FR", "br-FR", "https://example.com/br", ""],
                ["FR", "en-US", "https://example.com", ""],
                ["FR", "fr-FR", "https://example.com/fr", DIGEST],
                ["US", "en-US", "https://example.com", ""],
            ]
        );
    }

    #[test]
    fn the_table_replaces_the_documents_that_have_no_link_of_their_own() {
        let table = "iso2,languages\nUS,en-US; es-US\nFR,fr-FR\n";
        assert_eq!(
            parts(read_with(&OWN.replace("DIGEST", DIGEST), Some(table)).unwrap()),
            [
                ["FR", "br-FR", "https://example.com/br", ""],
                ["FR", "fr-FR", "https://example.com/fr", DIGEST],
                ["US", "en-US", "https://example.com", ""],
                ["US", "es-US", "https://example.com", ""],
            ]
        );
    }

    #[test]
    fn a_wrong_document_is_named_by_template_version_country_and_language() {
        let fr = |document: &str| format!(r#"{{"US": ["en-US"], "FR": [{document}]}}"#);
        for (documents, complaint) in [
            (fr(r#"{"language": "fr-FR"}"#), "FR fr-FR: missing field `link`"),
            (fr(r#"{"link": "https://example.com"}"#), "FR: missing field `language`"),
            (
                fr(r#"{"language": "fr-FR", "link": "https://example.com", "hash": ""}"#),
                "FR fr-FR: unknown field `hash`, expected one of `language`, `link`, `sha256`",
            ),
            (fr("7"), "expected a language tag, or an object with language, link and sha256"),
            (
                fr(r#"{"language": "fr-FR", "link": "http://example.com"}"#),
                "FR fr-FR: link must begin with https:// and have at most 2000 characters",
            ),
            (
                fr(r#"{"language": "fr-FR", "link": "https://example.com", "sha256": "E3"}"#),
                "FR fr-FR: sha256 must be empty or 64 lower-case hexadecimal digits",
            ),
            (
                fr(r#""fr-FR", {"language": "FR-fr", "link": "https://example.com"}"#),
                "FR fr-FR: language repeats an earlier country and language",
            ),
            (fr(r#""f""#), "FR f: language must be a language tag such as fr-FR"),
            (r#"{"FR": ["fr-FR"]}"#.into(), "documents must have one for US in en-US"),
        ] {
            let refused = format!("{:#}", read_with(&documents, None).unwrap_err());
            let place = "00000000-0000-0000-0000-000000000001: version 2: ";
            assert!(refused.contains(place) && refused.contains(complaint), "{refused}");
        }
    }
}
