"""A new user's words find the tool; what one caller may not see changes nothing of what that caller finds."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.catalogue import Catalogue, Offer, Offered, shipped_folder
from connectors.finding import Index
from connectors.words import MOST_WORDS, acts, asked, only_looks, stem, terms

CATALOGUE = Catalogue.load(shipped_folder())
SHIPPED = CATALOGUE.offer({name: name for name in CATALOGUE.connectors})
SIX = CATALOGUE.offer({name: name for name in ("anthropic", "github", "notion", "openai", "slack", "stripe")})
HERE = Path(__file__).parent
REQUESTS = {name: yaml.safe_load((HERE / f"{name}.yaml").read_text()) for name in (
    "requests", "requests_more", "requests_held_out",
)}  # fmt: skip
AMONG_THE_FIRST = 5

SHOP = """\
id: THE_ID
title: THE_ID
base_url: https://api.shop.example
credentials: {key: {label: Key, help: There., scheme: bearer}}
verify: {call: GET /me}
tools:
  get_parcel:
    title: Look into a parcel
    description: Where a parcel is. While has_more is true, call again for the meeting.
    call: POST /parcels/search
    effect: read
    because: It searches by POST.
    arguments:
      page: {type: string, description: Which giraffe.}
      sender: {type: object, description: From, properties: {zebraStripes: {type: string, description: x}}}
  stop_parcel:
    title: Stop a parcel
    description: Hold a parcel back.
    call: POST /parcels
    effect: write
    ask: Stop {parcel}
    arguments:
      parcel: {type: string}
