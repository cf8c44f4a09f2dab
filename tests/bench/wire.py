"""What every part of the benchmark has to agree on: the call, its answer, and the key that the upstream asks for."""

import json
from typing import Any

HOST = "127.0.0.1"
KEY = "rk_test_bench_5sVq8Lw2Zc7Rk1Tn4Yb9"
TOOL = "stripe_list_charges"
LIMIT = 3
VERSION = "2026-07-28"

_META = {
    "io.modelcontextprotocol/protocolVersion": VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
}


def _charge(number: int) -> dict[str, Any]:
    return {
        "id": f"ch_3PbenchA{number:02}",
        "object": "charge",
        "amount": 4200 + number,
        "amount_captured": 4200 + number,
        "amount_refunded": 0,
        "balance_transaction": f"txn_3PbenchA{number:02}",
        "captured": True,
        "created": 1_790_000_000 - number,
        "currency": "eur",
        "customer": "cus_bench",
        "description": "Order 1042, two tickets and a programme",
        "disputed": False,
        "failure_code": None,
        "livemode": False,
        "metadata": {"order": "1042", "channel": "web"},
        "outcome": {"network_status": "approved_by_network", "risk_level": "normal", "type": "authorized"},
        "paid": True,
        "payment_intent": f"pi_3PbenchA{number:02}",
        "refunded": False,
        "status": "succeeded",
    }


PAGE = json.dumps(
    {"object": "list", "data": [_charge(n) for n in range(LIMIT)], "has_more": True, "url": "/v1/charges"}
)
"""The upstream's answer, about 2 kB: as Stripe spells a page of charges, which are themselves somewhat longer."""

LAST = _charge(LIMIT - 1)["id"].encode()
"""Stands in the result of every call that went well."""


def message(method: str, **params: Any) -> bytes:
    """One request of the modern era as JSON, with the envelope that each carries."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": _META, **params}}).encode()


def tool_call(port: int, path: str, token: str) -> bytes:
    """The whole HTTP request of the one call that everyone is measured by."""
    body = message("tools/call", name=TOOL, arguments={"limit": LIMIT})
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"MCP-Protocol-Version: {VERSION}\r\nMcp-Method: tools/call\r\nMcp-Name: {TOOL}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
