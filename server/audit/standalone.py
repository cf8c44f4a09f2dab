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

import base64
import binascii
import hashlib
import json
import re
import sys

MAX_LINE = 16 * 1024 * 1024 + 1000
MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"
# The curve of Ed25519: -x^2 + y^2 = 1 + D x^2 y^2 over the integers modulo P; the base point has the prime order L.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


class Bad(Exception):
    """`code` is 1 for what was altered and 3 for what cannot be verified; `first` is the first bad entry."""

    def __init__(self, code, problem, first=None):
        super().__init__(problem)
        self.code, self.first = code, first


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


def is_signed(public, text, signature):
    """Whether R = sB - hA, in which the signature is R and s, A the public key, B the base point."""
    key, s = decoded(public), int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or key is None or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + text).digest(), "little") % L
    minus = (P - key[0], key[1], 1)
    return encoded(*add(times(s, point(4 * pow(5, -1, P) % P, 0)), times(h, minus))) == signature[:32]


def unbase64(text):
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def read_key(text):
    """NAME+KEYID+BASE64 as name, id and 32 bytes."""
    parts = text.strip().split("+", 2)
    raw = unbase64(parts[2]) if len(parts) == 3 else b""
    own = hashlib.sha256(parts[0].encode("utf-8", "replace") + b"\n" + raw).digest()[:4]
    if len(raw) != 33 or raw[0] != 1 or own.hex() != parts[1]:
        raise Bad(3, "that is no verifier key, or it was altered")
    return parts[0], own, raw[1:]


def read_notes(text):
    """Each checkpoint of a file: its signed text, origin, size, root, further lines, and signatures."""
    found = []
    one = re.compile(r"((?:[^\n]+\n)+)\n((?:— [^\n]+\n)+)")
    if re.search("[\x00-\x09\x0b-\x1f]", text) or one.sub("", text).strip("\n"):
        raise Bad(3, "a checkpoint is cut off, or something else stands there")
    for body, signatures in one.findall(text):
        lines = body.splitlines()
        size = re.fullmatch("0|[1-9][0-9]{0,17}", lines[1]) if len(lines) > 2 else None
        if not size or len(unbase64(lines[2])) != 32:
            raise Bad(3, "that is no checkpoint")
        more = dict(line.partition(" ")[::2] for line in lines[3:])
        named = [line[2:].partition(" ")[::2] for line in signatures.splitlines()]
        found.append((body, lines[0], int(size[0]), unbase64(lines[2]), more, named))
    if not found:
        raise Bad(3, "there is no checkpoint in it")
    return found


def require_signed(note, name, public):
    own = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    mine = [unbase64(said)[4:] for by, said in note[5] if by == name and unbase64(said)[:4] == own]
    if note[1] != name or not mine or not all(is_signed(public, note[0].encode(), each) for each in mine):
        raise Bad(3, f"the checkpoint of size {note[2]} is not signed by {name}")


def grow(tree, leaf):
    """Add a leaf to the roots of the whole subtrees: pairs of a size and a hash, the largest first."""
    size, node = 1, hashlib.sha256(b"\0" + leaf).digest()
    while tree and tree[-1][0] == size:
        size, node = size * 2, hashlib.sha256(b"\1" + tree.pop()[1] + node).digest()
    tree.append((size, node))


def root(tree):
    nodes = [node for _, node in tree] or [hashlib.sha256(b"").digest()]
    while len(nodes) > 1:
        nodes[-2:] = [hashlib.sha256(b"\1" + nodes[-2] + nodes[-1]).digest()]
    return nodes[0]


