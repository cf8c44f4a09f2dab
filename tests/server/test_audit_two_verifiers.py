"""Ours and the verifier that stands alone come to one verdict, whatever an export and the checkpoints are made of."""

import base64
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.audit import standalone
from server.audit.checkpoints import Signer
from server.audit.entry import canonical, entry_hash, log_hash
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, as_line, read_notes, signed
from server.audit.tree import EMPTY, Frontier
from tests.proving import both, signer
from vault.signing import NotSigned, require_signed

ORG = "org_1"
OURS, THEIRS, OTHERS = signer(ORG), signer(ORG, 66), signer("org_2", 3)
MIXED = Signer(OTHERS.origin, OURS.key)
KEY = str(OURS.verifier)
AT = "2026-01-31T08:05:09.123Z"

Line = tuple[str, str, str]
"""Body, the hash before, and its own."""


def follow(previous: str, body: str) -> Line:
    return body, previous, entry_hash(bytes.fromhex(previous), body.encode()).hex()


def chain(by: str = "alice") -> list[Line]:
    found: list[Line] = []
    for seq in range(1, 9):
        body = canonical({"v": 1, "org": ORG, "seq": seq, "at": AT, "event": "audit.listed", "by": by})
        found.append(follow(found[-1][2] if found else log_hash(ORG), body))
    return found


LOG, FORK = chain(), chain("mallory")


def export(entries: list[Line], after: int = 0, /, **more: Any) -> bytes:
    header = {"format": "keyleash audit export", "v": 1, "org": ORG, "entries": len(entries), "head": entries[-1][2]}
    lines = (f'{{"hash":"{own}","previous":"{previous}","entry":{body}}}\n' for body, previous, own in entries[after:])
    return f"{canonical(header | more)}\n{''.join(lines)}".encode()


def grown(entries: list[Line], size: int) -> Frontier:
    tree = Frontier()
    tree.extend(bytes.fromhex(own) for _, _, own in entries[:size])
    return tree


def kept(size: int, entries: list[Line] = LOG, by: Any = OURS) -> Checkpoint:
    return checkpoint(size, entries, by, {})


def checkpoint(size: int, entries: list[Line], by: Any, more: dict[str, str]) -> Checkpoint:
    head = entries[size - 1][2] if size else log_hash(ORG)
    return signed(by.origin, grown(entries, size), by.key, {"head": head, "time": AT} | more)


def stub(size: int, by: Any = OURS, **more: str) -> str:
    said = {"frontier": as_line(grown(LOG, size).nodes), "pruned": f"1-{size}", "bytes": "9", "by": '"m"'}
    return str(checkpoint(size, LOG, by, said | more))


def written(text: str, by: Any = OURS) -> str:
    """A note of this text, whatever it is."""
    raw = base64.b64encode(VerifierKey(by.origin, by.key.public).id + by.key.sign(text.encode())).decode()
    return f"{text}\n— {by.origin} {raw}\n"


NODE = base64.b64encode(bytes(32)).decode()
ROOT = base64.b64encode(grown(LOG, 5).root()).decode()
PRUNED = export(LOG, 3, key=KEY, pruned=stub(3))

