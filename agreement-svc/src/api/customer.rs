//! `CustomerService`.

use chassis::auth;
use chassis::clock::{new_id, new_salt};
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::paging::Page;
use proto::agreement::customer_service_server::CustomerService;
use proto::agreement::{
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    GetCustomerRequest, GetCustomerResponse, ListCustomerPartnersRequest, ListCustomerPartnersResponse,
    ListCustomersRequest, ListCustomersResponse, UpdateCustomerRequest, UpdateCustomerResponse,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::attestation::{NewAttestation, store_attestation};
use super::invitation::{NewInvitation, read_lifetime, store_invitation};
use super::{Api, checked, convert, existing, status, viewer, visible};
use crate::rules::Refusal;
use crate::rules::attestation::{Claim, check_attester, check_not_in_the_future};
use crate::rules::event::Event;
use crate::rules::invitation::InvitationKind;
use crate::rules::party::{Cloud, Customer, Named, Partner, Profile, Relationship, relationship_of};
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::customer::{
    active_partners, customer_insert, customer_list, customer_set_acceptance_revision, customer_update,
    domain_is_taken, partnership_list, relationship_active, relationship_end, relationship_insert,
};
use crate::store::partner::link_exists;

#[tonic::async_trait]
impl CustomerService for Api {
    async fn create_customer(
        &self,
        request: Request<CreateCustomerRequest>,
    ) -> Result<Response<CreateCustomerResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let profile = convert::read_profile(
            &mut form,
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
                |contact| convert::read_contact(&mut form, "attestation.contact", Some(contact)),
            );
            let agreed_at = form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
            if let Err(problem) = check_not_in_the_future(agreed_at, now) {
                form.violation("attestation.agreed_at", problem);
            }
            let template_id = form.id("attestation.template_id", &attestation.template_id);
            NewAttestation { template_id, claim: Claim { contact, agreed_at }, by: caller.user_id }
        });
        let invitation = message.invitation.as_ref().map(|invitation| {
            let template_id = form.id("invitation.template_id", &invitation.template_id);
            let expires_at = invitation.expires_at.as_ref();
            (template_id, read_lifetime(&mut form, "invitation.expires_at", expires_at, now))
        });
        if attestation.is_some() && invitation.is_some() {
            form.violation("invitation", "must be absent when an attestation is given");
        }
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "CreateCustomer", request_id, &message);
        let may_invite = self.links.is_some();
        let created = self.change(key, now, false, move |change| {
            let creator = existing(change, caller.tenant_id)?;
            let relationship = named_relationship(change, &creator, provider_id, reseller_id)?;
            if attestation.is_some() {
                check_attester(&creator, relationship)?;
            }
            let mut customer =
                store_customer(change, new_id(now), profile, creator.cloud, relationship, caller.user_id)?;
            let attestation = match attestation {
                Some(new) => Some(store_attestation(change, &creator, &mut customer, new)?),
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
                    Some(store_invitation(change, may_invite, creator.cloud, Some(&customer), new)?)
                }
                None => None,
            };
            Ok(CreateCustomerResponse {
                customer: Some(convert::customer(customer, &caller)),
                attestation: attestation.map(|attestation| convert::attestation(attestation, None)),
                revision: change.revision(),
                invitation: invitation.map(|invitation| convert::invitation(invitation, now)),
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
        let caller = auth::caller(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let id = form.id("customer_id", &message.customer_id);
        form.text("etag", &message.etag, 1, 50);
        let company_name = form.text("company_name", &message.company_name, 1, 200);
        let primary_contact =
            convert::read_contact(&mut form, "primary_contact", message.primary_contact.as_ref());
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "UpdateCustomer", request_id, &message);
        self.change(key, self.clock.now(), false, move |change| {
            let mut customer = visible(change.connection, viewer(&caller), id)?;
            if customer.revision.to_string() != message.etag {
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
            let customer = Some(convert::customer(customer, &caller));
            Ok(UpdateCustomerResponse { customer, revision: change.revision() })
        })
        .await
    }

    async fn get_customer(
        &self,
        request: Request<GetCustomerRequest>,
    ) -> Result<Response<GetCustomerResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let id = form.id("customer_id", &request.get_ref().customer_id);
        checked(form)?;

        let viewer = viewer(&caller);
        let read = move |connection: &mut Connection| visible(connection, viewer, id);
        let customer = self.database.read(read).await.map_err(status::of)?;
        Ok(Response::new(GetCustomerResponse { customer: Some(convert::customer(customer, &caller)) }))
    }

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListCustomers", "");
        checked(form)?;

        let list = move |connection: &mut Connection| {
            let mut rows = customer_list(connection, viewer(&caller), page.after.as_deref(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |customer| customer.id.to_string());
            let customers = rows.into_iter().map(|customer| convert::customer(customer, &caller)).collect();
            Ok(ListCustomersResponse { customers, next_page_token })
        };
        self.database.list(list).await.map(Response::new).map_err(|error: Error| status::failed(&error))
    }

    async fn end_relationship(
        &self,
        request: Request<EndRelationshipRequest>,
    ) -> Result<Response<EndRelationshipResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let customer_id = form.id("customer_id", &message.customer_id);
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        if provider_id.is_some() && reseller_id.is_some() {
            form.violation("reseller_id", "must be empty when provider_id is given");
        }
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "EndRelationship", request_id, &message);
        self.change(key, now, false, move |change| {
            let partner = existing(change, caller.tenant_id)?;
            visible(change.connection, viewer(&caller), customer_id)?;
            // A link that was taken back since does not keep a relationship alive.
            let named = match (provider_id, reseller_id) {
                (Some(provider), _) => Named::Provider(provider, true),
                (None, Some(reseller)) => Named::Reseller(reseller, true),
                (None, None) => Named::Neither,
            };
            let relationship = relationship_of(&partner, named)?;
            let number = relationship_active(change.connection, relationship, customer_id)?;
            let number = number.ok_or(Refusal::NotFound { resource: "relationship", id: customer_id })?;
            relationship_end(change.connection, number, now)?;
            let remaining = active_partners(change.connection, customer_id)?;
            let revision = change.record(&Event::RelationshipEnded {
                partner_id: relationship.payer_id,
                customer_id,
                reseller_id: relationship.reseller_id,
                others_remain: remaining.contains(&relationship.payer_id),
                by: caller.user_id,
            })?;
            customer_set_acceptance_revision(change.connection, customer_id, revision)?;
            let ended = partnership_list(change.connection, customer_id, true, number - 1, 1)?;
            let relationship = ended.into_iter().next().map(convert::partnership);
            Ok(EndRelationshipResponse { relationship, revision })
        })
        .await
    }

    async fn list_customer_partners(
        &self,
        request: Request<ListCustomerPartnersRequest>,
    ) -> Result<Response<ListCustomerPartnersResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let asked = (message.page_size, message.page_token.as_str());
        let filter = message.include_ended.to_string();
        let page = Page::read(&mut form, asked, &caller, "ListCustomerPartners", &filter);
        checked(form)?;

        let list = move |connection: &mut Connection| {
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
        };
        self.database.list(list).await.map(Response::new).map_err(|error: Error| status::failed(&error))
    }
}

