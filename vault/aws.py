"""A root key that never leaves AWS KMS: it wraps and unwraps there, for a context that KMS itself enforces and logs.

It is named `aws-kms:ARN`, by the ARN of a symmetric key. Not by an alias: an alias can be pointed at another key, and
then nothing opens. Nor is a key created here; who may use or delete it is decided at AWS. Keyleash needs
`kms:Encrypt` and `kms:Decrypt` on it, and nothing else.

A blob, version 1:

    offset  length     what
    0       1          version, 0x01
    1       1 to 6144  the CiphertextBlob that Encrypt gave

The encryption context, which CloudTrail shows and a key policy can ask for, has one pair for each part of a context:
`purpose` is the first part, and after it

    org-key          org, version
    everything else  part-2, part-3, …

with each part percent-encoded (UTF-8; `/ : @ = +` and space stand as they are), and an empty one written as `%`. A
policy that asks for certain purposes has to allow `root-proof` too, which a key is proven with.

Region and key come from the ARN. Credentials, an endpoint (`AWS_ENDPOINT_URL_KMS`), a proxy and trusted certificates
are boto3's own business: its chain of files, environment and roles. Waits are bounded (see `patience`), and so are
those for credentials that boto3 fetches over the network; name resolution and a `credential_process` take what they
take.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, final
from urllib.parse import quote

from vault.errors import CannotOpen, KeysUnavailable, Mend, RootKeyProblem, VaultError
from vault.remote import given, prove, refuse_in_clear
from vault.seal import require_context
from vault.secret import Opaque

VERSION = b"\x01"
MOST_BLOB_BYTES = 1 + 6144
KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+", re.ASCII)
NAMES = {"org-key": ("org", "version")}
"""purpose → what the parts after it are called in the encryption context"""

NOT_OURS = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
"""What KMS says of a blob or a context, whatever the state of the key and of our permissions."""

UNFIT = {
    "NotFoundException": "There is no such key. Check the ARN; a key that was deleted does not come back.",
    "InvalidArnException": "KMS does not take the ARN. Check it.",
    "DisabledException": "The key is disabled. Enable it: aws kms enable-key --key-id {arn}",
    "KMSInvalidStateException": (
        "The key's state forbids its use: it is to be deleted, or lacks its material. "
        "`aws kms describe-key --key-id {arn}` shows which; `aws kms cancel-key-deletion` takes a deletion back."
    ),
    "InvalidKeyUsageException": "It is not a symmetric key for encryption. Make one: aws kms create-key",
    "ValidationException": "It is not a symmetric key for encryption. Make one: aws kms create-key",
}
"""Error code → what is wrong with the key itself, and the mend."""

BUSY = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
        "LimitExceededException",
        "TooManyRequestsException",
        "KeyUnavailableException",
        "DependencyTimeoutException",
        "KMSInternalException",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)
STALE = frozenset(
    {
        "ExpiredTokenException",
        "ExpiredToken",
        "RequestExpired",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "AuthFailure",
        "OptInRequired",
        "NotAuthorized",
    }
)
NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "NoAuthTokenError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "LoginRefreshRequired",
        "LoginInsufficientPermissions",
        "LoginTokenLoadError",
    }
)
"""The exceptions of botocore that are about credentials, by name: not every release has all of them."""

FORBIDDEN = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"})
NOT_OURS_BUT_DENIED = "The ciphertext refers to"
"""How KMS begins when it denies access for what stands in the blob, and not for want of a permission."""


class Kms(Protocol):
    """What is asked of boto3's client."""

    meta: Any

    def encrypt(self, **request: Any) -> Mapping[str, Any]: ...

    def decrypt(self, **request: Any) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class AwsKmsRef:
    """A symmetric key of AWS KMS, by its ARN.

    `patience` is in seconds: for a connection, and then for an answer, each at most twice with up to a second between.
    """

    arn: str
    patience: float = 2.0
    provider: ClassVar[str] = "aws-kms"

    @classmethod
    def at(cls, where: str, home: Path) -> "AwsKmsRef":
        if not KEY_ARN.fullmatch(where):
            raise RootKeyProblem(
                "Name the key by its ARN: `aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID`. An alias will not do: it can be "
                "pointed at another key, and then nothing opens. To see what it names now: "
                "aws kms describe-key --key-id alias/NAME --query KeyMetadata.Arn"
            )
        return cls(where)

    @property
    def location(self) -> str:
        return self.arn

    def describe(self) -> dict[str, str]:
        return {"provider": self.provider, "location": self.location}

    def create(self) -> "AwsKmsKey":
        """No key is created: the one named is proven to wrap and unwrap. Raises as `wrap` and `unwrap` do as well."""
        root = self.load()
        prove(root)
        return root

    def successor(self, generation: int) -> "AwsKmsRef":
        """This place: a key service makes new versions of a key in its place, and wraps under the newest."""
        return self

    def destroy(self) -> bool:
        """Never from here: who may destroy a service's key is decided there."""
        return False

    def load(self) -> "AwsKmsKey":
        """Asks KMS nothing, so that a server can start, and say what is the matter, while KMS is away.

        RootKeyProblem where boto3 is missing, or finds no usable credentials or configuration.
        """
        client = _client(self.arn, self.patience)
        refuse_in_clear(client.meta.endpoint_url, mend="Set AWS_ENDPOINT_URL_KMS to an https address, or unset it.")
        return AwsKmsKey(self.arn, client)


