//! `WithdrawalService`.

use chassis::database::{Connection, Error};
use chassis::server::call;
use proto::order::withdrawal_service_server::WithdrawalService;
use proto::order::{
    GetWithdrawalReportRequest, GetWithdrawalReportResponse, ListWithdrawalReportsRequest,
    ListWithdrawalReportsResponse,
};
use tonic::{Request, Response, Status};

use super::{Api, checked, convert, status, viewer};
use crate::rules::Refusal;
use crate::store::history::cursor_revision;
use crate::store::withdrawal::{Withdrawals, effect_list, withdrawal_find, withdrawal_list};

#[tonic::async_trait]
impl WithdrawalService for Api {
    async fn get_withdrawal_report(
        &self,
        request: Request<GetWithdrawalReportRequest>,
    ) -> Result<Response<GetWithdrawalReportResponse>, Status> {
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
        let (caller, message, mut form) = call::open(request)?;
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListWithdrawalReports", &message.customer_id);
        checked(form)?;
        let (after, limit) = (page.after_number(), page.fetch());
        let slice = Withdrawals { viewer: viewer(&caller), customer_id, after, limit };
        let read = move |connection: &mut Connection| withdrawal_list(connection, slice);
        let (rows, next_page_token) = self.list(page, read, |report| report.revision.to_string()).await?;
        let reports = rows.iter().map(convert::report).collect();
        Ok(Response::new(ListWithdrawalReportsResponse { reports, next_page_token }))
    }
}