CASES: dict[str, tuple[bytes, str, int]] = {
    "a fork that was pruned to the size of the checkpoint": (PRUNED, str(kept(3, FORK)), 1),
    "two checkpoints of one size, both pruned since": (PRUNED, f"{kept(2)}\n{kept(2, FORK)}", 1),
    "two checkpoints of one size": (export(LOG), f"{kept(5)}\n{kept(5, FORK)}", 1),
    "an empty tree with a root": (export(LOG), written(f"{OURS.origin}\n0\n{NODE}\n"), 1),
    "a header whose key is a number": (export(LOG, key=5), "", 3),
    "a header whose key is none": (export(LOG, key="x"), str(kept(5)), 3),
    "a header whose key has half a character": (export(LOG, key=KEY.replace("org_1", "\ud800")), str(kept(5)), 3),
    "a header whose stub is a number": (export(LOG, 3, key=KEY, pruned=5), "", 3),
    "a header whose stub is none": (export(LOG, 3, key=KEY, pruned="x"), "", 3),
    "a header with more than a stub": (export(LOG, 3, key=KEY, pruned=stub(3) + "\n"), "", 3),
    "a header with no entries and a last one": (export(LOG, entries=0), "", 3),
    "a stub of no entries": (export(LOG, key=KEY, pruned=stub(0)), "", 1),
    "a stub whose head is spelled otherwise": (export(LOG, 3, key=KEY, pruned=stub(3, head=LOG[2][2].upper())), "", 1),
    "a stub of another org": (export(LOG, 3, key=KEY, pruned=stub(3, by=OTHERS)), "", 1),
    "a stub that says more than went": (export(LOG, 3, key=KEY, pruned=stub(5)), "", 1),
    "a first entry that does not follow the stub": (export([*LOG[:3], *FORK[3:]], 3, key=KEY, pruned=stub(3)), "", 1),
    "a number of five thousand digits": (export(LOG).replace(b'"seq":4', b'"seq":' + b"1" * 5000), "", 1),
    "a byte-order mark": (b"\xef\xbb\xbf" + export(LOG), str(kept(5)), 3),
    "other line ends": (export(LOG).replace(b"\n", b"\r\n"), str(kept(5)), 3),
    "other line ends after the header": (export(LOG).replace(b"}\n", b"}\r\n").replace(b"\r", b"", 1), "", 1),
    "an empty line at the end": (export(LOG) + b"\n", str(kept(8)), 1),
    "something after the end": (export(LOG) + b"# the end", str(kept(8)), 1),
    "a second export after the end": (export(LOG) * 2, str(kept(8)), 1),
    "a line end that is missing": (export(LOG)[:-1], str(kept(8)), 1),
    "lines that are cut off at their end": (b"".join(export(LOG).splitlines(keepends=True)[:6]), "", 1),
    "and the header made to match": (export(LOG[:5]), str(kept(8)), 1),
    "a length with a point": (export(LOG, entries=8.0), "", 3),
    "a length that is true": (export(LOG[:1], entries=True), "", 3),
    "a length of no entries that is false": (export(LOG, entries=False, head=None), "", 3),
    "a length with an exponent": (export(LOG).replace(b'"entries":8', b'"entries":8e0'), "", 3),
    "a header with a space": (export(LOG).replace(b'"entries":8', b'"entries": 8'), "", 3),
    "a header with a key twice": (export(LOG).replace(b'"entries":8', b'"entries":9,"entries":8'), "", 3),
    "a version with a point": (export(LOG, v=1.0), "", 3),
    "a line with a key twice": (export(LOG).replace(b'"seq":4', b'"seq":4,"seq":4'), "", 1),
    "a line with an entry twice": (export(LOG).replace(b'"v":1}}', b'"v":1},"entry":{}}', 1), "", 1),
    "a number with a point": (export(LOG).replace(b'"seq":4', b'"seq":4.0'), "", 1),
    "a number with zeros": (export(LOG).replace(b'"seq":4', b'"seq":04'), "", 1),
    "a number with a plus in its exponent": (export(LOG).replace(b'"seq":4', b'"seq":4e+0'), "", 1),
    "a letter in another spelling": (export(LOG).replace(b"alice", b"\\u0061lice", 1), "", 1),
    "a line of twenty megabytes": (export(LOG).replace(b"alice", b"a" * 20_000_000, 1), "", 1),
    "a header of twenty megabytes": (export(LOG, org="o" * 20_000_000), "", 3),
    "an older checkpoint of the same log": (export(LOG), str(kept(2)), 0),
    "a checkpoint of another org": (export(LOG), str(kept(5, by=OTHERS)), 3),
    "another org's stub under this key": (export(LOG, 3, key=KEY, pruned=stub(3, by=MIXED)), "", 1),
    "a tab in a checkpoint": (export(LOG), written(f"{OURS.origin}\n5\n{ROOT}\nx a\tb\n"), 3),
    "a checkpoint from before the stub and another log's after it": (PRUNED, f"{kept(2)}\n{kept(8, FORK)}", 1),
    "a stub that was taken out": (export(LOG, 3, key=KEY), "", 1),
    "a stub that overlaps what is there": (export(LOG, 2, key=KEY, pruned=stub(3)), "", 1),
    "two stubs": (export(LOG, 3, key=KEY, pruned=f"{stub(2)}\n{stub(3)}"), "", 3),
    "a smaller stub in its place": (export(LOG, 3, key=KEY, pruned=stub(2)), "", 1),
    "a stub by another key, and that key": (export(LOG, 3, key=str(THEIRS.verifier), pruned=stub(3, by=THEIRS)), "", 1),
    "a checkpoint among other text": (export(LOG), f"other text\n\n{kept(5)}", 3),
    "a newer checkpoint that was spoilt": (export(LOG[:6]), f"{kept(5)}\n{str(kept(8)).replace('— ', '- ')}", 3),
    "a checkpoint with other line ends": (export(LOG), str(kept(5)).replace("\n", "\r\n"), 3),
    "a line that is two to some": (export(LOG), written(f"{OURS.origin}\n5\u2028{ROOT}\nx\n"), 3),
    "an origin that is two lines to some": (export(LOG), written(f"{OURS.origin}\u20285\n{ROOT}\nx\n"), 3),
    "too many signatures": (export(LOG), str(kept(5)) + "— a AAAAAAAA\n" * 16, 3),
    "a signature of somebody else's that is none": (export(LOG), f"{kept(5)}— a x\n", 3),
    "a second signature of ours that is none": (export(LOG), f"{kept(5)}— {OURS.origin} "
        f"{base64.b64encode(OURS.verifier.id + bytes(64)).decode()}\n", 3),
}  # fmt: skip


