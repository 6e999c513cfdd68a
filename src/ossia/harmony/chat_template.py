"""The Jinja chat template that goes with a small model's tokenizer folder, for `apply_chat_template` of transformers.

It renders what `ossia.harmony.render` renders, from the message dicts that are usual there:

- `system` and `developer` messages become developer messages; the first carries the `tools`, as functions;
- an assistant's `thinking` (or `reasoning_content`) goes to analysis, its `content` to final, or to commentary when
  `tool_calls` follow; the chain of thought of turns that are over is left out;
- `reasoning_effort` (low, medium, high; default medium), `model_identity`, `knowledge_cutoff` and `current_date`
  (default: today; none for no date) are options.

Without `add_generation_prompt` the text is one to train on: the last turn keeps its chain of thought, and its final
message ends in `<|return|>`.

Two limits lie in the nature of such templates. Their output is one text, in which a tokenizer takes look-alikes of
control tokens for the real ones: a server must use `render`. And JSON Schemas are laid out here without references,
tuples, examples and comments inside unions.
"""

from __future__ import annotations

from ossia.harmony.content import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF
from ossia.harmony.json_text import compact_json
from ossia.harmony.schema import LIMITS

_HEAD = """\
{#- Harmony, compact: see the harmony format guide. Options: reasoning_effort, model_identity, knowledge_cutoff,
    current_date, tools, add_generation_prompt. -#}
{%- set model_identity = model_identity if model_identity is defined else IDENTITY -%}
{%- set knowledge_cutoff = knowledge_cutoff if knowledge_cutoff is defined else CUTOFF -%}
{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined and reasoning_effort else "medium" -%}
{%- if reasoning_effort not in ["low", "medium", "high"] -%}
  {{- raise_exception("unknown reasoning effort; use 'low', 'medium' or 'high'") -}}
{%- endif -%}
{%- if current_date is not defined and strftime_now is defined -%}
  {%- set current_date = strftime_now("%Y-%m-%d") -%}
{%- endif -%}
{%- set tools = tools if tools is defined and tools else [] -%}
"""

