"""Channels at the command line: their URLs and secrets are shown to nobody, and only who may can make one."""

import json

import pytest

from server.identity import system_user
from tests.commandline import CommandLine, everything, with_environment
from tests.installed import Place
from tests.remnants import remnants, sealed_of
from tests.server.test_cli_approvals import become
from tests.telling import PATH, Receiver, hook, hooked
from tests.upstream import Answer

CANARY = PATH.rpartition("/")[2]
LOOPBACK = ("--allow-private", "127.0.0.1/32")


@pytest.fixture
def receiver():  # type: ignore[no-untyped-def]
    with Receiver() as running:
        yield running


def test_a_channel_is_added_tried_and_shown_without_its_url_or_its_secret(
    owner: CommandLine, place: Place, receiver: Receiver
) -> None:
    added = owner("channel", "add", "webhook", "chat", "--url-stdin", *LOOPBACK, stdin=f"{receiver.hook}\n".encode())
    assert added.code == 0, added.err
    secret = added.out.split()[-1]
    assert secret.startswith("whsec_")
    assert "KEYLEASH_PUBLIC_URL" in added.err
    tried = owner("channel", "test", "chat")
    assert tried.code == 0, tried.err
    (body,) = receiver.told()
    assert (body["event"], body["approval"], body["link"]) == ("channel.test", None, None)
    ran = [owner("channel", *words) for words in (("list",), ("show", "chat"), ("list", "--json"), ("test", "chat"))]
    shown = owner("channel", "show", "chat", "--json")
    assert all(one.code == 0 for one in (*ran, shown))
    said = everything(added, tried, shown, *ran)
    assert CANARY not in said
    assert secret not in everything(tried, shown, *ran)
    assert shown.json["address"] == f"{receiver.url}/…"
    assert shown.json["status"] == "enabled"
    assert shown.json["rulings"] == ["approve"]
    log = json.dumps(place.events())
    assert CANARY not in log
    assert secret not in log
    assert [entry["event"] for entry in place.events("channel.created", "channel.tested")] == [
        "channel.created",
        "channel.tested",
        "channel.tested",
    ]


def test_an_url_that_is_a_secret_is_not_taken_from_the_command_line(owner: CommandLine, place: Place) -> None:
    for url in (f"https://hooks.example.com{PATH}", "https://chat.example.com/v1/messages?key=abc"):
        ran = owner("channel", "add", "webhook", "chat", "--url", url)
        assert ran.code == 1
        assert "--url-stdin" in ran.err
        assert CANARY not in everything(ran)
    assert owner("channel", "list", "--json").json == []
    ran = owner("channel", "add", "webhook", "relay", "--url", "https://relay.example.com/keyleash", "--json")
    assert ran.json["address"] == "https://relay.example.com/…"
    assert ran.json["events"] == ["opened", "decided", "expired", "unknown", "budget"]


