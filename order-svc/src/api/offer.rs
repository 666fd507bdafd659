//! `OfferService`.

use chassis::form::Form;
use chassis::server::call;
use proto::order::offer_service_server::OfferService;
use proto::order::{GetOfferRequest, GetOfferResponse, ListOffersRequest, ListOffersResponse};
use tonic::{Request, Response, Status};

use super::{Api, checked, convert, status};
use crate::rules::Refusal;

#[tonic::async_trait]
impl OfferService for Api {
    async fn list_offers(
        &self,
        request: Request<ListOffersRequest>,
    ) -> Result<Response<ListOffersResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let country = message.country.as_str();
        let is_code = country.len() == 2 && country.bytes().all(|byte| byte.is_ascii_uppercase());
        if !country.is_empty() && !is_code {
            form.violation("country", "must be empty or an ISO 3166-1 alpha-2 code in upper case");
        }
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListOffers", country);
        checked(form)?;

        let sold = self.catalogue.after(page.after.as_deref());
        let sold = sold.filter(|offer| country.is_empty() || offer.is_sold_in(country));
        let mut rows: Vec<_> = sold.take(page.size + 1).collect();
        let next_page_token = page.cut(&mut rows, |offer| offer.offer_id.clone());
        let offers = rows.into_iter().map(convert::offer).collect();
        Ok(Response::new(ListOffersResponse { offers, next_page_token }))
    }

    async fn get_offer(
        &self,
        request: Request<GetOfferRequest>,
    ) -> Result<Response<GetOfferResponse>, Status> {
        let message = request.into_inner();
        let mut form = Form::new();
        let id = form.text("offer_id", &message.offer_id, 1, 100);
        checked(form)?;
        let offer = self.catalogue.find(&id).map(convert::offer);
        let offer = offer.ok_or_else(|| status::refused(&Refusal::NotFound { resource: "offer", id }))?;
        Ok(Response::new(GetOfferResponse { offer: Some(offer) }))
    }
}
