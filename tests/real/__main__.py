"""`python -m tests.real [--only NAME]`: Keyleash beside parts that others wrote, and what came of it, line by line.

Needs Node (the extra `test` brings it) and, the first time, the package registries: everything is downloaded by pip
and npm at pinned versions into KEYLEASH_REAL_CACHE, or into a temporary folder that is gone afterwards. Nothing leaves
loopback otherwise. Three minutes, two more for the first downloads, and 1.1 GB on disk.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path

import anyio

from tests.real import (
    conformance,
    documents,
    github,
    imported,
    inspector,
    kept,
    oauth,
    openapi_documents,
    slack,
    stripe,
    wrapped,
)
from tests.real.fetching import Cache
from tests.real.report import Came, Report

CHECKS: dict[str, Callable[[Report, Cache], Awaitable[None]]] = {
    "stripe": stripe.check,
    "github": github.check,
    "slack": slack.check,
    "inspector": inspector.check,
    "conformance": conformance.check,
    "documents": documents.check,
    "openapi": openapi_documents.check,
    "oauth": oauth.check,
    "wrapped": wrapped.check,
    "kept": kept.check,
    "imported": imported.check,
}


def run(names: Iterable[str], cache: Cache, *, keep: bool = False) -> Report:
    """Run these checks, one after the other; `keep` records which tools are as their vendors' documents say."""
    checks = CHECKS | ({"documents": partial(documents.check, kept=True)} if keep else {})
    report = Report()
    for name in names:
        report.part = name
        with report.line("runs to its end"):
            anyio.run(checks[name], report, cache)
    return report


def main() -> int:
    """Run what was asked for; 1 if anything failed. What cannot be shown here is no failure, and is counted."""
    parser = argparse.ArgumentParser(prog="python -m tests.real", description="Keyleash beside parts of others.")
    parser.add_argument("--only", choices=list(CHECKS), action="append", help="only this one; repeatable")
    parser.add_argument("--keep", action="store_true", help="record which tools are as their vendors describe them")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keyleash-real-") as folder:
        report = run(given.only or CHECKS, Cache(Path(os.environ.get("KEYLEASH_REAL_CACHE", folder))), keep=given.keep)
    counts = ", ".join(f"{report.of(came)} {came}" for came in Came)
    print(f"\n{counts}; {time.monotonic() - began:.0f} s")
    return 1 if report.of(Came.FAILED) else 0


if __name__ == "__main__":
    sys.exit(main())
