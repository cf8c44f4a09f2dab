"""Checkpoints are what C2SP and RFC 6962 say: held to the specifications' own examples and to a plain computation."""

import base64
import hashlib
import random
from io import BytesIO

import pytest

from server.audit import standalone
from server.audit.entry import canonical
from server.audit.export import FORMAT
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, as_line, origin_of, read_note, read_notes, signed
from server.audit.tree import EMPTY, Frontier
from tests.proving import signer
from vault.signing import NotSigned, SigningKey, require_signed

# From C2SP signed-note, "Example".
KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
TEXT = b"This is an example message.\n"
SIGNATURE = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
# From C2SP tlog-checkpoint: its text, for the form alone, as its key is not given there.
EXAMPLE = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa \
Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""


def plain_root(entries: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return hashlib.sha256(b"\1" + plain_root(entries[:k]) + plain_root(entries[k:])).digest()


@pytest.mark.parametrize("seed", range(12))
def test_a_tree_that_grows_in_steps_has_the_root_of_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    steps = [chance.randint(1, 40) for _ in range(seed)]
    entries: list[bytes] = []
    tree = Frontier()
    alone: list[tuple[int, bytes]] = []
    assert tree.root() == EMPTY
    for step in steps:
        more = [hashlib.sha256(bytes([len(entries) % 251, number])).digest() for number in range(step)]
        entries += more
        tree.extend(more)
        for one in more:
            standalone.grow(alone, one)
        assert tree.size == len(entries)
        assert tree.root() == plain_root(entries) == standalone.root(alone)
        assert tree.nodes == tuple(node for _, node in alone)
        tree = Frontier(tree.size, tree.nodes)


def test_a_key_of_another_length_is_none() -> None:
    for length in (31, 33):
        key = VerifierKey("a", bytes(length))
        with pytest.raises(NoteProblem, match="no verifier key"):
            VerifierKey.parse(str(key))
        with pytest.raises(ValueError, match="no verifier key"):
            standalone.read_key(str(key))


def test_a_node_of_another_length_is_none() -> None:
    for length in (31, 33):
        with pytest.raises(ValueError, match="no frontier"):
            Frontier(1, [bytes(length)])


@pytest.mark.parametrize(("size", "nodes"), [(1, 0), (0, 1), (3, 1), (4, 2), (-1, 1)])
def test_what_is_no_frontier_is_refused(size: int, nodes: int) -> None:
    with pytest.raises(ValueError, match="no frontier"):
        Frontier(size, [bytes(32)] * nodes)


def test_the_specifications_key_verifies_the_specifications_note() -> None:
    import base64

    key, raw = VerifierKey.parse(KEY), base64.b64decode(SIGNATURE)
    assert (str(key), key.id) == (KEY, raw[:4])
    require_signed(key.public, TEXT, raw[4:])
    with pytest.raises(NotSigned):
        require_signed(key.public, TEXT + b"\n", raw[4:])
    assert standalone.is_signed(key.public, TEXT, raw[4:])
    assert standalone.read_key(KEY) == (key.name, key.id, key.public)


def test_the_specifications_checkpoint_is_read_and_written_as_it_is() -> None:
    note = read_note(EXAMPLE.encode())
    assert (note.origin, note.size, str(note)) == ("example.com/behind-the-sofa", 20852163, EXAMPLE)
    assert standalone.read_notes(EXAMPLE)[0][1:3] == (note.origin, note.size)
    assert (note.org, note.head) == ("", None)


@pytest.mark.parametrize("bit", [*range(0, 512, 37), 255, 256, 511])
def test_the_short_verifier_and_the_library_agree_on_signatures(bit: int) -> None:
    chance = random.Random(bit)
    key, text = SigningKey(chance.randbytes(32)), chance.randbytes(bit % 80)
    signature = key.sign(text)
    assert standalone.is_signed(key.public, text, signature)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert not standalone.is_signed(key.public, text, bytes(changed))
    with pytest.raises(NotSigned):
        require_signed(key.public, text, bytes(changed))


def test_a_signature_with_a_number_beyond_the_order_is_none() -> None:
    """RFC 8032, 5.1.7: the same signature has no second spelling."""
    key = SigningKey(bytes(32))
    signature = key.sign(b"x")
    again = (int.from_bytes(signature[32:], "little") + standalone.L).to_bytes(32, "little")
    assert not standalone.is_signed(key.public, b"x", signature[:32] + again)
    assert not standalone.is_signed(key.public, b"x", signature[:63])
    assert not standalone.is_signed(b"\xff" * 32, b"x", signature)


def test_the_short_verifier_takes_one_spelling_of_a_point_a_key_and_a_signature() -> None:
    """RFC 8032, 5.1.3: y is below the prime, and zero is not odd; RFC 4648, 3.5: nothing is in the spare bits."""
    assert standalone.decoded((1).to_bytes(32, "little")) == (0, 1, 1)
    assert standalone.decoded((standalone.P + 1).to_bytes(32, "little")) is None
    assert standalone.decoded((1 | 1 << 255).to_bytes(32, "little")) is None
    key = SigningKey(bytes(32))
    assert not standalone.is_signed(key.public, b"x", key.sign(b"x") + b"\0")
    with pytest.raises(standalone.Bad, match="nothing else"):
        standalone.read_notes(EXAMPLE.replace("20852163\n", "20852163\r\n"))
    assert (standalone.unbase64("AA=="), standalone.unbase64("AB==")) == (b"\0", b"")
    raw = b"\2" + key.public
    own = hashlib.sha256(b"a\n" + raw).hexdigest()[:8]
    with pytest.raises(ValueError, match="no verifier key"):
        standalone.read_key(f"a+{own}+{base64.b64encode(raw).decode()}")


def test_each_signature_that_bears_the_keys_id_has_to_be_right() -> None:
    by, other = signer("org_1"), signer("org_1", 2)
    note = str(signed(by.origin, Frontier(1, [bytes(32)]), by.key, {"head": "0" * 64}))
    theirs = by.verifier.id + other.key.sign(note.partition("\n\n")[0].encode() + b"\n")
    twice = f"{note}— {by.origin} {base64.b64encode(theirs).decode()}\n"
    for text in (twice, twice.replace(note.splitlines()[-1] + "\n", "")):
        with pytest.raises(NoteProblem):
            read_note(text.encode()).require(by.verifier)
        (short,) = standalone.read_notes(text)
        with pytest.raises(standalone.Bad, match="is not signed by"):
            standalone.require_signed(short, standalone.named(by.origin, by.verifier.public))


def test_a_note_of_another_log_is_none_of_ours_whoever_signs_it() -> None:
    by = signer("org_1")
    text = signed(origin_of("org_2"), Frontier(1, [bytes(32)]), by.key, {"head": "0" * 64}).text
    mine = by.verifier.id + by.key.sign(text.encode())
    note = f"{text}\n— {by.origin} {base64.b64encode(mine).decode()}\n"
    with pytest.raises(NoteProblem, match="org_2"):
        read_note(note.encode()).require(by.verifier)
    (short,) = standalone.read_notes(note)
    with pytest.raises(standalone.Bad, match="is not signed by"):
        standalone.require_signed(short, standalone.named(by.origin, by.verifier.public))


def test_a_checkpoint_holds_for_its_key_alone_and_shows_no_private_one() -> None:
    by, other, tree = signer("org_1"), signer("org_1", 2), Frontier(1, [bytes(32)])
    note = read_note(str(signed(by.origin, tree, by.key, {"head": "0" * 64, "time": "now"})).encode())
    note.require(by.verifier)
    assert (note.org, note.head and note.head.hash, note.at) == ("org_1", "0" * 64, "now")
    for key in (other.verifier, VerifierKey(origin_of("org_2"), by.key.public)):
        with pytest.raises(NoteProblem, match="not by"):
            note.require(key)
    assert "01" * 16 not in repr(by) + str(note)
    assert repr(by.key) == "<SigningKey>"


def test_no_byte_of_a_checkpoint_can_be_changed() -> None:
    by = signer("org_1")
    raw = str(signed(by.origin, Frontier(1, [bytes(32)]), by.key, {"head": "0" * 64})).encode()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(NoteProblem):
            read_note(bytes(changed)).require(by.verifier)
        with pytest.raises((standalone.Bad, UnicodeDecodeError)):
            for note in standalone.read_notes(bytes(changed).decode()):
                standalone.require_signed(note, standalone.named(by.origin, by.verifier.public))


def test_several_checkpoints_stand_in_one_file_with_others_signatures_among_theirs() -> None:
    by, witness = signer("org_1"), signer("org_1", 2)
    notes = [signed(by.origin, Frontier(1 << size, [bytes(32)]), by.key, {}) for size in range(3)]
    line = str(signed("witness.example", Frontier(), witness.key, {})).splitlines()[-1]
    cosigned = f"{notes[0]}{line}\n"
    raw = f"\n{cosigned}\n{notes[1]}{notes[2]}\n\n"
    found = read_notes(raw.encode())
    assert [note.size for note in found] == [1, 2, 4]
    for note in found:
        note.require(by.verifier)
    assert [note[2] for note in standalone.read_notes(raw)] == [1, 2, 4]


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "\n\n",
        "keyleash/o\n1\n\n— a b\n",
        EXAMPLE[:-1],
        EXAMPLE.replace("20852163", "020852163"),
        EXAMPLE.replace("20852163", "-1"),
        EXAMPLE.replace("CsUYa", "CsUY"),
        EXAMPLE.replace("\n\n", "\n"),
        EXAMPLE.replace("— example.com", "- example.com"),
        EXAMPLE.replace("sofa Az3g", "so+fa Az3g"),
        EXAMPLE.replace("20852163\n", "20852163\r\n"),
        EXAMPLE + "— more\n",
        EXAMPLE + "— a AAAAAA==\n",
        EXAMPLE + "—  AAAAAAAA\n",
        EXAMPLE.replace("— ", ""),
        "\x00",
        EXAMPLE.partition("— ")[0] + "— a AAAA\n",
        EXAMPLE + "— a AAAAAAAA\n" * 16,
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(raw: str) -> None:
    with pytest.raises(NoteProblem):
        read_notes(raw.encode())
    if raw.strip("\n"):
        with pytest.raises(standalone.Bad):
            for note in standalone.read_notes(EXAMPLE + raw)[1:]:  # none is left out because it cannot be read
                standalone.require_signed(note, note[1], bytes(32))


@pytest.mark.parametrize(
    "text", ["", "x", KEY[:-1], KEY.replace("530d903a", "530d903b"), KEY.replace("+Ae", "+Be"), "+" + KEY]
)
def test_what_is_no_verifier_key_is_said_to_be_none(text: str) -> None:
    with pytest.raises(NoteProblem, match="verifier key"):
        VerifierKey.parse(text)
    with pytest.raises(ValueError, match="verifier key"):
        standalone.read_key(text)


@pytest.mark.parametrize("line", ["", "AAAA", as_line((bytes(32), bytes(32), bytes(32))), as_line((bytes(32),) * 2)])
def test_a_stub_whose_tree_is_not_the_one_of_its_root_is_none(line: str) -> None:
    by, tree = signer("org_1"), Frontier(3, [bytes(32), b"1" * 32])
    signed_stub = signed(by.origin, tree, by.key, {"head": "0" * 64, "frontier": line})
    signed_stub.require(by.verifier)
    with pytest.raises(NoteProblem, match="its tree"):
        signed_stub.frontier  # noqa: B018 - it is computed as it is asked for
    right = signed(by.origin, tree, by.key, {"head": "0" * 64, "frontier": as_line(tree.nodes)})
    assert right.frontier.nodes == tree.nodes


def test_the_short_verifier_goes_on_from_the_logs_own_stub_and_from_no_other() -> None:
    by, other, tree = signer("org_1"), signer("org_1", 2), Frontier(3, [bytes(32), b"1" * 32])

    def begun(stub: Checkpoint, *notes: Checkpoint) -> int:
        header = {"format": FORMAT, "v": 1, "org": "org_1", "entries": 3, "head": "0" * 64}
        line = canonical({**header, "key": str(by.verifier), "pruned": str(stub)})
        short = standalone.read_notes("\n".join(map(str, notes))) if notes else []
        with pytest.raises(standalone.Bad) as found:
            standalone.verify(BytesIO(f"{line}\n".encode()), short, None)
        return found.value.code

    def stub(org: str = "org_1", key: SigningKey = by.key, nodes: tuple[bytes, ...] = tuple(tree.nodes)) -> Checkpoint:
        return signed(origin_of(org), tree, key, {"head": "0" * 64, "frontier": as_line(nodes)})

    assert begun(stub()) == begun(stub(), signed(by.origin, tree, by.key, {})) == 3, "there are no entries"
    for wrong in (
        stub("org_2"),
        stub(key=other.key),
        stub(nodes=(bytes(32),) * 2),
        stub(nodes=(*tree.nodes, bytes(32))),
    ):
        assert begun(wrong) == 1
    later = signed(by.origin, Frontier(4, [bytes(32)]), by.key, {})
    same_size = signed(by.origin, Frontier(3, [bytes(32)] * 2), by.key, {})
    assert begun(stub(), later) == begun(stub(), same_size) == 1
    assert begun(stub(), signed(by.origin, Frontier(3, [bytes(32)] * 2), other.key, {})) == 3, "it proves nothing"
