"""Small OpenAPI documents, written for one test each, and what becomes of their one operation."""

import json
from typing import Any

import jsonschema_rs
import pytest

from connectors.arguments import Taken
from connectors.compiling import Outline, arguments, outline
from connectors.definition import Argument
from connectors.document import Document, DocumentError, read_document

Json = dict[str, Any]


def document(operation: Json | None = None, *, version: str = "3.0.3", **more: Any) -> Document:
    """A document with one operation, at `POST /things/{id}` unless `more` says `paths`."""
    paths = {"/things/{id}": {"post": {"operationId": "makeThing", **(operation or {})}}}
    whole = {"openapi": version, "info": {"title": "Things", "version": "1"}, "paths": paths} | more
    return read_document(json.dumps(whole).encode(), "things.json")


def body(schema: Any, kind: str = "application/json", **more: Any) -> Json:
    """An operation with this body."""
    return {"requestBody": {"content": {kind: {"schema": schema}}, "required": True, **more}}


def query(schema: Any, name: str = "q", **more: Any) -> Json:
    """An operation with this query parameter."""
    return {"parameters": [{"name": name, "in": "query", "schema": schema, **more}]}


def taken_in(whole: Document, taken: Taken | None = None) -> Outline:
    """What the document's first operation takes."""
    return outline(whole, next(whole.operations()), taken or Taken(frozenset(), frozenset()))


def compiled(whole: Document) -> dict[str, Argument]:
    """The arguments of its first operation; their schema is a valid one without references."""
    described = next(whole.operations())
    made = arguments(whole, taken_in(whole).inputs, described.part)
    schema = {"type": "object", "properties": {each.name: each.schema for each in made}, "additionalProperties": False}
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions())
    assert "$ref" not in json.dumps(schema)
    return {each.name: each for each in made}


def schema_of(schema: Any, *, version: str = "3.0.3", **more: Any) -> Any:
    """What becomes of this schema, as that of a query parameter."""
    return compiled(document(query(schema), version=version, **more))["q"].schema


def refused(whole: Document) -> DocumentError:
    """Why its operation cannot be offered."""
    with pytest.raises(DocumentError) as error:
        compiled(whole)
    return error.value
