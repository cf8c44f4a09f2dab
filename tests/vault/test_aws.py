import base64
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ports import free_port
from tests.upstream import Answer, Upstream
from tests.vault.fake_kms import ACCESS_KEY, CANARY, DENIED_BLOB, SECRET_KEY, FakeKms
from tests.vault.rigs import alone_with_aws, moto_server
from vault import CannotOpen, KeysUnavailable, Mend, RootKeyProblem, VaultError, root_key_spec
from vault.aws import NO_CREDENTIALS, AwsKmsKey, AwsKmsRef, encryption_context

KEY = bytes(range(200, 232))
ORG = ("org-key", "org_a", "1")
ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
PATIENCE = 0.3
"""Seconds, for what never answers; where an answer is to come, a busy machine is given the ordinary time."""


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKms]:
    with FakeKms() as kms:
        alone_with_aws(monkeypatch, endpoint=kms.url)
        yield kms


@pytest.fixture
def arn(kms: FakeKms) -> str:
    return kms.new_key()


@pytest.fixture
def root(arn: str) -> AwsKmsKey:
    return AwsKmsRef(arn).load()


def refusal(code: str, status: int = 400, message: str = "") -> Answer:
    return Answer({"__type": f"com.amazonaws.kms#{code}", "message": f"{message} {CANARY}".strip()}, status=status)


@pytest.mark.parametrize(
    "arn",
    [
        f"arn:aws:kms:eu-west-1:111122223333:key/{ID}",
        f"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/{ID}",
        f"arn:aws-cn:kms:cn-north-1:111122223333:key/{ID}",
        "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
    ],
)
def test_the_arn_of_a_key_names_it(arn: str, tmp_path: Path):
    ref = root_key_spec(f"aws-kms:{arn}", tmp_path)
    assert ref.location == arn


@pytest.mark.parametrize(
    "where",
    [
        "alias/keyleash",
        ID,
        "arn:aws:kms:eu-west-1:111122223333:alias/keyleash",
        f"arn:aws:s3:eu-west-1:111122223333:key/{ID}",
        f"arn:aws:kms:eu-west-1:1111:key/{ID}",
        f"arn:aws:kms::111122223333:key/{ID}",
        f"arn:aws:kms:evil.example/:111122223333:key/{ID}",
        f"arn:aws:kms:eu-west-1:111122223333:key/{ID}\n",
        "arn:aws:kms:eu-west-1:111122223333:key/",
        f" arn:aws:kms:eu-west-1:111122223333:key/{ID}",
    ],
)
def test_anything_else_is_refused_and_says_how_to_find_the_arn(where: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match=r"alias .* pointed at another key.*describe-key"):
        root_key_spec(f"aws-kms:{where}", tmp_path)


def test_the_same_context_is_the_same_pairs_in_every_release():
    assert [encryption_context(context) for context in [ORG, ("root-check",), ("installation-key",)]] == [
        {"purpose": "org-key", "org": "org_a", "version": "1"},
        {"purpose": "root-check"},
        {"purpose": "installation-key"},
    ]
    assert encryption_context(("text", "", "a b/ü%", "+", "=:@~_-.")) == {
        "purpose": "text",
        "part-2": "%",
        "part-3": "a b/%C3%BC%25",
        "part-4": "+",
        "part-5": "=:@~_-.",
    }
    assert encryption_context(("org-key", "o", "1", "x")) == {
        "purpose": "org-key",
        "org": "o",
        "version": "1",
        "part-4": "x",
    }


PARTS = st.one_of(
    st.sampled_from(["", "%", "org-key", "a", "%25", "part-2", "1"]), st.text(st.characters(), max_size=4)
)
CONTEXTS = st.lists(PARTS, min_size=1, max_size=5)


@given(CONTEXTS, CONTEXTS)
def test_two_contexts_have_the_same_pairs_only_if_they_are_the_same(one: list[str], two: list[str]):
    assert (encryption_context(one) == encryption_context(two)) == (one == two)


@given(CONTEXTS)
def test_pairs_are_never_empty_and_plain_enough_for_a_policy(context: list[str]):
    for name, value in encryption_context(context).items():
        assert name
        assert value
        assert value.isascii()
        assert value.isprintable()


def test_the_request_names_key_and_context_and_the_blob_is_a_version_and_what_came_back(
    kms: FakeKms, arn: str, root: AwsKmsKey
):
    blob = root.wrap(KEY, context=ORG)
    assert root.unwrap(blob, context=ORG) == KEY
    pairs = {"purpose": "org-key", "org": "org_a", "version": "1"}
    sent = base64.b64encode(blob[1:]).decode()
    assert blob[:1] == b"\x01"
    assert kms.asked == [
        ("Encrypt", {"KeyId": arn, "Plaintext": base64.b64encode(KEY).decode(), "EncryptionContext": pairs}),
        ("Decrypt", {"KeyId": arn, "CiphertextBlob": sent, "EncryptionContext": pairs}),
    ]


