"""An operator who offers an account to two orgs of one installation, at the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.app import running
from server.call import Outcome, call
from server.identity import system_user
from server.managed import Terms, offer, plan_offer
from tests.agents import Nobody, Person
from tests.commandline import CommandLine, Ran
from tests.installed import Place, add_org, make
from tests.upstream import Answer, Received, Upstream
from vault import Secret

THEIRS = "sk-proj-W7pQ2mZ9xRk4Vt8sB1nHd3"
SECOND = "sk-proj-Jc5Ly0Gq6Uf2Xe9Ai1Mo7Sz"
OWN = "sk-proj-Np8Tb3Wd7Kr1Hv4Qx6Zg9Ec"
ASK = ("openai_create_response", {"model": "gpt-6", "input": "Hello?"})


def answered(request: Received) -> Answer:
    """Like OpenAI, as far as the tests go."""
    if request.method == "GET":
        return Answer({"data": [{"id": "gpt-6", "owned_by": "openai", "created": 1}]})
    return Answer({"id": "resp_1", "status": "completed", "model": "gpt-6", "output": [], "usage": {"total_tokens": 7}})


@dataclass
class Offering:
    """Two orgs, `acme` and `beta`, each with an agent `reconciler`, and the operator at a shell, who owns both."""

    acme: Place
    beta: Place
    line: CommandLine
    upstream: Upstream

    def __call__(self, words: str, *, secret: str = "", org: str = "") -> Ran:
        whose = ("--org", org) if org else ()
        return self.line(*words.split(), *whose, stdin=f"{secret}\n".encode())

    def there(self) -> str:
        return f"--base-url {self.upstream.url} --allow-private 127.0.0.1/32 --secret-stdin"

    def offer(self, to: str = "acme,beta", more: str = "", *, secret: str = THEIRS) -> Ran:
        """OpenAI, unless `more` says otherwise; it comes to something."""
        ran = self(f"managed offer openai --to {to} {self.there()} {more}", secret=secret)
        assert ran.code == 0, ran
        return ran

    def own(self, org: str = "acme", *, secret: str = OWN) -> Ran:
        ran = self(f"connect openai {self.there()}", secret=secret, org=org)
        assert ran.code == 0, ran
        return ran

    def keys(self) -> list[str]:
        """Whose key each call went out with, since it was last asked; nothing is sent to try a key."""
        sent = [request.headers.get("authorization", "") for request in self.upstream.requests if request.body]
        self.upstream.requests.clear()
        return [each.removeprefix("Bearer ") for each in sent]


@contextmanager
def offering(folder: Path) -> Iterator[Offering]:
    with Upstream() as upstream:
        upstream.answer = answered
        acme = make(folder / "home")
        beta = add_org(acme.installation, "beta")
        for place in (acme, beta):
            place.agent()
        acme.database.write_now(lambda rows: rows.execute("UPDATE member SET os_user = ?", (system_user(),)))
        person = folder / "person"
        person.mkdir()
        yield Offering(acme, beta, CommandLine(folder / "home", person), upstream)
        acme.installation.close()


def offered_by_operator(
    place: Place, base_url: str, *, name: str = "openai", secret: str = THEIRS, calls_per_day: int | None = None
) -> None:
    """The same without a command line, to the one org."""
    terms = Terms(calls_per_day=calls_per_day)
    planned = plan_offer(
        place.installation.catalogue,
        connector="openai",
        name=name,
        kind=None,
        base_url=base_url,
        private=("127.0.0.1/32",),
        terms=terms,
    )
    place.database.write_now(
        lambda rows: offer(
            rows,
            place.installation.vault,
            place.org,
            planned,
            terms,
            fields=Secret({"secret": secret}),
            verified=False,
            by="the operator",
        )
    )


async def asked(
    place: Place,
    person: Person | None = None,
    *,
    name: str = ASK[0],
    given: dict[str, Any] | None = None,
    pointer: str | None = None,
) -> Outcome:
    """One call of the org's agent."""
    arguments = ASK[1] if given is None else given
    async with running(place.installation) as parts:
        return await call(parts, place.caller(), name, arguments, person or Nobody(), pointer=pointer)


__all__ = ["ASK", "OWN", "SECOND", "THEIRS", "Offering", "asked", "offered_by_operator", "offering"]
