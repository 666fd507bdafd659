//! `TemplateService`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use chassis::auth;
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use proto::agreement::publish_template_version_request::Reacceptance as Asked;
use proto::agreement::template_service_server::TemplateService;
use proto::agreement::{
    GetTemplateDocumentRequest, GetTemplateDocumentResponse, GetTemplateRequest, GetTemplateResponse,
    ListTemplatesRequest, ListTemplatesResponse, PartnerImpact, PublicationImpact,
    PublishTemplateVersionRequest, PublishTemplateVersionResponse, RetireTemplateRequest,
    RetireTemplateResponse, TemplateDocument,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, checked, convert, existing_template, status};
use crate::rules::eligibility::{Reacceptance, reacceptance, would_close};
use crate::rules::event::Event;
use crate::rules::policy::Policy;
use crate::rules::template::{AgreementType, Reaccept, Template, choose_document, next_version};
use crate::rules::{BadField, Refusal, Time};
use crate::store::change::{Change, ChangeError};
use crate::store::gate::{Parties, TemplateCache, active_pairs, gate_facts};
use crate::store::template::{
    documents_for, template_find, template_list, template_live, template_publish, template_update,
};

/// Pairs of payer and customer that a rehearsal reads together: enough to make the statements cheap.
const PAIRS_PER_READ: usize = 500;

/// Partners that a rehearsal names. There may be more than an answer can hold; those most affected
/// are who has to be spoken to.
const PARTNERS_MAX: usize = 1000;

#[tonic::async_trait]
impl TemplateService for Api {
    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        let message = request.into_inner();
        let mut form = Form::new();
        let mut types = convert::read_agreement_types(&mut form, "agreement_types", &message.agreement_types);
        checked(form)?;
        types.sort_unstable();
        types.dedup();

        let now = self.clock.now();
        let read = move |connection: &mut Connection| template_list(connection, &types);
        let mut templates = self.database.read(read).await.map_err(|error: Error| status::failed(&error))?;
        templates.sort_by_key(|template| {
            let newest = template.versions.last().map(|version| version.effective_from);
            (template.agreement_type, Reverse(newest))
        });
        let templates = templates.iter().map(|template| convert::template(template, now)).collect();
        Ok(Response::new(ListTemplatesResponse { templates }))
    }

    async fn get_template(
        &self,
        request: Request<GetTemplateRequest>,
    ) -> Result<Response<GetTemplateResponse>, Status> {
        let mut form = Form::new();
        let id = form.id("template_id", &request.get_ref().template_id);
        checked(form)?;

        let now = self.clock.now();
        let read = move |connection: &mut Connection| existing_template(connection, id);
        let template = self.database.read(read).await.map_err(status::of)?;
        Ok(Response::new(GetTemplateResponse { template: Some(convert::template(&template, now)) }))
    }

    async fn get_template_document(
        &self,
        request: Request<GetTemplateDocumentRequest>,
    ) -> Result<Response<GetTemplateDocumentResponse>, Status> {
        let message = request.into_inner();
        let mut form = Form::new();
        let id = form.id("template_id", &message.template_id);
        let country = convert::read_country(&mut form, "country", &message.country);
        let language = convert::read_language(&mut form, "language", &message.language);
        checked(form)?;

        let now = self.clock.now();
        let read = move |connection: &mut Connection| {
            let template = existing_template(connection, id)?;
            let version = match message.version {
                0 => template.in_force_at(now),
                number => template.version(number),
            };
            let version = version.ok_or(Refusal::NotFound { resource: "template version", id })?.number;
            let documents = documents_for(connection, id, version, &country)?;
            let chosen = choose_document(&documents, &country, &language);
            let (document, is_fallback) =
                chosen.ok_or(Refusal::NotFound { resource: "template document", id })?;
            let document = document.clone();
            Ok(GetTemplateDocumentResponse {
                document: Some(TemplateDocument {
                    country: document.country,
                    language: document.language,
                    link: document.link,
                    sha256: document.sha256,
                }),
                version,
                is_fallback,
            })
        };
        self.database.read(read).await.map(Response::new).map_err(status::of)
    }

    async fn publish_template_version(
        &self,
        request: Request<PublishTemplateVersionRequest>,
    ) -> Result<Response<PublishTemplateVersionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let validate_only = std::mem::take(&mut message.validate_only);
        let id = form.id("template_id", &message.template_id);
        let agreement_type = match message.agreement_type {
            0 => None,
            given => convert::read_agreement_type(&mut form, "agreement_type", given),
        };
        let name = form.text("name", &message.name, 0, 200);
        let effective_from = form.optional_time("effective_from", message.effective_from.as_ref());
        let reaccept = match &message.reacceptance {
            Some(Asked::ReacceptBy(by)) => Reaccept::By(form.time("reaccept_by", Some(by))),
            Some(Asked::NeverReaccept(true)) => Reaccept::Never,
            Some(Asked::NeverReaccept(false)) | None => Reaccept::WhenEffective,
        };
        let documents = convert::read_documents(&mut form, &message.documents);
        checked(form)?;

        let now = self.clock.now();
        let key = IdempotencyKey::new(&caller, "PublishTemplateVersion", request_id, &message);
        let planned = Arc::new(OnceLock::new());
        let plan = Arc::clone(&planned);
        let published = self.change(key, now, validate_only, move |change| {
            let known = template_find(change.connection, id)?;
            let is_new = known.is_none();
            let mut template = match known {
                Some(template) => matching(template, agreement_type, &name)?,
                None => new_template(change, id, agreement_type, &name)?,
            };
            let count = u32::try_from(documents.len()).unwrap_or(u32::MAX);
            let version = next_version(&template, effective_from, reaccept, count, now)?;
            let _ = plan.set(reacceptance(&template, &version));
            template.versions.push(version);
            template_publish(change, &mut template, is_new, &documents, caller.user_id)?;
            let template = Some(convert::template(&template, now));
            Ok(PublishTemplateVersionResponse { template, revision: change.revision(), impact: None })
        });
        let mut published = published.await?;
        if validate_only {
            // Looking at every customer takes longer than a change may hold the lock.
            let planned = planned.get().copied().flatten();
            published.get_mut().impact = Some(self.impact(planned).await?);
        }
        Ok(published)
    }

    async fn retire_template(
        &self,
        request: Request<RetireTemplateRequest>,
    ) -> Result<Response<RetireTemplateResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("template_id", &message.template_id);
        form.text("etag", &message.etag, 1, 50);
        checked(form)?;

        let now = self.clock.now();
        let key = IdempotencyKey::new(&caller, "RetireTemplate", request_id, &message);
        self.change(key, now, false, move |change| {
            let mut template = existing_template(change.connection, id)?;
            if template.revision.to_string() != message.etag {
                return Err(Refusal::StaleEtag.into());
            }
            if template.retired_at.is_none() {
                let event = Event::TemplateRetired { template_id: id, retired_at: now, by: caller.user_id };
                template.revision = change.record(&event)?;
                template.retired_at = Some(now);
                template_update(change.connection, &template)?;
            }
            let template = Some(convert::template(&template, now));
            Ok(RetireTemplateResponse { template, revision: change.revision() })
        })
        .await
    }
}

