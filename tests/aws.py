"""AWS for tests: an org's own connector files, botocore's signature to hold ours against, and moto, which checks it."""

import secrets as secrets_module
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.vault.rigs import moto_server

KEY_ID = "AKIACANARY00EXAMPLE0"
SECRET = "canaryWf3kT9qZr7LmXv2/pBnYd+0Hq5TnYb7LdKe1"
TOKEN = "FwoGcanaryZXIvYXdzEJr//////////wEaDHq2vXw0Zr5TnYb7Ld=="

SECRETS_MANAGER = (Path(__file__).parents[1] / "configs/examples/aws_secrets.yaml").read_text("utf-8")
"""The example that people are given."""
STS = """\
id: aws_sts
title: AWS STS
base_url: https://sts.us-east-1.amazonaws.com
body: form
credentials:
  keys: {label: access key, help: IAM., scheme: aws_sigv4, service: sts, region: us-east-1}
verify:
  call: POST /
  fixed: {body: {Action: GetCallerIdentity, Version: "2011-06-15"}}
tools:
  whoami:
    title: Who am I
    description: The account and user whose key this is.
    call: POST /
    effect: read
    because: It asks by POST; nothing changes.
    fixed: {body: {Action: GetCallerIdentity, Version: "2011-06-15"}}
"""


@dataclass(frozen=True)
class Keys:
    """Of a user that moto knows."""

    url: str
    user: str
    """Also the name of a secret that is there."""
    key_id: str
    secret: str


@contextmanager
def checking_moto() -> Generator[Keys]:
    """moto with a user who may do everything; from then on it refuses whatever is not signed by their key."""
    from moto.core.authorization import ActionAuthenticatorMixin

    with moto_server() as url:
        given = {
            "region_name": "us-east-1",
            "endpoint_url": url,
            "aws_access_key_id": "x",
            "aws_secret_access_key": "x",
        }
        iam, secrets = boto3.client("iam", **given), boto3.client("secretsmanager", **given)
        name = f"keyleash_{secrets_module.token_hex(4)}"  # what moto knows lasts as long as this process
        iam.create_user(UserName=name)
        policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
        iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        secrets.create_secret(Name=name, SecretString="kept")
        before = _checked(ActionAuthenticatorMixin, 0)
        try:
            yield Keys(url, name, key["AccessKeyId"], key["SecretAccessKey"])
        finally:
            _checked(ActionAuthenticatorMixin, before)


def _checked(mixin: object, count: float) -> float:
    from moto import settings

    before, settings.INITIAL_NO_AUTH_ACTION_COUNT = settings.INITIAL_NO_AUTH_ACTION_COUNT, count
    mixin.request_count = 0  # type: ignore[attr-defined]
    return before


def authorization(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    service: str,
    region: str,
    token: str | None = None,
) -> str:
    """The Authorization that botocore's own signer makes at the moment that `X-Amz-Date` names, over these headers."""
    request = AWSRequest(method, url, dict(headers), body or b"")
    request.context["timestamp"] = headers["X-Amz-Date"]
    signer = (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials(KEY_ID, SECRET, token), service, region)
    names = signer.signed_headers(signer.headers_to_sign(request))
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, SignedHeaders={names}, Signature={signature}"
