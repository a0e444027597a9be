"""Every decoder on every byte: samples, what was found before, and samples that were damaged.

Goal: issue 7, point 4. Method: one contract for all targets (`targets.py`), examples that are the same in every run.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
import mutating
import pytest
import targets
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_valid_sample_is_taken(name):
    one = targets.TARGETS[name]
    assert one.samples()
    taken = 0
    for raw in one.samples():
        try:
            one.run(raw)
            taken += 1
        except one.raises as exc:
            assert exc.kind not in targets.BUGS
    # Some samples are of another type than their target's; one at least is its own.
    assert taken


@pytest.mark.parametrize("where", FOUND)
def test_what_broke_a_decoder_once_breaks_it_no_more(where):
    targets.check(where.partition("/")[0], (CORPUS / where).read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
@hypothesis.settings(
    max_examples=15, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(data=st.data())
def test_a_damaged_sample_is_read_or_refused_in_our_words(name, data):
    one = targets.TARGETS[name]
    dice = data.draw(st.randoms(use_true_random=False))
    raw = mutating.mutate(dice, dice.choice(one.samples()), one.samples(), one.kind)
    hypothesis.note(repr(raw[:2000]))
    targets.check(name, raw)


def test_every_folder_of_the_corpus_is_a_target():
    assert {where.partition("/")[0] for where in FOUND} <= targets.TARGETS.keys()
