// Anthropic's client: a stream with thinking, and a tool round. Argument: base URL, without /v1.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const asked = {
  model: 'scripted',
  max_tokens: 2000,
  thinking: { type: 'enabled', budget_tokens: 1024 },
  tools: [{ name: 'get_weather', input_schema: { type: 'object' } }],
};
const messages = [{ role: 'user', content: 'Weather in Oslo?' }];
const first = await client.messages.stream({ ...asked, messages }).finalMessage();
assert.deepEqual(first.content.map((block) => block.type), ['thinking', 'tool_use']);
assert.equal(first.content[0].thinking, 'I need the weather.');
assert.deepEqual(first.content[1].input, { city: 'Oslo' });

const result = { type: 'tool_result', tool_use_id: first.content[1].id, content: 'Sunny in Oslo.' };
messages.push({ role: 'assistant', content: first.content }, { role: 'user', content: [result] });
const second = await client.messages.create({ ...asked, messages });
assert.equal(second.stop_reason, 'end_turn');
console.log(JSON.stringify({ text: second.content[0].text }));