def test_a_checkpoint_that_is_past_a_stub_is_computed_whatever_stands_before_it(tmp_path: Path) -> None:
    limits = {}
    for sizes in ((2, 8), (8,), (3,), (2, 3), (3, 5, 6, 8)):
        report = both(PRUNED, tmp_path, "\n".join(str(kept(size)) for size in sizes), OURS.verifier)
        assert (report.exit_code, report.checkpoints) == (0, tuple(size for size in sizes if size >= 3))
        limits[sizes] = "; ".join(report.cannot_exclude)
    gone = "the checkpoints of size {} are of: they are signed, and their roots cannot be computed anew"
    assert gone.format(2) in limits[2, 8]
    assert gone.format(2) in limits[2, 3]
    assert "are signed" not in limits[(8,)] + limits[(3,)]
    assert "entries after entry 3, the last one noted elsewhere" in limits[(3,)]
    assert "fresh hashes" in "; ".join(both(PRUNED, tmp_path, str(kept(2)), OURS.verifier).cannot_exclude)


@pytest.mark.parametrize("case", CASES)
def test_both_say_the_same_of(tmp_path: Path, case: str) -> None:
    content, notes, code = CASES[case]
    assert both(content, tmp_path, notes, OURS.verifier).exit_code == code
    if "key" not in case:
        both(content, tmp_path, notes)


POINTS = {
    "of order one": 1,
    "of order two": standalone.P - 1,
    "of order four": 0,
    "of order eight": 2707385501144840649318225287225658788936804267575313519463743609750303402022,
    "of the other order eight": 55188659117513257062467267217118295137698188065244968500265048394206261417927,
    "one, in another spelling": standalone.P + 1,
    "none, in another spelling": standalone.P,
    "one, with a sign": 1 + 2**255,
}


@pytest.mark.parametrize("name", POINTS)
def test_a_key_that_signs_whatever_anybody_likes_is_none(name: str) -> None:
    public, base = POINTS[name].to_bytes(32, "little"), standalone.point(4 * pow(5, -1, standalone.P) % standalone.P, 0)
    assert base is not None
    forged = standalone.encoded(*base) + (1).to_bytes(32, "little")  # s = 1, R = B: right wherever hA is nothing
    for number in range(64):
        text = f"{number}".encode()
        assert not standalone.is_signed(public, text, forged)
        with pytest.raises(NotSigned):
            require_signed(public, text, forged)


