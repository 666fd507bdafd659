//! `WithdrawalService`.

use std::mem::take;
use std::time::{Duration, Instant};

use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::paging::filter_of;
use chassis::server::call;
use chassis::server::deadline::time_left;
use proto::order::preview_withdrawal_request::Subject;
use proto::order::withdrawal_service_server::WithdrawalService;
use proto::order::{
    GetWithdrawalReportRequest, GetWithdrawalReportResponse, ListWithdrawalReportsRequest,
    ListWithdrawalReportsResponse, PreviewWithdrawalRequest, PreviewWithdrawalResponse,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, Failure, checked, convert, status, viewer};
use crate::rules::Refusal;
use crate::rules::history::Consequence;
use crate::rules::preview::PreviewCounts;
use crate::rules::relationship::Relationship;
use crate::store::Viewer;
use crate::store::history::cursor_revision;
use crate::store::preview::{Previewed, open_groups, open_list};
use crate::store::relationship::relationships_of;
use crate::store::withdrawal::{Withdrawals, effect_list, withdrawal_find, withdrawal_list};

/// How long before its deadline a call that waits reads its answer.
const TIME_TO_ANSWER: Duration = Duration::from_millis(500);

#[tonic::async_trait]
impl WithdrawalService for Api {
    async fn get_withdrawal_report(
        &self,
        request: Request<GetWithdrawalReportRequest>,
    ) -> Result<Response<GetWithdrawalReportResponse>, Status> {
        let answer_by = Instant::now() + time_left(&request).saturating_sub(TIME_TO_ANSWER);
        let (caller, message, mut form) = call::open(request)?;
        let revision = message.revision;
        if revision < 1 {
            form.violation("revision", "must be at least 1");
        }
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "GetWithdrawalReport", &revision.to_string());
        checked(form)?;
        let viewer = viewer(&caller);
        let (after, limit) = (page.after.clone().unwrap_or_default(), page.fetch());
        if message.wait {
            self.wait_for(revision, answer_by).await?;
        }
        let read = move |connection: &mut Connection| {
            let applied_up_to = cursor_revision(connection)?;
            let report = withdrawal_find(connection, viewer, revision)?;
            let effects = match report {
                Some(_) => effect_list(connection, viewer, revision, &after, limit)?,
                None => vec![],
            };
            Ok((applied_up_to, report, effects))
        };
        let read = self.database.snapshot(read).await;
        let (applied_up_to, report, mut effects) = read.map_err(|error: Error| status::failed(&error))?;
        if report.is_none() && applied_up_to >= revision {
            let refusal = Refusal::NotFound { resource: "withdrawal", id: revision.to_string() };
            return Err(status::refused(&refusal));
        }
        let next_page_token = page.cut(&mut effects, |effect| effect.subscription_id.to_string());
        Ok(Response::new(GetWithdrawalReportResponse {
            applied: report.is_some(),
            applied_up_to,
            report: report.as_ref().map(convert::report),
            effects: effects.iter().map(convert::effect).collect(),
            next_page_token,
        }))
    }

    async fn list_withdrawal_reports(
        &self,
        request: Request<ListWithdrawalReportsRequest>,
    ) -> Result<Response<ListWithdrawalReportsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListWithdrawalReports", &filter_of(&message));
        checked(form)?;
        let newest_first = message.newest_first;
        let from = if newest_first { page.before_number() } else { page.after_number() };
        let slice =
            Withdrawals { viewer: viewer(&caller), customer_id, from, newest_first, limit: page.fetch() };
        let read = move |connection: &mut Connection| withdrawal_list(connection, slice);
        let (rows, next_page_token) = self.list(page, read, |report| report.revision.to_string()).await?;
        let reports = rows.iter().map(convert::report).collect();
        Ok(Response::new(ListWithdrawalReportsResponse { reports, next_page_token }))
    }

    async fn preview_withdrawal(
        &self,
        request: Request<PreviewWithdrawalRequest>,
    ) -> Result<Response<PreviewWithdrawalResponse>, Status> {
        let (call_id, time_left) = (call::call_id(&request), time_left(&request));
        let (caller, message, mut form) = call::open(request)?;
        let subject = read_subject(&mut form, message.subject.as_ref());
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "PreviewWithdrawal", &format!("{subject:?}"));
        checked(form)?;
        let viewer = viewer(&caller);
        let unseen = || status::refused(&subject.unseen());
        let previewed = match subject {
            Previewing::Acceptance(id) => self.withdrawal_of(id, &call_id, time_left).await,
            Previewing::Relationship(relationship) => self.end_of(viewer, relationship).await,
        };
        let (consequence, is_current) = match previewed {
            Ok(previewed) => previewed.ok_or_else(unseen)?,
            Err(failure) => return self.fail(failure, None).await,
        };

        let customer_id = consequence.customer_id();
        let of = Previewed { customer_id, payer_id: consequence.only_payer() };
        let (after, limit) = (page.after.clone().unwrap_or_default(), page.fetch());
        let read = move |connection: &mut Connection| {
            let (applied_up_to, groups) = (cursor_revision(connection)?, open_groups(connection, of)?);
            let rows = match is_current {
                true => open_list(connection, viewer, of, &after, limit)?,
                false => vec![],
            };
            Ok((applied_up_to, groups, rows))
        };
        let read = self.database.snapshot(read).await;
        let (applied_up_to, groups, mut rows) = read.map_err(|error: Error| status::failed(&error))?;
        let partner = match viewer {
            Viewer::Everything => None,
            Viewer::Customer(own) if own == customer_id => None,
            Viewer::Partner(partner) if consequence.is_for(partner, &groups) => Some(partner),
            Viewer::Partner(_) | Viewer::Customer(_) => return Err(unseen()),
        };
        let next_page_token = page.cut(&mut rows, |(id, _)| id.to_string());
        let counts = match is_current {
            true => consequence.preview_counts(partner, &groups),
            false => PreviewCounts::default(),
        };
        let effects = rows.iter().map(|(id, facts)| convert::preview(*id, facts, consequence.preview(facts)));
        let uncovered = match &consequence {
            Consequence::Withdrawn(withdrawal) => withdrawal.uncovered.as_slice(),
            Consequence::RelationshipEstablished(_) | Consequence::RelationshipEnded(_) => &[],
        };
        let uncovered = uncovered.iter().filter(|id| partner.is_none_or(|partner| partner == **id));
        Ok(Response::new(PreviewWithdrawalResponse {
            customer_id: customer_id.to_string(),
            is_current,
            uncovered_partner_ids: uncovered.map(Uuid::to_string).collect(),
            cancelled: counts.cancelled,
            not_renewed: counts.not_renewed,
            stayed: counts.stayed,
            effects: effects.collect(),
            next_page_token,
            applied_up_to,
        }))
    }
}

