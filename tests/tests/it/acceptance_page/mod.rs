//! The acceptance page, over HTTP as a browser or the proxy before it reaches it, and in a browser.

pub(crate) mod browser;
mod chromium;
mod security;
mod signatures;
mod states;
mod tokens;
mod webdriver;

use std::time::Duration;

use chassis::clock::Clock;
use proto::agreement::Invitation;
use tests::actions;
use tests::fixtures::{self, DIRECT};
use tests::{As, Cluster, Setup};

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A cluster that serves the page, with partners, the direct-bill partner's support contact among them.
async fn start(setup: Setup) -> (Cluster, As) {
    let cluster = Cluster::start(Setup { page_port: Some(0), ..setup }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    actions::set_support(&cluster, DIRECT, "help@northwind.example").await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    (cluster, direct)
}

/// Path and query of an invitation's link.
fn path_of(invitation: &Invitation) -> String {
    let path = invitation.acceptance_url.splitn(4, '/').nth(3).unwrap();
    format!("/{path}")
}

/// A clock that a test moves.
fn clock() -> Clock {
    Clock::manual(fixtures::now())
}