def test_what_an_export_calls_itself_does_not_speak_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, notes = tmp_path / "e.jsonl", tmp_path / "n.txt"
    public = OURS.key.public
    hostile = VerifierKey("keyleash/x\x1b[2Jintact", public)
    file.write_bytes(export(LOG, org="x\x1b[2Jintact", key=str(hostile)))
    notes.write_text(str(kept(5)), "utf-8")
    assert standalone.main([str(file), "--checkpoint", str(notes)]) == 3
    assert "\x1b" not in capsys.readouterr().out


def test_the_short_one_says_what_it_does_not_exclude(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, notes = tmp_path / "e.jsonl", tmp_path / "n.txt"
    file.write_bytes(export(LOG, key=KEY))
    notes.write_text(str(kept(5)), "utf-8")
    assert standalone.main([str(file), "--checkpoint", str(notes), "--key", KEY]) == 0
    assert "not excluded: that what comes after entry 5" in capsys.readouterr().out
    assert standalone.main([str(file), "--checkpoint", str(notes)]) == 0
    assert "the export's own word" in capsys.readouterr().out
    assert standalone.main([str(file)]) == 0
    assert "No checkpoint was compared" in capsys.readouterr().out
    for words in ([], ["--key", "x", str(file)], [str(file), "--other"]):
        with pytest.raises(SystemExit, match="2"):
            standalone.main(words)


PIECES = (b"\n", b"\r\n", b"\0", b"\xff", b" ", b"}", b'"', "\u2028".encode(), b"9" * 20, b"-1", b"\\ud800", b"null",
          b'"key":1,', b'"entries":3', "— x AAAAAAAA\n".encode(), b"=", b"org_2", b"\xef\xbb\xbf")  # fmt: skip
VALUES = (None, 0, 1, 7, -1, True, 1.0, "x", [], KEY, str(THEIRS.verifier), str(OTHERS.verifier), stub(3), stub(5),
          stub(3, by=THEIRS), LOG[7][2], "org_2", "\ud800")  # fmt: skip
BODIES: tuple[Callable[[str], str], ...] = (
    lambda body: body.replace('"seq":', '"seq":1'),
    lambda body: body.replace('"v":1', '"v":2'),
    lambda body: body.replace('"v":1', '"v":1.0'),
    lambda body: body.replace('"v":1', '"v":true'),
    lambda body: body.replace("org_1", "org_2"),
    lambda body: body.replace(AT, "now"),
    lambda body: f'{body[:-1]},"x":{{"seq":5}}}}',
    lambda body: f'{body[:-1]},"x":NaN}}',
    lambda body: f"{body}\r",
    lambda body: "",
)


@pytest.mark.parametrize("seed", range(16))
def test_both_say_the_same_of_anything(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        entries = list(chance.choice([LOG, LOG, LOG, LOG[:6], FORK, [*FORK[:3], *LOG[3:]]]))
        if chance.random() < 0.5:
            place = chance.randrange(len(entries))
            previous = chance.choice([entries[place][1], entries[place][1], FORK[place][2]])
            entries[place] = follow(previous, chance.choice(BODIES)(entries[place][0]))
        after = chance.choice([0, 0, 3])
        more = {"pruned": stub(3)} if after else {}
        names = chance.sample(["entries", "head", "org", "key", "pruned", "v"], chance.choice([0, 0, 1, 2]))
        content = export(entries, after, **{"key": KEY, **more, **{name: chance.choice(VALUES) for name in names}})
        notes = "".join(
            str(kept(chance.randrange(7), chance.choice([LOG, LOG, FORK]), chance.choice([OURS, OURS, THEIRS])))
            for _ in range(chance.randrange(3))
        )
        if chance.random() < 0.5:
            content = spoilt(content, chance)
        if chance.random() < 0.3:
            notes = spoilt(notes.encode(), chance).decode("utf-8", "replace")
        both(content, tmp_path, notes, chance.choice([None, OURS.verifier, OURS.verifier, THEIRS.verifier]))


def spoilt(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw) + 1)
    to = min(len(raw), at + chance.choice([0, 1, 10, 200]))
    return raw[:at] + chance.choice([b"", raw[at:to] * 2, *PIECES]) + raw[to:]


def test_an_empty_tree_is_that_of_no_entries() -> None:
    assert Frontier().root() == EMPTY
    with pytest.raises(NoteProblem):
        read_notes(b"\n")
