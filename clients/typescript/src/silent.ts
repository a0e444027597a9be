/** A model that writes no memory: the service does that, after the run and not inside of it. */

import type { Model, ModelRequest, ModelResponse, StreamEvent } from '@openai/agents';

const NOTHING = JSON.stringify({ rollout_summary: '', rollout_slug: '', raw_memory: '' });

function response(): ModelResponse {
  const usage = { requests: 0, inputTokens: 0, outputTokens: 0, totalTokens: 0 };
  const output = [
    {
      type: 'message',
      role: 'assistant',
      status: 'completed',
      content: [{ type: 'output_text', text: NOTHING }],
    },
  ];
  return { usage: { ...usage, inputTokensDetails: [], outputTokensDetails: [] }, output } as unknown as ModelResponse;
}

class SilentModel implements Model {
  async getResponse(_request: ModelRequest): Promise<ModelResponse> {
    return response();
  }

  async *getStreamedResponse(_request: ModelRequest): AsyncIterable<StreamEvent> {
    const { output } = response();
    const usage = { inputTokens: 0, outputTokens: 0, totalTokens: 0 };
    yield { type: 'response_done', response: { id: 'silent', usage, output } } as StreamEvent;
  }
}

/**
 * The `generate` of an agent's `memory()`: it must be on, or the SDK records nothing; with this it asks no model.
 *
 *     memory({ store, generate: recordOnly })
 */
export const recordOnly = { model: new SilentModel() as Model };
