"""Connections to the development stack, and calls with its tokens."""

import os
import pathlib

import grpc

AGREEMENTS = grpc.insecure_channel(os.environ.get("AGREEMENTS", "agreement-svc:50051"))
ORDERS = grpc.insecure_channel(os.environ.get("ORDERS", "order-svc:50052"))


def call(who, method, request):
    """Makes a call as `operator`, `partner` or `customer`."""
    token = (pathlib.Path(__file__).parent / f"{who}.token").read_text().strip()
    return method(request, timeout=10, metadata=[("authorization", f"Bearer {token}")])
