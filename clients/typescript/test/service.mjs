/** A small stand-in for `runlore serve`, as docs/HTTP.md says it: seeds, archives and events in memory. */

import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { pack } from 'tar-stream';

export class FakeService {
  events = [];
  archives = new Map();
  /**
   * What every request gets: `{status, body, headers}`, the body a JSON value or a text; `'cut'`: no answer; `'lost'`: no
   * answer after the effect; `'silent'`: none, ever; `'half'`: the beginning of one.
   */
  fault = undefined;
  requests = [];
  /** rollout → {counter, snapshot, tar} */
  lines = new Map();
  memory = { revision: null, files: {} };
  seeds = new Map();
  /** Whether no workspace is placed yet. */
  isBehind = false;

  async start(port = 0) {
    this.server = createServer((request, response) => {
      const pieces = [];
      request.on('data', (piece) => pieces.push(piece));
      request.on('end', () => this.answer(request, Buffer.concat(pieces), response));
    });
    await new Promise((resolve) => this.server.listen(port, '127.0.0.1', resolve));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    return this;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  answer(request, body, response) {
    const url = new URL(request.url, this.url);
    this.requests.push(`${request.method} ${url.pathname}${url.search}`);
    const send = (status, value, headers = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', ...headers });
      response.end(Buffer.isBuffer(value) || typeof value === 'string' ? value : JSON.stringify(value));
    };
    const fault = typeof this.fault === 'function' ? this.fault(request, url) : this.fault;
    if (fault === 'cut') return request.socket.destroy();
    if (fault === 'silent') return undefined;
    if (fault === 'half') {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': '1000' });
      return response.write('{"seed": ', () => request.socket.destroy());
    }
    if (fault === 'lost') {
      if (url.pathname.endsWith('/events')) this.publish(JSON.parse(body), () => {});
      return request.socket.destroy();
    }
    if (fault) return send(fault.status, fault.body ?? { kind: 'store_unavailable', detail: 'away' }, fault.headers);
    const path = url.pathname.replace(/^\/v1\/projects\/acme/, '');
    const seed = /^\/seeds\/([^/]+)\/(memory|workspace)\.tar$/.exec(path);
    if (request.method === 'POST' && path === '/archives') return send(201, this.take(body));
    if (request.method === 'POST' && path === '/events') return this.publish(JSON.parse(body), send);
    if (path.startsWith('/runs/')) return this.explain(decodeURIComponent(path.slice(6)), send);
    if (path === '/memories/support/seed') return send(200, this.seed(url.searchParams));
    if (seed) return send(200, this.seeds.get(seed[1])[seed[2]], { 'content-type': 'application/x-tar' });
    return send(404, { kind: 'not_found', detail: path });
  }

  take(body) {
    const sha256 = createHash('sha256').update(body).digest('hex');
    this.archives.set(sha256, body);
    return { sha256, size: body.length };
  }

  publish(event, send) {
    this.events.push(event);
    for (const { archive, base } of event.workspaces ?? []) {
      const tar = this.archives.get(archive.sha256);
      if (!tar) return send(404, { kind: 'claim_missing', detail: 'no such archive' });
      const head = this.lines.get(event.conversation_id) ?? { counter: 0, snapshot: null, branches: [] };
      const saw = (base?.counter ?? 0) === head.counter && !event.parent_run_id;
      if (saw || (head.run === event.run_id && head.from === (base?.counter ?? 0))) {
        const from = base?.counter ?? 0;
        Object.assign(head, { counter: head.counter + 1, snapshot: archive.sha256, tar, run: event.run_id, from });
      } else head.branches.push({ run: event.run_id, snapshot: archive.sha256 });
      this.lines.set(event.conversation_id, head);
    }
    return send(202, { event: 'e', rollout: event.conversation_id, run: event.run_id, attempt: event.attempt });
  }

  explain(run, send) {
    const known = this.events.filter((one) => one.run_id === run);
    const placed = (one) => (one.workspaces ? [{ stage: 'snapshot', what: 'there' }] : []);
    const runs = known.map((one) => ({ attempt: one.attempt, steps: this.isBehind ? [] : placed(one) }));
    return runs.length ? send(200, { runs }) : send(404, { kind: 'not_found', detail: run });
  }

  seed(query) {
    const rollout = query.get('conversation_id');
    const head = this.lines.get(rollout);
    const files = Object.entries(this.memory.files).map(([path, text]) => ({ path, bytes: text.length, sha256: '' }));
    const layout = { memories_dir: 'memories', sessions_dir: 'sessions' };
    const empty = !head?.snapshot && this.memory.revision === null;
    const seed = empty ? null : `s1.${this.seeds.size}`;
    if (seed) this.seeds.set(seed, { memory: this.memoryTar, workspace: head?.tar });
    const base = { counter: head?.counter ?? 0, snapshot: head?.snapshot ?? null };
    const rest = { revision: this.memory.revision, layout, files, snapshot: head?.snapshot ?? null, base };
    return { seed, rollout, agent: 'main', from_template: false, ...rest };
  }

  async remember(revision, files) {
    this.memory = { revision, files };
    this.memoryTar = await tarOf(Object.entries(files).map(([name, text]) => [{ name }, text]));
  }
}

/** A tar of `[header, body]` pairs. */
export async function tarOf(entries) {
  const tar = pack();
  for (const [header, body] of entries) tar.entry(header, body ?? '');
  tar.finalize();
  const pieces = [];
  for await (const piece of tar) pieces.push(piece);
  return Buffer.concat(pieces);
}
