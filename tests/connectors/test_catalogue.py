"""Names and arguments become calls; nothing else does, and the error says how to mend it."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import connectors
from connectors.catalogue import MAX_ARGUMENTS, MAX_DEPTH, Catalogue, Offer, shipped_folder
from connectors.errors import DefinitionError, InvalidArguments, UnknownTool

TEXT = """\
id: shop
title: Shop
base_url: https://api.shop.example
credentials: {key: {label: Key, help: There., scheme: bearer}}
verify: {call: GET /me}
tools:
  refund:
    title: Refund
    description: Money back.
    call: POST /pay/{charge}
    ask: Refund {amount} of {charge}
    arguments:
      charge: {type: string, pattern: ^ch_}
      amount: {type: integer, minimum: 1}
      rate: {type: number}
      meta: {type: object}
      lines: {type: array, items: {type: object, properties: {sku: {type: string, required: true}}}}
  x_refund: {title: Other, description: Other., call: GET /x}
"""


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "shop.yaml").write_text(TEXT)
    return Catalogue.load(tmp_path)


@pytest.fixture
def offer(catalogue: Catalogue) -> Offer:
    return catalogue.offer({"shop": "shop"})


# --- names


def test_a_tool_is_offered_once_per_connection_under_sorted_names(catalogue: Catalogue):
    offer = catalogue.offer({"shop_eu": "shop", "shop": "shop"})
    assert [tool.name for tool in offer.tools] == ["shop_eu_refund", "shop_eu_x_refund", "shop_refund", "shop_x_refund"]
    assert offer.bind("shop_eu_refund", {"charge": "ch_1"}).connection == "shop_eu"
    assert offer.problems == ()


def test_an_unknown_tool_is_named_with_its_nearest_and_nothing_is_split(offer: Offer):
    with pytest.raises(UnknownTool, match="Did you mean shop_refund"):
        offer.bind("shop_refnd", {})
    for name in ("refund", "shop", "shop.refund", "SHOP_REFUND", "shop__refund", "", "x" * 10_000, "\ud800\x00"):
        with pytest.raises(UnknownTool) as refused:
            offer.bind(name, {})
        assert len(str(refused.value)) < 700
        assert str(refused.value).isprintable()


def test_a_connection_whose_tools_would_share_a_name_is_refused_when_it_is_made(catalogue: Catalogue):
    clash = catalogue.collision({"shop": "shop"}, "shop_x", "shop")
    assert clash == "The connections shop and shop_x would both have a tool shop_x_refund. Use another name."
    assert catalogue.collision({"shop": "shop"}, "shop_eu", "shop") is None
    assert catalogue.collision({"shop": "shop"}, "shop", "shop") == "There is already a connection shop."
    for name in ("", "Shop", "a-b", "1a", "a b", "a" * 41, "é", "a\n"):
        assert "cannot be a connection's name" in (catalogue.collision({}, name, "shop") or "")
    with pytest.raises(DefinitionError, match=r"no connector 'shp'.*Known: shop"):
        catalogue.collision({}, "a", "shp")


def test_a_wire_name_longer_than_64_characters_is_refused(tmp_path: Path):
    (tmp_path / "shop.yaml").write_text(TEXT.replace("x_refund", "x" * 40))
    catalogue = Catalogue.load(tmp_path)
    assert catalogue.collision({}, "a" * 23, "shop") is None
    assert "longer than 64" in (catalogue.collision({}, "a" * 24, "shop") or "")
    offer = catalogue.offer({"a" * 24: "shop"})
    assert [tool.tool.name for tool in offer.tools] == ["refund"]
    assert "longer than 64" in offer.problems[0]


def test_where_a_changed_definition_makes_two_tools_share_a_name_neither_is_offered(catalogue: Catalogue):
    offer = catalogue.offer({"shop": "shop", "shop_x": "shop"})
    assert [tool.name for tool in offer.tools] == ["shop_refund", "shop_x_x_refund"]
    assert "would both have a tool shop_x_refund" in offer.problems[0]
    third = catalogue.offer({"shop": "shop", "shop_x": "shop", "shop_x_x": "shop"})
    assert "shop_x_refund" not in [tool.name for tool in third.tools]


# --- files


def test_one_bad_file_hides_no_other(tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("id: bad\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "maze.yaml").write_text(TEXT.replace("call: GET /me", f"call: GET /me, account: '{'(' * 9000}a'"))
    (tmp_path / "shop.yaml").write_text(TEXT)
    (tmp_path / "notes.txt").write_text("not a connector")
    catalogue = Catalogue.load(tmp_path, tmp_path / "absent")
    assert list(catalogue.connectors) == ["shop"]
    assert [Path(problem.file).name for problem in catalogue.problems] == [
        "bad.yaml",
        "binary.yaml",
        "folder.yaml",
        "maze.yaml",
    ]
    with pytest.raises(DefinitionError, match=r"bad\.yaml:1: A connector lacks"):
        catalogue.connector("bad")
    offer = catalogue.offer({"bad": "bad", "shop": "shop"})
    assert len(offer.tools) == 2
    assert "bad" in offer.problems[0]


def test_a_file_is_read_when_it_is_first_asked_for_and_only_then(tmp_path: Path):
    (tmp_path / "own").mkdir()
    used, unused, own = tmp_path / "shop.yaml", tmp_path / "broken.yaml", tmp_path / "own" / "mine.yaml"
    for file, text in ((used, TEXT), (unused, "id: [\n"), (own, "id: [\n")):
        file.write_text(text)
    catalogue = Catalogue.load(tmp_path, tmp_path / "own")
    assert [Path(problem.file) for problem in catalogue.problems_in(tmp_path / "own")] == [own]
    for file in (used, unused, own):
        file.write_text(TEXT.replace("id: shop", f"id: {file.stem}"))
    assert catalogue.offer({"a": "shop"}).problems == ()
    used.write_text("id: [\n")
    assert catalogue.connectors["shop"].id == "shop"
    assert set(catalogue.connectors) == {"shop", "broken"}
    assert [Path(problem.file) for problem in catalogue.problems] == [own]


def test_a_later_file_cannot_take_a_connectors_place(tmp_path: Path):
    for folder, host in (("first", "api.shop.example"), ("second", "evil.example")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shop.yaml").write_text(TEXT.replace("api.shop.example", host))
    catalogue = Catalogue.load(tmp_path / "first", tmp_path / "second")
    assert catalogue.connectors["shop"].base_url == "https://api.shop.example"
    assert "already defined" in str(catalogue.problems[0])


def test_definitions_come_from_the_wheel_or_else_from_the_checkout(tmp_path: Path):
    checkout = Path(connectors.__file__).parents[1]
    assert shipped_folder() == checkout / "configs" / "connectors"
    installed = tmp_path / "site-packages" / "connectors"
    shutil.copytree(checkout / "configs" / "connectors", installed / "_definitions")
    assert shipped_folder(installed) == installed / "_definitions"
    assert (
        Catalogue.load(shipped_folder(installed)).connectors.keys()
        == Catalogue.load(shipped_folder()).connectors.keys()
    )
    with pytest.raises(DefinitionError, match="missing"):
        shipped_folder(tmp_path / "elsewhere" / "connectors")


# --- arguments


def test_a_call_is_the_checked_arguments_in_one_canonical_form(offer: Offer):
    one = offer.bind("shop_refund", {"charge": "ch_é", "amount": 5.0, "rate": 0.5, "meta": {"b": [1.0], "a": None}})
    two = offer.bind("shop_refund", {"meta": {"a": None, "b": [1]}, "amount": 5, "rate": 0.5, "charge": "ch_é"})
    assert one.canonical == two.canonical == '{"amount":5,"charge":"ch_é","meta":{"a":null,"b":[1]},"rate":0.5}'
    assert type(one.arguments["amount"]) is int
    assert one == two
    assert (one.name, one.connection, one.tool.name, one.connector.id) == ("shop_refund", "shop", "refund", "shop")


def test_a_call_does_not_change_with_what_it_was_made_of(offer: Offer):
    given: dict[str, Any] = {"charge": "ch_1", "meta": {"a": [1]}}
    call = offer.bind("shop_refund", given)
    given["meta"]["a"].append(2)
    given["charge"] = "ch_2"
    assert call.canonical == '{"charge":"ch_1","meta":{"a":[1]}}'
    assert call.arguments["meta"] == {"a": [1]}
    with pytest.raises(TypeError):
        call.arguments["charge"] = "ch_3"  # type: ignore[index]


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, '"charge" is a required property'),
        ({"charge": "ch_1", "amuont": 5}, "There is no argument amuont. Did you mean amount?"),
        ({"charge": "ch_1", "__class__": 5}, "There is no argument __class__"),
        ({"charge": "ch_1", "Charge": "ch_2"}, "There is no argument Charge"),
        ({"charge": "x"}, 'charge: "x" does not match "^ch_"'),
        ({"charge": 5}, "charge: 5 is not of type"),
        ({"charge": None}, "charge: null is not of type"),
        ({"charge": "ch_1", "amount": 0}, "amount: 0 is less than"),
        ({"charge": "ch_1", "amount": True}, "amount: true is not of type"),
        ({"charge": "ch_1", "amount": "5"}, 'amount: "5" is not of type'),
        ({"charge": "ch_1", "amount": 5.5}, "amount: 5.5 is not of type"),
        ({"charge": "ch_1", "amount": 2**63}, "64 bits"),
        ({"charge": "ch_1", "amount": 10**5000}, "64 bits"),
        ({"charge": "ch_1", "rate": math.nan}, "not finite"),
        ({"charge": "ch_1", "rate": -math.inf}, "not finite"),
        ({"charge": "ch_\x00"}, "NUL"),
        ({"charge": "ch_\ud800"}, "surrogate"),
        ({"charge": "ch_1", "meta": {"a\udfff": 1}}, "surrogate"),
        ({"charge": "ch_1", "\ud800": 1}, "surrogate"),
        ({"charge": "ch_1", "meta": {1: 1}}, "not text"),
        ({"charge": "ch_1", "meta": {"a": b"x"}}, "not JSON"),
        ({"charge": "ch_1", "meta": {"a": {1, 2}}}, "not JSON"),
        ({"charge": "ch_1", "meta": nested(MAX_DEPTH)}, "deeper"),
        ({"charge": "ch_1", "meta": {"a": "x" * MAX_ARGUMENTS}}, "longer"),
        ({"charge": "ch_1", "lines": [{"sku": "a"}, {}]}, 'lines[1]: "sku" is a required property'),
        ({"charge": "ch_1", "lines": [{"sku": "a", "more": 1}]}, "lines[0]: Additional properties"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_mend(offer: Offer, arguments: dict[str, Any], says: str):
    with pytest.raises(InvalidArguments) as refused:
        offer.bind("shop_refund", arguments)
    assert says in str(refused.value)
    assert str(refused.value).endswith("Allowed arguments: charge, amount, rate, meta, lines.")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_an_error_about_arguments_is_short_whatever_they_are(offer: Offer):
    with pytest.raises(InvalidArguments) as refused:
        offer.bind("shop_refund", {"charge": "x\n\u202e" * 100_000, "amount": "y" * 10_000})
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()
    with pytest.raises(InvalidArguments, match="Allowed arguments: none"):
        offer.bind("shop_x_refund", {"z" * 10_000: 1})


def test_the_deepest_and_the_largest_arguments_that_fit_are_taken(offer: Offer):
    assert offer.bind("shop_refund", {"charge": "ch_1", "meta": nested(MAX_DEPTH - 1)})
    room = MAX_ARGUMENTS - len('{"charge":"ch_1","meta":{"a":""}}')
    assert offer.bind("shop_refund", {"charge": "ch_1", "meta": {"a": "x" * room}})
