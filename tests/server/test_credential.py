"""A credential is taken apart and looked at without a word of it being quoted or left in a traceback."""

import json
import traceback

import pytest

from connectors.definition import CredentialKind, Field
from connectors.loading import parse
from server.connections import Connection, ConnectionProblem
from server.credential import check_fields, is_reference, parse_fields, recognised, resolved, stays_elsewhere
from tests.aws import SECRETS_MANAGER
from tests.issuer import FORGE
from tests.places import Places
from vault import REFERENCE_FIELD, CannotOpen, CannotResolve, Resolver, Secret, VaultError, to_reference

CANARY = "a canary that nobody quotes"
PAIR = CredentialKind(
    id="pair",
    label="application credential",
    help="See there.",
    scheme="basic",
    fields=(Field(name="user", label="user", secret=False), Field(name="password", label="password")),
)
KEY = CredentialKind(
    id="key", label="key", help="See there.", scheme="bearer", fields=(Field(name="secret", label="key"),)
)


def given(text: str) -> Secret:
    return Secret({"secret": text})


def values(secret: Secret) -> dict[str, str]:
    return {name: secret.reveal(name) for name in secret.fields}


def said(error: BaseException) -> str:
    """The exception with its chain and the locals of every frame but this file's."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = ""
    at: traceback.TracebackException | None = whole
    while at is not None:
        frames = [frame for frame in at.stack if frame.filename != __file__]
        text += f"{at} {[frame.locals for frame in frames]}"
        at = at.__cause__ or at.__context__
    return text


@pytest.mark.parametrize("text", ['{"user": "ada", "password": "p w"}\n', "ada\np w\n", "\ufeffada\r\np w\r\n"])
def test_several_fields_are_an_object_or_lines(text: str) -> None:
    assert values(parse_fields(PAIR, given(text))) == {"user": "ada", "password": "p w"}


@pytest.mark.parametrize("text", ["one two\n", "one two\r\n", "\ufeffone two"])
def test_one_field_is_the_text_without_the_lines_end(text: str) -> None:
    assert values(parse_fields(KEY, given(text))) == {"secret": "one two"}


@pytest.mark.parametrize(
    "text",
    [
        "ada",
        f"ada\n{CANARY}\nq",
        f'{{"user": "{CANARY}"}}',
        f'{{"user": "{CANARY}", "password": 1}}',
        f'{{"user": "{CANARY}',
        f'{{"a": "{CANARY}"}}',
        f'{{"user": "ada", "password": "{CANARY}", "{REFERENCE_FIELD}": "env:HOME"}}',
        f'{{"{REFERENCE_FIELD}": "env:HOME {CANARY}"}}',
        "{" * 100_000 + CANARY,
    ],
    ids=lambda text: text[:40],
)
def test_other_forms_are_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ConnectionProblem, match="user, password") as caught:
        parse_fields(PAIR, given(text))
    assert CANARY not in said(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"secret": f"{CANARY}\n"},
        {"secret": ""},
        {"secret": "short"},
        {"user": CANARY, "password": CANARY},
        {REFERENCE_FIELD: f"cmd:get {CANARY}"},
        {"secret": CANARY, REFERENCE_FIELD: "env:HOME"},
    ],
)
def test_a_credential_of_the_wrong_shape_is_refused_without_being_quoted(fields: dict[str, str]) -> None:
    with pytest.raises(ConnectionProblem) as caught:
        check_fields(KEY, Secret(fields))
    assert CANARY not in said(caught.value)


@pytest.mark.parametrize(
    ("value", "says"), [("", "is empty"), (f"{CANARY}\n", "line break"), (CANARY * 5000, "longer than")]
)
def test_a_field_that_cannot_be_is_named_by_its_label(value: str, says: str) -> None:
    with pytest.raises(ConnectionProblem, match=f"What was given as password .*{says}") as caught:
        check_fields(PAIR, Secret({"user": "ada", "password": value}))
    assert CANARY not in said(caught.value)


def test_what_looks_unusual_is_only_warned_of() -> None:
    kind = CredentialKind(
        id="k", label="key", help="", scheme="bearer", fields=(Field(name="secret", label="key", pattern="^k_"),)
    )
    (warning,) = check_fields(kind, given(CANARY))
    assert CANARY not in warning
    assert recognised([KEY, kind], given("k_12345678")) == KEY
    assert recognised([kind, KEY], given("x_12345678")) == KEY
    assert recognised([PAIR], given(CANARY)) is None


def test_no_connector_file_can_name_a_field_as_a_reference_is_called() -> None:
    from connectors.errors import DefinitionError

    text = (
        "id: x\ntitle: X\nbase_url: https://x.example\nverify: {call: GET /me}\n"
        "credentials:\n  key:\n    label: key\n    help: Any.\n    scheme: basic\n    fields:\n"
        "      'FIELD': {label: password}\n"
        "tools:\n  look: {title: Look, description: Look., call: GET /look, effect: read}\n"
    )
    parse(text.replace("FIELD", "password"), "x.yaml")
    with pytest.raises(DefinitionError, match="cannot be a name"):
        parse(text.replace("FIELD", REFERENCE_FIELD), "x.yaml")


# -- references


def row(source: str) -> Connection:
    return Connection(
        org="o",
        id="c",
        name="n",
        connector="x",
        ownership="own",
        base_url="https://x.example",
        private=(),
        kind="key",
        scheme="bearer",
        credential_version=1,
        account=None,
        verified_at=None,
        created_by="a",
        created_at=1,
        source=source,
    )


def test_row_and_seal_must_agree_on_what_it_is() -> None:
    stored, pointing = given(CANARY), to_reference("env:HOME")
    assert not is_reference(row("vault"), stored)
    assert is_reference(row("env"), pointing)
    for source, sealed in {
        "env": stored,
        "cmd": stored,
        "": stored,
        "vault": pointing,
        "file": pointing,
    }.items():
        with pytest.raises(CannotOpen):
            is_reference(row(source), sealed)
    with pytest.raises(CannotOpen):
        is_reference(row("vault"), Secret({REFERENCE_FIELD: "env:HOME", "secret": CANARY}))


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (KEY, "short", "shorter than 8"),
        (KEY, f"{CANARY}\nand more", "line break"),
        (KEY, f"{CANARY}\u20ac", "outside ASCII"),
        (PAIR, CANARY, "1 lines were given"),
        (PAIR, f"ada\n{CANARY[:7]}", "shorter than 8"),
    ],
)
def test_what_a_reference_leads_to_is_looked_at_like_what_a_person_gives(
    places: Places, kind: CredentialKind, value: str, says: str
) -> None:
    with pytest.raises(CannotResolve, match=says) as caught:
        resolved(places.resolver(), kind, to_reference(places.keep("file", value)))
    assert CANARY[:7] not in said(caught.value)


def test_a_reference_may_lead_to_several_fields(places: Places) -> None:
    found: list[Secret] = []

    class Noting(Resolver):
        def resolve(self, reference: Secret) -> Secret:
            found.append(super().resolve(reference))
            return found[-1]

    reference = to_reference(places.keep("file", f'{{"user": "ada", "password": "{CANARY}"}}\n'))
    fields = resolved(Noting(places.home), PAIR, reference)
    assert values(fields) == {"user": "ada", "password": CANARY}
    with pytest.raises(VaultError, match="wiped"):
        found[0].reveal()


# -- a key's files, and what may be left out

FORGE_FILE = parse(FORGE)
APP, ROBOT = FORGE_FILE.kind("app"), FORGE_FILE.kind("robot")
AWS = parse(SECRETS_MANAGER, "aws_secrets.yaml").kind("keys")


def test_a_key_file_takes_the_lines_that_are_left_and_may_stand_in_an_object() -> None:
    expected = {"app_id": "1", "installation_id": "2", "private_key": "-----BEGIN\na\n\nb\n-----END"}
    assert values(parse_fields(APP, given("1\r\n2\r\n-----BEGIN\r\na\r\n\r\nb\r\n-----END\r\n"))) == expected
    assert values(parse_fields(APP, given(json.dumps(expected)))) == expected


def test_a_service_accounts_file_is_taken_whole_and_whom_it_acts_for_out_of_it() -> None:
    file = {"type": "service_account", "client_email": "a@b", "private_key": "k\nk"}
    alone = values(parse_fields(ROBOT, given(json.dumps(file, indent=2))))
    assert {name: json.loads(value) for name, value in alone.items()} == {"key_file": file}
    acting = values(parse_fields(ROBOT, given(json.dumps({**file, "subject": "ann@b"}))))
    assert (json.loads(acting["key_file"]), acting["subject"]) == (file, "ann@b")
    inner = {"key_file": json.dumps(file), "subject": ""}
    assert values(parse_fields(ROBOT, given(json.dumps(inner)))) == {"key_file": json.dumps(file)}


def test_what_may_be_left_out_is_not_kept_when_it_is_empty() -> None:
    three = {"access_key_id": "AKIA", "secret_access_key": CANARY, "region": "eu-west-1"}
    for text in (
        "\n".join(three.values()),
        "\n".join((*three.values(), "")),
        json.dumps(three),
        json.dumps({**three, "session_token": ""}),
    ):
        assert values(parse_fields(AWS, given(text))) == three
    check_fields(AWS, Secret(three))
    assert values(parse_fields(AWS, given("\n".join((*three.values(), "token"))))) == {
        **three,
        "session_token": "token",
    }
    assert recognised([KEY, PAIR, AWS], Secret(three)) is AWS
    assert recognised([AWS], Secret({"access_key_id": "AKIA"})) is None
    with pytest.raises(ConnectionProblem, match="shorter than 8"):
        check_fields(AWS, Secret({**three, "session_token": "short"}))


def test_a_token_is_sent_as_it_is_sealed_and_only_a_secret_is_read_from_where_it_stays() -> None:
    pointing = {REFERENCE_FIELD: "env:HOME"}
    assert stays_elsewhere(row("env"), KEY, Secret(pointing))
    assert not stays_elsewhere(row("env"), APP, Secret({**pointing, "secret": CANARY}))
    assert not stays_elsewhere(row("vault"), KEY, given(CANARY))
    for kind, sealed in ((KEY, {**pointing, "secret": CANARY}), (APP, pointing)):
        with pytest.raises(CannotOpen):
            stays_elsewhere(row("env"), kind, Secret(sealed))
