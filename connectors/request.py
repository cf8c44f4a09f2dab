"""Build the request of a call, without its secret, so that it cannot leave the connection's base URL.

Only declared arguments enter it. Path values are encoded whole, and refused where any number of decodings would make
them climb. The finished URL is taken apart again and compared with the base before anyone can attach a credential.
"""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from connectors.definition import Argument, Call, Connector, CredentialKind, Operation, Style, Tool, canonical
from connectors.errors import Unsendable
from connectors.layout import encoded, nested

MAX_PATH_VALUE = 512  # characters, one segment
MAX_PATH_VALUES = 2048  # characters, an argument of several segments
MAX_QUERY_VALUE = 4096  # characters, each
MAX_HEADER_VALUE = 1024  # characters
MAX_URL = 8192  # bytes
MAX_BODY = 4 * 1024 * 1024  # bytes

_BASE = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?(?P<path>/.*)?"
)
_BASE_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")
_URL = re.compile(r"[A-Za-z0-9._~:@/?\[\]%&=-]+")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be authenticated and sent: exactly these bytes, and nothing secret in them.

    But for the URL of a notice, which is one (`secret_url`).
    """

    method: str
    url: str = field(repr=False)  # fully percent-encoded
    origin: str  # scheme://host or scheme://host:port, in lower case, without a default port
    base_path: str  # "" or "/v1": the URL's path begins with it
    headers: tuple[tuple[str, str], ...]
    body: bytes | None = None
    idempotent: bool = False  # carries an idempotency key that the upstream honours
    reads: bool = False  # a GraphQL query: sent by POST, and as harmless as a GET
    secret_url: bool = False  # whoever has the URL can post there: it is kept in no cache

    @property
    def safe(self) -> bool:
        """Whether it promises to change nothing, so that it may be sent again, and a lost answer is no riddle."""
        return self.reads or self.method in ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Base:
    """Where a connection points."""

    origin: str
    path: str  # "" or "/v1", never with a trailing slash

    @property
    def url(self) -> str:
        return self.origin + self.path


@lru_cache(maxsize=1024)
def base(text: str) -> Base:
    """Take a base URL apart; raises Unsendable for anything but scheme, host, port and a plain path.

    http is taken: whether it may be used is for the one who made the connection.
    """
    match = _BASE.fullmatch(text)
    if not match:
        raise Unsendable(
            "A base URL is https://host, with a port and a path where needed, and without user name, query or fragment."
        )
    segments = (match["path"] or "/")[1:].removesuffix("/").split("/") if (match["path"] or "/") != "/" else []
    for segment in segments:
        if segment in (".", "..") or not _BASE_SEGMENT.fullmatch(segment):
            raise Unsendable(f"The base URL's path has a segment {segment[:40]!a}; use letters, digits and -._~ only.")
    if match["host"].startswith("["):
        _check_ipv6(match["host"][1:-1])
    port = int(match["port"] or _DEFAULT_PORTS[match["scheme"]])
    if not 0 < port < 65536:
        raise Unsendable(f"There is no port {port}; use 1 to 65535.")
    shown = "" if port == _DEFAULT_PORTS[match["scheme"]] else f":{port}"
    path = "".join(f"/{segment}" for segment in segments)
    return Base(f"{match['scheme']}://{match['host'].lower()}{shown}", path)


def _check_ipv6(text: str) -> None:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise Unsendable(f"{text!r} is not an IPv6 address.") from None


def prepare(call: Call, *, base_url: str, idempotency_key: str = "") -> Prepared:
    """The request of this call at this base URL; raises Unsendable.

    `idempotency_key` is sent where the connector says that the upstream honours one; elsewhere it is left out.
    """
    if call.connector.server is not None:
        return prepare_wrapped(call, base_url=base_url)
    return _prepare(call.connector, call.tool, call.arguments, base(base_url), idempotency_key)


def prepare_verify(connector: Connector, kind: CredentialKind | None = None, *, base_url: str) -> Prepared:
    """The request that shows whether a credential of this kind works; raises Unsendable for a bad base URL."""
    tool = connector.verifying(kind)[0] if kind else connector.verify
    return _prepare(connector, tool, MappingProxyType({}), base(base_url), "")


def endpoint(connector: Connector, base_url: str) -> Prepared:
    """Where the messages of a wrapped server that is reached over HTTP go; raises Unsendable."""
    where = base(base_url)
    path = connector.server.endpoint if connector.server else ""
    url = where.url + path or where.origin
    if len(url) > MAX_URL or not _URL.fullmatch(url):
        raise Unsendable("The server's address holds characters that may not stand there, or too many.")
    return Prepared("POST", url if where.path or path else f"{url}/", where.origin, where.path, connector.headers)


def prepare_wrapped(call: Call, *, base_url: str) -> Prepared:
    """What is shown, judged and recorded of a call to a wrapped server; its messages are the SDK's. Raises Unsendable.

    Nothing is ever sent twice: `reads` says only what a lost answer means.
    """
    method = f"tools/call {call.tool.upstream}"
    server = call.connector.server
    body = _json(sent_arguments(call)).encode("utf-8", "replace")
    if len(body) > MAX_BODY:
        raise Unsendable(f"The arguments are longer than {MAX_BODY} bytes; shorten them.")
    if server is not None and server.command:
        program = server.command[0].rpartition("/")[2]
        return Prepared(method, call.connector.base_url, f"stdio:{program}", "", (), body, reads=call.tool.safe)
    where = endpoint(call.connector, base_url)
    return Prepared(method, where.url, where.origin, where.base_path, where.headers, body, reads=call.tool.safe)


def sent_arguments(call: Call) -> dict[str, Any]:
    """What a wrapped server's tool is called with: the agent's arguments, and those that the file fixes."""
    return {**call.arguments, **nested(call.tool.fixed_body)}


def check_below(url: str, *, origin: str, base_path: str) -> None:
    """Raise Unsendable unless the URL is exactly at this origin and below this path, however often it is decoded."""
    if len(url) > MAX_URL:
        raise Unsendable(f"The address of the request is longer than {MAX_URL} bytes; shorten the arguments.")
    if not _URL.fullmatch(url):
        raise Unsendable("The address of the request holds characters that may not stand there.")
    parts = urlsplit(url)
    if f"{parts.scheme}://{parts.netloc}" != origin or not parts.path.startswith(f"{base_path}/"):
        raise Unsendable("The request would leave the connection's base URL.")
    for segment in parts.path.removesuffix("/").split("/")[1:]:
        if not segment or _climbs(segment):
            raise Unsendable("The request would leave the connection's base URL.")


def _climbs(segment: str) -> bool:
    while "%" in segment and (decoded := unquote(segment)) != segment:
        segment = decoded
    return segment in (".", "..") or "/" in segment or "\\" in segment


def _prepare(connector: Connector, tool: Tool, arguments: Mapping[str, Any], where: Base, key: str) -> Prepared:
    given = [(argument, arguments[argument.name]) for argument in tool.arguments if argument.name in arguments]
    pairs = [f"{_encoded(name)}={_encoded(value)}" for name, value in tool.fixed_query]
    pairs += [pair for argument, value in given if argument.place == "query" for pair in _query(argument, value)]
    query = "&".join(pairs)
    url = where.url + _path(tool, given) + (f"?{query}" if query else "")
    check_below(url, origin=where.origin, base_path=where.path)
    body = _body(tool, given, key)
    headers = {"accept": ("Accept", "application/json")}
    headers |= {name.lower(): (name, value) for name, value in (*connector.headers, *tool.headers)}
    headers |= {a.wire_name.lower(): (a.wire_name, _header(a, value)) for a, value in given if a.place == "header"}
    if body is None:
        headers.pop("content-type", None)
    else:
        headers.setdefault("content-type", ("Content-Type", _CONTENT_TYPES[tool.body_style]))
    idempotent = bool(key and connector.idempotency_header and tool.method in connector.idempotency_methods)
    if idempotent and connector.idempotency_header:
        headers[connector.idempotency_header.lower()] = (connector.idempotency_header, key)
    if tool.operation:
        idempotent = bool(key and tool.operation.key_variable)
    reads = tool.operation is not None and tool.safe
    return Prepared(tool.method, url, where.origin, where.path, tuple(headers.values()), body, idempotent, reads)


_CONTENT_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded"}

Given = list[tuple[Argument, Any]]


def _path(tool: Tool, given: Given) -> str:
    path = tool.path
    for argument, value in given:
        if argument.place == "path":
            path = path.replace(f"{{{argument.name}}}", _path_value(argument, _simple(argument, value)))
    return path


def _path_value(argument: Argument, text: str) -> str:
    limit = MAX_PATH_VALUES if argument.slashes else MAX_PATH_VALUE
    _check_text(argument, text, limit)
    segments = text.split("/") if argument.slashes else [text]
    for segment in segments:
        if not segment:
            raise Unsendable(f"{argument.name} has an empty part; give it without leading, trailing or double slashes.")
        if _climbs(segment):
            raise Unsendable(
                f"{argument.name} may not hold '.' or '..' as a part, nor a slash or backslash, encoded or not."
            )
    return "/".join(_encoded(segment) for segment in segments)


def _query(argument: Argument, value: Any) -> Iterator[str]:
    for name, text in _written(argument, value):
        _check_text(argument, text, MAX_QUERY_VALUE)
        yield f"{_encoded(name)}={_encoded(text)}"


def _written(argument: Argument, value: Any) -> Iterator[tuple[str, str]]:
    """Names and texts of a value in a query or a form, in the argument's style."""
    name = argument.wire_name
    if argument.style == "json":
        yield name, canonical(value)
    elif argument.style == "nested":
        yield from _nested(name, value)
    elif isinstance(value, list):
        texts = [_scalar(argument, item) for item in cast("list[Any]", value)]
        if argument.style in _JOINED:
            texts = [_joined(argument, texts, *_JOINED[argument.style])] if texts else []
        for text in texts:
            yield (f"{name}[]" if argument.style == "brackets" else name), text
    else:
        yield name, _scalar(argument, value)


