"""AWS is asked with a signature over exactly what leaves, made anew each time; botocore and moto agree with it."""

import base64
import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.auth import attaching, check
from connectors.bounded import Limits
from connectors.definition import Call, Connector
from connectors.egress import Egress
from connectors.errors import CredentialMalformed, DefinitionError, Unsendable
from connectors.loading import parse
from connectors.request import Prepared, prepare, prepare_verify
from connectors.scrub import contains_secret
from tests.aws import KEY_ID, SECRET, SECRETS_MANAGER, STS, TOKEN, authorization, checking_moto
from tests.connectors.test_oauth import Held
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

AT = 1_795_669_200.0  # 2026-11-26T05:00:00Z

TEXT = """\
id: things
title: Things
base_url: https://things.eu-west-1.amazonaws.com/base
headers: {X-Spaced: "a   b", X-Amz-Target: things.Do}
credentials:
  keys: {label: access key, help: There., scheme: aws_sigv4, service: SERVICE, region: eu-west-1}
verify: {call: GET /me}
tools:
  read:
    title: Read
    description: One.
    call: GET /things/{path}/
    arguments:
      path: {type: string, slashes: true}
      q: {type: string}
      tags: {type: array, items: {type: string}}
      key: {as: "a b&=ü", type: string}
  write:
    title: Write
    description: One.
    call: POST /things/{path}
    ask: Write {path}
    arguments:
      path: {type: string}
      value: {type: string}
      more: {type: string}
"""
JSON = {service: parse(TEXT.replace("SERVICE", service)) for service in ("things", "s3")}
FORM = {
    service: parse(TEXT.replace("SERVICE", service).replace("base_url", "body: form\nbase_url")) for service in JSON
}


def request(connector: Connector, tool: str, **arguments: Any) -> Prepared:
    call = Call("things", connector, connector.tools[tool], tool, arguments)
    return prepare(call, base_url="https://things.eu-west-1.amazonaws.com/base")


def sign(
    connector: Connector, prepared: Prepared, at: float = AT, **more: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    headers = dict(prepared.headers)
    query: list[tuple[str, str]] = []
    held = Held(access_key_id=KEY_ID, secret_access_key=SECRET, **more)
    secrets = attaching(connector.credentials[0], held, prepared, clock=lambda: at)(headers, query)
    assert query == []
    return headers, secrets


def as_botocore_does(
    connector: Connector, prepared: Prepared, headers: dict[str, str], token: str | None = None
) -> str:
    sent = {name: value for name, value in headers.items() if name != "Authorization"}
    kind = connector.credentials[0]
    return authorization(
        prepared.method, prepared.url, sent, prepared.body, service=kind.service, region=kind.region, token=token
    )


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=0, max_size=12)
segments = st.lists(texts.filter(lambda text: text not in ("", ".", "..")), min_size=1, max_size=3)


@given(
    st.sampled_from(["things", "s3"]),
    st.booleans(),
    st.builds("/".join, segments),
    st.fixed_dictionaries({}, optional={"q": texts, "tags": st.lists(texts, max_size=4), "key": texts}),
    st.sampled_from([{}, {"session_token": TOKEN}]),
)
def test_a_signature_is_botocores_own_for_whatever_is_read(
    service: str, form: bool, path: str, more: dict[str, Any], token: dict[str, str]
) -> None:
    connector = (FORM if form else JSON)[service]
    try:
        prepared = request(connector, "read", path=path, **more)
    except Unsendable:
        return
    headers, _ = sign(connector, prepared, **token)
    assert headers["Authorization"] == as_botocore_does(connector, prepared, headers, token.get("session_token"))


@given(st.sampled_from(["things", "s3"]), st.booleans(), texts, st.fixed_dictionaries({}, optional={"value": texts}))
def test_and_for_whatever_is_written(service: str, form: bool, path: str, more: dict[str, Any]) -> None:
    connector = (FORM if form else JSON)[service]
    try:
        prepared = request(connector, "write", path=path, **more)
    except Unsendable:
        return
    headers, _ = sign(connector, prepared)
    assert headers["Authorization"] == as_botocore_does(connector, prepared, headers)
    assert headers["X-Amz-Content-SHA256"] == hashlib.sha256(prepared.body or b"").hexdigest()