_SCHEMA = """\
{%- macro json(value) -%}{{- value | tojson(separators=(",", ":")) -}}{%- endmacro -%}
{%- macro comment(text, indent) -%}
  {%- for line in text.splitlines() -%}{{- indent ~ "// " ~ line ~ "\\n" -}}{%- endfor -%}
{%- endmacro -%}
{%- macro key(name) -%}
  {%- set ns = namespace(plain=name != "" and name[0] not in "0123456789") -%}
  {%- for c in name -%}
    {%- if not (c.isalnum() or c in "_$") -%}{%- set ns.plain = false -%}{%- endif -%}
  {%- endfor -%}
  {{- name if ns.plain else json(name) -}}
{%- endmacro -%}
{%- macro remarks(schema) -%}
  {%- set ns = namespace(said=[]) -%}
  {%- if "default" in schema -%}
    {%- set bare = schema.default is string and schema.enum and '"' not in schema.default -%}
    {%- set ns.said = ["default: " ~ (schema.default if bare else json(schema.default))] -%}
  {%- endif -%}
  {%- for name in LIMITS -%}
    {%- if schema[name] is defined and schema[name] is not none and schema[name] is not false -%}
      {%- set ns.said = ns.said + [name ~ ": " ~ (schema[name] if schema[name] is string else json(schema[name]))] -%}
    {%- endif -%}
  {%- endfor -%}
  {{- " // " ~ ns.said | join(", ") if ns.said else "" -}}
{%- endmacro -%}
{%- macro join_types(texts) -%}{{- texts | unique(true) | join(" | ") -}}{%- endmacro -%}
{%- macro type_of(schema, indent) -%}
  {%- set kind = schema.type if schema is mapping else none -%}
  {%- set options = (schema.anyOf or schema.oneOf) if schema is mapping else none -%}
  {%- set ns = namespace(texts=[], out="any") -%}
  {%- if schema is not mapping -%}
  {%- elif schema.const is defined -%}
    {%- set ns.out = json(schema.const) -%}
  {%- elif schema.enum -%}
    {%- for value in schema.enum -%}{%- set ns.texts = ns.texts + [json(value)] -%}{%- endfor -%}
    {%- set ns.out = join_types(ns.texts) -%}
  {%- elif options -%}
    {%- for option in options -%}{%- set ns.texts = ns.texts + [type_of(option, indent ~ "   ")] -%}{%- endfor -%}
    {%- set ns.out = join_types(ns.texts) -%}
  {%- elif kind is defined and kind is sequence and kind is not string -%}
    {%- for name in kind -%}
      {%- set ns.texts = ns.texts + [type_of(dict(schema, type=name, nullable=false), indent)] -%}
    {%- endfor -%}
    {%- set ns.out = join_types(ns.texts) -%}
  {%- elif kind == "object" or schema.properties is mapping -%}
    {%- set ns.out = object_type(schema, indent) -%}
  {%- elif kind == "array" -%}
    {%- set item = type_of(schema["items"], indent) if "items" in schema else "" -%}
    {%- set item = "(" ~ item ~ ")" if " | " in item and "\\n" not in item else item -%}
    {%- set ns.out = item ~ "[]" if item else "Array<any>" -%}
  {%- elif kind in ["string", "number", "boolean", "null"] -%}
    {%- set ns.out = kind -%}
  {%- elif kind == "integer" -%}
    {%- set ns.out = "number" -%}
  {%- endif -%}
  {{- ns.out ~ (" | null" if schema is mapping and schema.nullable is true and "null" not in ns.out else "") -}}
{%- endmacro -%}
{%- macro object_type(schema, indent) -%}
  {{- comment(schema.description, indent) if schema.description is string else "" -}}
  {{- "{\\n" -}}
  {%- for name, value in (schema.properties or {}).items() -%}
    {%- set note = value if value is mapping else {} -%}
    {{- comment(note.title, indent) ~ indent ~ "//\\n" if note.title is string else "" -}}
    {{- comment(note.description, indent) if note.description is string else "" -}}
    {{- indent ~ key(name) ~ ("" if name in (schema.required or []) else "?") ~ ": " -}}
    {{- type_of(value, indent ~ "    ") ~ "," ~ remarks(note) ~ "\\n" -}}
  {%- endfor -%}
  {%- if schema.additionalProperties is true or schema.additionalProperties is mapping -%}
    {{- indent ~ "[key: string]: " ~ type_of(schema.additionalProperties, indent ~ "    ") ~ ",\\n" -}}
  {%- endif -%}
  {{- indent ~ "}" -}}
{%- endmacro -%}
{%- macro tools_section() -%}
  {{- "# Tools\\n\\n## functions\\n\\nnamespace functions {\\n\\n" -}}
  {%- for tool in tools -%}
    {%- set function = tool.function if tool.function is defined else tool -%}
    {{- comment(function.description, "") if function.description else "" -}}
    {{- "type " ~ function.name ~ " = (" -}}
    {%- if function.parameters is defined and function.parameters is not none -%}
      {{- "_: " ~ type_of(function.parameters, "") -}}
    {%- endif -%}
    {{- ") => any;\\n\\n" -}}
  {%- endfor -%}
  {{- "} // namespace functions" -}}
{%- endmacro -%}
"""

