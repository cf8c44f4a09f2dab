"""Marks that say whose they are: every row of an org carries one, and none may turn up where another org looks.

A canary is `cny`, six letters of its org and five of its row. An org whose letters begin with `z` does not exist.
"""

import itertools
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r"[\w.:-]*cny[a-z]{11}[\w.:-]*")
CANARY = re.compile(r"cny([a-z]{6})[a-z]{5}")
ID = re.compile(r"\b(?:org|apr|grt|rul|con|agt|mem|idm|lst|chn|ntf)_[a-z2-9]{16}\b")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


@dataclass
class Mark:
    """One org's canaries, one after the other, and what its people and agents have said of others on purpose."""

    letters: str
    rows: Iterator[str] = field(
        default_factory=lambda: map("".join, itertools.product(string.ascii_lowercase, repeat=5))
    )
    said: set[str] = field(default_factory=set)

    def canary(self) -> str:
        return f"cny{self.letters}{next(self.rows)}"

    def strangers(self, text: str) -> Iterator[str]:
        """Everything in `text` that carries another org's canary, but for what this org itself has said before."""
        for found in CANARY.finditer(text):
            if found[1] == self.letters or found[1][0] == "z":
                continue
            around = next(token[0] for token in TOKEN.finditer(text) if token.start() <= found.start() < token.end())
            if not any(said in around for said in self.said if found[0] in said):
                yield around


def never(like: str, chance: random.Random) -> str:
    """Something of the same form that never existed: an id, a token, or a name with a canary."""
    if ID.fullmatch(like):
        return like[:4] + "".join(chance.choices(_ALPHABET, k=16))
    letters = "z" + "".join(chance.choices(string.ascii_lowercase, k=5))
    return CANARY.sub(lambda found: f"cny{letters}{found[0][-5:]}", like)
