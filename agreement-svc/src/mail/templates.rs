//! Mail templates: the texts of mails and invitations in several languages, from the files that ship or from the operator's.
//!
//! Every text is rendered with made-up data when the service starts, so that a broken template stops the start.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use chrono::{Datelike, Months};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use uuid::Uuid;

use crate::rules::Time;
use crate::rules::invitation::InvitationKind;
use crate::rules::language::{SHIPPED, negotiated};
use crate::rules::notification::{Announced, Content, DueMail, Sender, quoted};
use crate::rules::party::Support;
use crate::rules::template::language_tag;

/// Bytes of a template: a text of many pages.
const TEMPLATE_BYTES_MAX: u64 = 64 * 1024;

/// The texts that each language has.
const TEXTS: [&str; 3] = [ATTESTATION, CONTACT, INVITATION];
const ATTESTATION: &str = "attestation";
const CONTACT: &str = "contact";
const INVITATION: &str = "invitation";

macro_rules! shipped {
    ($($name:literal),+) => { [$(($name, include_str!(concat!("../../data/mail/", $name)))),+] };
}

const FILES: [(&str, &str); 9] = shipped![
    "attestation.en.txt",
    "attestation.fr.txt",
    "attestation.de.txt",
    "contact.en.txt",
    "contact.fr.txt",
    "contact.de.txt",
    "invitation.en.txt",
    "invitation.fr.txt",
    "invitation.de.txt"
];

/// The subject and the text of a mail.
pub(crate) type Text = (String, String);

/// The templates, compiled.
pub(crate) struct MailTemplates {
    environment: Environment<'static>,
    languages: BTreeSet<String>,
}

impl fmt::Debug for MailTemplates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mail templates in {:?}", self.languages)
    }
}

/// What an invitation says.
pub(crate) struct InvitationData<'a> {
    pub kind: InvitationKind,
    pub partner: &'a str,
    pub support: &'a Support,
    pub agreement: &'a str,
    pub url: &'a str,
    pub expires_at: Time,
}

