import assert from 'node:assert/strict';
import { test } from 'node:test';

import { alias, runsOf, toAscii } from '../dist/records.js';

const line = (more = {}) =>
  JSON.stringify({ updated_at: '2026-09-01T09:00:00.120+00:00', rollout_id: 'conv-1', input: [], generated_items: [], ...more });

test('a line keeps its meaning and holds no character that splits it elsewhere', () => {
  const raw = line({ final_output: 'é \u2028 \u2029 \u0085 😀' });
  const ascii = toAscii(raw);
  assert.match(ascii, /^[\x00-\x7f]*$/);
  assert.deepEqual(JSON.parse(ascii), JSON.parse(raw));
  assert.ok(ascii.includes('\\ud83d\\ude00'));
});

test('two lines are two runs, and a line has the same run wherever it stands', () => {
  const [one, two] = [line({ input: ['one'] }), line({ input: ['two'] })];
  const runs = runsOf(`${one}\n${two}\n`, 'conv-1');
  assert.equal(new Set(runs.map((run) => run.run)).size, 2);
  assert.deepEqual(runs[1], runsOf(`${two}\r\n`, 'conv-1')[0]);
});

test('a run that went on after an interruption is one run, its later line a higher attempt', () => {
  const asked = { input: [{ role: 'user', content: 'go' }] };
  const lines = [
    line({ ...asked, interruptions: [{ name: 'approve' }] }),
    line({ ...asked, interruptions: [{ name: 'again' }], generated_items: [1] }),
    line({ ...asked, generated_items: [1, 2] }),
    line({ ...asked, generated_items: [3] }),
  ];
  const runs = runsOf(lines.join('\n'), 'conv-1');
  assert.deepEqual(runs.map((run) => run.attempt), [1, 2, 3, 1]);
  assert.equal(new Set(runs.slice(0, 3).map((run) => run.run)).size, 1);
  assert.notEqual(runs[3].run, runs[0].run);
});

test('an interrupted run that another one follows stays as it is', () => {
  const runs = runsOf([line({ input: ['a'], interruptions: [1] }), line({ input: ['b'] })].join('\n'), 'conv-1');
  assert.deepEqual(runs.map((run) => run.attempt), [1, 1]);
});

test('what is no record is told, and keeps no other from being taken', () => {
  const told = [];
  const runs = runsOf(`{"half\n[]\n{"other": 1}\n${line()}`, 'conv-1', (why) => told.push(why));
  assert.deepEqual([runs.length, told.length], [1, 3]);
});

test("the run of a line is the one that `runlore import` gives it, and an id's alias is the service's", () => {
  // Made by the service's own code; tests/e2e/test_typescript.py compares more of them.
  assert.equal(alias('conv-1'), 'conv-1');
  assert.equal(alias('rl-x').slice(0, 9), 'rl-rl-x-' + alias('rl-x')[8]);
  for (const id of ['Conv-1', 'user:42', 'con', 'nul.txt', 'a.', 'x'.repeat(129), 'ü', '日本']) {
    assert.match(alias(id), /^rl-([a-z0-9-]+-)?[0-9a-f]{32}$/);
  }
});
