/** For tests/e2e/test_typescript.py: a job as JSON on stdin, done with the built client, its outcome as JSON on stdout. */

import { text } from 'node:stream/consumers';
import { Runlore } from 'runlore';

import { alias, runsOf } from '../dist/records.js';
import { run } from './sdk.mjs';

const job = JSON.parse(await text(process.stdin));
const reports = [];
const report = ({ message, error }) => reports.push(error ? `${message}: ${error.message}` : message);
const lore = job.runlore && new Runlore({ ...job.runlore, report });

const does = {
  names: () => ({
    aliases: job.ids.map(alias),
    runs: job.lines.map((line) => runsOf(line, job.rollout).map(({ run, line: kept }) => ({ run, kept }))[0]),
  }),
  runs: async () => {
    const one = async ({ id, commands, ...options }) => {
      const { outputs, instructions, finalOutput } = await run(lore, id, commands, options);
      return { outputs, instructions, finalOutput };
    };
    if (job.together) return { runs: await Promise.all(job.runs.map(one)) };
    const runs = [];
    for (const each of job.runs) runs.push(await one(each));
    return { runs };
  },
  flush: async () => ({ delivered: await lore.flush() }),
};

const outcome = await does[job.do]();
process.stdout.write(JSON.stringify({ ...outcome, reports }), () => process.exit(0));