impl MailTemplates {
    /// The files of a folder, or those that ship. A folder has all texts in the languages that ship, and may have them in
    /// others.
    ///
    /// # Errors
    /// A file that is missing, is not known, cannot be read, or is no template that can be rendered.
    pub(crate) fn read(folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(folder) = folder else {
            return Self::new(FILES.map(|(name, text)| (name.to_owned(), text.to_owned())));
        };
        let at = || format!("the mail templates in {}", folder.display());
        let mut files = vec![];
        for entry in std::fs::read_dir(folder).with_context(at)? {
            let path = entry.with_context(at)?.path();
            if path.extension().is_some_and(|extension| extension == "txt") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let mut text = String::new();
                let file = File::open(&path).with_context(|| path.display().to_string())?;
                let read = file.take(TEMPLATE_BYTES_MAX + 1).read_to_string(&mut text);
                let length = read.with_context(|| path.display().to_string())?;
                let is_short = u64::try_from(length).is_ok_and(|length| length <= TEMPLATE_BYTES_MAX);
                ensure!(is_short, "{} has more than {TEMPLATE_BYTES_MAX} bytes", path.display());
                files.push((name, text));
            }
        }
        Self::new(files).with_context(at)
    }

    fn new(files: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut environment = Environment::new();
        // A placeholder that is misspelt is an error.
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // A line with nothing but a block leaves no line.
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
        environment.set_syntax(syntax.build()?);
        let mut languages: BTreeSet<String> = SHIPPED.map(str::to_owned).into();
        for (name, text) in files {
            let language = name.strip_suffix(".txt").and_then(|name| name.split_once('.'));
            match language {
                Some((text, language))
                    if TEXTS.contains(&text) && language_tag(language).as_deref() == Some(language) =>
                {
                    languages.insert(language.to_owned());
                }
                _ => bail!(
                    "{name} is no text of a mail; name it TEXT.LANGUAGE.txt, with TEXT one of {} and a language such as fr or pt-BR",
                    TEXTS.join(", ")
                ),
            }
            environment.add_template_owned(name.clone(), text).with_context(|| name)?;
        }
        let templates = Self { environment, languages };
        for language in &templates.languages {
            templates.try_out(language)?;
        }
        Ok(templates)
    }

    /// Subject and text of a mail: who says so, who agreed to what and when, and whom to ask.
    pub(crate) fn mail(&self, mail: &DueMail) -> anyhow::Result<Text> {
        let company = quoted(&mail.company_name);
        let (name, support) = match mail.sender() {
            Some(Sender { name, support }) => (quoted(name), support.beside(&quoted(name))),
            None => (String::new(), String::new()),
        };
        match &mail.content {
            Content::Attested { attestations, .. } => {
                let attestations: Vec<Value> = attestations.iter().map(announced).collect();
                let data = context! { partner => name, support, company, attestations };
                self.text(ATTESTATION, &mail.language, data)
            }
            Content::ContactChanged { .. } => {
                self.text(CONTACT, &mail.language, context! { partner => name, support, company })
            }
        }
    }

    /// Subject and text of the mail that a partner sends an invitation with. It contains no person's name, so that it can be
    /// stored in a mailbox or an answer without becoming personal data.
    pub(crate) fn invitation(&self, language: &str, data: &InvitationData<'_>) -> anyhow::Result<Text> {
        let InvitationData { kind, partner, support, agreement, url, expires_at } = *data;
        let data = context! {
            partner, agreement, url,
            is_relationship => kind == InvitationKind::RelationshipAndAgreement,
            support => support.beside(partner),
            expires_at => expires_at.format("%Y-%m-%d %H:%M UTC").to_string(),
        };
        self.text(INVITATION, language, data)
    }

    fn text(&self, text: &str, language: &str, data: Value) -> anyhow::Result<Text> {
        let language = negotiated(language, |language| self.languages.contains(language));
        let name = format!("{text}.{language}.txt");
        let rendered = self.environment.get_template(&name).and_then(|template| template.render(data));
        let rendered = rendered.with_context(|| format!("the mail template {name}"))?;
        let (head, body) = rendered.split_once("\n\n").unwrap_or((&rendered, ""));
        let subject = head.strip_prefix("Subject: ").filter(|subject| !subject.contains('\n'));
        let subject = subject.filter(|_| !body.trim().is_empty()).with_context(|| {
            format!("the mail template {name} must begin with `Subject: …`, an empty line and the text")
        })?;
        Ok((subject.to_owned(), body.to_owned()))
    }

    /// Renders every text of a language in each of its forms: in each month, to customers of partners with and without a
    /// support contact, about persons and about erased ones.
    fn try_out(&self, language: &str) -> anyhow::Result<()> {
        let filled = Support {
            email: "help@partner.example".into(),
            phone: "+44 20 7946 0000".into(),
            url: "https://partner.example/".into(),
        };
        for support in [Support::default(), filled] {
            for month in 0..12 {
                self.try_out_in(language, Time::UNIX_EPOCH + Months::new(month), &support)?;
            }
        }
        Ok(())
    }

    fn try_out_in(&self, language: &str, time: Time, support: &Support) -> anyhow::Result<()> {
        let one = |first_name: &str| Announced {
            attestation_id: Uuid::nil(),
            attempts: 1,
            first_name: first_name.into(),
            last_name: String::new(),
            agreement: "Agreement".into(),
            version: 1,
            agreed_at: time,
        };
        let partner = || Sender { name: "Partner".into(), support: support.clone() };
        let mut contents: Vec<Content> =
            [vec![one("Person")], vec![one("")], vec![one(""), one("Person")], vec![one("Person"), one("")]]
                .map(|attestations| Content::Attested { partner: partner(), attestations })
                .into();
        contents
            .extend([Some(partner()), None].map(|partner| Content::ContactChanged { partner, attempts: 1 }));
        for content in contents {
            let (recipient, company_name) = (String::new(), "Company".into());
            let language = language.to_owned();
            self.mail(&DueMail { id: Uuid::nil(), recipient, company_name, language, content })?;
        }
        for kind in [InvitationKind::Agreement, InvitationKind::RelationshipAndAgreement] {
            let url = "https://localhost/";
            let (partner, agreement, expires_at) = ("Partner", "Agreement", time);
            let data = InvitationData { kind, partner, support, agreement, url, expires_at };
            let (_, text) = self.invitation(language, &data)?;
            ensure!(
                text.contains(url),
                "the mail template invitation.{language}.txt must contain {{{{ url }}}}"
            );
        }
        Ok(())
    }
}

fn announced(of: &Announced) -> Value {
    let person = match of.first_name.is_empty() && of.last_name.is_empty() {
        true => String::new(),
        false => format!("{} {}", quoted(&of.first_name), quoted(&of.last_name)),
    };
    let date = of.agreed_at.date_naive();
    context! {
        person,
        agreement => of.agreement.clone(),
        version => of.version,
        reference => of.attestation_id.to_string(),
        day => date.day(),
        month => date.month(),
        year => date.year(),
    }
}

#[cfg(test)]
mod tests;
