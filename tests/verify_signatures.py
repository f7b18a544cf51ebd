#!/usr/bin/env python3
"""Checks every signature in a transcript, from docs/transcript.md alone.

    python3 tests/verify_signatures.py TRANSCRIPT [--consortium-id ID --round-id ID]

Needs `cryptography` (pip install cryptography) and nothing of fedprune. BLAKE3 is below, since Python has none of its own.
Exit code 0: every signature verifies and every decision follows from its holdings statements. 1: not; the file is named.
"""

import argparse
import os
import re
import struct
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# --- BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), hash mode, 32 bytes out ---------------------------------------------------

WORD = 0xFFFFFFFF
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def compress(value, block, counter, length, flags):
    s = list(value) + list(IV[:4]) + [counter & WORD, counter >> 32, length, flags]
    m = list(struct.unpack("<16I", block.ljust(64, b"\0")))

    def mix(a, b, c, d, x, y):
        for add, by_d, by_b in ((x, 16, 12), (y, 8, 7)):
            s[a] = (s[a] + s[b] + add) & WORD
            s[d] ^= s[a]
            s[d] = (s[d] >> by_d | s[d] << (32 - by_d)) & WORD
            s[c] = (s[c] + s[d]) & WORD
            s[b] ^= s[c]
            s[b] = (s[b] >> by_b | s[b] << (32 - by_b)) & WORD

    for _ in range(7):
        for column in range(4):
            mix(column, column + 4, column + 8, column + 12, m[2 * column], m[2 * column + 1])
        for i, (a, b, c, d) in enumerate(((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))):
            mix(a, b, c, d, m[8 + 2 * i], m[9 + 2 * i])
        m = [m[i] for i in PERMUTATION]
    return [s[i] ^ s[i + 8] for i in range(8)]


def chunk_value(chunk, number, root):
    value = IV
    blocks = [chunk[at : at + 64] for at in range(0, len(chunk), 64)] or [b""]
    for i, block in enumerate(blocks):
        flags = (CHUNK_START if i == 0 else 0) | ((CHUNK_END | root) if i == len(blocks) - 1 else 0)
        value = compress(value, block, number, len(block), flags)
    return value