impl Api {
    /// Whom a planned version would stop.
    async fn impact(&self, planned: Option<Reacceptance>) -> Result<PublicationImpact, Status> {
        let Some(planned) = planned else { return Ok(PublicationImpact::default()) };
        let policy = self.policy.clone();
        let cache = self.templates.clone();
        let read = move |connection: &mut Connection| impact_of(connection, &policy, &cache, planned);
        self.database.snapshot(read).await.map_err(|error: Error| status::failed(&error))
    }
}

/// The customers that a planned version would block, of all in this snapshot.
fn impact_of(
    connection: &mut Connection,
    policy: &Policy,
    cache: &TemplateCache,
    planned: Reacceptance,
) -> Result<PublicationImpact, Error> {
    let mut affected: BTreeMap<Uuid, u64> = BTreeMap::new();
    let (mut customers, mut last_affected, mut after) = (0, None, None);
    loop {
        let pairs = active_pairs(connection, None, after, PAIRS_PER_READ)?;
        let parties: Vec<_> = pairs.iter().map(|pair| Parties { pair: *pair, reseller_id: None }).collect();
        for (pair, snapshot) in pairs.iter().zip(gate_facts(connection, cache, &parties)?) {
            // In one snapshot a pair that is listed has facts.
            let Some(snapshot) = snapshot? else { continue };
            if would_close(policy, &snapshot.facts, planned) {
                *affected.entry(pair.payer_id).or_default() += 1;
                // Pairs come by customer, so that those of one stand together.
                customers += u64::from(last_affected != Some(pair.customer_id));
                last_affected = Some(pair.customer_id);
            }
        }
        if pairs.len() < PAIRS_PER_READ {
            break;
        }
        after = pairs.last().copied();
    }
    let relationships = affected.values().sum();
    let mut partners: Vec<_> = affected
        .into_iter()
        .map(|(partner_id, customers)| PartnerImpact { partner_id: partner_id.to_string(), customers })
        .collect();
    partners.sort_by_key(|partner| Reverse(partner.customers));
    partners.truncate(PARTNERS_MAX);
    Ok(PublicationImpact { relationships, customers, partners })
}

/// A known template, if what the request says of it is true.
fn matching(template: Template, of: Option<AgreementType>, name: &str) -> Result<Template, Refusal> {
    let mut bad = vec![];
    if of.is_some_and(|of| of != template.agreement_type) {
        let problem = format!("must be absent or {}, which the template has", template.agreement_type.name());
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

fn new_template(
    change: &mut Change<'_>,
    id: Uuid,
    agreement_type: Option<AgreementType>,
    name: &str,
) -> Result<Template, ChangeError> {
    let Some(agreement_type) = agreement_type.filter(|_| !name.is_empty()) else {
        let missing = [("agreement_type", agreement_type.is_none()), ("name", name.is_empty())];
        let missing = missing.into_iter().filter(|(_, is_missing)| *is_missing);
        let required = |(field, _): (&str, bool)| BadField {
            field: field.to_owned(),
            problem: "is required for a new template".to_owned(),
        };
        return Err(Refusal::Fields(missing.map(required).collect()).into());
    };
    let now: Time = change.now;
    if let Some(template_id) = template_live(change.connection, agreement_type, now)? {
        return Err(Refusal::TypeHasTemplate { template_id }.into());
    }
    Ok(Template {
        id,
        name: name.to_owned(),
        agreement_type,
        retired_at: None,
        revision: 0,
        versions: vec![],
    })
}
