//! `TemplateService`.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::mem::take;
use std::sync::{Arc, OnceLock};

use chassis::database::{Connection, Error};
use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement::publish_template_version_request::Reacceptance as Asked;
use proto::agreement::template_service_server::TemplateService;
use proto::agreement::{
    GetTemplateDocumentRequest, GetTemplateDocumentResponse, GetTemplateRequest, GetTemplateResponse,
    ListTemplateDocumentsRequest, ListTemplateDocumentsResponse, ListTemplatesRequest, ListTemplatesResponse,
    PartnerImpact, PublicationImpact, PublishTemplateVersionRequest, PublishTemplateVersionResponse,
    RetireTemplateRequest, RetireTemplateResponse, RetirementImpact,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, Mutation, convert, status};
use crate::actions::impact::{Impact, impact_of};
use crate::actions::template::{NewVersion, publish};
use crate::actions::visibility::require_template;
use crate::rules::Refusal;
use crate::rules::eligibility::Reacceptance;
use crate::rules::event::Event;
use crate::rules::template::{Document, Reaccept, choose_document};
use crate::store::acceptance::{Retirement, resting_on_template};
use crate::store::template::{document_list, documents_of, template_list, template_update};

#[tonic::async_trait]
impl TemplateService for Api {
    async fn list_templates(
        &self,
        request: Request<ListTemplatesRequest>,
    ) -> Result<Response<ListTemplatesResponse>, Status> {
        let (_, message, mut form) = call::open(request)?;
        let mut types = convert::read_agreement_types(&mut form, "agreement_types", &message.agreement_types);
        types.sort_unstable();
        types.dedup();
        let now = self.clock.now();
        self.read(form, move |connection| {
            let mut templates = template_list(connection, &types)?;
            templates.sort_by_key(|template| {
                let newest = template.versions.last().map(|version| version.effective_from);
                (template.agreement_type, Reverse(newest))
            });
            let templates = templates.iter().map(|template| convert::template(template, now)).collect();
            Ok(ListTemplatesResponse { templates })
        })
        .await
    }

    async fn get_template(
        &self,
        request: Request<GetTemplateRequest>,
    ) -> Result<Response<GetTemplateResponse>, Status> {
        let (_, message, mut form) = call::open(request)?;
        let id = form.id("template_id", &message.template_id);
        let now = self.clock.now();
        self.read(form, move |connection| {
            let template = require_template(connection, id)?;
            Ok(GetTemplateResponse { template: Some(convert::template(&template, now)) })
        })
        .await
    }

    async fn get_template_document(
        &self,
        request: Request<GetTemplateDocumentRequest>,
    ) -> Result<Response<GetTemplateDocumentResponse>, Status> {
        let (_, message, mut form) = call::open(request)?;
        let id = form.id("template_id", &message.template_id);
        let country = convert::read_country(&mut form, "country", &message.country);
        let language = convert::read_language(&mut form, "language", &message.language);
        let now = self.clock.now();
        self.read(form, move |connection| {
            let template = require_template(connection, id)?;
            let version = match message.version {
                0 => template.in_force_at(now),
                number => template.version(number),
            };
            let version = version.ok_or(Refusal::NotFound { resource: "template version", id })?.number;
            let version_of = BTreeSet::from([(id, version)]);
            let documents = documents_of(connection, &version_of, &[&country])?.remove(&(id, version));
            let documents = documents.unwrap_or_default();
            let chosen = choose_document(&documents, &country, &language);
            let (document, is_fallback) =
                chosen.ok_or(Refusal::NotFound { resource: "template document", id })?;
            Ok(GetTemplateDocumentResponse {
                document: Some(convert::document(document.clone())),
                version,
                is_fallback,
            })
        })
        .await
    }

