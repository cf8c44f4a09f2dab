"""What the body of a GraphQL answer says: done, done in part, or refused, and whether a change may have been made.

HTTP says little here: a refusal comes with 200 as often as not. Values are the upstream's, scrubbed before they come
here, and not yet fit to be shown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from connectors.definition import Operation

_MOST_MESSAGES = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no result. What is empty here is looked for where the definition says."""

    said: str = ""  # the upstream's own words
    code: Any = None
    meaning: str = ""  # ours, where the upstream has none
    maybe_done: bool = False  # it is not certain that nothing was changed


def refusal(operation: Operation, status: int, body: Any, user_errors: str) -> Refusal | None:
    """Why this answer is none; None where there is a result, even one in part.

    Source for what an answer without `data`, and one with null, means: GraphQL, September 2025, section 7.1.
    """
    changes = operation.kind == "mutation"
    if not isinstance(body, dict) or not body.keys() & {"data", "errors"}:
        return Refusal(meaning=_NO_GRAPHQL, maybe_done=changes and status < 400)
    answer = cast("dict[str, Any]", body)
    results = _results(operation, answer)
    if any(result is not None for result in results.values()):
        return _refused_by_payload(results, user_errors) if changes and user_errors else None
    if answer.get("errors"):
        return Refusal(maybe_done=changes and "data" in answer and not _all_at(answer["errors"], operation))
    return Refusal(meaning="answered with nothing", maybe_done=True) if changes or not results else None


def incomplete(body: Mapping[str, Any]) -> str:
    """What the upstream says of the parts that are missing from a result; empty where it is whole."""
    return _joined(_messages(body.get("errors")))


def seconds_to_wait(body: Any) -> float | None:
    """How long until a call of this cost is taken, where the answer says: Shopify's throttleStatus.

    Source: https://shopify.dev/docs/api/usage/limits, under "GraphQL Admin API rate limits".
    """
    cost = _at(body, "extensions", "cost")
    status = _at(cost, "throttleStatus")
    wanted, left, rate = (
        _at(cost, "requestedQueryCost"),
        _at(status, "currentlyAvailable"),
        _at(status, "restoreRate"),
    )
    if not all(isinstance(number, (int, float)) for number in (wanted, left, rate)) or rate <= 0:
        return None
    return max(0.0, (wanted - left) / rate)


_NO_GRAPHQL = "did not answer as a GraphQL server does; check the connection's base URL"


def _results(operation: Operation, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What came back for each field at the top of the operation; empty where nothing was carried out."""
    data = answer.get("data")
    if not isinstance(data, dict):
        return {}
    return {key: cast("dict[str, Any]", data).get(key) for key in operation.answers}


def _refused_by_payload(results: Mapping[str, Any], user_errors: str) -> Refusal | None:
    errors = [error for payload in results.values() for error in _list(_at(payload, user_errors))]
    if not errors:
        return None
    code = next((code for error in errors if (code := _at(error, "code"))), None)
    return Refusal(said=_joined(_messages(errors)), code=code)


def _messages(errors: Any) -> Iterator[str]:
    """One line for each, with the place that it is about: of the input for a user error, of the answer for another."""
    for error in _list(errors):
        message = _at(error, "message")
        where = ".".join(str(part) for part in _list(_at(error, "field") or _at(error, "path")))
        if isinstance(message, str):
            yield f"{where}: {message}" if where else message


def _joined(messages: Iterator[str]) -> str:
    listed = list(messages)
    more = len(listed) - _MOST_MESSAGES
    return "; ".join(listed[:_MOST_MESSAGES]) + (f"; and {more} more" if more > 0 else "")


def _all_at(errors: Any, operation: Operation) -> bool:
    """Whether each error is the mutation's own refusal. One further down is of what it returns, after it was done."""
    found = _list(errors)
    return bool(found) and all(_at(error, "path") == [key] for error in found for key in operation.answers)


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value
