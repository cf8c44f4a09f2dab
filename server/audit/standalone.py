"""Verify an export of a Keyleash audit log, without Keyleash: this one file, and any Python from 3.11 on.

    python3 verify.py EXPORT.jsonl [--checkpoint FILE]... [--key VERIFIERKEY]

Exit code: 0 intact, 1 altered, 2 misuse, 3 cannot be verified. What is checked:

- each line stands where it says, and holds a body and two hashes: SHA-256 over the hash before and the body;
- the log ends where its first line says;
- each checkpoint (C2SP tlog-checkpoint) is signed, and its root is that of the RFC 6962 tree over the entries' hashes;
- where entries were pruned, the signed stub in the first line: the chain and the tree go on from it.

The key is the one given, or else the one that the export names itself: then whoever made the export may have made the
key as well. Signatures are checked by the equation of RFC 8032 (Ed25519), written out below: nothing need be installed.
"""
# pyright: basic

import argparse
import base64
import json
import re
import sys
from collections import namedtuple
from hashlib import sha256, sha512

MAX_LINE = 16 * 1024 * 1024 + 1000
MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"
KEY = r"([^\s+\ud800-\udfff]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)"
# Origin, size, root and further lines, which are what is signed; an empty line; signatures.
NOTE = re.compile(
    r"(([^\n]+)\n(0|[1-9][0-9]{0,17})\n([^\n]+)\n((?:[^\n]+\n)*))\n((?:— [^ +\n]+ [^ \n]+\n){1,16})(?!— )\n*"
)
Note = namedtuple("Note", "text origin size root more signatures")
Key = namedtuple("Key", "name id public")
# The curve of Ed25519: -x^2 + y^2 = 1 + D x^2 y^2 over the integers modulo P; the base point has the prime order L.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


class Bad(Exception):
    """`code` is 1 for what was altered and 3 for what cannot be verified; `first` is the first bad entry."""

    def __init__(self, code, problem, first=None):
        super().__init__(problem)
        self.code, self.first = code, first


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("export")
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    try:
        pinned = read_key(given.key) if given.key is not None else None
    except ValueError as problem:
        parser.error(str(problem))  # ends with 2
    try:
        notes = []
        for path in given.checkpoint:
            with open(path, "rb") as file:
                notes += read_notes(file.read().decode())
        with open(given.export, "rb") as file:
            after, last, key = verify(file, notes, pinned)
    except Bad as problem:
        word = {1: "altered", 3: "cannot be verified"}[problem.code]
        print(f"{word}: {problem}" + (f" (first bad entry: {problem.first})" if problem.first else ""))
        return problem.code
    except (OSError, ValueError) as problem:
        print(f"cannot be verified: {str(problem)!a}")
        return 3
    print(f"intact: entries {after + 1} to {last}")
    if key and not pinned:
        print(f"not excluded: another key than the log's. It is the export's own word: {key.name!a} {key.id.hex()}")
    reach = max((note.size for note in notes if note.size >= after), default=0)
    if not reach:
        print("not excluded: that all of it was written anew, or its end cut off. No checkpoint was compared.")
    elif reach < last:
        print(f"not excluded: that what comes after entry {reach}, where the last checkpoint is, was written anew")
    if any(note.size < after for note in notes):
        print("not excluded: that pruned entries were others than some checkpoints say, which are signed")
    return 0


def verify(file, notes, pinned):
    """The number of entries that were pruned, that of the last one, and the key. Raises Bad at the first wrong one."""
    header, named, stub = header_of(file.readline(MAX_LINE))
    org, end, key = header["org"], header["entries"], pinned or named
    chain, after, tree = sha256(b"keyleash/audit/log/v1\n" + org.encode("utf-8", "surrogatepass")).digest(), 0, []
    if (notes or pinned or stub) and (key is None or key.name.split("/")[:2] != ["keyleash", org]):
        raise Bad(3, "there is no key to check signatures with, or it is that of another log")
    if stub:
        chain, after, tree = gone(stub, org, key)
    roots = {}
    for note in notes:
        require_signed(note, key)
        roots.setdefault(note.size, set()).add(note.root)
    for size in sorted(roots):
        if size < after and len(roots[size]) > 1:
            raise Bad(1, f"two checkpoints of size {size} contradict each other", max(size, 1))
    seq = after
    while True:
        if seq in roots and roots[seq] != {root(tree)}:
            raise Bad(1, f"the log up to entry {seq} is not the one that the checkpoint was made of", max(seq, 1))
        line = file.readline(MAX_LINE)
        if not line:
            break
        chain, seq = entry(line, chain, seq, after, header), seq + 1
        grow(tree, chain)
    if end != seq or (seq and header["head"] != chain.hex()):
        raise Bad(1, f"the log ends with entry {seq}", seq + (end > seq) or 1)
    if roots and max(roots) > seq:
        raise Bad(1, f"the log ends with entry {seq}, and a checkpoint of size {max(roots)} was signed", seq + 1)
    if seq == after:
        raise Bad(3, "there are no entries")
    return after, seq, key


