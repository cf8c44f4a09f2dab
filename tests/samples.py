"""Arguments that fit any shipped tool, made of its schema."""

from random import Random
from typing import Any

import jsonschema_rs

from connectors.definition import Tool
from tests.hostile import LIES

# Texts of which one fits any pattern that a shipped tool has.
TEXTS = [
    *("text", "usd", "1700000000.000100", "0" * 40, "0" * 32, "U0AAAAA", "USD", "12.50"),
    *("2026-11-30", "US", "1", "24h"),
    *("ann@example.com", "https://example.com/", "+15551234567", "d-" + "0" * 32),
    *("app" + "A" * 14, "rec" + "A" * 14, "SM" + "0" * 32, "MG" + "0" * 32, "PN" + "0" * 32),
    *("models/text", "files/text"),
]


def sample(schema: dict[str, Any]) -> Any:
    """A value that fits this schema, with every property there is."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return sample(schema["anyOf"][0])
    match schema["type"]:
        case "string":
            fits = jsonschema_rs.Draft202012Validator(schema).is_valid
            return next(text for text in TEXTS if fits(text))
        case "integer":
            return schema.get("minimum", 0) + 1
        case "number":
            return 0.5
        case "boolean":
            return True
        case "array":
            return [sample(schema["items"])]
        case "object":
            return {name: sample(part) for name, part in schema.get("properties", {}).items()} or {"key": "text"}
        case other:
            raise AssertionError(other)


def sample_arguments(tool: Tool) -> dict[str, Any]:
    return {name: sample(part) for name, part in tool.input_schema["properties"].items()}


def fuzzed_arguments(tool: Tool, rng: Random) -> dict[str, Any]:
    """What is required and some of the rest, in any order; most of it fits the tool, much of its text is hostile."""
    properties, needed = tool.input_schema["properties"], tool.input_schema.get("required", [])
    chosen = [name for name in properties if name in needed or rng.random() < 0.5]
    rng.shuffle(chosen)
    return {name: fuzzed(properties[name], rng) for name in chosen}


def fuzzed(schema: dict[str, Any], rng: Random) -> Any:
    """A value that this schema probably admits."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return fuzzed(rng.choice(schema["anyOf"]), rng)
    match schema.get("type", "string"):
        case "integer":
            low, high = schema.get("minimum", -5), schema.get("maximum", 10**9)
            return rng.choice((low, high, rng.randint(low, high), rng.randint(low, min(high, low + 10))))
        case "number":
            return rng.choice((0.5, 1.0, 1, rng.random(), round(rng.random(), 2)))
        case "boolean":
            return rng.random() < 0.5
        case "array":
            least = max(1, schema.get("minItems", 1))
            return [fuzzed(schema["items"], rng) for _ in range(rng.randint(least, min(3, schema.get("maxItems", 3))))]
        case "object":
            return _fuzzed_object(schema, rng)
        case _:
            return _fuzzed_text(schema, rng)


def _fuzzed_object(schema: dict[str, Any], rng: Random) -> dict[str, Any]:
    properties, needed = schema.get("properties", {}), schema.get("required", [])
    made = {name: fuzzed(part, rng) for name, part in properties.items() if name in needed or rng.random() < 0.5}
    if isinstance(more := schema.get("additionalProperties"), dict):
        names = [rng.choice(list(LIES.values()))[:30] or "key", "plain"]
        made |= {name: fuzzed(more, rng) for name in names[: rng.randint(1, 2)]}
    return made or sample(schema)


def _fuzzed_text(schema: dict[str, Any], rng: Random) -> str:
    fits = jsonschema_rs.Draft202012Validator(schema).is_valid
    lies = list(LIES.values())
    made = [
        rng.choice(lies),
        f"{rng.choice(TEXTS)}{rng.choice(lies)}",
        "".join(rng.choices(ALPHABET, k=rng.randint(1, 30))),
        "".join(map(chr, rng.choices(range(0x20, 0x2FF), k=rng.randint(1, 20)))),
        f"{rng.choice(TEXTS)}{rng.randint(0, 10**6)}",
    ]
    rng.shuffle(made)
    plain = [text for text in TEXTS if fits(text)]
    return next(filter(fits, [*made, *rng.sample(plain, len(plain))]))


ALPHABET = "abcXYZ019 -_.~!*'();:@&=+$,/?#[]%\"\\<>{}|^`\t\n\u00e9\u4e16\u0430\u202e\u200b\U0001f389"
