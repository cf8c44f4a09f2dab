"""`keyleash doctor`: look at everything that an installation stands on, and say how to mend what is wrong.

It changes nothing. Every check is a function in `CHECKS`; one that cannot be carried out never hides the others.
"""

import sys
from collections.abc import Callable, Iterator

import typer

from server.cli.acting import AsJson
from server.cli.checks.accounts import budgets, connectors, consents, credentials, definitions, managed
from server.cli.checks.finding import Finding, Patient
from server.cli.checks.kept import ends_of_logs, erasures, files, keychain, root_key, rotations, schema
from server.cli.checks.leash import agents, approvers, channels, unknown_calls
from server.cli.checks.machine import clients, memory, packages
from server.cli.output import plain, show_json, show_lines, width_of
from server.cli.tables import Sheet, laid_out


def doctor(json: AsJson = False) -> None:
    """Examine this installation and say how to mend what is wrong. Exit code 1 if anything is."""
    findings = examine()
    if json:
        show_json([{"check": one.check, "status": one.status, "message": one.message} for one in findings])
    else:
        _print(findings)
    raise typer.Exit(1 if any(one.status == "fail" for one in findings) else 0)


def examine() -> list[Finding]:
    """Every check's findings, in the order of CHECKS."""
    import logging

    from server.app import open_installation
    from server.database import DatabaseProblem
    from server.settings import read_settings

    settings = read_settings()
    logging.getLogger("keyleash").setLevel(logging.CRITICAL)  # what it would say is found below
    try:
        patient = Patient(settings, open_installation(settings))
    except DatabaseProblem as problem:
        patient = Patient(settings, None)
        unopened = [Finding("database", "fail", str(problem))]
    else:
        unopened = []
    try:
        return [*unopened, *(finding for check in CHECKS for finding in _carried_out(check, patient))]
    finally:
        if patient.installation is not None:
            patient.installation.close()


def _carried_out(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> list[Finding]:
    name = check.__name__.replace("_", " ")
    try:
        found = list(check(patient))
    except Exception as error:
        return [Finding(name, "fail", f"This could not be checked ({type(error).__name__}).")]
    return found


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    files,
    schema,
    ends_of_logs,
    root_key,
    rotations,
    keychain,
    connectors,
    credentials,
    consents,
    definitions,
    erasures,
    unknown_calls,
    agents,
    approvers,
    channels,
    budgets,
    managed,
    memory,
    packages,
    clients,
)


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _print(findings: list[Finding]) -> None:
    sheet = Sheet(
        heads=("STATUS", "CHECK", "MESSAGE"),
        rows=tuple((one.status, one.check, plain(one.message)) for one in findings),
        prose=frozenset([2]),
        headed=False,
        styles=tuple(f"bold {_COLOURS[one.status]}" for one in findings),
    )
    show_lines(laid_out(sheet, width_of(sys.stdout)))
