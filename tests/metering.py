"""An installation with a connector whose provider reports everything that can be reported."""

from pathlib import Path
from typing import Any

from server.app import open_installation
from server.audit import Entry
from server.audit.entry import canonical
from tests.installed import Place, make

METERED = """
id: metered
title: Metered
base_url: https://metered.example.com
credentials: {key: {label: Key, help: There., scheme: bearer}}
verify: {call: GET /me}
quota: {requests: {left: x-left}, bucket: {left: x-bucket-left, of: x-bucket}}
tools:
  ask:
    title: Ask
    description: An answer.
    call: POST /ask
    effect: metered
    because: It costs money and changes nothing.
    ask: Ask {text}
    arguments: {text: {type: string, required: true, description: What.}}
    output:
      usage: "usage.{tokens_in: tokens.input, tokens_out: tokens.output, tokens_cached: tokens.cached, cost: cost,
        cost_unit: unit, other: other}"
"""


def metering(home: Path, url: str) -> Place:
    """The account `metered` at that address, and the agent `reconciler`."""
    made = make(home)
    made.installation.close()
    folder = made.installation.settings.connectors
    folder.mkdir(mode=0o700)
    (folder / "metered.yaml").write_text(METERED)
    opened = Place(open_installation(made.installation.settings), made.org, made.owner)
    opened.connect(url, connector="metered")
    opened.agent()
    return opened


def entry(seq: int, event: str, **body: Any) -> Entry:
    """One of a log, as a recount reads it; nothing chains it to another."""
    return Entry("org_a", seq, 0, event, canonical({"connection": "metered", "tool": "metered_ask", **body}), "", "")
