// The `ai` SDK through @ai-sdk/openai-compatible: reasoning, a tool round, and an object by a schema. Argument: base URL.
import assert from 'node:assert/strict';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const provider = createOpenAICompatible({
  name: 'ossia',
  baseURL: process.argv[2],
  apiKey: 'none',
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider('scripted');
const tools = {
  get_weather: tool({
    description: 'The weather of a city.',
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `Sunny in ${city}.`,
  }),
};
const asked = { model, tools, prompt: 'Weather in Oslo?', stopWhen: stepCountIs(4), maxRetries: 0 };

const whole = await generateText(asked);
assert.equal(whole.steps.length, 2);
assert.equal(whole.steps[0].reasoningText, 'I need the weather.');
assert.deepEqual(whole.steps[0].toolCalls[0].input, { city: 'Oslo' });
assert.equal(whole.steps[0].finishReason, 'tool-calls');

const streamed = streamText({ ...asked, onError: ({ error }) => { throw error; } });
let text = '';
let reasoning = '';
for await (const part of streamed.fullStream) {
  if (part.type === 'text-delta') text += part.text;
  if (part.type === 'reasoning-delta') reasoning += part.text;
  if (part.type === 'error') throw part.error;
}
assert.equal(text, whole.text);
assert.ok(reasoning.startsWith('I need the weather.'));
assert.ok((await streamed.totalUsage).totalTokens > 0);
assert.equal((await streamed.steps).length, 2);

const { object } = await generateObject({
  model,
  schema: z.object({ word: z.string() }),
  prompt: 'Give the object.',
  maxRetries: 0,
});
console.log(JSON.stringify({ text, object }));
