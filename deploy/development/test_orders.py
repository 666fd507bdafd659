"""What the tests of another team may look like: orders for the two customers of the development stack."""

import unittest
import uuid

import grpc

from client import ORDERS, call
from csp.order.v1 import order_service_pb2, order_service_pb2_grpc
from csp.type.v1.agreement_pb2 import DECISION_ALLOWED

ATTESTED = "00000000-0000-4000-8000-0000000000b1"
BLOCKED = "00000000-0000-4000-8000-0000000000b2"


def order_for(customer_id):
    line = order_service_pb2.NewOrderLine(offer_id="031C9E47-4802-4248-838E-778FB1D2CC05", quantity=5)
    request = order_service_pb2.CreateOrderRequest(
        request_id=str(uuid.uuid4()), customer_id=customer_id, lines=[line])
    return call("partner", order_service_pb2_grpc.OrderServiceStub(ORDERS).CreateOrder, request).order


class Orders(unittest.TestCase):
    def test_an_order_for_an_attested_customer_is_accepted(self):
        self.assertEqual(order_for(ATTESTED).gate.decision, DECISION_ALLOWED)

    def test_an_order_for_a_blocked_customer_is_refused(self):
        with self.assertRaises(grpc.RpcError) as refused:
            order_for(BLOCKED)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertIn("AGREEMENT_REQUIRED", refused.exception.details())
