"""A second reader of snapshots, written from docs/FORMAT.md alone: it shares no code with Runlore.

restore(folder of a directory store, project, "<id>/<root>" or "<id>", into)
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct

import blake3
import zstandard

MAGIC = b"RLSNPK1\n"


def digest(raw: bytes) -> str:
    return blake3.blake3(raw).hexdigest()


def name_bytes(text: str) -> bytes:
    return re.sub(rb"%([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), text.encode())


class Reader:
    def __init__(self, store: str, project: str, snapshot: str) -> None:
        self.folder, self.where = f"{store}/{project}", {}
        ident, _, root = snapshot.partition("/")
        if not root:
            root = sorted(os.listdir(f"{self.folder}/snapshots/{ident[:2]}/{ident}"))[0]
        me = f"{ident}/{root}"
        raw = self.pack(me)
        assert digest(raw) == root, "a root pack is named by its bytes"
        index_length, root_length, magic = struct.unpack(">II8s", raw[-16:])
        assert magic == MAGIC and raw.startswith(MAGIC)
        end = len(raw) - 16
        body = json.loads(raw[end - root_length : end])
        assert body["format"] == "runlore.snapshot-root/1"
        record = body["record"].encode()
        assert digest(record) == ident, "a snapshot's id is its record's"
        self.record = json.loads(record)
        for pack, offset, length in body["indexes"]:
            self.index(pack, self.pack(pack)[offset : offset + length])
        self.index(me, raw[end - root_length - index_length : end - root_length])

    def pack(self, name: str) -> bytes:
        kind = "snapshots" if "/" in name else "blobs"
        with open(f"{self.folder}/{kind}/{name[:2]}/{name}", "rb") as file:
            return file.read()

    def index(self, lies_in: str, stored: bytes) -> None:
        raw = zstandard.decompress(stored)
        header_length, count = struct.unpack(">II", raw[:8])
        header = json.loads(raw[8 : 8 + header_length])
        ids = raw[8 + header_length :]
        lengths = struct.unpack(f">{count}I", ids[32 * count :])
        number, numbers = 0, iter(header["frames"])
        for pack, offset, stored_length, blobs in zip(numbers, numbers, numbers, numbers, strict=True):
            inside = 0
            for _ in range(blobs):
                blob = ids[32 * number : 32 * number + 32].hex()
                name = header["packs"][pack] or lies_in
                self.where[blob] = (name, offset, stored_length, inside, lengths[number])
                inside += lengths[number]
                number += 1

    def blob(self, blob: str) -> bytes:
        pack, offset, stored, inside, length = self.where[blob]
        frame = zstandard.decompress(self.pack(pack)[offset : offset + stored])
        found = frame[inside : inside + length]
        assert digest(found) == blob, "a blob is what its id says"
        return found

    @staticmethod
    def attributes(path: bytes, extra: list) -> None:
        for name, value in (extra[0].get("xattrs", {}) if extra else {}).items():
            assert name.startswith("user.")
            os.setxattr(path, name_bytes(name), base64.b64decode(value, validate=True))

    def restore(self, tree: str, into: bytes, mode: int, mtime: int, extra: list = ()) -> None:
        os.mkdir(into)
        self.attributes(into, extra)
        body = json.loads(self.blob(tree))
        for name, file_mode, file_mtime, size, chunks, *extra in body["files"]:
            path = into + b"/" + name_bytes(name)
            listed = [chunks] if isinstance(chunks, str) else chunks
            content = b"".join(self.blob(chunk) for chunk in listed)
            data = extra[0].get("data") if extra else None
            with open(path, "wb") as file:
                for offset, length in (
                    zip(data[::2], data[1::2], strict=True) if data is not None else [(0, size)]
                ):
                    file.seek(offset)
                    file.write(content[:length])
                    content = content[length:]
                file.truncate(size)
            self.attributes(path, extra)
            os.chmod(path, file_mode)
            os.utime(path, ns=(file_mtime, file_mtime))
        for name, link_mtime, target in body["links"]:
            path = into + b"/" + name_bytes(name)
            os.symlink(name_bytes(target), path)
            os.utime(path, ns=(link_mtime, link_mtime), follow_symlinks=False)
        for name, dir_mode, dir_mtime, below, content_id, *extra in body["dirs"]:
            self.restore(below, into + b"/" + name_bytes(name), dir_mode, dir_mtime, extra)
            assert self.content_id(below) == content_id
        os.chmod(into, mode)
        os.utime(into, ns=(mtime, mtime))

    def content_id(self, tree: str) -> str:
        body = json.loads(self.blob(tree))
        rows = {
            "dirs": [[row[0], row[1], *row[4:]] for row in body["dirs"]],
            "files": [[*row[:2], *row[3:]] for row in body["files"]],
            "links": [[row[0], row[2]] for row in body["links"]],
        }
        return digest(json.dumps(rows, separators=(",", ":")).encode())


def report(store: str, project: str, snapshot: str) -> dict | None:
    reader = Reader(store, project, snapshot)
    blob = reader.record.get("report")
    if blob is None:
        return None
    body = json.loads(reader.blob(blob))
    assert body["format"] == "runlore.snapshot-report/1"
    return body


def restore(store: str, project: str, snapshot: str, into: str) -> None:
    reader = Reader(store, project, snapshot)
    record = reader.record
    if record["kind"] == "native":
        body = b"".join(reader.blob(chunk) for chunk in record["chunks"])
        assert len(body) == record["bytes"]
        with open(into, "wb") as file:
            file.write(body)
        return
    assert record["kind"] == "tree"
    assert reader.content_id(record["tree"]) == record["content"]
    reader.restore(record["tree"], os.fsencode(into), record["mode"], record["mtime"])
