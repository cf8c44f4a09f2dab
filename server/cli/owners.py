"""Which installed distributions bring a top-level package of given names, as `importlib.metadata` would say it.

That reads every file's entry of every distribution; this looks for the names in the text of each list of files.
"""

import re
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, distributions
from inspect import getmodulename


def owners_of(names: Collection[str]) -> dict[str, list[str]]:
    """For each of the names that is brought by anything: by which distributions."""
    begins = re.compile(rf'^"?((?:{"|".join(map(re.escape, names))})[/.][^,"\r\n]*)', re.MULTILINE)
    found: dict[str, list[str]] = {}
    for distribution in distributions():
        for name in sorted(set(_brought(distribution, begins)) & set(names)):
            found.setdefault(name, []).append(distribution.metadata["Name"])
    return found


def _brought(distribution: Distribution, begins: re.Pattern[str]) -> Iterator[str]:
    """The top-level names of a distribution; where only a list of its files says them, those of interest."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        yield from declared
        return
    record = distribution.read_text("RECORD")
    files = begins.findall(record) if record is not None else map(str, distribution.files or ())
    for file in files:
        first, slash, _ = file.replace("\\", "/").partition("/")
        name = first if slash else getmodulename(first)
        if name:
            yield name
