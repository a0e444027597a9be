"""Trees on disk for the tests of snapshots: made from a plain description, and described back bit by bit."""

from __future__ import annotations

import hashlib
import os
import stat

from hypothesis import strategies as st

# Names that a shell, a tar or a decoder may stumble over, and ordinary ones.
_ODD = [
    b"a b", b"new\nline", b"\xff\xfe", b"%41", b"100%", b"-rf", b"'\"", b"\xc3\xa4\xe2\x82\xac", b"\xf0\x9f\x98\x80",
    b"back\\slash", b"C:x", b".hidden", b"tab\t", b"x" * 255, b"\xed\xa0\x80", b"..."
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(_ODD),
    st.binary(min_size=1, max_size=12).filter(
        lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
    ),
)
_MODES = st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o400, 0o777, 0o000, 0o4755, 0o640])
_DIR_MODES = st.sampled_from([0o755, 0o700, 0o555, 0o777, 0o1777, 0o2755])
_TIMES = st.integers(min_value=0, max_value=4_000_000_000_123_456_789)
_BLOCK = 65536


@st.composite
def _contents(draw):
    kind = draw(st.sampled_from(["small", "small", "text", "large", "holes", "zeros"]))
    if kind == "small":
        return [draw(st.binary(max_size=64))]
    if kind == "text":
        return [draw(st.binary(min_size=1, max_size=8)) * draw(st.integers(1, 4000))]
    # Runs of noise and of zeros, whole blocks or not, so that every edge of the cutting rules is met.
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([1, 4096, _BLOCK - 1, _BLOCK, _BLOCK + 1, 5 * _BLOCK, 300_000]))
        hole = kind == "zeros" or (kind == "holes" and draw(st.booleans()))
        pieces.append(size if hole else noise(draw(st.integers(0, 5)), size))
    return pieces


def noise(seed: int, size: int) -> bytes:
    """Bytes without pattern that are a function of `seed`."""
    return hashlib.shake_128(b"%d" % seed).digest(size)


_FILES = st.builds(lambda pieces, mode, mtime: ("file", pieces, mode, mtime), _contents(), _MODES, _TIMES)
_TARGETS = st.sampled_from(
    [b"a", b"../x", b"../../../etc/passwd", b"/etc/passwd", b"\xff", b"a/b/../c", b"."]
)
_LINKS = st.builds(lambda target, mtime: ("link", target, mtime), _TARGETS, _TIMES)
_LEAVES = st.one_of(_FILES, _FILES, _LINKS)
TREES = st.recursive(
    st.dictionaries(NAMES, _LEAVES, max_size=5),
    lambda below: st.dictionaries(
        NAMES,
        st.one_of(
            _LEAVES, st.builds(lambda e, mode, mtime: ("dir", e, mode, mtime), below, _DIR_MODES, _TIMES)
        ),
        max_size=5,
    ),
    max_leaves=16,
)


def make(root: bytes, tree: dict, *, mode: int = 0o755, mtime: int = 1_700_000_000_123_456_789) -> None:
    """Write `tree` to the new directory `root`."""
    os.mkdir(root)
    for name, (kind, *rest) in tree.items():
        path = root + b"/" + name
        if kind == "dir":
            make(path, rest[0], mode=rest[1], mtime=rest[2])
        elif kind == "link":
            os.symlink(rest[0], path)
            os.utime(path, ns=(rest[1], rest[1]), follow_symlinks=False)
        else:
            _file(path, *rest)
    os.chmod(root, mode)
    os.utime(root, ns=(mtime, mtime))


def _file(path: bytes, pieces: list, mode: int, mtime: int) -> None:
    with open(path, "wb") as file:
        for piece in pieces:
            if isinstance(piece, int):
                file.seek(piece, os.SEEK_CUR)
            else:
                file.write(piece)
        file.truncate(file.tell())
    os.chmod(path, mode)
    os.utime(path, ns=(mtime, mtime))


def describe(root: bytes | str, *, times: bool = True) -> dict[bytes, tuple]:
    """Everything that a snapshot promises to keep, by path."""
    root = os.fsencode(root)
    found: dict[bytes, tuple] = {}
    stack = [b""]
    while stack:
        at = stack.pop()
        path = root + b"/" + at if at else root
        status = os.lstat(path)
        mtime = status.st_mtime_ns if times else 0
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            found[at] = ("dir", mode, mtime)
            stack += [(at + b"/" if at else b"") + os.fsencode(name) for name in os.listdir(path)]
        elif stat.S_ISLNK(status.st_mode):
            found[at] = ("link", os.readlink(path), mtime)
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                body = hashlib.file_digest(file, "sha256").hexdigest()
            found[at] = ("file", mode, mtime, status.st_size, body)
        else:
            found[at] = ("other", stat.S_IFMT(status.st_mode))
    return found
