/**
 * For tests/e2e/test_typescript.py: each line of stdin is a job as JSON, done with the built client; its outcome is a line
 * of JSON on stdout. Every job has a `Runlore` of its own, as a process that just started would.
 */

import { createInterface } from 'node:readline';
import { Runlore } from 'runlore';

import { alias, runsOf } from '../dist/records.js';
import { pausedAndResumed, run } from './sdk.mjs';

const does = {
  names: (job) => ({
    aliases: job.ids.map(alias),
    runs: job.lines.map((line) => runsOf(line, job.rollout).map((one) => ({ run: one.run, kept: one.line }))[0]),
  }),
  runs: async (job, lore) => {
    const one = async ({ id, commands, ...options }) => {
      const { outputs, instructions, finalOutput } = await run(lore, id, commands, options);
      return { outputs, instructions, finalOutput };
    };
    if (job.together) return { runs: await Promise.all(job.runs.map(one)) };
    const runs = [];
    for (const each of job.runs) runs.push(await one(each));
    return { runs };
  },
  resumed: async (job, lore) => ({ finalOutput: await pausedAndResumed(lore, job.id) }),
  flush: async (_, lore) => ({ delivered: await lore.flush() }),
};

async function done(job) {
  const reports = [];
  const report = ({ message, error }) => reports.push(error ? `${message}: ${error.message}` : message);
  try {
    const lore = job.runlore && new Runlore({ ...job.runlore, report });
    return { ...(await does[job.do](job, lore)), reports };
  } catch (error) {
    return { failed: error.stack, reports };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await done(JSON.parse(line)))}\n`);
}
process.exit(0); // The SDK's timers would keep it for seconds.
