"""A small stand-in for Stripe, for the demo only: it refuses calls without the key, and says on standard output what
it was asked.

It knows one day: charges of which one was made twice, a refund, balance transactions and a payout.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

DAY = 86_400


def serve() -> None:
    """Serve on a free port of loopback, named on the first line of standard output, until standard input closes."""
    key = sys.stdin.readline().strip()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(key, Account(yesterday())))
    _say(str(server.server_address[1]))
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def yesterday() -> int:
    """The Unix time at which yesterday began, UTC."""
    return int(time.time()) // DAY * DAY - DAY


class Account:
    """A day of an imaginary shop. Amounts are in cents."""

    def __init__(self, start: int) -> None:
        def charge(number: int, hour: float, amount: int, customer: str, about: str) -> dict[str, Any]:
            return {
                "id": f"ch_{number:03d}",
                "object": "charge",
                "amount": amount,
                "amount_refunded": 0,
                "currency": "eur",
                "created": start + int(hour * 3600),
                "status": "succeeded",
                "paid": True,
                "refunded": False,
                "disputed": False,
                "customer": customer,
                "payment_intent": f"pi_{number:03d}",
                "balance_transaction": f"txn_{number:03d}",
                "description": about,
            }

        self.charges = [
            charge(1, 8.2, 4_900, "cus_ada", "Order 1041"),
            charge(2, 9.7, 12_000, "cus_bea", "Order 1042"),
            charge(3, 11.1, 7_450, "cus_cyd", "Order 1043"),
            charge(4, 11.105, 7_450, "cus_cyd", "Order 1043"),
            charge(5, 15.4, 2_000, "cus_dan", "Order 1044"),
            charge(6, 19.9, 31_900, "cus_eve", "Order 1045"),
        ]
        self.refunds = [self._refund("re_001", self.charges[4], 2_000, start + 16 * 3600, "requested_by_customer")]
        self.payouts: list[dict[str, Any]] = [
            {
                "id": "po_001",
                "object": "payout",
                "amount": 55_810,
                "currency": "eur",
                "created": start + 22 * 3600,
                "arrival_date": start + 2 * DAY,
                "status": "in_transit",
                "automatic": True,
            }
        ]
        self.answers: dict[str, dict[str, Any]] = {}

    def _refund(self, name: str, charge: dict[str, Any], amount: int, at: int, reason: str | None) -> dict[str, Any]:
        charge["amount_refunded"] += amount
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        return {
            "id": name,
            "object": "refund",
            "amount": amount,
            "currency": "eur",
            "created": at,
            "status": "succeeded",
            "reason": reason,
            "charge": charge["id"],
            "balance_transaction": f"txn_{name}",
        }

    def transactions(self) -> list[dict[str, Any]]:
        """Every movement of the balance, with a fee of 25 cents and 1.5 % on charges."""
        charges = [
            {**_common(c, "charge", c["amount"], 25 + c["amount"] * 15 // 1000), "id": c["balance_transaction"]}
            for c in self.charges
        ]
        refunds = [{**_common(r, "refund", -r["amount"], 0), "id": r["balance_transaction"]} for r in self.refunds]
        payouts = [{**_common(p, "payout", -p["amount"], 0), "id": "txn_po_001"} for p in self.payouts]
        return charges + refunds + payouts

    def refund(self, form: dict[str, str], again: str) -> tuple[int, dict[str, Any]]:
        """Refund a charge; the same idempotency key gets the same answer again."""
        if again in self.answers:
            return 200, self.answers[again]
        charge = next((c for c in self.charges if c["id"] == form.get("charge")), None)
        if charge is None:
            return 404, _error("resource_missing", "No such charge.")
        left = charge["amount"] - charge["amount_refunded"]
        amount = int(form.get("amount") or left)
        if not 0 < amount <= left:
            return 400, _error("charge_already_refunded", "Refund amount is greater than what is left.")
        name = f"re_{len(self.refunds) + 1:03d}"
        refund = self._refund(name, charge, amount, int(time.time()), form.get("reason"))
        self.refunds.append(refund)
        self.answers[again] = refund
        return 200, refund


def _common(source: dict[str, Any], kind: str, amount: int, fee: int) -> dict[str, Any]:
    return {
        "object": "balance_transaction",
        "type": kind,
        "reporting_category": kind,
        "amount": amount,
        "fee": fee,
        "net": amount - fee,
        "currency": "eur",
        "created": source["created"],
        "status": "available",
        "source": source["id"],
    }


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"type": "invalid_request_error", "code": code, "message": message}}


def _handler(key: str, account: Account) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            wanted = {name: values[-1] for name, values in parse_qs(url.query).items()}
            lists = {
                "/v1/charges": account.charges,
                "/v1/refunds": account.refunds,
                "/v1/payouts": account.payouts,
                "/v1/balance_transactions": account.transactions(),
            }
            if url.path == "/v1/balance":
                self._answer(200, {"object": "balance", "livemode": False, "available": [], "pending": []})
            elif url.path in lists:
                self._answer(200, _page(lists[url.path], wanted))
            else:
                self._answer(404, _error("resource_missing", "There is nothing here."))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            form = {name: values[-1] for name, values in parse_qs(body).items()}
            if self._known() and self.path == "/v1/refunds":
                self._answer(*account.refund(form, self.headers.get("Idempotency-Key") or body))
            else:
                self._answer(404, _error("resource_missing", "There is nothing here."))

        def _known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {key}"

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            if not self._known():
                status, content = 401, _error("invalid_api_key", "Invalid API key provided.")
            _say(f"{self.command} {urlsplit(self.path).path} {status}")
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _page(rows: list[dict[str, Any]], wanted: dict[str, str]) -> dict[str, Any]:
    earliest, latest = int(wanted.get("created[gte]", 0)), int(wanted.get("created[lt]", 2**40))
    found = sorted((row for row in rows if earliest <= row["created"] < latest), key=lambda row: -row["created"])
    limit = int(wanted.get("limit", 10))
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