def test_the_paths_that_signers_get_wrong() -> None:
    """The test above must come past these: a space, what is not ASCII, a percent sign, a star, and empty values."""
    for service, connector in JSON.items():
        prepared = request(connector, "read", path="a b/ü+*~'()/%41", q="", tags=["b", "a", "", "a"], key="")
        headers, _ = sign(connector, prepared)
        assert headers["Authorization"] == as_botocore_does(connector, prepared, headers), service
    raw = Prepared(
        "GET", "https://things.eu-west-1.amazonaws.com/a%2Fb/%20?b=&a=2&a=1&c", "https://things.eu-west-1.amazonaws.com",
        "", (),
    )  # fmt: skip
    for connector in JSON.values():
        headers, _ = sign(connector, raw)
        assert headers["Authorization"] == as_botocore_does(connector, raw, headers)


def test_s3_reads_a_path_with_everything_encoded_that_has_to_be() -> None:
    literal, encoded = (
        Prepared("GET", f"https://b.s3.amazonaws.com/{path}", "https://b.s3.amazonaws.com", "", ())
        for path in ("a:b@c", "a%3Ab%40c")
    )
    assert sign(JSON["s3"], literal)[0] == sign(JSON["s3"], encoded)[0]
    assert sign(JSON["things"], literal)[0] != sign(JSON["things"], encoded)[0]


def test_what_is_signed_says_when_what_and_for_whom() -> None:
    headers, _ = sign(JSON["things"], request(JSON["things"], "write", path="p", value="v"), session_token=TOKEN)
    assert headers["X-Amz-Date"] == "20261126T050000Z"
    assert headers["X-Amz-Security-Token"] == TOKEN
    scope = f"Credential={KEY_ID}/20261126/eu-west-1/things/aws4_request"
    names = "accept;content-type;host;x-amz-content-sha256;x-amz-date;x-amz-security-token;x-amz-target;x-spaced"
    assert f"{scope}, SignedHeaders={names}, Signature=" in headers["Authorization"]


def test_each_part_of_a_request_is_under_the_signature() -> None:
    connector = JSON["things"]
    base = request(connector, "write", path="p", value="v")
    seen = {sign(connector, base)[0]["Authorization"].partition("Signature=")[2]}
    for changed in (
        Prepared("PUT", base.url, base.origin, base.base_path, base.headers, base.body),
        Prepared("POST", base.url + "x", base.origin, base.base_path, base.headers, base.body),
        Prepared("POST", base.url + "?x=", base.origin, base.base_path, base.headers, base.body),
        Prepared("POST", base.url, base.origin, base.base_path, base.headers, b"{}"),
        Prepared("POST", base.url, base.origin, base.base_path, (*base.headers, ("X-More", "1")), base.body),
    ):
        seen.add(sign(connector, changed)[0]["Authorization"].partition("Signature=")[2])
    elsewhere = base.url.replace("eu-west-1", "eu-west-2"), base.origin.replace("eu-west-1", "eu-west-2")
    moved = Prepared("POST", *elsewhere, base.base_path, base.headers, base.body)
    seen.add(sign(connector, moved)[0]["Authorization"].partition("Signature=")[2])
    seen.add(sign(connector, base, AT + 1)[0]["Authorization"].partition("Signature=")[2])
    assert len(seen) == 8


