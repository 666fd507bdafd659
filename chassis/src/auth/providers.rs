//! The file of identity providers: the issuers whose tokens are accepted, and how their claims are read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use url::Url;

use super::Vocabulary;
use super::jwt::{
    Expected, Issuer, KeySet, Keys, KnownIdentity, Location, Mapping, Published, TrustedIssuer, check_url,
};
use crate::reload::{self, Watched};

/// How often published keys are fetched, unless the file says otherwise.
const REFRESH_SECONDS: u32 = 300;
const REFRESH_SECONDS_MIN: u32 = 5;
/// Far below the day for which fetched keys count.
const REFRESH_SECONDS_MAX: u32 = 3600;

/// Issuers. Each has its own keys and its own memory of tokens.
const PROVIDERS_MAX: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Providers {
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    issuer: Issuer,
    audiences: Vec<String>,
    keys: Source,
    /// The CA certificates that verify the provider's server, in place of the system's.
    ca_file: Option<PathBuf>,
    #[serde(default = "refresh_seconds")]
    refresh_seconds: u32,
    #[serde(default)]
    claims: Mapping,
    #[serde(default)]
    identities: Vec<KnownIdentity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    JwksFile(PathBuf),
    JwksUrl(Url),
    DiscoveryUrl(Url),
}

fn refresh_seconds() -> u32 {
    REFRESH_SECONDS
}

/// Reads the file, and keeps the keys of its issuers up to date on this runtime from then on.
///
/// # Errors
/// The field that is missing or invalid, with its provider.
pub(super) fn open(file: &Path, vocabulary: Vocabulary) -> anyhow::Result<Vec<TrustedIssuer>> {
    let name = file.display();
    let providers: Providers =
        serde_json::from_slice(&reload::read(file)?).with_context(|| name.to_string())?;
    let providers = providers.providers;
    ensure!(!providers.is_empty(), "{name}: providers is empty; list at least one");
    ensure!(providers.len() <= PROVIDERS_MAX, "{name}: providers has more than {PROVIDERS_MAX}");
    for (n, provider) in providers.iter().enumerate() {
        let conflicts = providers[..n].iter().any(|other| other.issuer.conflicts_with(&provider.issuer));
        ensure!(
            !conflicts,
            "{name}: providers[{n}].issuer is that of another, or both fit the same tokens; list an issuer once, with \
             all audiences"
        );
    }
    let open = |(n, provider): (usize, Provider)| {
        provider.open(vocabulary).with_context(|| format!("{name}: providers[{n}]"))
    };
    providers.into_iter().enumerate().map(open).collect()
}