_MESSAGES = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- elif content is sequence and content is not mapping -%}
    {%- for part in content -%}{{- part if part is string else part.text -}}{%- endfor -%}
  {%- elif content is defined and content is not none -%}
    {{- content | tojson -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro developer(content, with_tools) -%}
  {%- set sections = ["# Instructions\\n\\n" ~ content] if content else [] -%}
  {%- set sections = sections + [tools_section()] if with_tools else sections -%}
  {{- "<|start|>developer<|message|>" ~ sections | join("\\n\\n") ~ "<|end|>" if sections else "" -}}
{%- endmacro -%}
{%- macro is_final(i) -%}
  {%- set message = messages[i] -%}
  {%- set next_role = messages[i + 1].role if i + 1 < messages | length else "" -%}
  {{- "yes" if message.role == "assistant" and not message.tool_calls and next_role not in ["assistant", "tool"] -}}
{%- endmacro -%}
{{- "<|start|>system<|message|>" ~ model_identity -}}
{{- "\\nKnowledge cutoff: " ~ knowledge_cutoff if knowledge_cutoff else "" -}}
{{- "\\nCurrent date: " ~ current_date if current_date else "" -}}
{{- "\\n\\nReasoning: " ~ reasoning_effort ~ "\\n\\n# Valid channels: analysis, commentary, final. " -}}
{{- "Channel must be included for every message." -}}
{{- "\\nCalls to these tools must go to the commentary channel: 'functions'." if tools else "" -}}
{{- "<|end|>" -}}
{%- set generating = add_generation_prompt is defined and add_generation_prompt -%}
{%- set state = namespace(cut=-1, tool="", tools_due=tools | length > 0, names={}) -%}
{%- for message in messages -%}
  {%- if is_final(loop.index0) and (generating or not loop.last) -%}{%- set state.cut = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = text_of(message.content) -%}
  {%- if message.role in ["system", "developer"] -%}
    {{- developer(content, state.tools_due) -}}
    {%- set state.tools_due = false -%}
  {%- else -%}
    {%- if state.tools_due -%}{{- developer("", true) -}}{%- set state.tools_due = false -%}{%- endif -%}
    {%- if message.role == "user" -%}
      {{- "<|start|>user<|message|>" ~ content ~ "<|end|>" -}}
    {%- elif message.role == "assistant" -%}
      {%- set thinking = message.thinking or message.reasoning_content or "" -%}
      {%- if thinking and loop.index0 > state.cut -%}
        {{- "<|start|>assistant<|channel|>analysis<|message|>" ~ thinking ~ "<|end|>" -}}
      {%- endif -%}
      {%- if message.tool_calls -%}
        {{- "<|start|>assistant<|channel|>commentary<|message|>" ~ content ~ "<|end|>" if content else "" -}}
        {%- for call in message.tool_calls -%}
          {%- set function = call.function if call.function is defined else call -%}
          {%- set state.tool = function.name -%}
          {%- set state.names = dict(state.names, **{call.id: function.name}) if call.id else state.names -%}
          {%- set arguments = function.arguments if function.arguments is defined else {} -%}
          {{- "<|start|>assistant to=functions." ~ function.name -}}
          {{- "<|channel|>commentary <|constrain|>json<|message|>" -}}
          {{- (arguments if arguments is string else arguments | tojson) ~ "<|call|>" -}}
        {%- endfor -%}
      {%- else -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" ~ content -}}
        {{- "<|return|>" if loop.last and not generating else "<|end|>" -}}
      {%- endif -%}
    {%- elif message.role == "tool" -%}
      {%- set name = message.name or state.names.get(message.tool_call_id) or state.tool -%}
      {%- if not name -%}{{- raise_exception("a tool's message follows no call and has no name") -}}{%- endif -%}
      {%- set name = name if name.startswith("functions.") else "functions." ~ name -%}
      {{- "<|start|>" ~ name ~ " to=assistant<|channel|>commentary<|message|>" ~ content ~ "<|end|>" -}}
    {%- else -%}
      {{- raise_exception("unknown role; use system, developer, user, assistant or tool") -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if generating -%}{{- "<|start|>assistant" -}}{%- endif -%}
"""


def nano_chat_template(
    model_identity: str = DEFAULT_IDENTITY, *, knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
) -> str:
    """The template, with these two as defaults of its options."""
    cutoff = "none" if knowledge_cutoff is None else compact_json(knowledge_cutoff)
    head = _HEAD.replace("CUTOFF", cutoff).replace("IDENTITY", compact_json(model_identity))
    return head + _SCHEMA.replace("LIMITS", compact_json(list(LIMITS))) + _MESSAGES
