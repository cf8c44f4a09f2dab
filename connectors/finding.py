"""Find the tools that a request in everyday words is about, among those that someone may see.

BM25 over weighted fields. Every figure comes from the tools that are searched, so what is not among them changes
nothing: neither what is found nor in which order.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from connectors.definition import Effect
from connectors.words import Asked, acts, asked, only_looks, terms

if TYPE_CHECKING:
    from connectors.catalogue import Offered

NAME, TITLE, WHERE, DESCRIPTION, EFFECT, ARGUMENT, ABOUT_ARGUMENT = 3.0, 2.5, 2.5, 0.5, 0.5, 0.3, 0.15
"""How much a word weighs, by the place where a tool says it."""

ALIKE = 0.9
"""What a word that means the same counts for, beside the word itself."""

NAMED = 1.5
"""How much more a tool is worth whose connector or connection the request names."""

OUT_OF_PLACE = 0.7
"""What remains of a tool that changes something, for a request that only wants to know, and the other way round."""

CHANGES = frozenset(Effect) - {Effect.READ, Effect.SENSITIVE, Effect.METERED}
KEEPS = frozenset({Effect.READ, Effect.SENSITIVE})  # a model's answer is wanted by either kind

EFFECT_WORDS: Mapping[Effect, str] = {
    Effect.READ: "read list get show see find",
    Effect.METERED: "generate ask",
    Effect.SENSITIVE: "read list get show see find",
    Effect.WRITE: "create update change",
    Effect.SEND: "send post write",
    Effect.SPEND: "pay spend money",
    Effect.DESTROY: "delete cancel",
    Effect.GRANT: "invite share access",
}

PAGING = frozenset(
    {"after", "after_id", "before", "before_id", "cursor", "ending_before", "first", "last", "starting_after"}
    | {"offset", "page", "page_token", "start_at", "start_cursor"}
    | {"count", "limit", "max_results", "page_size", "per_page", "order", "sort"}
)
"""Arguments that turn pages: every list has them, and they say nothing of what is listed."""

_PAGES = re.compile(r"\b(?:call again|has_more|per_page|full page)\b")
_SATURATION, _LENGTH = 2.0, 0.3  # k1 and b of BM25


@dataclass(frozen=True, slots=True)
class Found:
    """A tool that answers a request, and the same tool of other connections."""

    tool: "Offered"
    twins: tuple["Offered", ...] = ()


class Index:
    """The words of these tools. Made once for an offer; searched for each caller among what that one may see."""

    def __init__(self, tools: Sequence["Offered"]) -> None:
        self._tools = tuple(tools)
        self._places = {offered.name: place for place, offered in enumerate(self._tools)}
        self._said: dict[str, dict[int, float]] = {}
        self._named: dict[str, list[int]] = {}
        self._lengths: list[float] = []
        for place, offered in enumerate(self._tools):
            weighed = _weighed(offered)
            self._lengths.append(sum(weighed.values()))
            for term, weight in weighed.items():
                self._said.setdefault(term, {})[place] = weight
            for term in _names(offered):
                self._named.setdefault(term, []).append(place)

    def search(self, request: str, among: Iterable["Offered"]) -> list[Found]:
        """The tools that have to do with the request, the likeliest first; none where nothing does.

        A word of a tool answers one word of the request, the one that it answers best.
        """
        places = frozenset(self._places[offered.name] for offered in among)
        mean = sum(self._lengths[place] for place in sorted(places)) / max(len(places), 1)
        words = asked(request)
        answers: dict[int, dict[str, float]] = defaultdict(dict)
        for word in words:
            for place, (score, term) in self._scores(word, places, mean).items():
                answers[place][term] = max(answers[place].get(term, 0.0), score)
        scores = {place: sum(each.values()) for place, each in answers.items()}
        for place in {place for word in words for place in self._named.get(word.stem, ())} & scores.keys():
            scores[place] *= NAMED
        out_of_place = CHANGES if only_looks(request) else KEEPS if acts(request) else frozenset[Effect]()
        for place in scores:
            if self._tools[place].tool.effect in out_of_place:
                scores[place] *= OUT_OF_PLACE
        return _together(self._tools[place] for place in sorted(scores, key=lambda place: self._rank(place, scores)))

    def _scores(self, word: Asked, places: frozenset[int], mean: float) -> dict[int, tuple[float, str]]:
        """What a word of a request is worth to each tool: the best of what answers it, and which that is.

        Words that mean the same are as rare as all of them together, or a rare one would outdo the usual one.
        """
        said = {term: self._who_say(term, places) for term in (word.stem, *sorted(word.alike))}
        if not any(said.values()):
            said = {term: self._who_say(term, places) for term in self._from(word.stem)}
        together = _rarity({place for say in said.values() for place in say}, places)
        best: dict[int, tuple[float, str]] = {}
        for term, say in said.items():
            worth = word.weight * (_rarity(say, places) if term == word.stem else together * ALIKE)
            for place, weight in say.items():
                length = 1 - _LENGTH + _LENGTH * self._lengths[place] / mean
                score = worth * weight * (_SATURATION + 1) / (weight + _SATURATION * length)
                best[place] = max(best.get(place, (0.0, "")), (score, term))
        return best

    def _who_say(self, term: str, places: frozenset[int]) -> dict[int, float]:
        return {place: weight for place, weight in self._said.get(term, {}).items() if place in places}

    def _from(self, word: str) -> Iterator[str]:
        """What an unknown word may come from: `config` is short for `configuration`, `rerun` is `run` again."""
        if word.startswith("re"):
            yield word[2:]
        if len(word) >= 4:
            yield from (term for term in sorted(self._said) if term.startswith(word))

    def _rank(self, place: int, scores: Mapping[int, float]) -> tuple[float, int, str]:
        offered = self._tools[place]
        return -round(scores[place], 6), offered.tool.effect.strictness, offered.name  # of equals, the mildest first


def _rarity(say: Collection[int], places: frozenset[int]) -> float:
    """The inverse document frequency of what these tools say, among all that are searched."""
    return math.log(1 + (len(places) - len(say) + 0.5) / (len(say) + 0.5))


def _weighed(offered: "Offered") -> dict[str, float]:
    """Each stem that a tool says, with the weight of all the places where it does."""
    weighed: dict[str, float] = defaultdict(float)
    for weight, said in _said(offered):
        for term in said:
            weighed[term] += weight
    return weighed


def _said(offered: "Offered") -> Iterator[tuple[float, Iterable[str]]]:
    tool = offered.tool
    yield NAME, terms(tool.name)
    yield TITLE, terms(tool.title)
    yield WHERE, _names(offered)
    yield DESCRIPTION, terms(_without_paging(tool.description))
    yield EFFECT, terms(EFFECT_WORDS[tool.effect])
    yield from _arguments(tool.input_schema)


def _names(offered: "Offered") -> set[str]:
    """What connector and connection are called."""
    return set(terms(f"{offered.connector.id} {offered.connector.title.lower()} {offered.connection}"))


def _arguments(schema: Mapping[str, Any]) -> Iterator[tuple[float, Iterable[str]]]:
    """Names and descriptions of a schema's properties, at any depth, but for those that turn pages."""
    for name, part in schema.get("properties", {}).items():
        if name in PAGING or not isinstance(part, dict):
            continue
        about = cast("dict[str, Any]", part)
        yield ARGUMENT, terms(name)
        yield ABOUT_ARGUMENT, terms(str(about.get("description") or ""))
        yield from _arguments(about)
        if isinstance(about.get("items"), dict):
            yield from _arguments(about["items"])


@lru_cache(maxsize=5_000)
def _without_paging(text: str) -> str:
    """A description without the sentences that tell how to turn its pages."""
    return " ".join(sentence for sentence in re.split(r"(?<=[.;])\s", text) if not _PAGES.search(sentence))


def _together(ranked: Iterable["Offered"]) -> list[Found]:
    """The same tool of several connections counts once, where its best one stands."""
    groups: dict[tuple[str, str], list[Offered]] = {}
    for offered in ranked:
        groups.setdefault((offered.connector.id, offered.tool.name), []).append(offered)
    return [Found(first, tuple(others)) for first, *others in groups.values()]