def test_the_region_is_the_keys_own_whatever_the_environment_says(
    kms: FakeKms, root: AwsKmsKey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    AwsKmsRef(root.location).load().wrap(KEY, context=ORG)
    assert "/eu-west-1/kms/aws4_request" in kms.requests[-1].headers["authorization"]


def test_what_is_no_blob_of_ours_is_not_sent(kms: FakeKms, root: AwsKmsKey):
    for blob in [b"", b"\x01", b"\x00abc", b"\x02abc", b"\x01" + b"x" * 6145]:
        with pytest.raises(CannotOpen):
            root.unwrap(blob, context=ORG)
    assert kms.requests == []


def test_loading_asks_nothing_and_needs_no_service(kms: FakeKms, arn: str, monkeypatch: pytest.MonkeyPatch):
    root = AwsKmsRef(arn).load()
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{free_port()}")
    assert AwsKmsRef(arn).load().location == root.location == arn
    assert kms.requests == []


def test_creating_makes_no_key_and_proves_the_one_that_is_there(kms: FakeKms, arn: str):
    root = AwsKmsRef(arn).create()
    assert [operation for operation, _ in kms.asked] == ["Encrypt", "Decrypt", "Decrypt"]
    assert list(kms.keys) == [arn]
    assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY


@pytest.mark.parametrize(
    ("key", "mend"),
    [
        ({"state": "Disabled"}, r"enable-key --key-id arn:aws:kms"),
        ({"state": "PendingDeletion"}, r"describe-key --key-id arn:aws:kms.*cancel-key-deletion"),
        ({"symmetric": False}, r"not a symmetric key.*create-key"),
    ],
)
def test_a_key_that_cannot_be_used_is_said_with_its_mend(kms: FakeKms, key: dict[str, Any], mend: str):
    with pytest.raises(RootKeyProblem, match=mend):
        AwsKmsRef(kms.new_key(**key)).create()


def test_a_key_that_is_not_there_is_not_made(kms: FakeKms):
    with pytest.raises(RootKeyProblem, match="no such key"):
        AwsKmsRef(f"arn:aws:kms:eu-west-1:111122223333:key/{ID}").create()
    assert kms.keys == {}


REFUSALS = [
    ("InvalidCiphertextException", 400, CannotOpen, None, "cannot be opened"),
    ("IncorrectKeyException", 400, CannotOpen, None, "cannot be opened"),
    ("NotFoundException", 400, RootKeyProblem, None, "no such key"),
    ("InvalidArnException", 400, RootKeyProblem, None, "does not take the ARN"),
    ("DisabledException", 409, RootKeyProblem, None, "enable-key"),
    ("KMSInvalidStateException", 409, RootKeyProblem, None, "describe-key"),
    ("InvalidKeyUsageException", 400, RootKeyProblem, None, "symmetric"),
    ("ValidationException", 400, RootKeyProblem, None, "symmetric"),
    ("AccessDeniedException", 400, KeysUnavailable, Mend.PERMIT, "Allow kms:Encrypt and kms:Decrypt on arn:aws:kms"),
    ("ExpiredTokenException", 400, KeysUnavailable, Mend.RENEW, "ExpiredTokenException.*Renew them"),
    ("UnrecognizedClientException", 400, KeysUnavailable, Mend.RENEW, "Renew them"),
    ("InvalidSignatureException", 400, KeysUnavailable, Mend.RENEW, "clock"),
    ("ThrottlingException", 400, KeysUnavailable, Mend.WAIT, "ThrottlingException.*Try again"),
    ("KeyUnavailableException", 500, KeysUnavailable, Mend.WAIT, "KeyUnavailableException.*Try again"),
    ("DependencyTimeoutException", 503, KeysUnavailable, Mend.WAIT, "Try again"),
    ("KMSInternalException", 500, KeysUnavailable, Mend.WAIT, "Try again"),
    ("SomethingNew", 500, KeysUnavailable, Mend.WAIT, "HTTP 500"),
    ("SomethingNew", 429, KeysUnavailable, Mend.WAIT, "HTTP 429"),
    ("SomethingNew", 400, KeysUnavailable, Mend.REACH, "HTTP 400"),
]


@pytest.mark.parametrize(("code", "status", "kind", "mend", "said"), REFUSALS, ids=lambda value: str(value)[:24])
def test_each_refusal_is_what_it_means_and_none_of_the_services_words(
    kms: FakeKms,
    root: AwsKmsKey,
    locals_in: Callable[[BaseException], str],
    code: str,
    status: int,
    kind: type[VaultError],
    mend: Mend | None,
    said: str,
):
    blob = root.wrap(KEY, context=ORG)
    kms.instead = lambda received: refusal(code, status)
    for use in (lambda: root.wrap(KEY, context=ORG), lambda: root.unwrap(blob, context=ORG)):
        with pytest.raises(VaultError, match=said) as caught:
            use()
        assert type(caught.value) is kind
        assert getattr(caught.value, "mend", None) is mend
        assert CANARY not in locals_in(caught.value)
        assert "SomethingNew" not in str(caught.value)
        assert caught.value.__context__ is None
    kms.instead = lambda received: None
    assert root.unwrap(blob, context=ORG) == KEY  # without a restart


def test_access_denied_for_what_the_blob_says_is_about_the_blob(kms: FakeKms, root: AwsKmsKey):
    blob = root.wrap(KEY, context=ORG)
    kms.instead = lambda received: refusal("AccessDeniedException", message=DENIED_BLOB)
    with pytest.raises(CannotOpen):
        root.unwrap(blob, context=ORG)


def test_one_that_is_busy_for_a_moment_is_asked_once_more_and_no_oftener(kms: FakeKms, root: AwsKmsKey):
    kms.instead = lambda received: refusal("ThrottlingException") if len(kms.requests) == 1 else None
    assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY
    assert [operation for operation, _ in kms.asked] == ["Encrypt", "Encrypt", "Decrypt"]
    kms.instead = lambda received: refusal("ThrottlingException")
    with pytest.raises(KeysUnavailable):
        root.wrap(KEY, context=ORG)
    assert len(kms.requests) == 3 + 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>hello</html>", headers={"Content-Type": "text/html"}),
        Answer({"Unexpected": 1}),
        Answer([1, 2]),
        Answer({"CiphertextBlob": "%%%", "Plaintext": "%%%"}),
        Answer(hang_up=True),
        Answer(b"<html>proxy</html>", status=403, headers={"Content-Type": "text/html"}),
        Answer(status=307, headers={"Location": "http://127.0.0.1:1/"}),
    ],
    ids=["html", "other json", "a list", "no base64", "hangs up", "a proxy's page", "redirect"],
)
def test_what_does_not_speak_as_kms_does_is_no_answer(kms: FakeKms, root: AwsKmsKey, answer: Answer):
    blob = root.wrap(KEY, context=ORG)
    kms.instead = lambda received: answer
    for use in (lambda: root.wrap(KEY, context=ORG), lambda: root.unwrap(blob, context=ORG)):
        with pytest.raises(KeysUnavailable, match="eu-west-1 does not answer") as caught:
            use()
        assert caught.value.mend is Mend.REACH


