//! `CustomerService`.

use chassis::clock::{new_id, new_salt};
use chassis::server::call;
use proto::agreement::customer_service_server::CustomerService;
use proto::agreement::{
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    GetCustomerRequest, GetCustomerResponse, ListCustomerPartnersRequest, ListCustomerPartnersResponse,
    ListCustomersRequest, ListCustomersResponse, UpdateCustomerRequest, UpdateCustomerResponse,
};
use tonic::{Request, Response, Status};

use super::invitation::read_lifetime;
use super::{Api, Mutation, convert, viewer};
use crate::actions::attest::{NewAttestation, attest};
use crate::actions::customer::{create, end_relationship, named_relationship};
use crate::actions::invite::{NewInvitation, invite};
use crate::actions::visibility::{require_customer, require_partner};
use crate::rules::Refusal;
use crate::rules::attestation::{Claim, check_attester, check_not_in_the_future};
use crate::rules::event::Event;
use crate::rules::invitation::InvitationKind;
use crate::rules::party::{Named, relationship_of};
use crate::store::change::commitment;
use crate::store::customer::{customer_list, customer_update, partnership_list, relationship_active};

#[tonic::async_trait]
impl CustomerService for Api {
    async fn create_customer(
        &self,
        request: Request<CreateCustomerRequest>,
    ) -> Result<Response<CreateCustomerResponse>, Status> {
        let mut call = self.mutation("CreateCustomer", request, |message| &mut message.request_id)?;
        let Mutation { caller, form, message, timed, .. } = &mut call;
        let by = caller.user_id;
        let profile = convert::read_profile(
            form,
            "",
            (&message.company_name, &message.domain, &message.country),
            message.primary_contact.as_ref(),
        );
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        if provider_id.is_some() && reseller_id.is_some() {
            form.violation("reseller_id", "must be empty when provider_id is given");
        }
        let attestation = message.attestation.as_ref().map(|attestation| {
            let contact = attestation.contact.as_ref().map_or_else(
                || profile.primary_contact.clone(),
                |contact| convert::read_contact(form, "attestation.contact", Some(contact)),
            );
            let agreed_at =
                convert::read_agreed_at(form, "attestation.agreed_at", attestation.agreed_at.as_ref());
            timed.push(("attestation.agreed_at".into(), agreed_at, check_not_in_the_future));
            let template_id = form.id("attestation.template_id", &attestation.template_id);
            NewAttestation { template_id, claim: Claim { contact, agreed_at }, by }
        });
        let invitation = message.invitation.as_ref().map(|invitation| {
            let template_id = form.id("invitation.template_id", &invitation.template_id);
            let expires_at = invitation.expires_at.as_ref();
            (template_id, read_lifetime(form, timed, "invitation.expires_at", expires_at))
        });
        if attestation.is_some() && invitation.is_some() {
            form.violation("invitation", "must be absent when an attestation is given");
        }

        let may_invite = self.links.is_some();
        let created = self.change(call, move |change, caller| {
            let creator = require_partner(change.connection, caller.tenant_id)?;
            let relationship = named_relationship(change, &creator, provider_id, reseller_id)?;
            if attestation.is_some() {
                check_attester(&creator, relationship)?;
            }
            let mut customer =
                create(change, new_id(change.now), profile, creator.cloud, relationship, caller.user_id)?;
            let attestation = match attestation {
                Some(new) => Some(attest(change, &creator, &mut customer, new)?),
                None => None,
            };
            let invitation = match invitation {
                Some((template_id, expires_at)) => {
                    let new = NewInvitation {
                        kind: InvitationKind::Agreement,
                        relationship,
                        template_id,
                        recipient: Some(customer.primary_contact.clone()),
                        expires_at,
                        by: caller.user_id,
                    };
                    Some(invite(change, may_invite, creator.cloud, Some(&customer), new)?)
                }
                None => None,
            };
            Ok(CreateCustomerResponse {
                customer: Some(convert::customer(customer, caller)),
                attestation: attestation.map(|attestation| convert::attestation(attestation, None)),
                revision: change.revision(),
                invitation: invitation.map(|invitation| convert::invitation(invitation, change.now)),
            })
        });
        let mut created = created.await?;
        self.add_link(created.get_mut().invitation.as_mut()).await?;
        Ok(created)
    }

