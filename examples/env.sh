# Calls with grpcurl to services that trust the identity in metadata (`--auth insecure`), as `cargo demo --serve` starts them:
#
#   . examples/env.sh
#   as_partner csp.order.v1.OrderService/ListOrders '{}'
#   as_operator csp.agreement.v1.PartnerService/ListPartners '{}'
#   as_customer "$customer" csp.agreement.v1.CustomerService/ListCustomerPartners '{}'
#
# Set AGREEMENTS and ORDERS for other addresses, PARTNER for another partner, and GRPCURL for another program or more options.

AGREEMENTS=${AGREEMENTS:-127.0.0.1:50051}
ORDERS=${ORDERS:-127.0.0.1:50052}
PARTNER=${PARTNER:-00000000-0000-4000-8000-0000000000d1}
GRPCURL=${GRPCURL:-grpcurl -plaintext}

as_partner() { call_as PARTNER "$PARTNER" SALES_AGENT "$@"; }
as_operator() { call_as OPERATOR 00000000-0000-4000-8000-0000000000a0 "" "$@"; }
as_customer() { # the id of the customer, the call, the message
  customer_id=$1
  shift
  call_as CUSTOMER "$customer_id" GLOBAL_ADMIN "$@"
}

call_as() { # tenant kind, tenant id, roles, call, message
  case $4 in
    csp.order.*) address=$ORDERS ;;
    *) address=$AGREEMENTS ;;
  esac
  $GRPCURL -H "x-tenant-kind: $1" -H "x-tenant-id: $2" -H "x-roles: $3" -H "x-user-id: 00000000-0000-4000-8000-000000000001" -d "$5" "$address" "$4"
}
