"""Packs: whatever is put in comes out, whatever is changed is noticed, and repacking stays within its bounds."""

from __future__ import annotations

import zlib

import hypothesis
import pytest
from hypothesis import strategies as st

from runlore import errors
from runlore.commit import packs

CONTENTS = st.lists(st.binary(max_size=400), max_size=12, unique=True)


def stored(contents):
    return {packs.name(one): packs.compress(one) for one in contents}


@hypothesis.given(CONTENTS)
def test_every_frame_comes_out_of_a_pack_as_it_went_in(contents):
    pack = packs.encode(stored(contents))
    again = packs.decode(pack.sha256, pack.raw)
    assert {again.content(packs.name(one)) for one in contents} == set(contents)
    assert set(again.index) == {packs.name(one) for one in contents}
    assert packs.encode(dict(reversed(stored(contents).items()))).raw == pack.raw


@hypothesis.given(CONTENTS, st.data())
def test_any_changed_byte_of_a_pack_is_noticed(contents, data):
    pack = packs.encode(stored(contents))
    raw = bytearray(pack.raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(errors.Corrupt):
        packs.decode(pack.sha256, bytes(raw))
    with pytest.raises(errors.Corrupt):
        packs.decode(pack.sha256, bytes(pack.raw[:at]))


@pytest.mark.parametrize(
    "body", [b"", b"not zlib", zlib.compress(b"other bytes"), zlib.compress(b"x" * 10)[:-3]]
)
def test_a_frame_with_other_bytes_than_its_name_is_corrupt(body):
    frame = packs.name(b"the content")
    pack = packs.encode({frame: body})
    with pytest.raises(errors.Corrupt):
        packs.decode(pack.sha256, pack.raw).content(frame)


def test_a_frame_that_inflates_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(packs, "FRAME_BYTES_MAX", 1000)
    bomb = b"\0" * 100_000
    pack = packs.encode({packs.name(bomb): packs.compress(bomb)})
    with pytest.raises(errors.Corrupt):
        pack.content(packs.name(bomb))


def test_what_is_in_no_pack_is_corrupt_not_a_key_error():
    frames = packs.Frames([packs.encode(stored([b"one"]))])
    with pytest.raises(errors.Corrupt):
        frames.content(packs.name(b"two"))
    with pytest.raises(errors.Corrupt):
        packs.repack(frames, {packs.name(b"two")}, {})


STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 31), st.integers(1, 3000)), max_size=40
)


@hypothesis.given(STEPS)
def test_repacking_keeps_every_live_frame_and_its_bounds_through_any_history(steps):
    held, live, size = [], {}, 0
    for changed, dropped, size in steps:
        new = {}
        for slot in changed:
            # Hardly compressible, so that bytes count.
            content = b"".join(
                packs.name(f"{slot}/{size}/{at}".encode()).encode() for at in range(size // 64 + 1)
            )
            live[slot] = packs.name(content)
            new[live[slot]] = content
        live.pop(dropped, None)
        named = set(live.values())
        new = {name: content for name, content in new.items() if name in named}
        frames = packs.Frames(held)
        before = {pack.sha256 for pack in held}
        held, written = packs.repack(frames, named, new)
        assert {pack.sha256 for pack in held} <= before | {written.sha256 if written else None}
        assert len(held) <= packs.PACKS_MAX
        again = packs.Frames([packs.decode(pack.sha256, pack.raw) for pack in held])
        used = sum(len(again._where[frame].stored(frame)) for frame in named)
        assert all(packs.name(again.content(frame)) == frame for frame in named)
        assert all(any(frame in named for frame in pack.index) for pack in held), (
            "a pack without a live frame"
        )
        total = sum(len(pack.raw) for pack in held)
        overhead = sum(len(pack.raw) - sum(size for _, size in pack.index.values()) for pack in held)
        assert total <= 2 * used + packs.DEAD_BYTES_SLACK + overhead


def test_a_long_line_of_revisions_names_few_packs_and_writes_each_byte_a_few_times():
    held, named, sizes, written_bytes = [], set(), [], 0
    for number in range(300):
        content = "".join(packs.name(f"{number}/{at}".encode()) for at in range(8)).encode()
        named.add(packs.name(content))
        held, written = packs.repack(packs.Frames(held), named, {packs.name(content): content})
        written_bytes += len(written.raw)
        sizes.append(len(held))
    assert max(sizes) == packs.PACKS_MAX
    live = sum(len(pack.raw) for pack in held)
    assert written_bytes < 8 * live, f"{written_bytes / live:.1f} times"