@final
class AwsKmsKey(Opaque):
    """A key in AWS KMS, in use."""

    __slots__ = ("_client", "location")

    provider = AwsKmsRef.provider
    remote = True

    def __init__(self, arn: str, client: Kms) -> None:
        self.location = arn
        self._client = lambda: client

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        answer = self._encrypted(key, context)
        del key  # so that a traceback that prints locals has no key to print
        return VERSION + given(answer)

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        answer = self._decrypted(blob, context)
        del blob
        return given(answer)

    def _encrypted(self, key: bytes, context: Sequence[str]) -> bytes | VaultError:
        pairs = encryption_context(context)
        return self._asked(
            lambda kms: kms.encrypt(KeyId=self.location, Plaintext=key, EncryptionContext=pairs)["CiphertextBlob"]
        )

    def _decrypted(self, blob: bytes, context: Sequence[str]) -> bytes | VaultError:
        pairs = encryption_context(context)
        if blob[:1] != VERSION or not 1 < len(blob) <= MOST_BLOB_BYTES:
            return CannotOpen()
        return self._asked(
            lambda kms: kms.decrypt(KeyId=self.location, CiphertextBlob=blob[1:], EncryptionContext=pairs)["Plaintext"]
        )

    def _asked(self, ask: Callable[[Kms], bytes]) -> bytes | VaultError:
        try:
            return ask(self._client()) or _unreached("an empty answer", self.location)  # also where it was no Base64
        except Exception as error:  # boto3 passes on what its transport, its parsers and its credentials' sources raise
            return _problem(error, self.location)


def encryption_context(context: Sequence[str]) -> dict[str, str]:
    """A context as pairs; two contexts that differ in any way are different pairs. ValueError for what is no context.

    >>> encryption_context(("org-key", "org_a", "1"))
    {'purpose': 'org-key', 'org': 'org_a', 'version': '1'}
    """
    require_context(context)
    purpose, *parts = context
    names = NAMES.get(purpose, ())
    named = {names[at] if at < len(names) else f"part-{at + 2}": part for at, part in enumerate(parts)}
    return {name: _written(part) for name, part in {"purpose": purpose, **named}.items()}


def _written(part: str) -> str:
    return quote(part.encode("utf-8", "surrogatepass"), safe="/:@=+ ") or "%"