def tree_value(data, first_chunk, root):
    if len(data) <= 1024:
        return chunk_value(data, first_chunk, root)
    left = 1024  # the largest power of two of chunks that leaves something on the right
    while left * 2 < len(data):
        left *= 2
    children = tree_value(data[:left], first_chunk, 0) + tree_value(data[left:], first_chunk + left // 1024, 0)
    return compress(IV, struct.pack("<16I", *children), 0, 64, PARENT | root)


def blake3(data):
    return struct.pack("<8I", *tree_value(data, 0, ROOT))


assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

# --- Encodings -----------------------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong with a file."""


class Reader:
    """Reads an encoding from its start."""

    def __init__(self, data, content):
        self.data, self.at = data, 0
        if self.take(8) != b"fedprune" or self.u16() != 1:
            raise Wrong("is no encoding of version 1")
        found = self.u8()
        if found != content:
            raise Wrong(f"has content {found}, not {content}")

    def take(self, count):
        if count > len(self.data) - self.at:
            raise Wrong("is cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def u8(self):
        return self.take(1)[0]

    def u16(self):
        return struct.unpack("<H", self.take(2))[0]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def u64(self):
        return struct.unpack("<Q", self.take(8))[0]

    def digest(self):
        return self.take(32)

    def signature(self):
        return self.take(64)

    def blob(self):
        return self.take(self.u64())

    def option(self, read):
        there = self.u8()
        if there > 1:
            raise Wrong("has an option that is neither there nor not")
        return read() if there else None

    def signatures(self):
        return self.list(lambda: (self.u16(), self.signature()))

    def list(self, read):
        count = self.u64()
        if count > len(self.data) - self.at:  # nothing in a list is smaller than a byte
            raise Wrong("claims a list longer than itself")
        return [read() for _ in range(count)]

    def end(self):
        if self.at != len(self.data):
            raise Wrong("has bytes after its end")


# --- What is signed ------------------------------------------------------------------------------------------------------------------

DOMAINS = {
    1: b"fedprune-consortium-membership:",
    2: b"fedprune-ballot-header:",
    3: b"fedprune-holdings:",
    4: b"fedprune-mask-result:",
    5: b"fedprune-agreement-proposal:",
    6: b"fedprune-agreement-prevote:",
    7: b"fedprune-agreement-precommit:",
    8: b"fedprune-consortium-succession:",
}


def encoded_holdings(entries):
    """A list of options of a digest."""
    return struct.pack("<Q", len(entries)) + b"".join(b"\0" if entry is None else b"\1" + entry for entry in entries)


def holdings_fields(entries):
    return struct.pack("<H", len(entries)) + blake3(encoded_holdings(entries))


def vote_fields(view, value):
    return struct.pack("<I", view) + (b"\0" * 33 if value is None else b"\1" + value)


def proposal_fields(view, value, valid_view):
    return struct.pack("<I", view) + value + struct.pack("<Q", 0 if valid_view is None else valid_view + 1)


class Consortium:
    """Members by name, with their keys; of a changed one also what it was changed from."""

    def __init__(self, data):
        content = data[10] if len(data) > 10 else 0
        reader = Reader(data, 27 if content == 27 else 16)
        self.predecessor, self.change = (reader.digest(), reader.u32()) if content == 27 else (None, 0)
        reader.blob()
        if reader.u16() != 1:
            raise Wrong("is of another protocol")

        def member():
            start = reader.at
            name, key = reader.blob(), reader.take(32)
            reader.take(32)
            reader.list(reader.blob)
            reader.option(reader.blob)
            return name.decode("ascii"), Ed25519PublicKey.from_public_bytes(key), data[start : reader.at]

        members = reader.list(member)
        reader.end()
        self.names, self.keys, self.entries = ([entry[part] for entry in members] for part in range(3))
        if not members or self.names != sorted(set(self.names)):
            raise Wrong("does not list its members by name")
        if content == 27 and not 1 <= self.change <= 64:
            raise Wrong(f"is change {self.change}, which there is not")
        n = len(members)
        self.f, self.q, self.id = (n - 1) // 3, 2 * n // 3 + 1, blake3(data)


class Transcript:
    """A transcript's folder, checked file by file."""

    def __init__(self, root):
        self.root, self.file, self.signatures = root, None, 0

    def read(self, relative):
        self.file = relative
        try:
            with open(os.path.join(self.root, relative), "rb") as file:
                return file.read(8 << 20)  # no file but a ballot is larger
        except OSError as error:
            raise Wrong(f"cannot be read: {error.strerror}") from error

    def names(self, relative):
        try:
            return sorted(name for name in os.listdir(os.path.join(self.root, relative)) if name != ".unfinished")
        except FileNotFoundError:
            return []

    def verify(self, kind, height, member, fields, signature):
        self.verify_in(self.consortium, self.round_id, kind, height, member, fields, signature)

    def verify_in(self, consortium, round_id, kind, height, member, fields, signature):
        if member >= len(consortium.keys):
            raise Wrong(f"speaks for member {member}, and there are {len(consortium.keys)}")
        message = DOMAINS[kind].ljust(32, b"\0") + struct.pack("<H", 1) + consortium.id + round_id
        message += struct.pack("<IBH", height, kind, member) + fields
        try:
            consortium.keys[member].verify(signature, message)
        except InvalidSignature:
            raise Wrong(f"has a signature of `{consortium.names[member]}` that does not verify") from None
        self.signatures += 1

    # --- the founding documents

    def founded(self, consortium, signatures):
        if [member for member, _ in signatures] != list(range(len(consortium.keys))):
            raise Wrong("does not have the signatures of all members")
        for member, signature in signatures:
            self.verify_in(consortium, bytes(32), 1, 0, member, b"", signature)

    def changed(self, before, after, memberships, successions):
        """That a quorum of the members before, and everyone who enters, signed a change."""
        if (after.predecessor, after.change) != (before.id, before.change + 1):
            raise Wrong(f"has change {after.change} after change {before.change}, of something else")
        for signatures in (memberships, successions):
            members = [member for member, _ in signatures]
            if members != sorted(set(members)):
                raise Wrong("has signatures out of order")
        for member, signature in memberships:
            self.verify_in(after, bytes(32), 1, 0, member, b"", signature)
        for member, signature in successions:
            self.verify_in(before, bytes(32), 8, after.change, member, after.id, signature)
        if len(successions) < before.q:
            raise Wrong(f"has {len(successions)} agreements to change {after.change}, of the {before.q} needed")
        signed = {member for member, _ in memberships}
        for member, entry in enumerate(after.entries):
            if entry not in before.entries and member not in signed:
                raise Wrong(f"has no signature of `{after.names[member]}`, which change {after.change} enters")

    def found(self):
        consortium = Consortium(self.read("consortium.bin"))
        data = self.read("consortium.signatures")
        if consortium.change == 0:
            reader = Reader(data, 17)
            if reader.digest() != consortium.id:
                raise Wrong("is of another consortium")
            signatures = reader.signatures()
            reader.end()
            self.founded(consortium, signatures)
            self.lineage = [consortium.id]
        else:
            reader = Reader(data, 28)
            links = reader.list(lambda: (Consortium(reader.blob()), reader.signatures(), reader.signatures()))
            if reader.digest() != consortium.id:
                raise Wrong("is of another consortium")
            links.append((consortium, reader.signatures(), reader.signatures()))
            reader.end()
            first, memberships, successions = links[0]
            if first.change != 0 or successions:
                raise Wrong("does not begin with a founding")
            self.founded(first, memberships)
            for (before, _, _), (after, memberships, successions) in zip(links, links[1:]):
                self.changed(before, after, memberships, successions)
            self.lineage = [link.id for link, _, _ in links]
        self.consortium, self.consortium_id = consortium, consortium.id
        self.members, self.f, self.q = consortium.names, consortium.f, consortium.q

        data = self.read("round.bin")
        if Reader(data, 18).digest() != self.consortium_id:
            raise Wrong("is a round of another consortium")
        self.round_id = blake3(data)

    # --- statements

    def holdings_list(self, reader):
        entries = reader.list(lambda: reader.option(reader.digest))
        if len(entries) != len(self.members):
            raise Wrong("does not list every member")
        return entries

    def content(self, kind, reader):
        """The fields of a signed statement's content."""
        if kind == 2:
            return reader.take(48)
        if kind == 3:
            return holdings_fields(self.holdings_list(reader))
        if kind == 4:
            return reader.digest()
        if kind == 5:
            return proposal_fields(reader.u32(), reader.digest(), reader.option(reader.u32))
        return vote_fields(reader.u32(), reader.option(reader.digest))

    def statement(self, kind, reader, height):
        """Reads and verifies a signed statement; returns its member and the fields of its content."""
        member, claimed = reader.u16(), reader.u32()
        if claimed != height:
            raise Wrong(f"is of height {claimed}")
        fields = self.content(kind, reader)
        self.verify(kind, height, member, fields, reader.signature())
        return member, fields

    def statements(self, folder, content, kind, height):
        for name in self.names(folder):
            reader = Reader(self.read(f"{folder}/{name}"), content)
            member, fields = self.statement(kind, reader, height)
            reader.end()
            body = f"-{fields[:8].hex()}" if kind == 2 else ""
            self.check_name(name, f"{member:04}{body}.bin")

    def check_name(self, name, expected):
        if name != expected:
            raise Wrong(f"should be named `{expected}`")

    # --- decisions

    def grounds(self, reader, height, value):
        """A decision of this digest, and the holdings statements that it follows from."""
        decision = reader.blob()
        if blake3(decision) != value:
            raise Wrong("has another decision than the one signed")
        lists = reader.list(lambda: self.holdings_list(reader))
        statements = reader.list(lambda: (reader.u16(), reader.u16(), reader.signature()))
        inner = Reader(decision, 19)
        if (inner.digest(), inner.digest()) != (self.consortium_id, self.round_id) or inner.u32() != height:
            raise Wrong("has a decision of another round or height")
        choice = inner.u32()
        if choice == 1:
            inner.end()
            if lists or statements:
                raise Wrong("has holdings statements beside an abandoned height")
            return
        if choice != 0:
            raise Wrong("has a decision that is neither a manifest nor abandoned")
        ballots = self.holdings_list(inner)
        inner.option(inner.digest)
        inner.end()
        members = [member for member, _, _ in statements]
        if members != sorted(set(members)) or len(members) != self.q:
            raise Wrong(f"does not have the holdings statements of {self.q} members")
        held = []
        for member, which, signature in statements:
            if which >= len(lists):
                raise Wrong("has a holdings statement without its list")
            self.verify(3, height, member, holdings_fields(lists[which]), signature)
            held.append(lists[which])
        for member in range(len(self.members)):
            digests = [entries[member] for entries in held if entries[member] is not None]
            enough = sorted({digest for digest in digests if digests.count(digest) > self.f})
            expected = enough[0] if len(enough) == 1 else None
            if ballots[member] != expected:
                raise Wrong(f"has another ballot of `{self.members[member]}` than its holdings statements make")

    def settled(self, folder, height):
        reader = Reader(self.read(f"{folder}/settled.bin"), 23)
        if (reader.digest(), reader.digest()) != (self.consortium_id, self.round_id) or reader.u32() != height:
            raise Wrong("has a certificate of another round or height")
        view, value = reader.u32(), reader.digest()
        precommits = reader.list(lambda: (reader.u16(), reader.signature()))
        members = [member for member, _ in precommits]
        if members != sorted(set(members)) or len(members) < self.q:
            raise Wrong(f"does not have the precommits of {self.q} members")
        for member, signature in precommits:
            self.verify(7, height, member, vote_fields(view, value), signature)
        self.grounds(reader, height, value)
        reader.end()

    def proposals(self, folder, height):
        for name in self.names(folder):
            data = self.read(f"{folder}/{name}")
            reader = Reader(data, 22)
            member, claimed = reader.u16(), reader.u32()
            if claimed != height:
                raise Wrong(f"is of height {claimed}")
            view, value, valid_view = reader.u32(), reader.digest(), reader.option(reader.u32)
            self.verify(5, height, member, proposal_fields(view, value, valid_view), reader.signature())
            self.check_name(name, f"{view:04}-{member:04}-{blake3(data)[:8].hex()}.bin")
            try:
                self.grounds(reader, height, value)
                reader.end()
            except Wrong as wrong:  # what lies beside the signature is not signed: the proposal stands and its grounds do not
                print(f"note: `{self.file}`: the proposal of `{self.members[member]}` {wrong}")

    def evidence(self, folder, height):
        for name in self.names(folder):
            data = self.read(f"{folder}/{name}")
            reader = Reader(data, 20)
            self.check_name(name, f"{blake3(data)[:8].hex()}.bin")
            if (reader.digest(), reader.digest()) != (self.consortium_id, self.round_id):
                raise Wrong("is of another round")
            choice = reader.u32()
            if choice > 5:
                raise Wrong("is of no kind of statement")
            (member, one), (another, other) = (self.statement(choice + 2, reader, height) for _ in range(2))
            reader.end()
            if member != another or one == other:
                raise Wrong("does not have two statements of one member")
            print(f"finding: `{self.members[member]}` signed two statements at height {height} (`{self.file}`)")

    def heights(self):
        names = [name for name in self.names("heights") if re.fullmatch(r"\d{4,}", name)]
        if not names:
            self.file = "heights"
            raise Wrong("has no height")
        for name in names:
            height, folder = int(name), f"heights/{name}"
            self.settled(folder, height)
            self.statements(f"{folder}/headers", 34, 2, height)
            self.statements(f"{folder}/holdings", 35, 3, height)
            self.statements(f"{folder}/results", 36, 4, height)
            self.proposals(f"{folder}/proposals", height)
            self.evidence(f"{folder}/evidence", height)
        return len(names)


def main():
    parser = argparse.ArgumentParser(description="Checks every signature in a transcript.")
    parser.add_argument("transcript")
    parser.add_argument("--consortium-id", help="what the consortium id should be, from somebody you trust")
    parser.add_argument("--round-id", help="what the round id should be")
    arguments = parser.parse_args()
    transcript = Transcript(arguments.transcript)
    try:
        transcript.found()
        for what, given, found in (
            ("consortium", arguments.consortium_id, transcript.consortium_id),
            ("round", arguments.round_id, transcript.round_id),
        ):
            known = [found.hex()] + ([id.hex() for id in transcript.lineage] if what == "consortium" else [])
            if given is not None and given not in known:
                raise Wrong(f"belongs to {what} {found.hex()}, not {given}")
        heights = transcript.heights()
    except (Wrong, ValueError) as error:
        print(f"FAILED: `{transcript.file}` {error}")
        return 1
    changes = len(transcript.lineage) - 1
    if changes:
        print(f"founded    {transcript.lineage[0].hex()}, changed {changes} times since")
    print(f"consortium {transcript.consortium_id.hex()}\nround      {transcript.round_id.hex()}")
    print(f"{transcript.signatures} signatures of {len(transcript.members)} members at {heights} heights verify")
    return 0


if __name__ == "__main__":
    sys.exit(main())