def test_the_url_is_asked_for_without_being_shown(owner: CommandLine, place: Place) -> None:
    with owner.at_terminal("channel", "add", "webhook", "chat") as terminal:
        terminal.until("The webhook's URL: ")
        terminal.type(f"https://hooks.example.com{PATH}\n")
        assert terminal.end() == 0
    assert CANARY not in terminal.shown
    assert hook(place).address == "https://hooks.example.com/…"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("carrier_pigeon", "x", "--url", "https://example.com/"), 2, "no kind"),
        (("webhook", "x", "--url", "http://example.com/"), 1, "Use https"),
        (("webhook", "x", "--url", "https://127.0.0.1/"), 1, "`--allow-private CIDR`"),
        (("webhook", "X y", "--url", "https://example.com/"), 1, "cannot name a channel"),
        (("webhook", "x", "--url", "https://example.com/", "--event", "opened,eaten"), 2, "eaten"),
        (("webhook", "x", "--url", "https://example.com/", "--ruling", "allow"), 2, "allow"),
        (("webhook", "x", "--url", "https://example.com/", "--url-stdin"), 2, "not both"),
        (("webhook", "x", "--url", "https://example.com/", "--allow-private", "10.1.2.3/8"), 1, "range of addresses"),
        (("webhook", "x"), 1, "no terminal"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_kept(
    owner: CommandLine, words: tuple[str, ...], code: int, said: str
) -> None:
    ran = owner.alone("channel", "add", *words) if words == ("webhook", "x") else owner("channel", "add", *words)
    assert ran.code == code
    assert said in ran.err
    assert owner("channel", "list", "--json").json == []


@pytest.mark.parametrize("role", ["member", "approver", "auditor"])
def test_who_is_no_admin_makes_changes_and_tries_none(
    owner: CommandLine, place: Place, receiver: Receiver, role: str
) -> None:
    hooked(place, receiver.hook)
    become(place, "bob", role)
    for words in (
        ("add", "webhook", "mine", "--url", "https://example.com/"),
        ("test", "chat"),
        ("rotate", "chat"),
        ("remove", "chat", "--yes"),
    ):
        ran = owner("channel", *words)
        assert ran.code == 1
        assert "may not manage channels" in ran.err
    assert owner("channel", "list").code == 0
    assert receiver.requests == []
    assert hook(place).secret_version == 1


def test_private_addresses_are_the_operators_to_open(owner: CommandLine, place: Place, receiver: Receiver) -> None:
    (owner.home / "keys" / "root.key").unlink()
    ran = owner("channel", "add", "webhook", "chat", "--url", f"{receiver.url}/x", *LOOPBACK)
    assert ran.code == 1
    assert "Only the operator may do this" in ran.err
    assert hook_names(place) == []


def hook_names(place: Place) -> list[str]:
    return [name for (name,) in place.installation.database.read("SELECT name FROM channel ORDER BY name")]


def test_a_rotated_channel_has_another_secret_and_where_it_is_given_another_url(
    owner: CommandLine, place: Place, receiver: Receiver
) -> None:
    _, old = hooked(place, receiver.hook)
    first = owner("channel", "rotate", "chat", "--json")
    assert first.code == 0, first.err
    assert first.json["signing_secret"] != old
    assert first.json["erased"] is True
    moved = owner("channel", "rotate", "chat", "--url", f"{receiver.url}/elsewhere", *LOOPBACK)
    assert moved.code == 0, moved.err
    assert owner("channel", "test", "chat").code == 0
    assert [request.target for request in receiver.requests] == ["/elsewhere"]
    alone = owner("channel", "rotate", "chat", *LOOPBACK)
    assert (alone.code, "goes with a new URL" in alone.err) == (2, True)
    assert [entry["pointed_elsewhere"] for entry in place.events("channel.rotated")] == [False, True]


def test_a_test_that_fails_says_why_without_the_receivers_words_and_one_that_works_enables_it(
    owner: CommandLine, place: Place, receiver: Receiver
) -> None:
    hooked(place, receiver.hook)
    place.installation.database.write_now(lambda rows: rows.execute("UPDATE channel SET disabled_at = 1"))
    receiver.answers = [Answer({"error": f"no hook {CANARY}"}, status=404)]
    ran = owner("channel", "test", "chat", "--json")
    assert (ran.code, ran.json["ok"], ran.json["message"]) == (1, False, "the receiver answered HTTP 404")
    assert CANARY not in everything(ran)
    assert hook(place).disabled_at is not None
    assert owner("channel", "test", "chat").code == 0
    assert hook(place).disabled_at is None


def test_a_channel_is_removed_when_the_person_is_sure(owner: CommandLine, place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    unsure = owner.alone("channel", "remove", "chat")
    assert (unsure.code, hook_names(place)) == (1, ["chat"])
    ran = owner("channel", "remove", "chat", "--yes", "--json")
    assert (ran.code, ran.json["erased"], hook_names(place)) == (0, True, [])
    assert owner("channel", "remove", "chat", "--yes").code == 1
    assert [entry["channel"] for entry in place.events("channel.removed")] == ["chat"]


def test_doctor_says_what_is_wrong_with_a_channel(owner: CommandLine, place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook, "fine")
    hooked(place, receiver.hook, "gone")
    hooked(place, receiver.hook, "failing")
    hooked(place, receiver.hook, "altered")
    write = place.installation.database.write_now
    write(
        lambda rows: [
            rows.execute("UPDATE channel SET disabled_at = 1, disabled_why = 'gone for good' WHERE name = 'gone'"),
            rows.execute(
                "UPDATE channel SET given_up = 3, given_up_at = 9, failure = 'HTTP 500' WHERE name = 'failing'"
            ),
            rows.execute("UPDATE channel SET private = '[]' WHERE name = 'altered'"),
        ]
    )
    found = [one["message"] for one in owner("doctor", "--json").json if one["check"] == "channels"]
    text = "\n".join(found)
    assert "gone is disabled" in text
    assert "failing was not told 3 times" in text
    assert "altered cannot be told anything" in text
    assert "fine" not in text
    assert found[-1] == "4 channels looked at."
    assert system_user() not in text


def test_doctor_says_when_the_link_leads_to_a_name_that_is_not_served(owner: CommandLine, place: Place) -> None:
    def said(**more: str) -> str:
        line = with_environment(owner, more)
        return "\n".join(one["message"] for one in line("doctor", "--json").json if one["check"] == "channels")

    assert said() == "0 channels looked at."
    hooked(place, "https://hooks.example.com/x", private=())
    public = {"KEYLEASH_PUBLIC_URL": "https://keyleash.example.com"}
    assert "not set here" in said()
    assert "KEYLEASH_ALLOWED_HOSTS=keyleash.example.com" in said(**public)
    assert said(**public, KEYLEASH_ALLOWED_HOSTS="keyleash.example.com") == "1 channel looked at."


def test_what_a_rotated_or_removed_channel_had_leaves_the_files(
    owner: CommandLine, place: Place, receiver: Receiver
) -> None:
    made, _ = hooked(place, receiver.hook)
    first = sealed_of(place.installation.database, place.org, made.id)
    assert owner("channel", "rotate", "chat").code == 0
    second = sealed_of(place.installation.database, place.org, made.id)
    place.installation.close()
    assert remnants(place.home, second)  # what is in use is found, and so would be what is not
    assert remnants(place.home, first) == []
    removed = owner("channel", "remove", "chat", "--yes")
    assert (removed.code, "URL, with its secret, is " in removed.out) == (0, True)
    assert remnants(place.home, second) == []
    assert [entry["erased"] for entry in place.events("erasure.completed")] == ["address", "channel"]