def test_one_that_never_answers_is_not_waited_for(kms: FakeKms, arn: str):
    root = AwsKmsRef(arn, patience=PATIENCE).load()
    never = threading.Event()
    kms.instead = lambda received: Answer(wait=never)
    began = time.monotonic()
    with pytest.raises(KeysUnavailable, match="ReadTimeoutError"):
        root.wrap(KEY, context=ORG)
    assert time.monotonic() - began < 2 * PATIENCE + 1 + 4
    assert len(kms.requests) == 2
    never.set()


def test_the_longest_wait_is_under_ten_seconds():
    patience = AwsKmsRef("").patience
    assert 2 * (patience + patience) + 1 < 10


def test_without_boto3_it_says_what_to_install(arn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(RootKeyProblem, match=r"pip install 'keyleash\[aws\]'"):
        AwsKmsRef(arn).load()


def test_without_any_credentials_it_does_not_load(kms: FakeKms, arn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RootKeyProblem, match=r"none were found.*get-caller-identity"):
        AwsKmsRef(arn).load()
    assert kms.requests == []


def test_half_credentials_or_an_unknown_profile_do_not_load(arn: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as half:
        half.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(RootKeyProblem, match="PartialCredentialsError"):
            AwsKmsRef(arn).load()
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    with pytest.raises(RootKeyProblem, match="ProfileNotFound"):
        AwsKmsRef(arn).load()


def test_unknown_credentials_are_to_be_renewed(kms: FakeKms, arn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY[:-1] + "9")
    with pytest.raises(KeysUnavailable, match="UnrecognizedClientException") as caught:
        AwsKmsRef(arn).create()
    assert caught.value.mend is Mend.RENEW


@pytest.fixture
def role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kms: FakeKms) -> Iterator[Upstream]:
    """Keyleash is to take on a role, which this stand-in for STS gives out or not."""
    config = tmp_path / "config"
    config.write_text(
        "[profile keyleash]\nrole_arn = arn:aws:iam::111122223333:role/keyleash\nsource_profile = own\n"
        f"[profile own]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    with Upstream() as sts:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_PROFILE", "keyleash")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        yield sts


def test_a_role_is_taken_on_without_a_region_of_its_own(role: Upstream, kms: FakeKms, arn: str):
    role.answer = lambda request: Answer(
        f"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{ACCESS_KEY}</AccessKeyId>"
        f"<SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>token</SessionToken>"
        "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>".encode(),
        headers={"Content-Type": "text/xml"},
    )
    root = AwsKmsRef(arn).load()
    assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY
    assert len(role.requests) == 1
    assert kms.requests[0].headers["x-amz-security-token"] == "token"


def test_a_role_that_is_not_given_is_about_credentials_and_kms_is_not_asked(
    role: Upstream,
    kms: FakeKms,
    arn: str,
    locals_in: Callable[[BaseException], str],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    role.answer = lambda request: Answer(
        f"<ErrorResponse><Error><Code>AccessDenied</Code><Message>{CANARY}</Message></Error></ErrorResponse>".encode(),
        status=403,
        headers={"Content-Type": "text/xml"},
    )
    root = AwsKmsRef(arn).load()
    with pytest.raises(KeysUnavailable, match="credentials of the role") as caught:
        root.wrap(KEY, context=ORG)
    assert caught.value.mend is Mend.RENEW
    assert CANARY not in locals_in(caught.value)
    assert SECRET_KEY not in locals_in(caught.value)
    assert CANARY not in caplog.text
    assert kms.requests == []


def test_waiting_for_credentials_is_bounded_too(role: Upstream, kms: FakeKms, arn: str):
    never = threading.Event()
    role.answer = lambda request: Answer(wait=never)
    root = AwsKmsRef(arn, patience=PATIENCE).load()
    began = time.monotonic()
    with pytest.raises(KeysUnavailable):
        root.wrap(KEY, context=ORG)
    assert time.monotonic() - began < 2 * PATIENCE + 1 + 4
    assert kms.requests == []
    never.set()


def test_every_exception_about_credentials_is_one_of_botocores():
    assert {name for name in NO_CREDENTIALS if not hasattr(botocore.exceptions, name)} == set()


@pytest.mark.parametrize("url", ["http://kms.example.com", "http://10.0.0.1:4566"])
def test_an_endpoint_in_clear_is_refused(arn: str, monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
    with pytest.raises(RootKeyProblem, match=r"in clear\. Set AWS_ENDPOINT_URL_KMS"):
        AwsKmsRef(arn).load()


def test_an_endpoint_that_is_no_url_is_refused(arn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "kms example")
    with pytest.raises(RootKeyProblem):
        AwsKmsRef(arn).load()


def test_botocore_logs_nothing_since_its_bodies_hold_the_keys(root: AwsKmsKey, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    root.unwrap(root.wrap(KEY, context=ORG), context=ORG)
    assert base64.b64encode(KEY).decode() not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("botocore")]


def test_what_moto_does_not_do_and_kms_does(monkeypatch: pytest.MonkeyPatch):
    """Why the contract is held against a fake of ours as well. One that fails here may be taken out of this list."""
    import boto3

    with moto_server() as url:
        alone_with_aws(monkeypatch, endpoint=url)
        client = boto3.client("kms", region_name="eu-west-1")
        one, two = (client.create_key()["KeyMetadata"] for _ in range(2))
        rsa = client.create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]
        blob = client.encrypt(KeyId=one["Arn"], Plaintext=KEY, EncryptionContext={"purpose": "abc"})["CiphertextBlob"]
        # It strings names and values of a context together, so that what moved from one to the other still opens.
        moved = client.decrypt(KeyId=one["Arn"], CiphertextBlob=blob, EncryptionContext={"purposea": "bc"})
        assert moved["Plaintext"] == KEY
        # It denies access to what another key encrypted, without saying that the blob is the reason.
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            client.decrypt(KeyId=two["Arn"], CiphertextBlob=blob, EncryptionContext={"purpose": "abc"})
        assert caught.value.response["Error"] == {"Code": "AccessDeniedException", "Message": ""}
        # Disabled keys, and keys that are no symmetric ones, encrypt.
        client.disable_key(KeyId=two["KeyId"])
        assert client.encrypt(KeyId=two["Arn"], Plaintext=KEY)["CiphertextBlob"]
        assert client.encrypt(KeyId=rsa["Arn"], Plaintext=KEY, EncryptionContext={"a": "b"})["CiphertextBlob"]
        # It asks nobody who they are.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
        assert boto3.client("kms", region_name="eu-west-1").encrypt(KeyId=one["Arn"], Plaintext=KEY)["CiphertextBlob"]
