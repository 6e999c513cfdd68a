// An agent of the OpenAI Agents SDK calls its tool and answers. Arguments: base URL, "responses" or "chat", "stream" or "whole".
import assert from 'node:assert/strict';
import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, setTracingDisabled, tool } from '@openai/agents';
import OpenAI from 'openai';
import { z } from 'zod';

const [baseURL, kind, mode] = process.argv.slice(2);
setTracingDisabled(true);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const Model = kind === 'responses' ? OpenAIResponsesModel : OpenAIChatCompletionsModel;

const calls = [];
const getWeather = tool({
  name: 'get_weather',
  description: 'The weather of a city.',
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    calls.push(city);
    return `Sunny in ${city}.`;
  },
});
const agent = new Agent({
  name: 'Reporter',
  instructions: 'Tell the weather.',
  tools: [getWeather],
  model: new Model(client, 'scripted'),
});
const runner = new Runner({ tracingDisabled: true });
const result = await runner.run(agent, 'Weather in Oslo?', { stream: mode === 'stream' });
if (mode === 'stream') {
  let text = '';
  for await (const piece of result.toTextStream()) text += piece;
  await result.completed;
  assert.equal(text, result.finalOutput);
}
assert.deepEqual(calls, ['Oslo']);
console.log(JSON.stringify({ text: result.finalOutput }));
