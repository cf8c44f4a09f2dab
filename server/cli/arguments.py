"""Refuse a command line that holds a secret, whichever argument it stands in, without repeating it."""

import re
from collections.abc import Sequence

_KEY = re.compile(
    r"(?:(?:sk|rk|pk|whsec|gh[opusr]|github_pat|glpat|xapp|xox[a-z]|ntn|secret|kla|npm|pypi|hf|shpat)[_-]"
    r"|SG\.|AKIA|ASIA|AIza|ya29\.|eyJ[\w-]+\.eyJ)[\w.+/=-]{10,}"
)
_LONG = re.compile(r"[A-Za-z0-9+=_-]{32,}")

REFUSED = (
    "an argument looks like a key, and nothing was done with it. Arguments stay in the shell's history and other "
    "programs can read them: if it is one, revoke it. Keyleash asks for secrets without showing them, or takes them "
    "with `--secret-stdin` or `--secret-from`."
)


def holds_a_key(arguments: Sequence[str]) -> bool:
    """Whether one of the arguments looks like a key; where a credential is asked for, any long random word does."""
    asks = arguments[:1] == ["connect"] or list(arguments[:2]) == ["connection", "rotate"]
    words = [part for argument in arguments for part in (argument, argument.partition("=")[2])]
    return any(_KEY.fullmatch(word) or (asks and _random(word)) for word in words)


def _random(word: str) -> bool:
    kinds = [any(map(test, word)) for test in (str.islower, str.isupper, str.isdigit)]
    return all(kinds) and _LONG.fullmatch(word) is not None
