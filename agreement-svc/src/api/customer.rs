//! `CustomerService`.

use chassis::auth::Caller;
use chassis::form::Form;
use chassis::server::call;
use proto::agreement::customer_service_server::CustomerService;
use proto::agreement::{
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    GetCustomerRequest, GetCustomerResponse, ImportCustomersRequest, ImportCustomersResponse,
    ListCustomerPartnersRequest, ListCustomerPartnersResponse, ListCustomersRequest, ListCustomersResponse,
    UpdateCustomerRequest, UpdateCustomerResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::import::Answers;
use super::import::customers::CUSTOMERS;
use super::invitation::read_lifetime;
use super::{Api, Mutation, convert, viewer};
use crate::actions::attest::{NewAttestation, attest_for_new};
use crate::actions::customer::{
    Author, CustomerChanges, create, end_relationship, named_relationship, update,
};
use crate::actions::invite::{NewInvitation, invite};
use crate::actions::visibility::{require_customer, require_partner};
use crate::rules::Refusal;
use crate::rules::attestation::{Claim, check_attester, check_not_in_the_future};
use crate::rules::invitation::InvitationKind;
use crate::rules::party::{Named, relationship_of};
use crate::store::contact::{contacts, contacts_of};
use crate::store::customer::{customer_list, partnership_list, relationship_active};

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
        let tenant_id = form.optional_id("customer_id", &message.customer_id);
        let (provider_id, reseller_id) = read_named(form, &message.provider_id, &message.reseller_id);
        let attestation = message.attestation.as_ref().map(|attestation| {
            let contact = attestation.contact.as_ref().map_or_else(
                || profile.primary_contact.clone(),
                |contact| convert::read_contact(form, "attestation.contact", Some(contact)),
            );
            let agreed_at = form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
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
            let author = author_of(caller);
            let mut customer = create(change, tenant_id, profile, creator.cloud, relationship, author)?;
            let attestation = match attestation {
                Some(new) => Some(attest_for_new(change, &creator, relationship, &mut customer, new)?),
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
            let contacts = contacts(change.connection, customer.id)?;
            Ok(CreateCustomerResponse {
                customer: Some(convert::customer(customer, &contacts, caller)),
                attestation: attestation.map(|attestation| convert::attestation(attestation, None)),
                revision: change.revision(),
                invitation: invitation.map(|invitation| convert::invitation(invitation, change.now)),
            })
        });
        let mut created = created.await?;
        self.add_link(created.get_mut().invitation.as_mut()).await?;
        Ok(created)
    }

    type ImportCustomersStream = Answers<ImportCustomersResponse>;

    async fn import_customers(
        &self,
        request: Request<Streaming<ImportCustomersRequest>>,
    ) -> Result<Response<Self::ImportCustomersStream>, Status> {
        self.import(request, CUSTOMERS)
    }

    async fn update_customer(
        &self,
        request: Request<UpdateCustomerRequest>,
    ) -> Result<Response<UpdateCustomerResponse>, Status> {
        let mut call = self.mutation("UpdateCustomer", request, |message| &mut message.request_id)?;
        let Mutation { form, message, caller, .. } = &mut call;
        let id = form.id("customer_id", &message.customer_id);
        form.text("etag", &message.etag, 1, 50);
        let etag = message.etag.clone();
        let changes = read_changes(form, message, caller);

        self.change(call, move |change, caller| {
            let mut customer = require_customer(change.connection, viewer(caller), id)?;
            update(change, &mut customer, &etag, changes, author_of(caller))?;
            let contacts = contacts(change.connection, id)?;
            let customer = Some(convert::customer(customer, &contacts, caller));
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
            let contacts = contacts(connection, id)?;
            Ok(GetCustomerResponse { customer: Some(convert::customer(customer, &contacts, &caller)) })
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
            let ids: Vec<Uuid> = rows.iter().map(|customer| customer.id).collect();
            let mut contacts = contacts_of(connection, &ids)?;
            let customers = rows.into_iter().map(|customer| {
                let contacts = contacts.remove(&customer.id).unwrap_or_default();
                convert::customer(customer, &contacts, &caller)
            });
            let customers = customers.collect();
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
        let (provider_id, reseller_id) = read_named(form, &message.provider_id, &message.reseller_id);

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

/// Reads the other partner of a relationship that the caller names: its provider or its reseller.
pub(super) fn read_named(
    form: &mut Form,
    provider_id: &str,
    reseller_id: &str,
) -> (Option<Uuid>, Option<Uuid>) {
    let provider_id = form.optional_id("provider_id", provider_id);
    let reseller_id = form.optional_id("reseller_id", reseller_id);
    if provider_id.is_some() && reseller_id.is_some() {
        form.violation("reseller_id", "must be empty when provider_id is given");
    }
    (provider_id, reseller_id)
}

/// Whose change a caller's is.
fn author_of(caller: &Caller) -> Author {
    let partner_id = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
    Author { partner_id, user_id: caller.user_id }
}

/// Reads what a caller may change: a partner the company name and its contact, the customer its own contact, and the
/// operator what was entered wrongly.
fn read_changes(form: &mut Form, message: &UpdateCustomerRequest, caller: &Caller) -> CustomerChanges {
    let is_operator = caller.tenant_kind == TenantKind::Operator;
    let is_customer = caller.tenant_kind == TenantKind::Customer;
    let UpdateCustomerRequest { company_name, primary_contact, domain, country, .. } = message;
    if is_customer && !company_name.is_empty() {
        form.violation("company_name", "must be empty: your partners and the operator change it");
    }
    let company_name = (!is_customer).then(|| form.text("company_name", company_name, 1, 200));
    if is_operator && primary_contact.is_some() {
        form.violation("primary_contact", "must be absent: the customer and its partners set their contacts");
    }
    let contact =
        (!is_operator).then(|| convert::read_contact(form, "primary_contact", primary_contact.as_ref()));
    for (field, given) in [("domain", domain), ("country", country)] {
        if !is_operator && !given.is_empty() {
            form.violation(field, "must be empty: only the operator corrects it; ask the operator");
        }
    }
    let corrects = |given: &str| is_operator && !given.is_empty();
    CustomerChanges {
        company_name,
        domain: corrects(domain).then(|| convert::read_domain(form, "domain", domain)),
        country: corrects(country).then(|| convert::read_country(form, "country", country)),
        contact,
    }
}
