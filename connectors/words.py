"""Everyday words and the words of tools, brought together: split, cut to their stems, with what means the same."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from connectors.thesaurus import ACTS, ALIKE, IRREGULAR, KNOWN_FOR, LOOKS, MARKS, MEANT, PHRASES, STOP

MOST_WORDS = 32
"""Of a request; what comes after them is not looked at."""

IN_SUBJECT = 0.3
"""What a word counts for that belongs to what is to be told, or to what a page or a ticket is about."""

_WORD = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SHORTENED = re.compile(r"(?<=[A-Za-z])(?:n['’]t|['’][a-z]{1,2})\b")
_POLITELY = r"(?:(?:please|can you|could you|can i|could i|i want to|i need to|we need to|let me|let's|help me|to) )*"
_LOOKS = re.compile(rf"{_POLITELY}(?:{'|'.join(LOOKS)})\b", re.IGNORECASE)
_ACTS = re.compile(rf"{_POLITELY}(?:{'|'.join(ACTS)})\b", re.IGNORECASE)
_BEFORE_THE_SUBJECT = re.compile(
    r"^(?:.{3,}? (?:about|regarding|concerning|saying|called|named|titled) "
    r"|(?:please )?(?:tell|send|dm|text|message|notify|inform|remind|post|write|ping|leave|let \w+ know)\b"
    r".{3,60}?(?: that |: ))",
    re.IGNORECASE,
)


def only_looks(request: str) -> bool:
    """Whether a request, by the way it begins, wants to know something and to change nothing."""
    return _LOOKS.match(request.strip()) is not None


def acts(request: str) -> bool:
    """Whether a request, by the way it begins, wants something done."""
    return not only_looks(request) and _ACTS.match(request.strip()) is not None


def split(text: str) -> Iterator[str]:
    """The words of a text in lower case; names such as `created_gte` and `isOpen` come apart."""
    for word in _WORD.findall(_HUMP.sub(" ", _SHORTENED.sub("", text))):
        yield word.lower()


@lru_cache(maxsize=20_000)  # an offer is indexed again after every change in its org, and most of it is as before
def terms(text: str) -> tuple[str, ...]:
    """What a text is indexed by: stems, without the words that say nothing, and what its phrases mean besides."""
    words = list(split(text))
    said, whole = [stem(word) for word in words if word not in STOP], " ".join(words)
    phrases = PHRASES if len(words) > 1 else ()
    meant = (stem(word) for pattern, means in phrases if pattern.search(whole) for word in means.split())
    return (*said, *(one for one in dict.fromkeys(meant) if one not in said))


@dataclass(frozen=True, slots=True)
class Asked:
    """A word of a request, as a stem, with those that may stand in its place."""

    stem: str
    alike: frozenset[str]
    weight: float  # up to 1


def asked(request: str) -> list[Asked]:
    """The words of a request that say something, each once."""
    told = _BEFORE_THE_SUBJECT.match(request)
    place = told.end() if told else len(request)
    weights = dict.fromkeys(_stems(request[place:]), IN_SUBJECT) | dict.fromkeys(_stems(request[:place]), 1.0)
    words = [Asked(word, _alike().get(word, frozenset()), weight) for word, weight in weights.items()]
    return sorted(words, key=lambda word: -word.weight)[:MOST_WORDS]


def _stems(request: str) -> Iterator[str]:
    for pattern, meant in (*MARKS, *PHRASES):
        request = pattern.sub(meant, request)
    for word in split(request):
        if word == "who" or not (word in STOP or word.isdigit()):
            yield stem(MEANT.get(word, word))


@lru_cache(maxsize=1)
def _alike() -> dict[str, frozenset[str]]:
    """For each stem those of all lines that it stands in, and of the services that are known for it."""
    alike: dict[str, set[str]] = {}
    for line in ALIKE:
        stems = set(map(stem, line.split()))
        for one in stems:
            alike.setdefault(one, set()).update(stems - {one})
    for service, known_for in KNOWN_FOR.items():
        for word in known_for.split():
            alike.setdefault(stem(word), set()).add(stem(service))
    return {one: frozenset(others) for one, others in alike.items()}


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """A word without its endings, so that `charge`, `charges` and `charged` are one. Crude, and the same everywhere.

    >>> [stem(word) for word in ("replies", "reply", "merging", "merged", "statuses")]
    ['repli', 'repli', 'merg', 'merg', 'statu']
    """
    word = IRREGULAR.get(word, word)
    if len(word) <= 3 or not word.isalpha():
        return word
    for ending, instead in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)] + instead
            break
    for ending in ("ing", "ed"):
        kept = word[: -len(ending)]
        if word.endswith(ending) and len(kept) >= 3 and _VOWEL.search(kept):
            doubled = kept[-1] == kept[-2] and kept[-1] not in "lsz"
            word = kept[:-1] if doubled else kept
            break
    if word.endswith("ion") and len(word) > 6:
        word = word[:-3]
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return f"{word[:-1]}i" if word.endswith("y") and len(word) > 3 else word


_ENDINGS = (("sses", "ss"), ("ies", "y"), ("ied", "y"), ("ss", "ss"), ("us", "us"), ("is", "is"), ("s", ""))
_VOWEL = re.compile(r"[aeiouy]")
