/** Runlore for the TypeScript Agents SDK. */

export { RunloreError, type Report } from './errors.js';
export { Rollout, Runlore, type RolloutOptions, type RunloreOptions } from './runlore.js';
export { RunloreMemoryStore, RunloreSnapshotStore } from './stores.js';
export { resumable, type ResumableOptions } from './resumable.js';
export { recordOnly } from './silent.js';