    async fn update_customer(
        &self,
        request: Request<UpdateCustomerRequest>,
    ) -> Result<Response<UpdateCustomerResponse>, Status> {
        let mut call = self.mutation("UpdateCustomer", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("customer_id", &message.customer_id);
        form.text("etag", &message.etag, 1, 50);
        let etag = message.etag.clone();
        let company_name = form.text("company_name", &message.company_name, 1, 200);
        let primary_contact =
            convert::read_contact(form, "primary_contact", message.primary_contact.as_ref());

        self.change(call, move |change, caller| {
            let mut customer = require_customer(change.connection, viewer(caller), id)?;
            if customer.revision.to_string() != etag {
                return Err(Refusal::StaleEtag.into());
            }
            customer.company_name = company_name;
            customer.primary_contact = primary_contact;
            customer.contact_salt = new_salt();
            customer.revision = change.record(&Event::CustomerUpdated {
                customer_id: id,
                company_name: customer.company_name.clone(),
                contact_commitment: commitment(&customer.contact_salt, &customer.primary_contact),
                by: caller.user_id,
            })?;
            customer_update(change.connection, &customer)?;
            let customer = Some(convert::customer(customer, caller));
            Ok(UpdateCustomerResponse { customer, revision: change.revision() })
        })
        .await
    }

    async fn get_customer(
        &self,
        request: Request<GetCustomerRequest>,
    ) -> Result<Response<GetCustomerResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("customer_id", &message.customer_id);
        self.read(form, move |connection| {
            let customer = require_customer(connection, viewer(&caller), id)?;
            Ok(GetCustomerResponse { customer: Some(convert::customer(customer, &caller)) })
        })
        .await
    }

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListCustomers", "");
        self.list(form, page, move |connection, page| {
            let mut rows = customer_list(connection, viewer(&caller), page.after.as_deref(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |customer| customer.id.to_string());
            let customers = rows.into_iter().map(|customer| convert::customer(customer, &caller)).collect();
            Ok(ListCustomersResponse { customers, next_page_token })
        })
        .await
    }

    async fn end_relationship(
        &self,
        request: Request<EndRelationshipRequest>,
    ) -> Result<Response<EndRelationshipResponse>, Status> {
        let mut call = self.mutation("EndRelationship", request, |message| &mut message.request_id)?;
        let Mutation { form, message, .. } = &mut call;
        let customer_id = form.id("customer_id", &message.customer_id);
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        if provider_id.is_some() && reseller_id.is_some() {
            form.violation("reseller_id", "must be empty when provider_id is given");
        }

        self.change(call, move |change, caller| {
            let partner = require_partner(change.connection, caller.tenant_id)?;
            require_customer(change.connection, viewer(caller), customer_id)?;
            // A link that was taken back since does not keep a relationship alive.
            let named = match (provider_id, reseller_id) {
                (Some(provider), _) => Named::Provider(provider, true),
                (None, Some(reseller)) => Named::Reseller(reseller, true),
                (None, None) => Named::Neither,
            };
            let relationship = relationship_of(&partner, named)?;
            let number = relationship_active(change.connection, relationship, customer_id)?;
            let number = number.ok_or(Refusal::NotFound { resource: "relationship", id: customer_id })?;
            end_relationship(change, customer_id, relationship, number, caller.user_id)?;
            let ended = partnership_list(change.connection, customer_id, true, number - 1, 1)?;
            let relationship = ended.into_iter().next().map(convert::partnership);
            Ok(EndRelationshipResponse { relationship, revision: change.revision() })
        })
        .await
    }

    async fn list_customer_partners(
        &self,
        request: Request<ListCustomerPartnersRequest>,
    ) -> Result<Response<ListCustomerPartnersResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let asked = (message.page_size, message.page_token.as_str());
        let filter = message.include_ended.to_string();
        let page = self.pages.read(&mut form, asked, &caller, "ListCustomerPartners", &filter);
        self.list(form, page, move |connection, page| {
            let mut rows = partnership_list(
                connection,
                caller.tenant_id,
                message.include_ended,
                page.after_number(),
                page.fetch(),
            )?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let relationships = rows.into_iter().map(convert::partnership).collect();
            Ok(ListCustomerPartnersResponse { relationships, next_page_token })
        })
        .await
    }
}
