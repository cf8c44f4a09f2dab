"""What a file says of an account's limits and quota, and what of an answer's own report is believed."""

from dataclasses import replace

import jsonschema_rs
import pytest

from connectors.answer import interpret
from connectors.definition import Call, Operation, Pace, Quota
from connectors.egress import Reply
from connectors.errors import DefinitionError
from connectors.fileformat import json_schema
from connectors.loading import parse
from connectors.reporting import MOST_LOOKS, MOST_REPORT, numbers, reported_in
from connectors.source import read_text

FILE = """\
id: shop
title: Shop
base_url: https://api.shop.example
credentials: {{key: {{label: Key, help: There., scheme: bearer}}}}
verify: {{call: GET /me}}
{more}
tools:
  ask:
    title: Ask
    description: An answer.
    call: GET /ask
    effect: read
    output: {{usage: "report.{{tokens_in: in, cost: cost, cost_unit: unit, name: name}}"}}
"""
QUOTA = "quota: {requests: {left: X-Left}, bucket: {left: x-bucket-left, of: X-Bucket}}"


def of(more: str) -> str:
    return FILE.format(more=more)


def test_quota_and_limits_are_read_as_written() -> None:
    shop = parse(of(f"{QUOTA}\nlimits: {{concurrent: 5, per_minute: 1000000}}"))
    assert shop.quota == (Quota("requests", "x-left"), Quota("bucket", "x-bucket-left", "x-bucket"))
    assert shop.limits == Pace(5, 1_000_000)
    assert parse(of("limits: {per_minute: 3}")).limits == Pace(None, 3)
    assert (parse(of("")).quota, parse(of("")).limits) == ((), Pace())