/// What a preview is about.
#[derive(Clone, Copy, Debug)]
enum Previewing {
    Acceptance(Uuid),
    Relationship(Relationship),
}

impl Previewing {
    /// The refusal where it does not exist, or not for this caller (ROLE-6).
    fn unseen(&self) -> Refusal {
        let (resource, id) = match self {
            Self::Acceptance(id) => ("acceptance", id),
            Self::Relationship(relationship) => ("relationship", &relationship.customer_id),
        };
        Refusal::NotFound { resource, id: id.to_string() }
    }
}

fn read_subject(form: &mut Form, subject: Option<&Subject>) -> Previewing {
    match subject {
        Some(Subject::AcceptanceId(id)) => Previewing::Acceptance(form.id("acceptance_id", id)),
        Some(Subject::Relationship(named)) => Previewing::Relationship(Relationship {
            customer_id: form.id("relationship.customer_id", &named.customer_id),
            payer_id: form.id("relationship.partner_id", &named.partner_id),
            reseller_id: form.optional_id("relationship.reseller_id", &named.reseller_id),
        }),
        None => {
            form.violation("acceptance_id", "is required, unless a relationship is given");
            Previewing::Acceptance(Uuid::nil())
        }
    }
}

impl Api {
    /// The withdrawal of an acceptance, if it came now, and whether there is anything to withdraw.
    async fn withdrawal_of(
        &self,
        acceptance_id: Uuid,
        call_id: &str,
        time_left: Duration,
    ) -> Result<Option<(Consequence, bool)>, Failure> {
        self.check_history(time_left).await?;
        match self.agreements.check_withdrawal(acceptance_id, call_id, time_left).await {
            Ok(checked) => {
                Ok(checked.map(|checked| (Consequence::Withdrawn(checked.withdrawal), checked.is_current)))
            }
            Err(why) => {
                tracing::warn!(why, "agreement-svc gave no answer about a withdrawal");
                Err(Refusal::GateUnavailable.into())
            }
        }
    }

    /// The end of an active relationship, if it came now. A partner ends its own.
    async fn end_of(
        &self,
        viewer: Viewer,
        relationship: Relationship,
    ) -> Result<Option<(Consequence, bool)>, Failure> {
        let Relationship { customer_id, payer_id, reseller_id } = relationship;
        if let Viewer::Partner(partner) = viewer
            && partner != payer_id
            && Some(partner) != reseller_id
        {
            return Ok(None);
        }
        let read = move |connection: &mut Connection| relationships_of(connection, customer_id, payer_id);
        let known = self.database.read(read).await?.ok_or(Refusal::HistoryBehind)?;
        Ok(known.end_of(relationship).map(|end| (Consequence::RelationshipEnded(end), true)))
    }
}

impl Api {
    /// Waits until the history is applied up to a revision, until that time, or until the service stops. Another process may have applied it
    /// before this one has followed it so far, so the database is asked first.
    async fn wait_for(&self, revision: i64, until: Instant) -> Result<(), Status> {
        let applied_up_to = self.database.read(cursor_revision).await;
        if applied_up_to.map_err(|error: Error| status::failed(&error))? < revision {
            let mut followed = self.followed.clone();
            tokio::select! {
                _ = followed.wait_for(|followed| followed.revision >= revision) => {}
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.stopping.cancelled() => {}
            }
        }
        Ok(())
    }
}
