"""The command line. `serve` over stdio answers its client before anything heavy is imported."""

import sys
from collections.abc import Sequence


def main() -> None:
    """The console script `keyleash`."""
    arguments = sys.argv[1:]
    served = stdio_arguments(arguments)
    if served is not None:
        from server.cli.serving import serve_over_stdio

        sys.exit(serve_over_stdio(**served))
    from server.cli.commands import run
    from server.hygiene import keep_memory_private

    keep_memory_private()
    run()


def stdio_arguments(arguments: Sequence[str]) -> dict[str, str | None] | None:
    """`serve [--agent NAME] [--org NAME]` and nothing else, as keywords; None for what the full parser has to see."""
    if not arguments or arguments[0] != "serve":
        return None
    found: dict[str, str | None] = {"agent": None, "org": None}
    rest = list(arguments[1:])
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        key = name.removeprefix("--")
        if not name.startswith("--") or key not in found or found[key] is not None:
            return None
        if not equals:
            if not rest or rest[0].startswith("-"):
                return None
            value = rest.pop(0)
        found[key] = value
    return found