def once(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def parsed(text):
    value = json.loads(text, object_pairs_hook=once, parse_constant=int)  # NaN and the like are no integers either
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def header_of(line):
    try:
        header = parsed(line.decode())
        plain = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        if header["format"] != "keyleash audit export" or header["v"] != 1 or f"{plain}\n".encode() != line:
            raise ValueError("another format")
        names = header.keys() - {"key", "pruned"}
        if names != {"format", "v", "org", "entries", "head"} or not isinstance(header["org"], str):
            raise ValueError("no whole log")
        ends = type(header["entries"]) is int and (isinstance(header["head"], str) or header["head"] is None)
        if not ends or header["entries"] < 0 or (header["head"] is None) is not (header["entries"] == 0):
            raise ValueError("no end")
        return header
    except (ValueError, KeyError, RecursionError):
        raise Bad(3, "this is no whole export in JSONL, or its first line was changed") from None


def begin(header, notes, pinned):
    """The chain's last hash, the number and the tree that the log goes on from: those of its stub where it has one."""
    org = header["org"]
    chain = hashlib.sha256(b"keyleash/audit/log/v1\n" + org.encode("utf-8", "surrogatepass")).digest()
    if not notes and not pinned and "pruned" not in header:
        return chain, 0, []
    name, _, public = read_key(pinned or header.get("key", ""))
    if name.split("/")[:2] != ["keyleash", org]:
        raise Bad(3, "the key is that of another log")
    tree, size = [], 0
    if "pruned" in header:
        try:
            (stub,) = read_notes(header["pruned"])
            size, nodes = stub[2], stub[4]["frontier"].split()
            powers = [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]
            tree = list(zip(powers, map(unbase64, nodes), strict=True))
            chain = bytes.fromhex(stub[4]["head"])
            if root(tree) != stub[3] or stub[1].split("/")[:2] != ["keyleash", org]:
                raise ValueError("another tree or log")
            require_signed(stub, stub[1], public)
        except (ValueError, KeyError, Bad):
            raise Bad(1, "entries are gone, and what stands for them is not signed by the log's key", 1) from None
    for note in notes:
        require_signed(note, name, public)
    return chain, size, tree


def verify(file, notes, pinned):
    """How many entries there are after how many that were pruned. Raises Bad at the first that is wrong."""
    header = header_of(file.readline(MAX_LINE))
    chain, seq, tree = begin(header, notes, pinned)
    after = seq
    roots = {}
    for note in notes:
        roots.setdefault(note[2], []).append(note[3])

    def compare():
        if any(each != root(tree) for each in roots.get(seq, ())):
            raise Bad(1, f"the log up to entry {seq} is not the one that the checkpoint was made of", seq)

    compare()
    while line := file.readline(MAX_LINE):
        body = line[161:-2]
        own = hashlib.sha256(b"keyleash/audit/entry/v1\n" + chain + len(body).to_bytes(8, "big") + body).digest()
        whole = b'{"hash":"%s","previous":"%s","entry":%s}\n' % (own.hex().encode(), chain.hex().encode(), body)
        if line != whole or seq >= header["entries"]:
            raise Bad(1, f"entry {bad(line, chain, seq)} is not the one that was written there", bad(line, chain, seq))
        try:
            said = parsed(body.decode())
            if (type(said["seq"]), said["seq"], said["org"]) != (int, seq + 1, header["org"]):
                raise ValueError("another place")
            if said.get("v") != 1:
                raise Bad(3, f"entry {seq + 1} was written by another version of Keyleash")
            if not re.fullmatch(MOMENT, said["at"]) or not isinstance(said["event"], str):
                raise ValueError("no time or no event")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Bad(1, f"entry {seq + 1} is not one that Keyleash writes", seq + 1) from None
        chain, seq = own, seq + 1
        grow(tree, own)
        compare()
    if header["entries"] != seq or (seq and header["head"] != chain.hex()):
        raise Bad(1, f"the log ends with entry {seq}", seq + (header["entries"] > seq))
    if roots and max(roots) > seq:
        raise Bad(1, f"the log ends with entry {seq}, and a checkpoint of size {max(roots)} was signed", seq + 1)
    if seq == after:
        raise Bad(3, "there are no entries")
    return seq, after


def bad(line, chain, seq):
    """A whole entry that follows another one than the last, which was replaced then; else the one that belongs here."""
    found = re.match(rb'\{"hash":"([0-9a-f]{64})","previous":"([0-9a-f]{64})","entry":.*"seq":([0-9]+)', line)
    if found and seq and int(found[3]) == seq + 1 and found[2] != chain.hex().encode():
        text = b"keyleash/audit/entry/v1\n" + bytes.fromhex(found[2].decode())
        body = line[161:-2]
        whole = hashlib.sha256(text + len(body).to_bytes(8, "big") + body).hexdigest().encode()
        return seq if whole == found[1] else seq + 1
    return seq + 1


def main(arguments):
    files, notes, key = [], [], None
    given = iter(arguments)
    try:
        for each in given:
            if each == "--checkpoint":
                with open(next(given), encoding="utf-8") as file:
                    notes += read_notes(file.read())
            elif each == "--key":
                key = next(given)
            else:
                files.append(each)
        (path,) = files
        with open(path, "rb") as file:
            last, pruned = verify(file, notes, key)
    except Bad as problem:
        word = {1: "altered", 3: "cannot be verified"}[problem.code]
        print(f"{word}: {problem}" + (f" (first bad entry: {problem.first})" if problem.first else ""))
        return problem.code
    except (OSError, UnicodeDecodeError) as problem:
        print(f"cannot be verified: {problem}")
        return 3
    except (StopIteration, ValueError, RuntimeError):
        print(__doc__)
        return 2
    print(f"intact: entries {pruned + 1} to {last}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