"""


def found(offer: Offer, request: str, among: list[Offered] | None = None) -> list[str]:
    return [each.tool.name for each in offer.index.search(request, offer.tools if among is None else among)]


def right(entry: dict[str, Any]) -> set[str]:
    """The tools of this offer that are right for a request."""
    pairs = [name.partition(".") for name in entry["find"]]
    return {f"{connector}_{tool}" for connector, _, tool in pairs if connector in CATALOGUE.connectors}


def answered(name: str) -> tuple[list[str], list[str]]:
    """The requests of this file that shipped tools answer, and those of them that found none of these."""
    asks = [entry for entry in REQUESTS[name] if right(entry)]
    lost = [each["ask"] for each in asks if not right(each) & set(found(SHIPPED, each["ask"])[:AMONG_THE_FIRST])]
    return [each["ask"] for each in asks], lost


def test_fifty_four_of_sixty_everyday_requests_find_their_tool_among_the_first_five() -> None:
    asks, lost = answered("requests")
    assert len(asks) >= 60
    assert len(lost) <= len(asks) / 10, lost


@pytest.mark.parametrize("name", ["requests_more", "requests_held_out"])
def test_so_do_nine_of_ten_that_came_later(name: str) -> None:
    asks, lost = answered(name)
    assert len(asks) >= 20
    assert len(lost) <= len(asks) / 10, lost


@pytest.mark.parametrize("name", REQUESTS)
def test_what_a_request_should_find_exists(name: str) -> None:
    wanted = {tool for entry in REQUESTS[name] for tool in right(entry)}
    assert wanted <= {offered.name for offered in SHIPPED.tools}
    asks = [entry["ask"] for entry in REQUESTS[name]]
    assert len(asks) == len(set(asks))


def test_every_connector_that_ships_has_requests() -> None:
    wanted = {tool.partition(".")[0] for entries in REQUESTS.values() for entry in entries for tool in entry["find"]}
    assert set(CATALOGUE.connectors) <= wanted


def test_every_tool_is_found_by_its_own_title_alone_with_its_service_or_by_naming_it() -> None:
    for connector in CATALOGUE.connectors:
        alone = CATALOGUE.offer({connector: connector})
        for each in alone.tools:
            assert each.name in found(alone, each.tool.title)[:AMONG_THE_FIRST], each.name
    for each in SHIPPED.tools:
        assert each.name in found(SHIPPED, f"{each.tool.title} {each.connector.title}")[:AMONG_THE_FIRST], each.name


@pytest.mark.parametrize(
    ("said", "meant"), [("who is on call", "oncall"), ("Who am I", "whoami"), ("list_on_call", "oncall")]
)
def test_a_phrase_means_the_same_where_a_tool_says_it_and_where_a_request_does(said: str, meant: str) -> None:
    assert meant in terms(said)
    assert meant in {word.stem for word in asked(said.replace("_", " "))}


# --- who sees what


def test_what_a_caller_may_not_see_changes_nothing_of_what_it_finds() -> None:
    """The same tools in the same order, as if the others did not exist: rarity and length are not their business."""
    chance = random.Random(5)
    for entry in REQUESTS["requests"]:
        seen = sorted(chance.sample(SHIPPED.tools, 25), key=lambda offered: offered.name)
        assert found(SHIPPED, entry["ask"], seen) == [
            each.tool.name for each in Index(seen).search(entry["ask"], seen)
        ], entry["ask"]


def test_a_tool_that_is_not_among_those_seen_is_never_found() -> None:
    seen = [offered for offered in SHIPPED.tools if offered.name != "stripe_create_refund"]
    for request in ("stripe_create_refund", "refund a charge", "create refund stripe", "give back money"):
        assert "stripe_create_refund" in found(SHIPPED, request)
        names = [each.tool.name for each in SHIPPED.index.search(request, seen)]
        twins = [twin.name for each in SHIPPED.index.search(request, seen) for twin in each.twins]
        assert "stripe_create_refund" not in names + twins
    assert found(SHIPPED, "refund a charge", []) == []


def test_a_word_that_only_hidden_tools_say_is_as_unknown_as_any_other(tmp_path: Path) -> None:
    """`config` would stand for what begins with it; that a hidden tool says it too must not show."""
    offer = own(tmp_path, ("shop", SHOP.replace("Where a parcel is", "The configuration of a parcel")),
                ("other", SHOP.replace("Where a parcel is", "A config")))  # fmt: skip
    seen = [offered for offered in offer.tools if offered.connection == "shop"]
    assert found(offer, "config", seen) == ["shop_get_parcel"]


# --- connections


def own(folder: Path, *files: tuple[str, str]) -> Offer:
    for name, text in files:
        (folder / f"{name}.yaml").write_text(text.replace("THE_ID", name))
    catalogue = Catalogue.load(folder)
    assert catalogue.problems == ()
    return catalogue.offer({name: name for name in catalogue.connectors})


def test_an_organisations_own_connector_is_found_by_being_there(tmp_path: Path) -> None:
    offer = own(tmp_path, ("shop", SHOP))
    assert found(offer, "where is my parcel") == ["shop_get_parcel", "shop_stop_parcel"]
    assert found(offer, "zebra stripes") == ["shop_get_parcel"]


def test_the_same_tool_of_several_connections_counts_once_and_the_named_one_stands_first() -> None:
    offer = CATALOGUE.offer({"stripe": "stripe", "stripe_eu": "stripe", "stripe_us": "stripe", "slack": "slack"})
    first = offer.index.search("refund a charge", offer.tools)[0]
    assert first.tool.name == "stripe_create_refund"
    assert {twin.name for twin in first.twins} == {"stripe_eu_create_refund", "stripe_us_create_refund"}
    named = offer.index.search("refund a charge in stripe eu", offer.tools)[0]
    assert named.tool.name == "stripe_eu_create_refund"
    tools = [(each.tool.connector.id, each.tool.tool.name) for each in offer.index.search("list", offer.tools)]
    assert len(tools) == len(set(tools))


def test_a_named_service_comes_before_others_that_fit_as_well() -> None:
    assert found(SIX, "post a comment")[0] == "github_comment_on_issue"
    assert found(SIX, "post a comment with slack")[0] == "slack_post_message"
    assert found(SIX, "delete a page")[0] == "notion_trash_page"
    assert found(SIX, "delete a page on github")[0] == "github_delete_file"
    for service in ("openai", "anthropic"):
        assert found(SIX, f"ask a model with {service}")[0].startswith(service)
        assert found(SIX, f"which models does {service} have")[0] == f"{service}_list_models"


# --- words


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("mail", "email"),
        ("ticket", "issue"),
        ("payment", "charge"),
        ("PR", "pull request"),
        ("people", "users"),
        ("member", "user"),
        ("appointment", "meeting"),
        ("remove", "delete"),
        ("room", "channel"),
        ("repo", "repository"),
        ("bill", "invoice"),
        ("someone@example.com", "email"),
        ("#general", "channel"),
        ("README.md", "file"),
        ("SHOP-311", "issue"),
        ("gpt", "openai"),
        ("claude", "anthropic"),
    ],
)
def test_what_means_the_same_is_taken_for_the_same(said: str, meant: str) -> None:
    reached = {each for word in asked(said) for each in (word.stem, *word.alike)}
    assert set(terms(meant)) <= reached


@pytest.mark.parametrize(
    "forms",
    [
        "charge charges charged charging",
        "reply replies replied",
        "merge merging merged",
        "cancel cancelled canceled cancelling",
        "status statuses",
        "subscription subscriptions",
        "stop stopped stopping",
        "pay paid",
        "person people",
    ],
)
def test_the_forms_of_a_word_have_one_stem(forms: str) -> None:
    assert len({stem(form) for form in forms.split()}) == 1


def test_names_come_apart_in_every_spelling() -> None:
    assert set(terms("created_gte createdGte CREATED-GTE")) == {stem("created"), "gte"}
    assert terms("HTTPServer isOpen") == ("http", stem("server"), stem("open"))
    assert terms("don't customer's") == ("customer",)
    assert terms("Größe 金額") == (stem("größe"), "金額")


def test_a_shortened_or_repeated_word_stands_for_the_one_it_comes_from() -> None:
    assert found(SIX, "embed")[0] == "openai_create_embedding"
    assert found(SIX, "subscr")[0].endswith("subscription")
    assert found(SIX, "rerun")[0] == "github_run_workflow"


def test_a_word_of_a_tool_answers_one_word_of_a_request(tmp_path: Path) -> None:
    """Saying the same thing four times over does not make it count four times."""
    text = SHOP[: SHOP.index("  stop_parcel")]
    text += "  delete: {title: Delete it, description: x, call: 'POST /x/{id}', effect: destroy, ask: 'On {id}',"
    text += " arguments: {id: {type: string}}}\n"
    offer = own(tmp_path, ("shop", text))
    assert found(offer, "erase remove destroy scrap parcel")[0] == "shop_get_parcel"


def test_what_turns_pages_is_no_subject(tmp_path: Path) -> None:
    offer = own(tmp_path, ("shop", SHOP))
    for request in ("meeting", "giraffe"):
        assert found(offer, request) == []
    assert "stripe_list_charges" not in found(SIX, "call again")


def test_what_is_to_be_told_says_less_than_what_is_to_be_done() -> None:
    assert "slack_post_message" in found(SIX, "tell Ann that the invoice was refunded and the branch merged")[:5]
    assert {word.stem: word.weight for word in asked("open a ticket about refunds")}["refund"] < 1
    assert {word.stem: word.weight for word in asked("tell me about refunds")}[
        "refund"
    ] < 1  # and is still all there is
    assert found(SIX, "tell me about refunds")[0].startswith("stripe_")


@pytest.mark.parametrize("request_", ["which refunds were made", "please show me refunds", "get the refund", "is it?"])
def test_a_request_that_only_wants_to_know_is_recognised(request_: str) -> None:
    assert only_looks(request_)
    assert not acts(request_)


@pytest.mark.parametrize("request_", ["refund it", "get rid of the refund", "get me out of this list", "delete all"])
def test_a_request_that_wants_something_done_is_no_such(request_: str) -> None:
    assert not only_looks(request_)
    assert acts(request_)


def test_who_wants_to_know_finds_reading_tools_first_and_who_wants_something_done_the_others() -> None:
    assert found(SIX, "what refunds are there")[0] == "stripe_list_refunds"
    assert found(SIX, "make a refund")[0] == "stripe_create_refund"
    assert found(SIX, "post in the thread")[0] == "slack_post_message"
    assert found(SIX, "put a customer on the list")[0] == "stripe_create_customer"
    assert found(SIX, "is there a refund to create")[0] == "stripe_list_refunds"
    assert not only_looks("refunds") and not acts("refunds")


def test_of_tools_that_fit_alike_the_mildest_stands_first(tmp_path: Path) -> None:
    same = "title: Same words, description: Same words., because: A test., arguments: {id: {type: string}}"
    text = SHOP[: SHOP.index("  get_parcel")]
    text += f"  same_x: {{{same}, call: 'POST /x', effect: spend, ask: 'On {{id}}'}}\n"
    text += f"  same_y: {{{same}, call: 'POST /x', effect: write, ask: 'On {{id}}'}}\n"
    offer = own(tmp_path, ("shop", text))
    assert found(offer, "same words") == ["shop_same_y", "shop_same_x"]


@pytest.mark.parametrize("nothing", ["", "   ", "the of and", "?!", "123 456", "xyzzy", "\u202e", "\ud800"])
def test_a_request_that_says_nothing_finds_nothing(nothing: str) -> None:
    assert found(SIX, nothing) == []


@pytest.mark.parametrize(
    "shape", ["@" * 500, "a@" * 250, "a." * 250, "a-" * 250, "_" * 500, "get " * 125, "let x " * 83, "tell " * 100]
)
def test_no_request_of_the_length_allowed_takes_long(shape: str) -> None:
    found(SIX, "warm")
    started = time.thread_time()
    found(SIX, shape)
    assert time.thread_time() - started < 1.0


def test_what_comes_after_the_first_words_of_a_request_is_not_looked_at() -> None:
    words = " ".join(f"w{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(100))
    assert len(asked(words)) == MOST_WORDS
    assert [word.stem for word in asked(words)] == [word.stem for word in asked(f"{words} more of it")]


def test_a_definition_with_odd_properties_hides_no_other(tmp_path: Path) -> None:
    offer = own(tmp_path, ("shop", SHOP))
    odd: dict[str, Any] = {"type": "object", "properties": {"a": True, "b": {"description": None, "items": True}}}
    object.__setattr__(offer.tools[0].tool, "input_schema", odd)
    assert set(found(offer, "parcel")) == {"shop_get_parcel", "shop_stop_parcel"}
