from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import Choice, FreeText, JsonObject, JsonSchema, Lark, OutputGrammar, Regex, ToolGrammar
from ossia.engine.grammar.limits import MAX_GRAMMAR_BYTES, limits_for
from ossia.engine.grammar.output_grammar import write_output_grammar

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (FreeText(), ["", "any text\n", "<|end"], ["<|end|>", "a<|call|>"]),
        (JsonObject(), ["{}", '{"a": [1, {"b": null}]}'], ["", "[]", "1", '{"a"}', "{} ", '{"a": 1,}']),
        (
            JsonSchema(PERSON),
            ['{"name": "Ada"}', '{"name":"Ada","age":36}', '{\n  "name": "Ada",\n  "age": 36\n}'],
            ["{}", '{"name": ""}', '{"name": "Ada", "age": -1}', '{"age": 1, "name": "Ada"}', '{"name": "A", "x": 1}'],
        ),
        (JsonSchema(True), ["null", "[1]", '"x"'], ["", "x"]),
        (Regex(r"[a-z]+/\d{2}"), ["ab/12"], ["ab/1", "ab", "AB/12"]),
        (Regex("^a\nb$"), ["a\nb"], ["a b"]),
        (Regex(r"\/|\\"), ["/", "\\"], ["\\/"]),
        (Choice(("yes", "no", "a/b|c")), ["yes", "no", "a/b|c"], ["", "y", "a", "c", "yesno"]),
        (Lark('%llguidance {}\nstart: NUM ("+" NUM)*\nNUM: /[0-9]{1,3}/'), ["1+22+333"], ["", "1+", "1234"]),
        (Lark('start: "<|call|>" | "@" | "~"  # <|end|> @x ~y'), ["@", "~"], ["x", "<|call|>"]),
        (Lark('start: x~2..3\nx: "ab"'), ["abab", "ababab"], ["ab"]),
    ],
)
def test_what_matches(grammars: Any, grammar: OutputGrammar, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert grammars.matches(grammar, text), text
    for text in bad:
        assert not grammars.matches(grammar, text), text


@given(options=st.lists(st.text(min_size=1), min_size=1, max_size=8), other=st.text())
def test_a_choice_takes_its_texts_and_no_other(grammars: Any, options: list[str], other: str) -> None:
    options = [option.encode("utf-8", "replace").decode() for option in options]
    choice = Choice(tuple(options))
    for option in options:
        assert grammars.matches(choice, option)
    other = other.encode("utf-8", "replace").decode()
    if "<|" not in other:
        assert grammars.matches(choice, other) == (other in options)


def test_blanks_between_the_parts_of_json_come_to_an_end(grammars: Any) -> None:
    assert grammars.matches(JsonObject(), "{\n" + " " * 64 + "}")
    assert not grammars.matches(JsonObject(), "{\n" + " " * 65 + "}")
    assert not grammars.matches(JsonObject(), "{\n\n}")
    assert not grammars.matches(JsonObject(), "{     }")


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Regex("(a"), "unclosed group"),
        (Regex(r"a(?=b)"), "look-around"),
        (Regex(r"(a)\1"), "back"),
        (Lark('begin: "a"'), "no start rule"),
        (Lark("start: ("), "Expected token"),
        (Lark("start: x"), "unknown name"),
        (Lark('start: "a" <|call|>'), "special tokens"),
        (Lark("start: <[5]>"), "special tokens"),
        (Lark("start: <[^5]>"), "special tokens"),
        (Lark("start: @other"), "other grammars"),
        (Lark('%llguidance {"allow_invalid_utf8": true}\nstart: "a"'), "options"),
        (Lark("start: A\nA: ~/a/"), "negation"),
        (Lark('start: x\nx[stop="b"]: /a+/'), "stop"),
        (Lark("start: x\nx[max_tokens=3]: /a+/"), "max_tokens"),
        (JsonSchema(False), "no output at all"),
        (JsonSchema({"enum": []}), "nsatisfiable"),
        (JsonSchema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (JsonSchema({"$ref": "https://example.org/a.json"}), "example.org"),
        (JsonSchema({"enum": ["a" * MAX_GRAMMAR_BYTES]}), "bytes"),
        (JsonSchema({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {"const": j}}} for j in range(6)]}
                               for i in range(8)]}), "too large"),
    ],
)  # fmt: skip
def test_what_is_refused(grammars: Any, grammar: OutputGrammar, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        grammars.compile(grammar)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.param == "constraint"


def test_options_of_the_compiler_are_not_the_users(grammars: Any) -> None:
    schema = {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    with pytest.raises(InvalidInputError, match="uniqueItems"):
        grammars.compile(JsonSchema(schema))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, '{"a": [1]}', '{"a": 1}'),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "color"}}}, '{"a": "x"}', '{"a": 1}'),
        ({"type": "object", "properties": {"a": {"pattern": "(?=x)", "type": "string"}}}, '{"b": 1}', "[]"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "1", '"a"'),
    ],
)
def test_tools_that_are_not_strict_are_held_to_what_can_be_enforced(
    grammars: Any, schema: dict[str, Any], good: str, bad: str
) -> None:
    tool = ToolGrammar.function("f", parameters=schema, is_strict=False)
    grammar = tool.arguments
    piece = write_output_grammar(grammar, name="x", param="tools", limits=limits_for(grammar), is_strict=False)
    lark = Lark(f"start: {piece.body}")
    assert grammars.matches(lark, good)
    assert not grammars.matches(lark, bad)
    assert json.loads(grammar.text) == schema
