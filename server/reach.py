"""Which tools a caller could call at all. One that no arguments could let it call is to it as if it did not exist."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from connectors.catalogue import Offered
from connectors.definition import Effect
from server.connections import Workspace
from server.identity import Caller
from server.policy import Subject, possible, reach


def subject(caller: Caller) -> Subject:
    """The caller, as rules see one."""
    return _subject(caller.agent, caller.member, caller.roles, caller.groups, caller.standalone)


_subject = lru_cache(maxsize=1024)(Subject)  # it says who was looked up for this call, and nothing of what they may


def within_reach(caller: Caller, workspace: Workspace, tools: Iterable[Offered]) -> Iterator[Offered]:
    """Those of these tools that some arguments could let the caller use, with or without a person; none held."""
    reaches = reach(subject(caller), workspace.rules, workspace.preset)
    for offered in tools:
        connection, tool = offered.connection, offered.tool
        if offered.name in workspace.held:
            continue
        if caller.narrowing.admits(connection, tool.name, tool.effect.value) and reaches(
            connection, tool.name, tool.effect
        ):
            yield offered


def shown(caller: Caller, workspace: Workspace, name: str) -> Offered | None:
    """The tool of this name, if it is within the caller's reach.

    What there is not is looked at like what is hidden: how long the answer takes is not to tell them apart.
    """
    offered = workspace.offer.find(name)
    connection, tool, effect = ("", name, Effect.READ)
    if offered is not None:
        connection, tool, effect = offered.connection, offered.tool.name, offered.tool.effect
    narrowed = not caller.narrowing.admits(connection, tool, effect.value)
    open_to = possible(subject(caller), connection, tool, effect, workspace.rules, workspace.preset)
    return offered if open_to and not narrowed else None
