"""An AWS account is connected by an org's own file: signed calls, which moto checks, and a secret that is nowhere."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from server.app import open_installation, running
from server.call import call
from tests.agents import Nobody
from tests.aws import KEY_ID, SECRET, SECRETS_MANAGER, STS, TOKEN, Keys, checking_moto
from tests.commandline import CommandLine, Ran, everything
from tests.installed import Place, files_holding
from tests.server.test_canary import assert_nowhere
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio


@pytest.fixture
def moto() -> Iterator[Keys]:
    with checking_moto() as keys:
        yield keys


@pytest.fixture
def admin(place: Place, owner: CommandLine) -> CommandLine:
    """The owner at the command line, with two connectors of the org's own, and leave to call them."""
    settings = place.installation.settings
    settings.connectors.mkdir(exist_ok=True, mode=0o700)
    for name, text in (("aws_secrets", SECRETS_MANAGER), ("aws_sts", STS)):
        (settings.connectors / f"{name}.yaml").write_text(text, encoding="utf-8")
    place.installation.close()
    place.installation = open_installation(settings)
    place.rule(who="everyone", tools=["aws_secrets.*", "aws_sts.*"], then="allow")
    return owner


def connect(line: CommandLine, url: str, connector: str, *lines: str, more: tuple[str, ...] = ()) -> Ran:
    where = ("--base-url", url, "--allow-private", "127.0.0.1/32")
    return line("connect", connector, "--secret-stdin", *where, *more, stdin="\n".join(lines).encode())


async def test_an_account_is_connected_called_and_tested_with_a_signature_that_moto_takes(
    admin: CommandLine, place: Place, moto: Keys, tmp_path: Path
) -> None:
    given = (moto.key_id, moto.secret)
    runs = [
        await anyio.to_thread.run_sync(partial(connect, admin, moto.url, "aws_secrets", *given, "us-east-1")),
        await anyio.to_thread.run_sync(partial(connect, admin, moto.url, "aws_sts", *given)),
        await anyio.to_thread.run_sync(partial(admin, "connection", "test", "aws_secrets")),
        await anyio.to_thread.run_sync(partial(admin, "connector", "test", "aws_sts")),
    ]
    assert [ran.code for ran in runs] == [0] * 4, everything(*runs)
    async with running(place.installation) as parts:
        listed = await call(parts, place.caller(), "aws_secrets_list_secrets", {"max": 100}, Nobody())
        who = await call(parts, place.caller(), "aws_sts_whoami", {}, Nobody())
    assert listed.structured is not None
    assert moto.user in [secret["name"] for secret in listed.structured["secrets"]]
    assert f":user/{moto.user}" in who.text
    assert_nowhere(moto.secret, place, said=everything(*runs), heard=listed.text + who.text)
    assert files_holding(tmp_path, moto.secret.encode()) == []


async def test_a_wrong_secret_is_not_stored_and_a_rotated_one_works(
    admin: CommandLine, place: Place, moto: Keys
) -> None:
    wrong = await anyio.to_thread.run_sync(partial(connect, admin, moto.url, "aws_sts", moto.key_id, SECRET))
    assert (wrong.code, "Nothing was stored" in wrong.err) == (1, True)
    assert SECRET not in everything(wrong)
    untried = ("--no-verify",)
    await anyio.to_thread.run_sync(partial(connect, admin, moto.url, "aws_sts", moto.key_id, SECRET, more=untried))
    async with running(place.installation) as parts:
        refused = await call(parts, place.caller(), "aws_sts_whoami", {}, Nobody())
    assert (refused.ok, "aws_sts" in refused.text) == (False, True)
    again = partial(admin, "connection", "rotate", "aws_sts", "--secret-stdin")
    ran = await anyio.to_thread.run_sync(partial(again, stdin=f"{moto.key_id}\n{moto.secret}".encode()))
    assert ran.code == 0, ran.err


async def test_a_key_that_stays_elsewhere_signs_as_well(
    admin: CommandLine, place: Place, moto: Keys, tmp_path: Path
) -> None:
    file = tmp_path / "person" / "aws"
    file.write_text(f'{{"access_key_id": "{moto.key_id}", "secret_access_key": "{moto.secret}", "session_token": ""}}')
    where = ("--base-url", moto.url, "--allow-private", "127.0.0.1/32")
    ran = await anyio.to_thread.run_sync(partial(admin, "connect", "aws_sts", "--secret-from", f"file:{file}", *where))
    assert ran.code == 0, ran.err
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "aws_sts_whoami", {}, Nobody())).ok
    assert [found for found in files_holding(tmp_path, moto.secret.encode()) if found != file] == []


async def test_what_an_upstream_says_back_of_a_signature_is_taken_out(admin: CommandLine, place: Place) -> None:
    def echoing(request: object) -> Answer:
        headers = request.headers  # type: ignore[attr-defined]
        signature = re.search(r"Signature=([0-9a-f]{64})", headers["authorization"])
        assert signature
        echo = {"secret": SECRET, "token": headers["x-amz-security-token"], "signature": signature[1]}
        return Answer({"SecretList": [{"Name": str(echo)}]})

    with Upstream() as upstream:
        upstream.answer = echoing
        given = (KEY_ID, SECRET, "us-east-1", TOKEN)
        ran = await anyio.to_thread.run_sync(partial(connect, admin, upstream.url, "aws_secrets", *given))
        assert ran.code == 0, ran.err
        async with running(place.installation) as parts:
            heard = await call(parts, place.caller(), "aws_secrets_list_secrets", {}, Nobody())
    assert heard.ok
    assert heard.text.count("[removed by Keyleash]") == 3
    for secret in (SECRET, TOKEN):
        assert_nowhere(secret, place, heard=heard.text)


@pytest.mark.parametrize("lines", [("AKIA",), (KEY_ID, SECRET), (KEY_ID, SECRET, "us-east-1", TOKEN, "more")])
def test_what_lacks_a_line_or_has_one_too_many_is_named_and_not_quoted(
    admin: CommandLine, place: Place, lines: tuple[str, ...]
) -> None:
    ran = connect(admin, "http://127.0.0.1:9", "aws_secrets", *lines)
    assert ran.code == 1
    assert "access_key_id, secret_access_key, region, session_token (may be left out)" in ran.err
    assert SECRET not in everything(ran)


def test_a_changed_service_or_region_of_the_file_opens_no_key(admin: CommandLine, place: Place) -> None:
    more = ("--no-verify",)
    assert connect(admin, "http://127.0.0.1:9", "aws_sts", KEY_ID, SECRET, more=more).code == 0
    file = place.installation.settings.connectors / "aws_sts.yaml"
    for was, becomes in (("region: us-east-1", "region: eu-west-1"), ("service: sts", "service: iam")):
        file.write_text(STS.replace(was, becomes))
        ran = admin("connection", "test", "aws_sts")
        assert ran.code == 1
        assert "connect it again" in ran.err or "cannot be opened" in ran.err, ran.err