@pytest.mark.parametrize(
    "more",
    [
        "limits: {concurrent: 0}",
        "limits: {concurrent: 10001}",
        "limits: {per_minute: 1000001}",
        "limits: {per_minute: '5'}",
        "limits: {per_minute: 1.5}",
        "limits: {concurrent: true}",
        "limits: {per_second: 5}",
        "limits: 5",
        "quota: {}",
        "quota: {requests: x-left}",
        "quota: {requests: {of: x-left}}",
        "quota: {requests: {left: x-left, reset: x-reset}}",
        "quota: {Requests: {left: x-left}}",
        "quota: {requests: {left: 'x left'}}",
        "quota: {requests: {left: x-left, of: 'x:of'}}",
    ],
)
def test_limits_and_quota_that_say_something_else_are_refused_by_line(more: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse(of(more))
    assert refused.value.line == 6
    if "x left" not in more and "x:of" not in more:  # what may name a header is more than a schema says
        schema = jsonschema_rs.Draft202012Validator(json_schema())
        assert not schema.is_valid(read_text(of(more), "shop.yaml").plain())


@pytest.mark.parametrize("wait", ["true", "0", "3601", "1.5", "'5'"])
def test_how_long_to_wait_is_a_whole_number_of_seconds(wait: str) -> None:
    assert parse(of("errors: {wait: 3600}")).errors.wait == 3600
    with pytest.raises(DefinitionError, match="Seconds cannot be"):
        parse(of(f"errors: {{wait: {wait}}}"))


def reply(headers: dict[str, str], body: bytes = b"{}", secrets: tuple[str, ...] = ()) -> Reply:
    return Reply(200, headers, body, 1.0, len(body), secrets)


def asked() -> Call:
    shop = parse(of(QUOTA))
    return Call("shop", shop, shop.tools["ask"], "shop_ask", {})


@pytest.mark.parametrize(
    ("headers", "left"),
    [
        ({"x-left": "41"}, {"requests": 41}),
        ({"x-left": " 0 "}, {"requests": 0}),
        ({"x-bucket-left": "7", "x-bucket": "core"}, {"bucket core": 7}),
        ({"x-bucket-left": "7"}, None),
        ({"x-bucket-left": "7", "x-bucket": "core and more"}, None),
        ({"x-bucket-left": "7", "x-bucket": "s3cr3t_s3cr3t"}, None),
        ({"x-left": "-1"}, None),
        ({"x-left": "1e3"}, None),
        ({"x-left": "٤"}, None),
        ({"x-left": "1" * 16}, None),
        ({"x-left": "1, 2"}, None),
        ({}, None),
    ],
)
def test_what_is_left_is_a_number_and_a_plain_name(headers: dict[str, str], left: dict[str, int] | None) -> None:
    assert interpret(asked(), reply(headers, secrets=("s3cr3t_s3cr3t",))).quota == left


def test_a_number_that_no_database_holds_is_none_on_either_side() -> None:
    assert numbers({"more": 10**15 + 1, "less": -(10**15) - 1, "large": 10**15, "small": -(10**15)}) == {
        "large": 10**15,
        "small": -(10**15),
    }


@pytest.mark.parametrize(
    ("said", "half"),
    [
        ({"tokens_in": 3, "tokens_out": None, "tokens_cached": None}, True),
        ({"tokens_in": None, "tokens_out": 0}, True),
        ({"tokens_in": 3, "tokens_out": 0, "tokens_cached": None, "cost": None}, False),
        ({"tokens_in": 3}, False),
        ({"tokens_in": None, "tokens_out": None, "cost": 1}, False),
        ({"tokens_in": True}, True),
        ({"tokens_out": "3"}, True),
        ({"tokens_cached": "3"}, True),
        ({"cost": "3"}, True),
        ({"others": "3"}, False),
    ],
)
def test_half_of_a_report_is_all_of_it_only_where_the_tools_file_looks_for_no_more(
    said: dict[str, int | str | None], half: bool
) -> None:
    found = {name: number for name, number in said.items() if type(number) is int}
    assert numbers(said) == (found | {"unread": True} if half else found)


def test_of_an_answer_that_is_too_large_no_unit_is_a_secret() -> None:
    tool = parse(of("")).tools["ask"]
    body = b'{"report": {"in": 3, "cost": 1, "unit": "CANARYCANARY"}}'
    assert reported_in(tool, body, ["another"]) == {"tokens_in": 3, "cost": 1, "cost_unit": "CANARYCANARY"}
    assert reported_in(tool, body, ["CANARYCANARY"]) == {"tokens_in": 3, "cost": 1}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"report": {"in": 3}, "kind": "report"}', {"tokens_in": 3}),
        (b'{"report": {"in": 3, "name": "\xff"}}', {"tokens_in": 3}),
        (b'{"report": {"in": 3, "name": "' + b"x" * MOST_REPORT + b'"}}', None),
        (b'{"report": ' + b"[" * MOST_REPORT, None),
        (b'{"report": 3}', {}),
    ],
)
def test_in_an_answer_that_is_too_large_nothing_but_the_report_is_read(body: bytes, found: object) -> None:
    assert reported_in(parse(of("")).tools["ask"], body, []) == found
    piped = parse(of("").replace('"report.{', '"report | {')).tools["ask"]
    assert reported_in(piped, body, []) == found
    whole = parse(of("").replace('"report.{', '"{')).tools["ask"]
    assert reported_in(whole, body, []) is None, "it begins with no one field"
    asks = replace(piped, operation=Operation(kind="query", name="L", document="query L { report }", answers={}))
    assert reported_in(asks, body, []) is None, "its report is in `data`"


def test_in_an_answer_that_is_too_large_its_name_is_looked_at_so_often_and_no_more() -> None:
    tool = parse(of("")).tools["ask"]

    def after(others: int) -> bytes:
        return b'{"report": {"in": 3}, "more": [' + b", ".join([b'{"report": 1}'] * others) + b"]}"

    assert reported_in(tool, after(MOST_LOOKS - 1), []) == {"tokens_in": 3}
    assert reported_in(tool, after(MOST_LOOKS), []) is None


def test_of_texts_in_a_report_the_unit_of_a_cost_alone_is_kept() -> None:
    said = b'{"report": {"in": 3, "cost": 0.5, "unit": "usd", "name": "x"}}'
    assert interpret(asked(), reply({}, said)).usage == {"tokens_in": 3, "cost": 0.5, "cost_unit": "USD"}
    without = b'{"report": {"in": 3, "unit": "usd"}}'
    assert interpret(asked(), reply({}, without)).usage == {"tokens_in": 3}
    odd = b'{"report": {"cost": 1, "unit": "US$"}}'
    assert interpret(asked(), reply({}, odd)).usage == {"cost": 1}
    assert numbers({"cost": 1, "cost_unit": "A" * 13}) == {"cost": 1}
    assert interpret(asked(), reply({}, b'{"report": null}')).usage is None
    endless = b'{"report": {"in": 1' + b"0" * 400 + b', "cost": 1e300}}'
    assert interpret(asked(), reply({}, endless)).usage == {"unread": True}