_JOINED: Mapping[Style, tuple[str, str]] = {"comma": (",", "comma"), "space": (" ", "space"), "pipe": ("|", "bar")}


def _joined(argument: Argument, texts: list[str], sign: str, name: str) -> str:
    if any(sign in text for text in texts):
        raise Unsendable(f"An item of {argument.name} may not hold a {name}.")
    return sign.join(texts)


def _scalar(argument: Argument, value: Any) -> str:
    if isinstance(value, dict | list):
        raise Unsendable(f"{argument.name} takes plain values here: no object, and no list within a list.")
    return _text(value)


def _simple(argument: Argument, value: Any) -> str:
    """A value as the one text that a path or a header takes; a list as OpenAPI's style `simple` writes it."""
    if not isinstance(value, list):
        return _scalar(argument, value)
    texts = [_scalar(argument, item) for item in cast("list[Any]", value)]
    return _joined(argument, texts, *_JOINED["comma"])


def _header(argument: Argument, value: Any) -> str:
    text = _simple(argument, value)
    if len(text) > MAX_HEADER_VALUE:
        raise Unsendable(f"{argument.name} is longer than {MAX_HEADER_VALUE} characters.")
    if not _HEADER_VALUE.fullmatch(text):
        raise Unsendable(f"{argument.name} goes into a header: visible ASCII only, no spaces at the ends.")
    return text