def test_a_secret_and_every_key_derived_of_it_is_known_to_the_scrubber() -> None:
    _, secrets = sign(JSON["things"], request(JSON["things"], "read", path="p"), session_token=TOKEN)
    key = f"AWS4{SECRET}".encode()
    for part in ("20261126", "eu-west-1", "things", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
        for written in (key.hex(), key.hex().upper(), base64.b64encode(key).decode()):
            assert contains_secret(f"<{written}>", secrets), part
    assert contains_secret(SECRET, secrets)
    assert contains_secret(TOKEN, secrets)
    signature = sign(JSON["things"], request(JSON["things"], "read", path="p"), session_token=TOKEN)[0]["Authorization"]
    assert contains_secret(signature, secrets)
    assert not contains_secret(KEY_ID, secrets)


@pytest.mark.parametrize("name", ["x-amz-date", "X-Amz-Content-Sha256", "Authorization", "X-Amz-Security-Token"])
def test_nothing_can_stand_where_the_signature_goes(name: str) -> None:
    prepared = request(JSON["things"], "read", path="p")
    forged = Prepared("GET", prepared.url, prepared.origin, prepared.base_path, ((name, "x"),))
    with pytest.raises(CredentialMalformed, match="already"):
        sign(JSON["things"], forged, session_token=TOKEN)
    with pytest.raises(DefinitionError, match="set by Keyleash"):
        parse(TEXT.replace("SERVICE", "things").replace("X-Amz-Target: things.Do", f"{name}: x"))
    with pytest.raises(DefinitionError, match="set by Keyleash"):
        parse(
            TEXT.replace("SERVICE", "things").replace(
                "q: {type: string}", f"q: {{in: header, as: {name}, type: string}}"
            )
        )


# -- sent


def over_the_wire(received: Received, host: str) -> str:
    """What botocore signs of a request as it arrived."""
    named = received.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    headers = {name: received.headers[name] for name in named}
    headers |= {"X-Amz-Date": headers.pop("x-amz-date"), "X-Amz-Content-SHA256": headers.pop("x-amz-content-sha256")}
    url = f"http://{host}{received.target}"
    return authorization(received.method, url, headers, received.body, service="things", region="eu-west-1")


async def test_what_arrives_is_what_was_signed_and_a_second_try_is_signed_anew() -> None:
    connector, times = JSON["things"], iter((AT, AT + 7.0))
    with Upstream() as upstream:
        answers = iter((Answer({}, 503, {"Retry-After": "0"}), Answer({"x": SECRET})))
        upstream.answer = lambda _request: next(answers)
        call = Call(
            "things", connector, connector.tools["read"], "read", {"path": "a b/ü*", "tags": ["b", "a"], "q": ""}
        )
        prepared = prepare(call, base_url=f"{upstream.url}/base")
        held = Held(access_key_id=KEY_ID, secret_access_key=SECRET)
        attach = attaching(connector.credentials[0], held, prepared, clock=lambda: next(times))
        async with Egress() as egress:
            reply = await egress.send(prepared, attach=attach, private=LOCAL, limits=Limits())
    first, second = upstream.requests
    assert (first.headers["x-amz-date"], second.headers["x-amz-date"]) == ("20261126T050000Z", "20261126T050007Z")
    assert first.headers["authorization"] != second.headers["authorization"]
    for received in upstream.requests:
        assert received.headers["authorization"] == over_the_wire(received, upstream.url.removeprefix("http://"))
        assert SECRET not in repr(received)
    assert contains_secret(reply.body.decode(), reply.secrets)


def local() -> Any:
    import ipaddress

    return (ipaddress.ip_network("127.0.0.1/32"),)


LOCAL = local()


@pytest.mark.parametrize(("text", "says"), [(STS, ":user/USER</Arn>"), (SECRETS_MANAGER, '"Name": "')])
async def test_moto_takes_what_is_signed_and_refuses_what_is_not(text: str, says: str) -> None:
    connector = parse(text)
    with checking_moto() as keys:
        prepared = prepare_verify(connector, base_url=keys.url)
        good = {"access_key_id": keys.key_id, "secret_access_key": keys.secret, "region": "us-east-1"}
        replies = []
        async with Egress() as egress:
            for fields in (good, good | {"secret_access_key": SECRET}):
                attach = attaching(connector.credentials[0], Held(**fields), prepared)
                replies.append(await egress.send(prepared, attach=attach, private=LOCAL))
    assert (replies[0].status, says.replace("USER", keys.user).encode() in replies[0].body) == (200, True), replies[
        0
    ].body
    assert replies[1].status in (400, 403)
    assert b"SignatureDoesNotMatch" in replies[1].body or b"InvalidSignature" in replies[1].body


# -- the file, and what a person gives


def test_a_region_is_the_files_or_is_asked_for() -> None:
    assert [field.name for field in JSON["things"].credentials[0].fields] == [
        "access_key_id",
        "secret_access_key",
        "session_token",
    ]
    asked = parse(SECRETS_MANAGER).credentials[0]
    assert [field.name for field in asked.fields] == ["access_key_id", "secret_access_key", "region", "session_token"]
    assert [field.secret for field in asked.fields] == [False, True, False, True]
    check(asked, {"access_key_id": KEY_ID, "secret_access_key": SECRET, "region": "eu-west-1"})
    with pytest.raises(CredentialMalformed, match="region"):
        check(asked, {"access_key_id": KEY_ID, "secret_access_key": SECRET})
    with pytest.raises(CredentialMalformed):
        check(asked, {"access_key_id": KEY_ID, "secret_access_key": f"{SECRET}\n", "region": "eu-west-1"})


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("service: SERVICE, ", "", "needs its service"),
        ("service: SERVICE", "service: S/3", "service"),
        ("scheme: aws_sigv4", "scheme: bearer", "has no service"),
        ("scheme: aws_sigv4", "scheme: aws_sigv4, name: X", "stands in Authorization"),
        ("scheme: aws_sigv4", "scheme: aws_sigv4, prefix: X", "no prefix"),
        ("scheme: aws_sigv4", "scheme: aws_sigv4, fields: {secret: {label: x}}", "always the same"),
    ],
)
def test_a_file_says_no_more_and_no_less_than_a_signature_needs(was: str, becomes: str, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        parse(TEXT.replace(was, becomes).replace("SERVICE", "things"))