    async fn list_template_documents(
        &self,
        request: Request<ListTemplateDocumentsRequest>,
    ) -> Result<Response<ListTemplateDocumentsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let id = form.id("template_id", &message.template_id);
        let country = (!message.country.is_empty())
            .then(|| convert::read_country(&mut form, "country", &message.country));
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListTemplateDocuments", &filter_of(&message));
        let now = self.clock.now();
        self.list(form, page, move |connection, page| {
            let template = require_template(connection, id)?;
            // Further pages stay with the version of the first.
            let mut after = page.after.as_deref().unwrap_or_default().splitn(3, '/');
            let begun = after.next().and_then(|number| number.parse().ok()).unwrap_or(message.version);
            let after = (after.next().unwrap_or_default(), after.next().unwrap_or_default());
            let version = match begun {
                0 => template.in_force_at(now),
                number => template.version(number),
            };
            let version = version.ok_or(Refusal::NotFound { resource: "template version", id })?.number;
            let mut rows = document_list(connection, (id, version), country.as_deref(), after, page.fetch())?;
            let key = |row: &Document| format!("{version}/{}/{}", row.country, row.language);
            let next_page_token = page.cut(&mut rows, key);
            let documents = rows.into_iter().map(convert::document).collect();
            Ok(ListTemplateDocumentsResponse { documents, version, next_page_token })
        })
        .await
    }

    async fn publish_template_version(
        &self,
        request: Request<PublishTemplateVersionRequest>,
    ) -> Result<Response<PublishTemplateVersionResponse>, Status> {
        let mut call = self.mutation("PublishTemplateVersion", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("template_id", &message.template_id);
        let agreement_type = match message.agreement_type {
            0 => None,
            given => convert::read_agreement_type(form, "agreement_type", given),
        };
        let name = form.text("name", &message.name, 0, 200);
        let effective_from = form.optional_time("effective_from", message.effective_from.as_ref());
        let reaccept = match &message.reacceptance {
            Some(Asked::ReacceptBy(by)) => Reaccept::By(form.time("reaccept_by", Some(by))),
            Some(Asked::NeverReaccept(true)) => Reaccept::Never,
            Some(Asked::NeverReaccept(false)) | None => Reaccept::WhenEffective,
        };
        let documents = convert::read_documents(form, &message.documents);

        let new = NewVersion {
            template_id: id,
            agreement_type,
            name,
            effective_from,
            reaccept,
            documents,
            by: call.caller.user_id,
        };
        let validate_only = call.validate_only;
        let planned = Arc::new(OnceLock::new());
        let plan = Arc::clone(&planned);
        let published = self.change(call, move |change, _| {
            let (template, reacceptance) = publish(change, &new)?;
            let _ = plan.set(reacceptance);
            let template = Some(convert::template(&template, change.now));
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
        let mut call = self.mutation("RetireTemplate", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("template_id", &message.template_id);
        form.text("etag", &message.etag, 1, 50);
        let etag = message.etag.clone();
        // Looking at every acceptance takes longer than a change may hold the lock.
        let impact = if form.is_valid() { self.retirement_impact(id).await? } else { Retirement::default() };
        self.change(call, move |change, caller| {
            let now = change.now;
            let mut template = require_template(change.connection, id)?;
            if template.revision.to_string() != etag {
                return Err(Refusal::StaleEtag.into());
            }
            if template.retired_at.is_none() {
                let event = Event::TemplateRetired { template_id: id, retired_at: now, by: caller.user_id };
                template.revision = change.record(&event)?;
                template.retired_at = Some(now);
                template_update(change.connection, &template)?;
            }
            let template = Some(convert::template(&template, now));
            let Retirement { customers, partners } = impact;
            let impact = Some(RetirementImpact { customers, partners });
            Ok(RetireTemplateResponse { template, revision: change.revision(), impact })
        })
        .await
    }
}

impl Api {
    /// What rests on a template that is to be retired.
    async fn retirement_impact(&self, id: Uuid) -> Result<Retirement, Status> {
        let read = move |connection: &mut Connection| resting_on_template(connection, id);
        self.database.snapshot(read).await.map_err(|error: Error| status::failed(&error))
    }

    /// Whom a planned version would stop.
    async fn impact(&self, planned: Option<Reacceptance>) -> Result<PublicationImpact, Status> {
        let Some(planned) = planned else { return Ok(PublicationImpact::default()) };
        let policy = self.policy.clone();
        let cache = self.templates.clone();
        let read = move |connection: &mut Connection| impact_of(connection, &policy, &cache, planned);
        let impact = self.database.snapshot(read).await.map_err(|error: Error| status::failed(&error))?;
        let partners = impact.partners.into_iter();
        let partners =
            partners.map(|(id, customers)| PartnerImpact { partner_id: id.to_string(), customers });
        let Impact { relationships, customers, .. } = impact;
        Ok(PublicationImpact { relationships, customers, partners: partners.collect() })
    }
}