def _check_text(argument: Argument, text: str, limit: int) -> None:
    if len(text) > limit:
        raise Unsendable(f"{argument.name} is longer than {limit} characters.")
    if _CONTROL.search(text):
        raise Unsendable(f"{argument.name} may not hold line breaks or other control characters.")


def _body(tool: Tool, given: Given, key: str) -> bytes | None:
    if not tool.operation and not tool.fixed_body and not any(argument.place == "body" for argument in tool.arguments):
        return None
    mine = [(argument, value) for argument, value in given if argument.place == "body"]
    if tool.body_style == "form":
        pairs = [pair for (name,), value in tool.fixed_body for pair in _nested(name, value)]
        pairs += [pair for argument, value in mine for pair in _written(argument, value)]
        text = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)
    elif any(argument.place == "body" and not argument.steps for argument in tool.arguments):
        if not mine:
            return None
        text = _json(mine[0][1])
    else:
        values = [*tool.fixed_body, *((argument.steps, value) for argument, value in mine)]
        text = _json(_graphql(tool.operation, given, key) if tool.operation else encoded(nested(values), tool.encode))
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise Unsendable("An argument holds half of a surrogate pair; send whole characters.") from None
    if len(content) > MAX_BODY:
        raise Unsendable(f"The body of the request is longer than {MAX_BODY} bytes; shorten the arguments.")
    return content


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _graphql(operation: Operation, given: Given, key: str) -> dict[str, Any]:
    """The document as the file has it; arguments are variables, and one that was left out is no null."""
    variables = {argument.wire_name: value for argument, value in given}
    if operation.key_variable and key:
        variables[operation.key_variable] = key
    return {"query": operation.document, "operationName": operation.name, "variables": variables}


def _nested(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested values in brackets, as Stripe and Rails read them: `a[b]=1`, `a[0]=1`."""
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            if not key or "[" in key or "]" in key:  # it would be read as another structure than was agreed to
                raise Unsendable(f"A name inside of {name.partition('[')[0]} is empty or holds a bracket; use another.")
            yield from _nested(f"{name}[{key}]", item)
    elif isinstance(value, list):
        for place, item in enumerate(cast("list[Any]", value)):
            yield from _nested(f"{name}[{place}]", item)
    else:
        yield name, _text(value)


def _encoded(text: str) -> str:
    if _UNRESERVED.fullmatch(text):
        return text
    try:
        return quote(text, safe="-._~")
    except UnicodeEncodeError:
        raise Unsendable("An argument holds half of a surrogate pair; send whole characters.") from None


def _text(value: Any) -> str:
    match value:
        case str():
            return value
        case True:
            return "true"
        case False:
            return "false"
        case None:
            return ""
        case _:
            return str(value)
