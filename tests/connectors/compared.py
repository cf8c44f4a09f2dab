"""Which shipped tools were found to be as their vendors describe them, and whether they are still as they were then.

`python -m tests.real --only documents --keep` compares and writes `compared.json`. Half of the documents that it needs
are in no package, so the ordinary run asks only that nothing has changed since.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from connectors.definition import Connector, Tool, canonical

FILE = Path(__file__).parent / "compared.json"
NOT_DESCRIBED = {
    "airtable": "Airtable publishes no document; the requests are held to a library's",
    "cloudflare": "its document is too large to be had here; the file was read against the vendor's library",
    "zendesk": "no document could be had; the file was read against the vendor's pages",
}


def fingerprint(connector: Connector, tool: Tool) -> str:
    """Of everything that such a comparison looks at: the request, its names and values, and what is selected."""
    arguments = [
        [each.name, each.place, each.wire_name, list(each.steps), dict(each.schema), each.required, each.style]
        for each in tool.arguments
    ]
    looked_at = [
        [connector.base_url, tool.method, tool.path, [list(each) for each in (*connector.headers, *tool.headers)]],
        arguments,
        [[list(each) for each in tool.fixed_query], [[list(steps), value] for steps, value in tool.fixed_body]],
        [[list(steps), how] for steps, how in tool.encode],
        tool.operation.document if tool.operation else None,
        [tool.output_select.text if tool.output_select else None, tool.output_brief],
    ]
    return hashlib.sha256(canonical(looked_at).encode()).hexdigest()[:16]


def recorded() -> dict[str, dict[str, str]]:
    """Fingerprints by connector and tool."""
    return json.loads(FILE.read_text("utf-8"))


def keep(connector: Connector) -> None:
    """Record that every tool of this connector is as its vendor describes it."""
    whole: dict[str, Any] = recorded() if FILE.is_file() else {}
    whole[connector.id] = {name: fingerprint(connector, tool) for name, tool in sorted(connector.tools.items())}
    FILE.write_text(json.dumps(dict(sorted(whole.items())), indent=1) + "\n", "utf-8")
