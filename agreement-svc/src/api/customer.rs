//! `CustomerService`.

use chassis::auth;
use chassis::clock::{new_id, new_salt};
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::page::Page;
use chassis::request::RequestKey;
use proto::agreement::customer_service_server::CustomerService;
use proto::agreement::{
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    GetCustomerRequest, GetCustomerResponse, ListCustomerPartnersRequest, ListCustomerPartnersResponse,
    ListCustomersRequest, ListCustomersResponse, UpdateCustomerRequest, UpdateCustomerResponse,
};
use tonic::{Request, Response, Status};

use super::attestation::{NewAttestation, store_attestation};
use super::{Api, checked, convert, existing, status, viewer, visible};
use crate::rules::Refusal;
use crate::rules::attestation::{Claim, check_attester, check_not_in_the_future};
use crate::rules::event::Event;
use crate::rules::party::{Customer, Named, is_domain, relationship_of};
use crate::store::change::commitment;
use crate::store::customer::{
    customer_insert, customer_list, customer_update, domain_is_taken, relationship_insert,
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
        let company_name = form.text("company_name", &message.company_name, 1, 200);
        let domain = message.domain.trim().to_ascii_lowercase();
        if !is_domain(&domain) {
            let problem =
                if domain.is_empty() { "is required" } else { "must be a host name such as contoso.example" };
            form.wrong("domain", problem);
        }
        let country = convert::read_country(&mut form, "country", &message.country);
        let primary_contact =
            convert::read_contact(&mut form, "primary_contact", message.primary_contact.as_ref());
        let provider_id = form.optional_id("provider_id", &message.provider_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        if provider_id.is_some() && reseller_id.is_some() {
            form.wrong("reseller_id", "must be empty when provider_id is given");
        }
        let attestation = message.attestation.as_ref().map(|attestation| {
            let contact = attestation.contact.as_ref().map_or_else(
                || primary_contact.clone(),
                |contact| convert::read_contact(&mut form, "attestation.contact", Some(contact)),
            );
            let agreed_at = form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
            if let Err(problem) = check_not_in_the_future(agreed_at, now) {
                form.wrong("attestation.agreed_at", problem);
            }
            let template_id = form.id("attestation.template_id", &attestation.template_id);
            NewAttestation { template_id, claim: Claim { contact, agreed_at }, by: caller.user_id }
        });
        checked(form)?;

        let key = RequestKey::new(&caller, "CreateCustomer", request_id, &message);
        self.change(key, now, false, move |change| {
            let creator = existing(change, caller.tenant_id)?;
            let named = match (provider_id, reseller_id) {
                (Some(provider), _) => {
                    Named::Provider(provider, link_exists(change.connection, provider, creator.id)?)
                }
                (None, Some(reseller)) => {
                    Named::Reseller(reseller, link_exists(change.connection, creator.id, reseller)?)
                }
                (None, None) => Named::Nobody,
            };
            let relationship = relationship_of(&creator, named)?;
            if attestation.is_some() {
                check_attester(&creator, relationship)?;
            }
            if domain_is_taken(change.connection, &domain)? {
                return Err(Refusal::DomainTaken.into());
            }

            let id = new_id(now);
            let contact_salt = new_salt();
            let revision = change.record(&Event::CustomerCreated {
                customer_id: id,
                company_name: company_name.clone(),
                domain: domain.clone(),
                country: country.clone(),
                cloud: creator.cloud,
                contact_commitment: commitment(&contact_salt, &primary_contact),
                by: caller.user_id,
            })?;
            let acceptance_revision = change.record(&Event::RelationshipEstablished {
                partner_id: relationship.payer_id,
                customer_id: id,
                reseller_id: relationship.reseller_id,
                by: caller.user_id,
            })?;
            let mut customer = Customer {
                id,
                company_name,
                domain,
                country,
                cloud: creator.cloud,
                primary_contact,
                contact_salt,
                created_at: now,
                first_purchase_at: None,
                acceptance_revision,
                revision,
            };
            customer_insert(change.connection, &customer)?;
            relationship_insert(change.connection, relationship, id, now, acceptance_revision)?;
            let attestation = match attestation {
                Some(new) => Some(store_attestation(change, &creator, &mut customer, new)?),
                None => None,
            };
            Ok(CreateCustomerResponse {
                customer: Some(convert::customer(customer, &caller)),
                attestation: attestation.map(|attestation| convert::attestation(attestation, None)),
                revision: change.revision(),
                invitation: None,
            })
        })
        .await
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

        let key = RequestKey::new(&caller, "UpdateCustomer", request_id, &message);
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
        _request: Request<EndRelationshipRequest>,
    ) -> Result<Response<EndRelationshipResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn list_customer_partners(
        &self,
        _request: Request<ListCustomerPartnersRequest>,
    ) -> Result<Response<ListCustomerPartnersResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}
