//! `CustomerService`.

use std::collections::BTreeMap;
use std::mem::take;

use chassis::auth::Caller;
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement as wire;
use proto::agreement::customer_service_server::CustomerService;
use proto::agreement::{
    CreateCustomerRequest, CreateCustomerResponse, EndRelationshipRequest, EndRelationshipResponse,
    GetCustomerRequest, GetCustomerResponse, GetRelationshipRequest, GetRelationshipResponse,
    ImportCustomersRequest, ImportCustomersResponse, ListCustomerPartnersRequest,
    ListCustomerPartnersResponse, ListCustomersRequest, ListCustomersResponse, ListRelationshipsRequest,
    ListRelationshipsResponse, UpdateCustomerRequest, UpdateCustomerResponse,
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
use crate::rules::party::{Customer, Named, Relationship, cut_off, name_key, relationship_of};
use crate::store::contact::contacts_of;
use crate::store::customer::list::{CustomerFilter, customer_list};
use crate::store::customer::reference::{reference_set, references_of};
use crate::store::customer::{
    RelationshipFilter, Whose, partnership_list, partnerships_of, partnerships_of_partner,
    relationship_active,
};

#[tonic::async_trait]
impl CustomerService for Api {
    async fn create_customer(
        &self,
        request: Request<CreateCustomerRequest>,
    ) -> Result<Response<CreateCustomerResponse>, Status> {
        let mut call = self.mutation("CreateCustomer", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { caller, form, message, timed, .. } = &mut call;
        let by = caller.user_id;
        let profile = convert::read_profile(
            form,
            "",
            (&message.company_name, &message.domain, &message.country, &message.language),
            message.primary_contact.as_ref(),
        );
        let tenant_id = form.optional_id("customer_id", &message.customer_id);
        let (provider_id, reseller_id) =
            convert::read_named(form, &message.provider_id, &message.reseller_id);
        let external_reference = convert::read_reference(form, &message.external_reference);
        let attestation = message.attestation.as_ref().map(|attestation| {
            let contact = attestation.contact.as_ref().map_or_else(
                || profile.primary_contact.clone(),
                |contact| convert::read_contact(form, "attestation.contact", Some(contact)),
            );
            let agreed_at = form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
            timed.push(("attestation.agreed_at".into(), agreed_at, check_not_in_the_future));
            let template_id = form.id("attestation.template_id", &attestation.template_id);
            let details = attestation.details.as_ref();
            let details = convert::read_details(form, "attestation.details", details);
            let claim = Claim { contact, agreed_at, details };
            NewAttestation { template_id, claim, by, client: caller.client.clone(), proposed_by: None }
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
        let validate_only = call.validate_only;
        let created = self.change(call, move |change, caller| {
            let creator = require_partner(change.connection, caller.tenant_id)?;
            let relationship = named_relationship(change, &creator, provider_id, reseller_id)?;
            if attestation.is_some() {
                check_attester(&creator, relationship)?;
            }
            let author = author_of(caller);
            let mut customer = create(change, tenant_id, profile, creator.cloud, relationship, author)?;
            let attestation = match attestation {
                Some(new) => {
                    let made = attest_for_new(change, &creator, relationship, &mut customer, new);
                    Some(made.map_err(|error| error.within("attestation."))?)
                }
                None => None,
            };
            let invitation = match invitation {
                Some((template_id, expires_at)) => {
                    let new = NewInvitation {
                        kind: InvitationKind::Agreement,
                        relationship,
                        template_id,
                        recipient: Some(customer.primary_contact.clone()),
                        language: None,
                        expires_at,
                        by: caller.user_id,
                    };
                    Some(invite(change, may_invite, creator.cloud, Some(&customer), new)?)
                }
                None => None,
            };
            reference_set(change.connection, caller.tenant_id, customer.id, &external_reference)?;
            Ok(CreateCustomerResponse {
                customer: shown(change.connection, vec![customer], caller)?.pop(),
                attestation: attestation.map(|attestation| convert::attestation(attestation, None)),
                revision: change.revision(),
                invitation: invitation.map(|invitation| convert::invitation(invitation, change.now)),
            })
        });
        let mut created = created.await?;
        if !validate_only {
            self.add_link(created.get_mut().invitation.as_mut()).await?;
        }
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
        let mut call = self.mutation("UpdateCustomer", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, caller, .. } = &mut call;
        let id = form.id("customer_id", &message.customer_id);
        form.text("etag", &message.etag, 1, 50);
        let etag = message.etag.clone();
        let changes = read_changes(form, message, caller);

        self.change(call, move |change, caller| {
            let mut customer = require_customer(change.connection, viewer(caller), id)?;
            update(change, &mut customer, &etag, changes, author_of(caller))?;
            let customer = shown(change.connection, vec![customer], caller)?.pop();
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
            Ok(GetCustomerResponse { customer: shown(connection, vec![customer], &caller)?.pop() })
        })
        .await
    }

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let domain = form.text("domain", &message.domain, 0, 253);
        let name_prefix = form.text("company_name_prefix", &message.company_name_prefix, 0, 200);
        let external_reference = convert::read_reference(&mut form, &message.external_reference);
        if caller.tenant_kind != TenantKind::Partner && !external_reference.is_empty() {
            form.violation("external_reference", "must be empty: only partners have external references");
        }
        let filter = CustomerFilter {
            viewer: viewer(&caller),
            external_reference: Some(external_reference).filter(|reference| !reference.is_empty()),
            domain: Some(domain.to_ascii_lowercase()).filter(|domain| !domain.is_empty()),
            name_prefix: Some(name_prefix).filter(|prefix| !prefix.is_empty()),
            reseller: form.optional_id("reseller_id", &message.reseller_id),
        };
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListCustomers", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            let mut rows = customer_list(connection, &filter, page.after.as_deref(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |customer| match filter.name_prefix {
                None => customer.id.to_string(),
                Some(_) => name_key(&customer.company_name, customer.id),
            });
            Ok(ListCustomersResponse { customers: shown(connection, rows, &caller)?, next_page_token })
        })
        .await
    }

    async fn end_relationship(
        &self,
        request: Request<EndRelationshipRequest>,
    ) -> Result<Response<EndRelationshipResponse>, Status> {
        let mut call = self.mutation("EndRelationship", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let customer_id = form.id("customer_id", &message.customer_id);
        let (provider_id, reseller_id) =
            convert::read_named(form, &message.provider_id, &message.reseller_id);

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
            let others_remain = end_relationship(change, customer_id, relationship, number, caller.user_id)?;
            let uncovered = cut_off(relationship, others_remain, caller.tenant_id);
            let ended = partnership_list(change.connection, customer_id, true, number - 1, 1)?;
            let relationship = ended.into_iter().next().map(convert::partnership);
            Ok(EndRelationshipResponse {
                relationship,
                revision: change.revision(),
                uncovered_partners: convert::uncovered_partners(&uncovered),
            })
        })
        .await
    }

    async fn get_relationship(
        &self,
        request: Request<GetRelationshipRequest>,
    ) -> Result<Response<GetRelationshipResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let own = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
        let customer_id = form.id("customer_id", &message.customer_id);
        let payer_id = match own {
            Some(own) => form.optional_id("partner_id", &message.partner_id).unwrap_or(own),
            None => form.id("partner_id", &message.partner_id),
        };
        let mut reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        if let Some(own) = own.filter(|own| *own != payer_id) {
            if reseller_id.is_some_and(|reseller| reseller != own) {
                form.violation("reseller_id", "must be empty, or your own tenant, beside another partner");
            }
            reseller_id = Some(own);
        }
        let relationship = Relationship { payer_id, reseller_id };
        self.read(form, move |connection| {
            let number = relationship_active(connection, relationship, customer_id)?;
            let number = number.ok_or(Refusal::NotFound { resource: "relationship", id: customer_id })?;
            let found = partnership_list(connection, customer_id, false, number - 1, 1)?;
            Ok(GetRelationshipResponse { relationship: found.into_iter().next().map(convert::partnership) })
        })
        .await
    }

    async fn list_relationships(
        &self,
        request: Request<ListRelationshipsRequest>,
    ) -> Result<Response<ListRelationshipsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let is_partner = caller.tenant_kind == TenantKind::Partner;
        let partner = form.optional_id("partner_id", &message.partner_id);
        let customer = form.optional_id("customer_id", &message.customer_id);
        let filter = RelationshipFilter {
            customer,
            reseller: form.optional_id("reseller_id", &message.reseller_id),
            include_ended: message.include_ended,
        };
        if is_partner && partner.is_some() {
            form.violation("partner_id", "must be empty: you see the relationships of your own tenant");
        }
        if is_partner && message.include_ended {
            form.violation("include_ended", "must be false: partners see active relationships");
        }
        if !is_partner && message.partner_id.is_empty() && message.customer_id.is_empty() {
            form.violation("partner_id", "is required, unless customer_id is given");
        }
        let partner = if is_partner { Some(caller.tenant_id) } else { partner };
        let page = self.pages.read(&mut form, asked, &caller, "ListRelationships", &filter_of(&message));
        self.list(form, page, move |connection, page| {
            if let Some(customer_id) = customer {
                require_customer(connection, viewer(&caller), customer_id)?;
            }
            let (after, limit) = (page.after_number(), page.fetch());
            let mut rows = match (partner, customer) {
                (Some(partner), _) => partnerships_of_partner(connection, partner, filter, after, limit)?,
                (None, Some(id)) => partnerships_of(connection, Whose::Customer(id), filter, after, limit)?,
                (None, None) => vec![],
            };
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let relationships = rows.into_iter().map(convert::partnership).collect();
            Ok(ListRelationshipsResponse { relationships, next_page_token })
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

/// Customers as a caller may see them, a partner with its external references for them.
fn shown(
    connection: &mut Connection,
    customers: Vec<Customer>,
    caller: &Caller,
) -> Result<Vec<wire::Customer>, Error> {
    let ids: Vec<Uuid> = customers.iter().map(|customer| customer.id).collect();
    let mut contacts = contacts_of(connection, &ids)?;
    let mut references = match author_of(caller).partner_id {
        Some(partner_id) => references_of(connection, partner_id, &ids)?,
        None => BTreeMap::new(),
    };
    let shown = customers.into_iter().map(|customer| {
        let contacts = contacts.remove(&customer.id).unwrap_or_default();
        let reference = references.remove(&customer.id).unwrap_or_default();
        convert::customer(customer, &contacts, reference, caller)
    });
    Ok(shown.collect())
}

/// Whose change a caller's is.
fn author_of(caller: &Caller) -> Author {
    let partner_id = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
    Author { partner_id, user_id: caller.user_id }
}

/// Reads what a caller may change: a partner the company name, its contact and its external reference, the customer its own
/// contact, the operator what was entered wrongly, and each of them the language.
fn read_changes(form: &mut Form, message: &UpdateCustomerRequest, caller: &Caller) -> CustomerChanges {
    let is_operator = caller.tenant_kind == TenantKind::Operator;
    let is_customer = caller.tenant_kind == TenantKind::Customer;
    let UpdateCustomerRequest { company_name, primary_contact, domain, country, language, .. } = message;
    let external_reference = &message.external_reference;
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
    let is_partner = !is_operator && !is_customer;
    if !is_partner && external_reference.is_some() {
        form.violation("external_reference", "must be absent: only partners have external references");
    }
    let reference = external_reference.as_ref().filter(|_| is_partner);
    let external_reference = reference.map(|reference| convert::read_reference(form, reference));
    let corrects = |given: &str| is_operator && !given.is_empty();
    CustomerChanges {
        company_name,
        domain: corrects(domain).then(|| convert::read_domain(form, "domain", domain)),
        country: corrects(country).then(|| convert::read_country(form, "country", country)),
        // An empty one is none: the country's counts again.
        language: language
            .as_ref()
            .map(|language| convert::read_text_language(form, "language", language).unwrap_or_default()),
        contact,
        external_reference,
    }
}
