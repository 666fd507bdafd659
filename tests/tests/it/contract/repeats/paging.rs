//! Keyset pagination while rows are added.

use super::*;

/// Pages show every row once in key order, while other rows are added.
#[apply(each_backend)]
async fn pages_show_every_row_once_while_rows_are_added(#[case] backend: Backend) {
    tests::needs!(backend);
    const ROWS: usize = 120;
    /// Well within a tenant's share of the calls in progress.
    const AT_ONCE: usize = 16;
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customers = (0..ROWS).map(|n| {
        let partner = agents[n % agents.len()].clone();
        async move { covered_customer(&partner, &format!("Contoso {n}")).await }
    });
    let customers: Vec<_> = stream::iter(customers).buffered(AT_ONCE).collect().await;
    let orders = customers.iter().enumerate().map(|(n, customer)| {
        let partner = agents[n % agents.len()].clone();
        async move { actions::order(&partner, customer, None, 1).await.unwrap().order.unwrap().order_id }
    });
    let orders: Vec<String> = stream::iter(orders).buffered(AT_ONCE).collect().await;

    // No caller adds anything: each list is complete, and nothing else is in it.
    let known = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(known(&customer_pages(&agents[0]).await), known(&customers));
    assert_eq!(known(&order_pages(&agents[0]).await), known(&orders));

    let adding = async {
        for n in 0..20 {
            let customer = covered_customer(&agents[1], &format!("Fabrikam {n}")).await;
            actions::order(&agents[1], &customer, None, 1).await.unwrap();
        }
    };
    let (listed_customers, listed_orders, ()) =
        tokio::join!(customer_pages(&agents[0]), order_pages(&agents[2]), adding);
    assert!(known(&listed_customers).is_superset(&known(&customers)));
    assert!(known(&listed_orders).is_superset(&known(&orders)));
    assert_eq!(customer_pages(&agents[0]).await.len(), ROWS + 20);
    assert_eq!(order_pages(&agents[0]).await.len(), ROWS + 20);
}

const PAGE: i32 = 7;

/// The ids of all customers, page by page.
async fn customer_pages(partner: &As) -> Vec<String> {
    let (mut ids, mut page_token) = (vec![], String::new());
    loop {
        let request = ListCustomersRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = partner.customers().list_customers(request).await.unwrap().into_inner();
        add_page(
            &mut ids,
            page.customers.into_iter().map(|c| c.customer_id).collect(),
            &page.next_page_token,
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

/// The ids of all orders, page by page.
async fn order_pages(partner: &As) -> Vec<String> {
    let (mut ids, mut page_token) = (vec![], String::new());
    loop {
        let request = ListOrdersRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = partner.orders().list_orders(request).await.unwrap().into_inner();
        add_page(&mut ids, page.orders.into_iter().map(|o| o.order_id).collect(), &page.next_page_token);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

fn add_page(ids: &mut Vec<String>, page: Vec<String>, next_page_token: &str) {
    assert!(page.len() <= PAGE as usize);
    assert!(page.len() == PAGE as usize || next_page_token.is_empty(), "a short page is the last one");
    ids.extend(page);
    assert!(ids.is_sorted_by(|a, b| a < b), "in key order, without repeats");
}