def entry(line, chain, seq, after, header):
    """The hash of the entry that follows number `seq`, whose hash is `chain`."""
    found = re.match(rb'\{"hash":"([0-9a-f]{64})","previous":"([0-9a-f]{64})","entry":', line)
    body = line[161:-2]
    try:
        if not found or line[-2:] != b"}\n":
            raise ValueError("not an entry")
        own = sha256(
            b"keyleash/audit/entry/v1\n" + bytes.fromhex(found[2].decode()) + len(body).to_bytes(8, "big") + body
        ).digest()
        said = parsed(body.decode())
        if own.hex().encode() != found[1] or (type(said["seq"]), said["org"]) != (int, header["org"]):
            raise ValueError("another hash, or another log")
        if said["seq"] == seq + 1 > after + 1 and found[2] != chain.hex().encode():
            raise Bad(1, f"entry {seq} is not the one that was written there: the next follows another", seq)
        if said["seq"] != seq + 1 or found[2] != chain.hex().encode() or seq >= header["entries"]:
            raise ValueError("another place")
        if not is_one(said.get("v")):
            raise Bad(3, f"entry {seq + 1} was written by another version of Keyleash")
        if not re.fullmatch(MOMENT, said["at"]) or not isinstance(said["event"], str):
            raise ValueError("no time or no event")
    except (ValueError, KeyError, TypeError):
        raise Bad(1, f"entry {seq + 1} is not the one that was written there", seq + 1) from None
    return own


def header_of(line):
    """The first line, with its key and its stub where it has them."""
    try:
        header = parsed(line.decode())
        plain = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if header["format"] != "keyleash audit export" or not is_one(header["v"]) or f"{plain}\n".encode() != line:
            raise ValueError("another format")
        names = header.keys() - {"key", "pruned"}
        if names != {"format", "v", "org", "entries", "head"} or not isinstance(header["org"], str):
            raise ValueError("no whole log")
        size, head = header["entries"], header["head"]
        if type(size) is not int or size < 0 or not (isinstance(head, str) if size else head is None):
            raise ValueError("no end")
        key = read_key(header["key"]) if "key" in header else None
        stubs = read_notes(header["pruned"]) if "pruned" in header else []
        if stubs and (len(stubs) > 1 or header["pruned"] != header["pruned"].strip("\n") + "\n"):
            raise ValueError("more than a stub")
        return header, key, stubs[0] if stubs else None
    except (ValueError, KeyError, TypeError, AttributeError, Bad):
        raise Bad(3, "this is no whole export in JSONL, or its first line was changed") from None


def gone(stub, org, key):
    """The chain, the number and the tree that the log goes on from, as a stub that the key signed says."""
    try:
        nodes = [unbase64(node) for node in stub.more["frontier"].split()]
        powers = [1 << bit for bit in reversed(range(stub.size.bit_length())) if stub.size >> bit & 1]
        tree = list(zip(powers, nodes, strict=True))
        if not tree or any(len(node) != 32 for node in nodes) or root(tree) != stub.root:
            raise ValueError("another tree")
        if stub.origin.split("/")[:2] != ["keyleash", org] or not re.fullmatch("[0-9a-f]{64}", stub.more["head"]):
            raise ValueError("another log")
        require_signed(stub, named(stub.origin, key.public))
    except (ValueError, KeyError, Bad):
        raise Bad(1, "entries are gone, and what stands for them is not signed by the log's key", 1) from None
    return bytes.fromhex(stub.more["head"]), stub.size, tree