impl Provider {
    fn open(self, vocabulary: Vocabulary) -> anyhow::Result<TrustedIssuer> {
        let Self { issuer, audiences, keys, ca_file, refresh_seconds, claims, identities } = self;
        ensure!(
            (REFRESH_SECONDS_MIN..=REFRESH_SECONDS_MAX).contains(&refresh_seconds),
            "refresh_seconds must be {REFRESH_SECONDS_MIN} to {REFRESH_SECONDS_MAX}"
        );
        let ca_certificates = ca_file.map(|file| reload::read(&file)).transpose().context("ca_file")?;
        let expected =
            Expected { issuer: issuer.clone(), audiences, mapping: claims, identities, vocabulary };
        expected.check()?;
        let fetched = |location, url: &Url| {
            check_url(url)?;
            let interval = Duration::from_secs(refresh_seconds.into());
            Published::open(location, issuer, ca_certificates.as_deref(), interval).map(Keys::Published)
        };
        let keys = match keys {
            Source::JwksFile(file) => Watched::open(vec![file], |contents| KeySet::read(&contents[0]))
                .map(Keys::File)
                .context("keys.jwks_file"),
            Source::JwksUrl(url) => fetched(Location::Keys(url.clone()), &url).context("keys.jwks_url"),
            Source::DiscoveryUrl(url) => {
                fetched(Location::Discovery(url.clone()), &url).context("keys.discovery_url")
            }
        };
        Ok(TrustedIssuer::new(keys?, expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"providers": [{
        "issuer": "https://login.example/{tenantid}/v2.0",
        "audiences": ["ours"],
        "keys": {"discovery_url": "https://login.example/organizations/v2.0/.well-known/openid-configuration"},
        "refresh_seconds": 60,
        "claims": {
            "tenant_id": "tid",
            "user_id": "oid",
            "roles": [{"name": "/resource_access/ours/roles", "values": {"Writers": "WRITER"}}],
            "channel": {"name": "idtyp", "values": {"app": "API", "user": "DASHBOARD"}},
            "tenant_kind": "registration"
        },
        "identities": [{"tenant_id": "00000000-0000-4000-8000-000000000001", "role": "Gate", "tenant_kind": "INTERNAL"}]
    }]}"#;

    fn refused(contents: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("providers.json");
        std::fs::write(&file, contents).unwrap();
        match open(&file, Vocabulary::TEST) {
            Ok(_) => String::new(),
            Err(why) => format!("{why:#}"),
        }
    }

    #[tokio::test]
    async fn a_bad_file_is_refused_by_field() {
        assert_eq!(refused(WHOLE), "");
        for (good, bad, field) in [
            ("\"issuer\"", "\"isuer\"", "isuer"),
            ("https://login.example/{tenantid}/v2.0", "", "issuer is empty"),
            ("[\"ours\"]", "[]", "audiences"),
            ("[\"ours\"]", "[\"\"]", "audiences"),
            ("\"discovery_url\"", "\"discovery\"", "discovery"),
            ("\"https://login.example/organizations", "\"http://login.example/organizations", "https URL"),
            (
                "\"discovery_url\": \"https://login.example/organizations/",
                "\"jwks_url\": \"ftp://127.0.0.1/",
                "https URL",
            ),
            ("\"discovery_url\": \"https:", "\"jwks_file\": \"/nowhere", "keys.jwks_file: /nowhere"),
            ("\"refresh_seconds\": 60", "\"refresh_seconds\": 4", "refresh_seconds"),
            ("\"refresh_seconds\": 60", "\"refresh_seconds\": 3601", "refresh_seconds"),
            ("\"refresh_seconds\": 60", "\"ca_file\": \"/nowhere/ca.pem\"", "ca_file: /nowhere"),
            ("\"tid\"", "\"\"", "claims.tenant_id"),
            ("\"oid\"", "\"\"", "claims.user_id"),
            (
                "[{\"name\": \"/resource_access/ours/roles\", \"values\": {\"Writers\": \"WRITER\"}}]",
                "[]",
                "claims.roles is empty",
            ),
            ("\"/resource_access/ours/roles\"", "\"\"", "claims.roles[0].name"),
            ("\"WRITER\"", "\"WRITERS\"", "claims.roles[0].values has WRITERS"),
            ("\"API\"", "\"SHOP\"", "claims.channel.values has SHOP"),
            ("\"registration\"", "{\"always\": \"GOD\"}", "claims.tenant_kind.always has GOD"),
            (
                "\"registration\"",
                "{\"claim\": {\"name\": \"kind\", \"values\": {\"a\": \"GOD\"}}}",
                "claims.tenant_kind.claim.values has GOD",
            ),
            ("\"registration\"", "\"anything\"", "anything"),
            ("\"INTERNAL\"", "\"GOD\"", "identities[0].tenant_kind has GOD"),
            ("00000000-0000-4000-8000-000000000001", "a", "UUID"),
            ("\"role\": \"Gate\", ", "", "identities[0] makes every user"),
            ("{tenantid}", "{tenant}", "braces"),
        ] {
            assert!(WHOLE.contains(good), "{good}");
            let why = refused(&WHOLE.replacen(good, bad, 1));
            assert!(why.contains(field) && why.contains("providers"), "{bad}: {why}");
        }
        let provider = WHOLE.trim_start_matches("{\"providers\": [").trim_end_matches("]}");
        let many = |n: usize| format!("{{\"providers\": [{}]}}", vec![provider; n].join(","));
        for (contents, problem) in
            [(many(0), "is empty"), (many(2), "is that of another"), (many(17), "more than 16")]
        {
            assert!(refused(&contents).contains(problem), "{}", refused(&contents));
        }
        let ours = "https://login.example/{tenantid}/v2.0";
        let id = "00000000-0000-4000-8000-000000000001";
        for (one, other, are_accepted) in [
            (ours, &*ours.replace("{tenantid}", id), true),
            (ours, "https://login.example/{tenantid}/v1.0", true),
            (ours, "https://login.example/{tenantid}/v2.0/", true),
            ("https://{tenantid}/{tenantid}", &*format!("https://{{tenantid}}/{id}"), false),
            (
                "https://{tenantid}/{tenantid}",
                "https://{tenantid}/tenant-of-no-id-00000000000000000000",
                true,
            ),
            ("https://a{tenantid}", "https://{tenantid}a", false),
            ("https://login.example", "https://login.example", false),
        ] {
            let [one, other] = [one, other].map(|issuer| provider.replace(ours, issuer));
            let why = refused(&format!("{{\"providers\": [{one}, {other}]}}"));
            assert_eq!(why.is_empty(), are_accepted, "{one} {other}: {why}");
        }
    }
}
