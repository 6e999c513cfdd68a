// OpenAI's own client: the stream helper of Chat Completions, and a response's stream. Argument: base URL.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const tools = [{ type: 'function', function: { name: 'get_weather', parameters: { type: 'object' } } }];
const messages = [{ role: 'user', content: 'Weather in Oslo?' }];
const stream = client.chat.completions.stream({ model: 'scripted', messages, tools });
const whole = await stream.finalChatCompletion();
const call = whole.choices[0].message.tool_calls[0];
assert.equal(call.function.name, 'get_weather');
assert.deepEqual(JSON.parse(call.function.arguments), { city: 'Oslo' });

messages.push(whole.choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'Sunny in Oslo.' });
const answer = await client.chat.completions.create({ model: 'scripted', messages, tools });

let text = '';
for await (const event of await client.responses.create({ model: 'scripted', input: 'Sunny in Oslo.', stream: true })) {
  if (event.type === 'response.output_text.delta') text += event.delta;
}
assert.equal(text, answer.choices[0].message.content);
console.log(JSON.stringify({ text }));