/// The relationship that the caller enters with the partner it names, if the two are linked.
pub(super) fn named_relationship(
    change: &mut Change<'_>,
    caller: &Partner,
    provider_id: Option<Uuid>,
    reseller_id: Option<Uuid>,
) -> Result<Relationship, ChangeError> {
    let named = match (provider_id, reseller_id) {
        (Some(provider), _) => {
            Named::Provider(provider, link_exists(change.connection, provider, caller.id)?)
        }
        (None, Some(reseller)) => {
            Named::Reseller(reseller, link_exists(change.connection, caller.id, reseller)?)
        }
        (None, None) => Named::Neither,
    };
    Ok(relationship_of(caller, named)?)
}

/// Stores a new customer and its first relationship.
pub(super) fn store_customer(
    change: &mut Change<'_>,
    id: Uuid,
    profile: Profile,
    cloud: Cloud,
    relationship: Relationship,
    by: Uuid,
) -> Result<Customer, ChangeError> {
    if domain_is_taken(change.connection, &profile.domain)? {
        return Err(Refusal::DomainTaken.into());
    }
    let Profile { company_name, domain, country, primary_contact } = profile;
    let contact_salt = new_salt();
    let revision = change.record(&Event::CustomerCreated {
        customer_id: id,
        company_name: company_name.clone(),
        domain: domain.clone(),
        country: country.clone(),
        cloud,
        contact_commitment: commitment(&contact_salt, &primary_contact),
        by,
    })?;
    let mut customer = Customer {
        id,
        company_name,
        domain,
        country,
        cloud,
        primary_contact,
        contact_salt,
        created_at: change.now,
        first_purchase_at: None,
        acceptance_revision: revision,
        revision,
    };
    customer_insert(change.connection, &customer)?;
    store_relationship(change, &mut customer, relationship, by)?;
    Ok(customer)
}

/// Stores a relationship that there is not yet.
pub(super) fn store_relationship(
    change: &mut Change<'_>,
    customer: &mut Customer,
    relationship: Relationship,
    by: Uuid,
) -> Result<(), ChangeError> {
    let revision = change.record(&Event::RelationshipEstablished {
        partner_id: relationship.payer_id,
        customer_id: customer.id,
        reseller_id: relationship.reseller_id,
        by,
    })?;
    relationship_insert(change.connection, relationship, customer.id, change.now, revision)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(())
}