def is_one(number):
    return type(number) is int and number == 1  # and not 1.0 or true


def once(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def parsed(text):
    """One JSON object that reads one way."""
    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=int)  # NaN and the like are no integers either
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_notes(text):
    """Each checkpoint of a file, which holds nothing else."""
    found, place = [], len(text) - len(text.lstrip("\n"))
    text.encode()  # no halves of characters
    while place < len(text) or not found:
        note = NOTE.match(text, place)
        if not note or re.search("[\x00-\x09\x0b-\x1f]", note[0]) or len(unbase64(note[4])) != 32:
            raise Bad(3, "that is no checkpoint, or not a checkpoint and nothing else")
        more = {name: said for line in note[5].split("\n")[:-1] for name, _, said in [line.partition(" ")]}
        signatures = [line[2:].split(" ") for line in note[6].split("\n")[:-1]]
        if any(len(unbase64(raw)) <= 4 for _, raw in signatures):
            raise Bad(3, "a signature cannot be read")
        found.append(Note(note[1], note[2], int(note[3]), unbase64(note[4]), more, signatures))
        place = note.end()
    return found


def named(name, public):
    return Key(name, sha256(name.encode() + b"\n\x01" + public).digest()[:4], public)


def read_key(text):
    """NAME+KEYID+BASE64."""
    found = re.fullmatch(KEY, text.strip())
    raw = unbase64(found[3]) if found else b""
    if not found or len(raw) != 33 or raw[0] != 1 or named(found[1], raw[1:]).id.hex() != found[2]:
        raise ValueError("that is no verifier key, or it was altered")
    return named(found[1], raw[1:])


def require_signed(note, key):
    mine = [unbase64(raw)[4:] for by, raw in note.signatures if by == key.name and unbase64(raw)[:4] == key.id]
    if note.origin != key.name or not mine or not all(is_signed(key.public, note.text.encode(), each) for each in mine):
        raise Bad(3, f"the checkpoint of size {note.size} is not signed by {key.name!a}")


def unbase64(text):
    """Nothing for what is no base64, or is another spelling of some."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def grow(tree, leaf):
    """Add a leaf to the roots of the whole subtrees: pairs of a size and a hash, the largest first."""
    size, node = 1, sha256(b"\0" + leaf).digest()
    while tree and tree[-1][0] == size:
        size, node = size * 2, sha256(b"\1" + tree.pop()[1] + node).digest()
    tree.append((size, node))


def root(tree):
    nodes = [node for _, node in tree] or [sha256(b"").digest()]
    while len(nodes) > 1:
        nodes[-2:] = [sha256(b"\1" + nodes[-2] + nodes[-1]).digest()]
    return nodes[0]


def is_signed(public, text, signature):
    """Whether R = sB - hA, in which the signature is R and s, A the public key, B the base point."""
    key, s = decoded(public), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or key is None or s >= L or encoded(*times(8, key)) == encoded(0, 1, 1):
        return False  # a key of small order (8) would sign whatever anybody likes
    h = int.from_bytes(sha512(signature[:32] + public + text).digest(), "little") % L
    minus = (P - key[0], key[1], 1)
    return encoded(*add(times(s, point(4 * pow(5, -1, P) % P, 0)), times(h, minus))) == signature[:32]


def point(y, odd):
    """The point with this y and an x that is odd or even; None where there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or x * x % P != square or (x == 0 and odd):
        return None
    return (x if x % 2 == odd else P - x), y, 1


def add(one, two):
    """The sum of two points, each x, y, z that stands for x/z, y/z."""
    (x1, y1, z1), (x2, y2, z2) = one, two
    a, c, d = z1 * z2 % P, x1 * x2 % P, y1 * y2 % P
    b, e = a * a % P, D * c * d % P
    f, g = b - e, b + e
    return a * f * ((x1 + y1) * (x2 + y2) - c - d) % P, a * g * (d + c) % P, f * g % P


def times(number, what):
    total = (0, 1, 1)
    while number:
        total, what, number = add(total, what) if number & 1 else total, add(what, what), number >> 1
    return total


def decoded(raw):
    number = int.from_bytes(raw, "little")
    return point(number & (2**255 - 1), number >> 255)


def encoded(x, y, z):
    x, y = x * pow(z, -1, P) % P, y * pow(z, -1, P) % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
