"""Erasures in any order, between runs, reverts and side lines: no byte of what was erased, and everything else."""

from __future__ import annotations

import random

import pytest
import test_erasing as erasing
from test_erasing import M, P

import made
from runlore import errors
from runlore.commit import revisions
from runlore.consumers import consolidate, promote, rebuild, record
from runlore.producer import Producer
from runlore.testing import buses, erasure_invariants, side_invariants, stores
from runlore.upkeep.erasing import eraser

SEEDS = [*range(6), 12, 39, 56]
STEPS = 12
ROLLOUTS = 5


class Plot:
    """Random steps, and what must be left after them."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.seed, self.store, self.bus = seed, stores.MemoryStore(), buses.MemoryBus()
        self.runs, self.gone, self.ended = {}, set(), set()
        """Run → (rollout, subject, what it alone says); the erased ones; rollouts that are erased for good."""
        self.is_reverted = False
        self.sides = 0

    async def runs_come(self):
        batch = []
        for _ in range(self.dice.randrange(1, 4)):
            number, rollout = len(self.runs), f"conv-{self.dice.randrange(ROLLOUTS)}"
            subject = self.dice.choice([None, "anna", "bert"])
            if rollout in self.ended:
                continue
            said = f"codeword{self.seed}x{number}y"
            record_ = made.payload(number, text=f"Remember {said} please")
            batch.append(made.data(number, rollout=rollout, record=record_, subject=subject))
            self.runs[f"run-{number}"] = (rollout, subject, said)
        await Producer(self.store, self.bus).publish(batch, source="/test")
        if self.dice.random() < 0.8:
            await erasing.worked(self.store, self.bus)
        else:
            messages = [one async for one in self.bus.read("runs")]
            await record.RecordStage(self.store, self.bus).process(messages)

    async def reverts(self):
        reader = revisions.Reader(self.store)
        newest = int((await reader.head(P, M)).body.get("revision") or 0)
        if newest > 1:
            to = self.dice.randrange(1, newest)
            await consolidate.revert(self.store, self.bus, reader, P, M, to=to, reason="try")
            self.is_reverted = True

    async def promotes(self):
        await erasing.worked(self.store, self.bus)
        self.sides += 1
        side = rebuild.Rebuild(self.store, self.bus, P, M, f"side-{self.sides}")
        await side.build(rebuild.setup_of(None), reason="try")
        if self.dice.random() < 0.7:
            reader = revisions.Reader(self.store)
            await promote.promote(self.store, self.bus, reader, P, M, f"side-{self.sides}", reason="try")

    async def erases(self):
        live = sorted(self.runs.keys() - self.gone)
        if not live:
            return
        run = self.dice.choice(live)
        rollout, subject, _ = self.runs[run]
        scope = self.dice.choice(["run", "rollout", *(["subject"] if subject else [])])
        strict = self.dice.random() < 0.2
        name = {"run": run, "rollout": rollout, "subject": subject}[scope]
        await erasing.erase(self.store, self.bus, **{scope: name}, strict=strict)
        before = set(self.gone)
        if scope == "run":
            self.gone.add(run)
        elif scope == "rollout":
            self._end(rollout)
        else:
            for other in {one for one, _, _ in self.runs.values()}:
                own = {run: whom for run, (of, whom, _) in self.runs.items() if of == other}
                self.gone |= {run for run, whom in own.items() if whom == subject}
                # A run for nobody in particular is that one's of its rollout.
                if {whom for run, whom in own.items() if whom and run not in before} == {subject}:
                    self._end(other)
        assert await self.shown() == [] and await erasure_invariants.check(self.store, P) == []
        if self.dice.random() < 0.3:
            one = eraser.Eraser(self.store, self.bus, P)
            for entry in await eraser.unfinished(self.store, P):
                await one.carry_on(str(entry.body["id"]))

    def _end(self, rollout):
        self.ended.add(rollout)
        self.gone |= {run for run, (of, _, _) in self.runs.items() if of == rollout}

    async def shown(self):
        """What is kept of what was erased."""
        bodies = list(erasing.bytes_of(self.store))
        return [
            (run, key)
            for run in sorted(self.gone)
            for key, body in bodies
            if self.runs[run][2].encode() in body
        ]

    async def missing(self):
        """What is not in the memory though nobody erased it."""
        there = await erasing.selected(self.store) if self.runs else []
        wanted = {self.runs[run][0] for run in self.runs.keys() - self.gone} - self.ended
        return sorted(wanted - set(there))


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_order_of_erasures_leaves_a_byte_of_what_was_erased_or_takes_another(seed):
    plot = Plot(seed)
    await plot.runs_come()
    for _ in range(STEPS):
        kind = plot.dice.random()
        try:
            if kind < 0.5:
                await plot.runs_come()
            elif kind < 0.58:
                await plot.promotes()
            elif kind < 0.64:
                await plot.reverts()
            else:
                await plot.erases()
        except (errors.Erased, errors.Refused, errors.NotFound):
            continue  # There is nothing, or nothing any more, to go back to.
    for _ in range(2):
        await erasing.worked(plot.store, plot.bus)
    assert await plot.shown() == []
    assert (
        await erasing.sound(plot.store, plot.bus) == [] and await side_invariants.check(plot.store, P) == []
    )
    assert plot.is_reverted or await plot.missing() == []
