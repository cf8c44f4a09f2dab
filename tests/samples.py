"""Arguments that fit any shipped tool, made of its schema."""

from typing import Any

import jsonschema_rs

from connectors.definition import Tool

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