def _client(arn: str, patience: float) -> Kms:
    try:
        import boto3  # pyright: ignore[reportMissingTypeStubs] - it has no types; `Kms` says what is used
        import botocore  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise RootKeyProblem("AWS KMS is asked through boto3, which is not here: pip install 'keyleash[aws]'") from None
    # At DEBUG it logs the bodies of requests and answers, which hold the keys; at WARNING the services' own words, with
    # a traceback. What there is to say is said by the errors of this module.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    aws, core = cast(Any, boto3), cast(Any, botocore)
    retries = {"total_max_attempts": 2, "mode": "standard"}
    try:
        session = core.session.get_session()
        # For the session and not this client alone: what fetches credentials over the network is bounded as well.
        bounds = core.config.Config(connect_timeout=patience, read_timeout=patience, retries=retries)
        session.set_default_client_config(bounds)
        if session.get_config_variable("region") is None:  # a role is asked for in a region, too
            session.set_config_variable("region", _region(arn))
        if session.get_credentials() is not None:
            return aws.Session(botocore_session=session).client("kms", region_name=_region(arn))
        why = "none were found"
    except (core.exceptions.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        why = type(error).__name__
    raise RootKeyProblem(
        f"boto3 has no usable AWS credentials or configuration here ({why}). `aws sts get-caller-identity`, run as the "
        "user that Keyleash runs as, shows what it finds; a role of the machine or the container is best."
    )


def _problem(error: Exception, arn: str) -> VaultError:
    """What an exception of boto3 means. Of its own words none is passed on, but for codes that are listed above."""
    refusal = _Refusal.of(error)
    if refusal is None:
        return _no_answer(error, arn)
    if not refusal.of_kms:
        return _no_credentials("AWS does not give Keyleash the credentials of the role that it is to take on.")
    return _refused(refusal, arn)


@dataclass(frozen=True)
class _Refusal:
    """An error that AWS answered with."""

    of_kms: bool
    code: str
    message: str
    status: int

    @classmethod
    def of(cls, error: Exception) -> "_Refusal | None":
        response: Any = getattr(error, "response", None)  # botocore's ClientError has one, and nothing else here
        if not isinstance(response, dict):
            return None
        answer = cast("dict[str, Any]", response)
        said, status = answer.get("Error", {}), answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        asked = getattr(error, "operation_name", "")
        return cls(asked in ("Encrypt", "Decrypt"), str(said.get("Code")), str(said.get("Message")), int(status))


def _refused(refusal: _Refusal, arn: str) -> VaultError:
    code, status = refusal.code, refusal.status
    if code in NOT_OURS or (code in FORBIDDEN and refusal.message.startswith(NOT_OURS_BUT_DENIED)):
        return CannotOpen()
    if code in UNFIT:
        return RootKeyProblem(f"AWS KMS cannot use the root key {arn} ({code}). {UNFIT[code].format(arn=arn)}")
    if code in STALE:
        return _no_credentials(f"AWS KMS does not take the credentials of Keyleash ({code}).")
    if code in FORBIDDEN:
        return KeysUnavailable(
            f"AWS KMS does not let Keyleash use the root key ({code}).",
            mend=Mend.PERMIT,
            how=f"Allow kms:Encrypt and kms:Decrypt on {arn} to the identity that Keyleash runs as.",
        )
    if code in BUSY or status == 429 or status >= 500:
        shown = code if code in BUSY else f"HTTP {status}"
        return KeysUnavailable(
            f"AWS KMS is overloaded or broken ({shown}).",
            mend=Mend.WAIT,
            how="Try again in a moment; the AWS Health Dashboard shows whether it lasts.",
        )
    return _unreached(f"HTTP {status}", arn)


def _no_answer(error: Exception, arn: str) -> KeysUnavailable:
    name = type(error).__name__
    if name in NO_CREDENTIALS:
        return _no_credentials(f"boto3 cannot get AWS credentials any more ({name}).")
    return _unreached(name, arn)


def _no_credentials(what: str) -> KeysUnavailable:
    return KeysUnavailable(
        what,
        mend=Mend.RENEW,
        how="Renew them, and check this machine's clock: `aws sts get-caller-identity`, run as the user that Keyleash "
        "runs as, shows whether they are good.",
    )


def _unreached(shown: str, arn: str) -> KeysUnavailable:
    return KeysUnavailable(
        f"AWS KMS in {_region(arn)} does not answer, or what answers is not it ({shown}).",
        mend=Mend.REACH,
        how="Check the network and any proxy or endpoint that is set for AWS; then try again.",
    )


def _region(arn: str) -> str:
    return arn.split(":")[3]
