//! `PartnerService`.

use std::mem::take;

use chassis::database::Connection;
use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement::partner_service_server::PartnerService;
use proto::agreement::{
    GetPartnerRequest, GetPartnerResponse, LinkResellerRequest, LinkResellerResponse, ListPartnersRequest,
    ListPartnersResponse, Partner as WirePartner, RegisterPartnerRequest, RegisterPartnerResponse,
    UnlinkResellerRequest, UnlinkResellerResponse, UpdatePartnerRequest, UpdatePartnerResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, Mutation, convert};
use crate::actions::visibility::require_partner;
use crate::rules::Refusal;
use crate::rules::event::Event;
use crate::rules::party::{Cloud, Partner, PartnerKind, check_link};
use crate::store::change::ChangeError;
use crate::store::customer::{Viewer, customer_find};
use crate::store::partner::{
    link_delete, link_exists, link_insert, partner_find, partner_insert, partner_links, partner_list,
    partner_update,
};

#[tonic::async_trait]
impl PartnerService for Api {
    async fn register_partner(
        &self,
        request: Request<RegisterPartnerRequest>,
    ) -> Result<Response<RegisterPartnerResponse>, Status> {
        let mut call = self.mutation("RegisterPartner", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("partner_id", &message.partner_id);
        let name = form.text("name", &message.name, 1, 200);
        let kind = convert::read_partner_kind(form, "kind", message.kind);
        let cloud = convert::read_cloud(form, "cloud", message.cloud);
        let support = convert::read_support(form, message.support.as_ref());
        let kind = kind.unwrap_or(PartnerKind::IndirectReseller);
        let cloud = cloud.unwrap_or(Cloud::Public);

        self.change(call, move |change, caller| {
            let is_same = |known: &Partner| {
                (&known.name, known.kind, known.cloud) == (&name, kind, cloud)
                    && support.as_ref().is_none_or(|support| *support == known.support)
            };
            match partner_find(change.connection, id)? {
                Some(known) if is_same(&known) => {}
                Some(known) => return Err(Refusal::PartnerExists { partner_id: known.id }.into()),
                None if customer_find(change.connection, Viewer::Everything, id)?.is_some() => {
                    return Err(Refusal::TenantOfOtherKind { tenant_id: id, is_partner: false }.into());
                }
                None => {
                    let by = caller.user_id;
                    let revision = change.record(&Event::PartnerRegistered {
                        partner_id: id,
                        name: name.clone(),
                        kind,
                        cloud,
                        by,
                    })?;
                    let (registered_at, support) = (change.now, support.unwrap_or_default());
                    let new = Partner { id, name, kind, cloud, registered_at, support, revision };
                    partner_insert(change.connection, &new)?;
                }
            }
            let partner = Some(shown(change.connection, id)?);
            Ok(RegisterPartnerResponse { partner, revision: change.revision() })
        })
        .await
    }

    async fn update_partner(
        &self,
        request: Request<UpdatePartnerRequest>,
    ) -> Result<Response<UpdatePartnerResponse>, Status> {
        let mut call = self.mutation("UpdatePartner", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("partner_id", &message.partner_id);
        form.text("etag", &message.etag, 1, 50);
        let etag = message.etag.clone();
        let name = form.text("name", &message.name, 1, 200);
        let support = convert::read_support(form, message.support.as_ref());

        self.change(call, move |change, caller| {
            let mut partner = require_partner(change.connection, id)?;
            if partner.revision.to_string() != etag {
                return Err(Refusal::StaleEtag.into());
            }
            let support = support.unwrap_or_else(|| partner.support.clone());
            let support_changed = partner.support != support;
            if partner.name != name || support_changed {
                partner.revision = change.record(&Event::PartnerUpdated {
                    partner_id: id,
                    name: name.clone(),
                    support_changed,
                    by: caller.user_id,
                })?;
                (partner.name, partner.support) = (name, support);
                partner_update(change.connection, &partner)?;
            }
            let partner = Some(shown(change.connection, id)?);
            Ok(UpdatePartnerResponse { partner, revision: change.revision() })
        })
        .await
    }

    async fn link_reseller(
        &self,
        request: Request<LinkResellerRequest>,
    ) -> Result<Response<LinkResellerResponse>, Status> {
        let mut call = self.mutation("LinkReseller", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let provider_id = form.id("provider_id", &message.provider_id);
        let reseller_id = form.id("reseller_id", &message.reseller_id);

        self.change(call, move |change, caller| {
            let provider = require_partner(change.connection, provider_id)?;
            let reseller = require_partner(change.connection, reseller_id)?;
            check_link(&provider, &reseller)?;
            if link_insert(change.connection, provider_id, reseller_id)? {
                change.record(&Event::ResellerLinked { provider_id, reseller_id, by: caller.user_id })?;
            }
            let reseller = Some(shown(change.connection, reseller_id)?);
            Ok(LinkResellerResponse { reseller, revision: change.revision() })
        })
        .await
    }

    async fn unlink_reseller(
        &self,
        request: Request<UnlinkResellerRequest>,
    ) -> Result<Response<UnlinkResellerResponse>, Status> {
        let mut call = self.mutation("UnlinkReseller", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let provider_id = form.id("provider_id", &message.provider_id);
        let reseller_id = form.id("reseller_id", &message.reseller_id);

        self.change(call, move |change, caller| {
            require_partner(change.connection, provider_id)?;
            require_partner(change.connection, reseller_id)?;
            if link_delete(change.connection, provider_id, reseller_id)? {
                change.record(&Event::ResellerUnlinked { provider_id, reseller_id, by: caller.user_id })?;
            }
            let reseller = Some(shown(change.connection, reseller_id)?);
            Ok(UnlinkResellerResponse { reseller, revision: change.revision() })
        })
        .await
    }

    async fn list_partners(
        &self,
        request: Request<ListPartnersRequest>,
    ) -> Result<Response<ListPartnersResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let kind = match message.kind {
            0 => None,
            given => convert::read_partner_kind(&mut form, "kind", given),
        };
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListPartners", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            let mut rows = partner_list(connection, kind, page.after.as_deref(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |partner| partner.id.to_string());
            let ids: Vec<Uuid> = rows.iter().map(|partner| partner.id).collect();
            let links = partner_links(connection, &ids)?;
            let partners = rows.into_iter().map(|partner| convert::partner(partner, &links)).collect();
            Ok(ListPartnersResponse { partners, next_page_token })
        })
        .await
    }

    async fn get_partner(
        &self,
        request: Request<GetPartnerRequest>,
    ) -> Result<Response<GetPartnerResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("partner_id", &message.partner_id);
        self.read(form, move |connection| {
            let is_visible = caller.tenant_kind != TenantKind::Partner
                || caller.tenant_id == id
                || link_exists(connection, caller.tenant_id, id)?
                || link_exists(connection, id, caller.tenant_id)?;
            let known = if is_visible { partner_find(connection, id)? } else { None };
            let partner = known.ok_or(Refusal::NotFound { resource: "partner", id })?;
            // A partner's links are shown to itself and the operator, not to the partners that it is linked to.
            let sees_links = caller.tenant_kind != TenantKind::Partner || caller.tenant_id == id;
            let links = if sees_links { partner_links(connection, &[id])? } else { vec![] };
            let partner = Some(convert::partner(partner, &links));
            Ok(GetPartnerResponse { partner })
        })
        .await
    }
}

fn shown(connection: &mut Connection, id: Uuid) -> Result<WirePartner, ChangeError> {
    let partner = partner_find(connection, id)?.ok_or(Refusal::NotFound { resource: "partner", id })?;
    let links = partner_links(connection, &[id])?;
    Ok(convert::partner(partner, &links))
}
