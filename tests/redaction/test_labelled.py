"""The labelled set holds what docs/REDACTION.md says of it: a rule that loses recall or precision fails here."""

from __future__ import annotations

import json

import labelled
import pytest

from runlore.memory import detectors, redact


@pytest.fixture(params=["shapes alone", "with the library"])
def library(request):
    if request.param == "shapes alone":
        yield None
        return
    pytest.importorskip("kingfisher_sdk")
    found = detectors.load()
    yield found
    detectors.use(None)


@pytest.mark.parametrize("half", labelled.HALVES)
def test_secrets_are_hidden_and_what_only_looks_like_one_stays(half, library):
    secrets, missed, harmed = 0, [], []
    for case in labelled.cases(half):
        kept = redact.text(case.text)
        if not case.hidden and kept != case.text:
            harmed.append(case.name)
        secrets += len(case.hidden)
        missed += [case.kind for one in case.hidden if one in kept]
    assert harmed == []
    assert 1 - len(missed) / secrets >= (0.79 if library is None else 0.96), sorted(set(missed))


def test_no_case_of_a_half_has_a_kind_or_surroundings_of_the_other():
    tuning, held_out = (labelled.cases(half) for half in labelled.HALVES)
    for of in (lambda case: case.kind, lambda case: case.surroundings):
        assert not {of(case) for case in tuning if case.hidden} & {
            of(case) for case in held_out if case.hidden
        }
    kinds = {case.kind for case in tuning + held_out}
    assert (
        sum(not kind.startswith("not-") for kind in kinds) >= 40
        and sum(kind.startswith("not-") for kind in kinds) >= 40
    )


@pytest.mark.parametrize("half", labelled.HALVES)
def test_a_record_with_a_case_in_it_stays_a_line_and_a_second_pass_changes_nothing(half, library):
    for case in labelled.cases(half)[::3]:
        line = json.dumps({"input": [{"role": "tool", "content": case.text}], "generated_items": []})
        once, counts = redact.line(line, b"k" * 32)
        assert json.loads(once)["input"][0]["role"] == "tool", case.name
        assert redact.line(once, b"k" * 32) == (once, {}), case.name
        assert bool(counts) == (once != line)
