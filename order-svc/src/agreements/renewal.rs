//! The gate's view of renewals, many at once (SUB-10). Nothing is stored on it but the view itself: a renewal by a user asks the
//! gate on its own, and an automatic one needs no permission.

use std::time::Duration;

use chassis::auth::Caller;
use chassis::telemetry::trace::Traced;
use proto::agreement::eligibility_result::Result as Item;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::{BatchCheckEligibilityRequest, EligibilityResult};
use proto::types::{ErrorReason, Refusal};

use super::gate::{GateError, GateQuery, read_answer};
use super::{AgreementClient, log_if_unauthenticated};
use crate::rules::Time;
use crate::rules::gate::{Answer, Operation, Verdict};
use crate::rules::offer::Catalogue;
use crate::rules::subscription::Subscription;

/// A batch takes longer than a single query, and no change waits for it. One that is late must not look like a replica that
/// fails.
const BATCH_DEADLINE: Duration = Duration::from_secs(5);

/// The queries that agreement-svc takes in one call.
pub(crate) const QUERIES_MAX: usize = 100;

impl AgreementClient {
    /// Whether the gate would refuse to renew each of these subscriptions for the user that `caller` says, because the
    /// customer's acceptance is missing, withdrawn or outdated: at most [`QUERIES_MAX`] subscriptions. The answer is none where
    /// payer and customer have no relationship any more, and an error, for the log, where the gate does not say it of
    /// this one.
    ///
    /// # Errors
    /// Why it is not known of any of them, for the log.
    pub(crate) async fn are_acceptances_outdated(
        &self,
        subscriptions: &[Subscription],
        catalogue: &Catalogue,
        caller: impl Fn(&Subscription) -> Caller,
        call_id: &str,
        time_left: Duration,
    ) -> Result<Vec<Result<Option<bool>, String>>, String> {
        // A customer's subscriptions of like offers are one query.
        let mut queries: Vec<GateQuery> = vec![];
        let mut asked = vec![];
        for subscription in subscriptions {
            let offer = catalogue.find(&subscription.offer_id);
            let (operation, caller) = (Operation::ManualRenewal, caller(subscription));
            let query =
                GateQuery::of_subscription(subscription, operation, offer, caller, call_id.to_owned());
            let known = queries.iter().position(|other| *other == query);
            asked.push(known.unwrap_or(queries.len()));
            if known.is_none() {
                queries.push(query);
            }
        }
        let Some(first) = queries.first() else { return Ok(vec![]) };
        let answers = self.check_batch(first, &queries, time_left).await?;
        let outdated: Vec<_> = answers.into_iter().map(is_refused).collect();
        Ok(asked.into_iter().map(|query| outdated[query].clone()).collect())
    }

    async fn check_batch(
        &self,
        first: &GateQuery,
        queries: &[GateQuery],
        time_left: Duration,
    ) -> Result<Vec<Result<Answer, GateError>>, String> {
        let options = self.own_options(&first.call_id, BATCH_DEADLINE, time_left);
        let message =
            BatchCheckEligibilityRequest { items: queries.iter().map(GateQuery::message).collect() };
        let call = |channel, request| {
            let (mut gate, asked_at) = (EligibilityServiceClient::new(Traced(channel)), self.clock.now());
            async move { Ok(gate.batch_check_eligibility(request).await?.map(|answer| (asked_at, answer))) }
        };
        let answered = self.client.call(options, message, call).await;
        let (asked_at, batch) =
            answered.inspect_err(log_if_unauthenticated).map_err(|status| status.to_string())?;
        if batch.results.len() != queries.len() {
            return Err("its answer cannot be used: it has another number of results".into());
        }
        let items = queries.iter().zip(batch.results);
        Ok(items.map(|(query, result)| self.read_result(query, asked_at, result)).collect())
    }

    fn read_result(
        &self,
        query: &GateQuery,
        asked_at: Time,
        result: EligibilityResult,
    ) -> Result<Answer, GateError> {
        match result.result {
            Some(Item::Answer(answer)) => read_answer(query, asked_at, self.clock_difference_max, answer),
            Some(Item::Refusal(refusal)) => Err(read_refusal(&refusal)),
            None => Err(GateError::Unknown("its answer cannot be used: a result is empty".into())),
        }
    }
}

fn read_refusal(refusal: &Refusal) -> GateError {
    match refusal.reason() {
        ErrorReason::ResourceNotFound => GateError::NoActiveRelationship(None),
        ErrorReason::PayerIsReseller => GateError::PayerIsReseller,
        _ => GateError::Unknown(refusal.message.clone()),
    }
}

/// Whether it is a no for want of an acceptance; none where it is one for another reason.
fn is_refused(answered: Result<Answer, GateError>) -> Result<Option<bool>, String> {
    match answered {
        Ok(answer) => Ok(Some(matches!(answer.verdict, Verdict::Blocked { .. }))),
        Err(GateError::NoActiveRelationship(_) | GateError::PayerIsReseller) => Ok(None),
        Err(GateError::Unknown(why)) => Err(why),
    }
}
