from __future__ import annotations

import json
import math
from typing import Any

import openai_harmony
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import MAX_DEPTH, compact_json, lines
from ossia.harmony.schema import schema_to_typescript
from ossia.harmony.vocab import load_o200k_ranks


def prop(schema: Any, **root: Any) -> str:
    """What stands for the property x, its comments included."""
    text = schema_to_typescript({"type": "object", "properties": {"x": schema}, "required": ["x"], **root})
    assert text.startswith("{\n")
    assert text.endswith("}")
    return text[2:-1]


# ---- beside openai-harmony ----


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """openai-harmony over the ranks that Ossia ships, so that it need not download them."""
    import base64

    folder = tmp_path_factory.mktemp("ranks")
    ranks = sorted(load_o200k_ranks().items(), key=lambda item: item[1])
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks)
    (folder / "o200k_base.tiktoken").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


# The forms that openai-harmony renders right: no unions in arrays, no types beside oneOf, nothing to escape, ...
words = st.sampled_from(["a", "Town or city", "né (1)", "x y"])
notes = st.fixed_dictionaries(
    {}, optional={"description": words, "title": words, "examples": st.lists(words, max_size=2)}
)
defaults = st.fixed_dictionaries(
    {}, optional={"default": st.sampled_from([1, -2.5, 1e21, 1e-5, True, None, "d", ["q"], {"k": [1]}])}
)
plain = st.sampled_from(["string", "integer", "number", "boolean"]).map(lambda name: {"type": name})
primitives = st.one_of(
    plain,
    plain.map(lambda schema: {**schema, "nullable": True}),
    st.just({"type": ["string", "null"]}),
    st.just({"type": "string", "enum": ["celsius", "north pole"]}),
    st.just({}),
)


def merged(*parts: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda dicts: {k: v for d in dicts for k, v in d.items()})


def objects(properties: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "city", "café", "n_1", "$x"])
    body = st.dictionaries(names, properties, max_size=4)
    extra = st.sampled_from([{}, {"additionalProperties": False}])
    made = st.builds(
        lambda props, required: {"type": "object", "properties": props, "required": required},
        body,
        st.lists(names, max_size=3),
    )
    return merged(made, notes, extra)


def compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    elements = st.one_of(plain, objects(inner), st.just({}))
    arrays = st.one_of(elements.map(lambda items: {"type": "array", "items": items}), st.just({"type": "array"}))
    variants = st.lists(merged(st.one_of(primitives, objects(inner)), notes, defaults), min_size=1, max_size=3)
    one_of = variants.map(lambda found: {"oneOf": found})
    return st.one_of(merged(st.one_of(arrays, one_of), notes, defaults), objects(inner))


properties = st.recursive(merged(primitives, notes, defaults), compounds, max_leaves=8)


@given(objects(properties))
@settings(max_examples=100, deadline=None)
def test_equals_openai_harmony_on_the_forms_it_renders_right(oracle: Any, schema: dict[str, Any]) -> None:
    tool = openai_harmony.ToolDescription.new("f", "", parameters=schema)
    content = openai_harmony.DeveloperContent.new().with_function_tools([tool])
    message = openai_harmony.Message.from_role_and_content(openai_harmony.Role.DEVELOPER, content)
    text = oracle.decode(oracle.render(message))
    theirs = text.partition("type f = (_: ")[2].rpartition(") => any;")[0]
    assert schema_to_typescript(schema) == theirs


def test_a_bit_of_everything_that_both_render() -> None:
    schema = {
        "description": "all of it",
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "NAME", "description": "A name", "examples": ["Ann", "Bo"]},
            "note": {"type": "string", "nullable": True, "default": "none yet"},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            "either": {
                "oneOf": [{"type": "string", "default": "s"}, {"type": "number", "description": "a number too"}],
                "description": "one of two",
                "default": 20,
            },
        },
        "required": ["name"],
    }
    assert schema_to_typescript(schema) == (
        '// all of it\n{\n// NAME\n//\n// A name\n// Examples:\n// - "Ann"\n// - "Bo"\nname: string,\n'
        'note?: string | null, // default: "none yet"\nunit?: "c" | "f", // default: c\n'
        '// one of two\n// default: 20\neither?:\n | string // default: "s"\n | number // a number too\n,\n}'
    )


# ---- what openai-harmony has no form for ----


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (True, "any"),
        (False, "never"),
        ({"not": {}}, "never"),
        ({"type": "null"}, "null"),
        ({"type": "file"}, "any"),
        ({"type": []}, "any"),
        ({"type": ["integer", "number"]}, "number"),
        ({"type": ["array", "null"], "items": {"type": "string"}}, "string[] | null"),
        ({"const": "a"}, '"a"'),
        ({"const": None}, "null"),
        ({"const": {"k": [1, 2.0]}}, '{"k":[1,2.0]}'),
        ({"enum": ["a", 1, 1.5, True, None, [], "a"]}, '"a" | 1 | 1.5 | true | null | []'),
        ({"type": "integer", "enum": [1, 2]}, "1 | 2"),
        ({"enum": ["null"], "nullable": True}, '"null" | null'),
        ({"enum": ['"', "\n", "\\"]}, r'"\"" | "\n" | "\\"'),
        ({"enum": [], "type": "string"}, "string"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"anyOf": [{"type": "string"}], "nullable": True}, "string | null"),
        ({"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"const": 2}, {"const": 3}]}, "1 | 2 | 2 | 3"),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "any"),
        ({"anyOf": []}, "any"),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "string"),
        ({"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, "(1 | 2) & (2 | 3)"),
        ({"allOf": [{"type": "string"}]}, "string"),
        ({"type": "string", "oneOf": [{"minLength": 1}, {"maxLength": 0}]}, "string"),
        ({"type": "string", "allOf": [{"minLength": 1}]}, "string"),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"maxLength": 0}]}, "string"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, '("a" | "b")[]'),
        ({"type": "array", "items": {"type": ["string", "null"]}}, "(string | null)[]"),
        ({"type": "array", "items": {"type": "array", "items": {"const": 1}}}, "1[][]"),
        ({"type": "array", "items": False}, "never[]"),
        ({"items": {"type": "string"}}, "string[]"),
        ({"prefixItems": [{"type": "string"}, True]}, "[string, any]"),
        ({"prefixItems": [{"type": "string"}], "items": {"enum": [1, 2]}}, "[string, ...(1 | 2)[]]"),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": {"type": "string"}}, "[1, ...string[]]"),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, "[1]"),
    ],
)
def test_types_of_one_line(schema: Any, text: str) -> None:
    assert prop(schema).split(", // ")[0].rstrip(",\n") == f"x: {text}"
    # The same as a whole, where a type of one line has no other form.
    assert schema_to_typescript(schema) == text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (
            {"type": "integer", "minimum": 1, "maximum": 5, "default": 2},
            "x: number, // default: 2, minimum: 1, maximum: 5\n",
        ),
        ({"type": "string", "pattern": "^a\\d$", "maxLength": 3}, 'x: string, // maxLength: 3, pattern: "^a\\\\d$"\n'),
        ({"type": "string", "format": "date-time"}, "x: string, // format: date-time\n"),
        ({"type": "string", "pattern": "a\nb"}, 'x: string, // pattern: "a\\nb"\n'),
        (
            {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 2, "uniqueItems": True},
            "x: string[], // minItems: 2, uniqueItems: true, each item: minLength: 1\n",
        ),
        ({"type": "array", "uniqueItems": False}, "x: Array<any>,\n"),
        ({"type": "string", "enum": ["a\nb"], "default": "a\nb"}, 'x: "a\\nb", // default: "a\\nb"\n'),
        (
            {"description": "one\r\ntwo\rthree\u2028four", "type": "string"},
            "// one\n// two\n// three\n// four\nx: string,\n",
        ),
        (
            {"examples": [1, {"a": "b"}, 'q"'], "type": "string"},
            '// Examples:\n// - 1\n// - {"a":"b"}\n// - "q\\""\nx: string,\n',
        ),
        (
            {"anyOf": [{"type": "string", "maxLength": 5, "description": "a\nb"}, {"type": "null"}], "default": None},
            "// default: null\nx:\n | string // a b maxLength: 5\n | null\n,\n",
        ),
        ({"oneOf": [{"const": 1}], "nullable": True}, "x:\n | 1\n | null\n,\n"),
        ({"properties": {"a": {"const": 1}}}, "x: {\n    a?: 1,\n    },\n"),
        ({"patternProperties": {"^s\n": {"type": "string"}}}, "x: {\n    [key: string]: string, // keys: ^s\n    },\n"),
        (
            {"type": "object", "additionalProperties": {"minimum": 1}},
            "x: {\n    [key: string]: any, // minimum: 1\n    },\n",
        ),
        (
            {"properties": {"a": True}, "anyOf": [{"required": ["a"]}, {"properties": {"b": False}}]},
            "x: {\n    a?: any,\n    } & (\n     | any\n     | {\n       b?: never,\n       }),\n",
        ),
        (
            {"type": "array", "items": {"type": "string"}, "anyOf": [{"minItems": 1}, {"maxItems": 0}]},
            "x: string[],\n",
        ),
        (
            {"allOf": [{"properties": {"a": True}}, {"properties": {"b": True}}]},
            "x: {\n    a?: any,\n    } & {\n    b?: any,\n    },\n",
        ),
    ],
)
def test_properties(schema: Any, text: str) -> None:
    assert prop(schema) == text


def test_odd_names_are_quoted() -> None:
    names = ["ok", "$ok", "_9", "über", "9", "a-b", "a b", "", '"', "a\nb"]
    text = schema_to_typescript({"properties": dict.fromkeys(names, True)})
    assert [line.removesuffix("?: any,") for line in text.splitlines()[1:-1]] == [
        *names[:4],
        *(json.dumps(name) for name in names[4:]),
    ]


# ---- references ----

DEFS = {
    "Unit": {"enum": ["c", "f"], "description": "unit"},
    "Leaf": {"type": "object", "properties": {"a": {"type": "string"}}},
    "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}},
    "a/b~c": {"const": 1},
    "yes": True,
    "no": False,
    "anchored": {"$anchor": "here", "const": 2},
}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "#/$defs/Unit", "default": "c"}, '// unit\nx: "c" | "f", // default: c\n'),
        ({"$ref": "#/$defs/Unit", "description": "mine"}, '// mine\nx: "c" | "f",\n'),
        ({"allOf": [{"$ref": "#/$defs/Unit"}], "default": "f"}, '// unit\nx: "c" | "f", // default: f\n'),
        ({"anyOf": [{"$ref": "#/$defs/Leaf"}, {"type": "null"}]}, "x:\n | {\n   a?: string,\n   }\n | null\n,\n"),
        ({"type": "array", "items": {"$ref": "#/$defs/Leaf"}}, "x: {\n    a?: string,\n    }[],\n"),
        (
            {"$ref": "#/$defs/Leaf", "properties": {"b": True}, "description": "both"},
            "// both\nx: {\n    a?: string,\n    } &     // both\n{\n    b?: any,\n    },\n",
        ),
        (
            {"allOf": [{"$ref": "#/$defs/Leaf"}], "properties": {"b": True}},
            "x: {\n    a?: string,\n    } & {\n    b?: any,\n    },\n",
        ),
        ({"$ref": "#/$defs/Leaf", "additionalProperties": False}, "x: {\n    a?: string,\n    },\n"),
        (
            {"$ref": "#/$defs/Node"},
            "x: /* Node */ {\n    next?: Node,\n    },\n",
        ),
        ({"$ref": "#/$defs/a~1b~0c"}, "x: 1,\n"),
        ({"$ref": "#/$defs/a%7E1b~0c"}, "x: 1,\n"),
        ({"$ref": "#/$defs/yes"}, "x: any,\n"),
        ({"$ref": "#/$defs/no"}, "x: never,\n"),
        ({"$ref": "#here"}, "x: 2,\n"),
        ({"$ref": "#/$defs/Unit/enum"}, None),
        ({"$ref": "#/$defs/Missing"}, None),
        ({"$ref": "https://example.org/schema.json"}, None),
        ({"$ref": "#there"}, None),
    ],
)
def test_references(schema: Any, text: str | None) -> None:
    if text is None:
        with pytest.raises(InvalidInputError) as caught:
            prop(schema, **{"$defs": DEFS})
        assert caught.value.param == "schema"
    else:
        assert prop(schema, **{"$defs": DEFS}) == text


def test_a_schema_that_holds_itself() -> None:
    schema = {"type": "object", "properties": {"inner": {"$ref": "#"}, "list": {"items": {"$ref": "#"}}}}
    assert schema_to_typescript(schema) == "/* Arguments */ {\ninner?: Arguments,\nlist?: Arguments[],\n}"


def test_two_definitions_that_hold_each_other() -> None:
    defs = {
        "A": {"properties": {"b": {"$ref": "#/$defs/B"}}},
        "B": {"properties": {"a": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}}},
    }
    text = schema_to_typescript({"$ref": "#/$defs/A", "$defs": defs})
    assert text == "/* A */ {\nb?: {\n    a?: A | null,\n    },\n}"


def test_recursive_definitions_of_one_name_are_told_apart() -> None:
    def node(pointer: str) -> dict[str, Any]:
        return {"properties": {"next": {"$ref": pointer}}}

    schema = {
        "properties": {"a": {"$ref": "#/$defs/N"}, "b": {"$ref": "#/definitions/N"}},
        "$defs": {"N": node("#/$defs/N")},
        "definitions": {"N": node("#/definitions/N")},
    }
    text = schema_to_typescript(schema)
    assert "a?: /* N */ {\n    next?: N,\n" in text
    assert "b?: /* N2 */ {\n    next?: N2,\n" in text


def test_references_in_a_ring_name_no_type() -> None:
    defs = {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}
    with pytest.raises(InvalidInputError, match="leads back to itself"):
        prop({"$ref": "#/$defs/A"}, **{"$defs": defs})


# ---- total, and bounded ----


def test_nesting_is_bounded() -> None:
    schema: Any = {"type": "string"}
    for _ in range(40):
        schema = {"properties": {"a": schema}}
    assert schema_to_typescript(schema).count("a?:") == 40
    for _ in range(5000):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidInputError, match="nested deeper than 64 levels"):
        schema_to_typescript(schema)


def test_references_that_double_at_every_level_are_bounded() -> None:
    defs: Any = {"D0": {"type": "string"}}
    for i in range(1, 40):
        below = {"$ref": f"#/$defs/D{i - 1}"}
        defs[f"D{i}"] = {"properties": {"a": below, "b": {"anyOf": [below, {"type": "null"}]}}}
    with pytest.raises(InvalidInputError, match="references written out"):
        schema_to_typescript({"$ref": "#/$defs/D39", "$defs": defs})
    big = {"enum": ["x" * 100_000]}
    schema = {"properties": {f"p{i}": {"$ref": "#/$defs/Big"} for i in range(1000)}, "$defs": {"Big": big}}
    with pytest.raises(InvalidInputError, match="4000000 characters"):
        schema_to_typescript(schema)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
KEYWORDS = """
    type properties required items prefixItems enum const anyOf oneOf allOf $ref $defs default description title
    examples nullable additionalProperties patternProperties pattern additionalItems minimum not # D x definitions
"""
keywords = st.sampled_from(KEYWORDS.split())
values = st.recursive(
    json_values | st.sampled_from(["object", "array", "string", "#", "#/$defs/D", "#/$defs", "#/definitions/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=4),
    max_leaves=25,
)


@given(st.dictionaries(keywords, values, max_size=6) | json_values)
@settings(max_examples=200, deadline=None)
def test_any_json_gives_a_type_or_a_clear_error(schema: Any) -> None:
    try:
        text = schema_to_typescript(schema)
    except InvalidInputError:
        return
    assert text


# ---- JSON as text ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (1e21, "1e21"),
        (1e16, "1e16"),
        (1e15, "1000000000000000.0"),
        (-1.5e-5, "-0.000015"),
        (1e-5, "0.00001"),
        (1e-6, "1e-6"),
        (2.5e-10, "2.5e-10"),
        (-0.0, "-0.0"),
        (10**30, "1" + "0" * 30),
        ({"a": [True, None, "é\n"]}, '{"a":[true,null,"é\\n"]}'),
        ((), "[]"),
    ],
)
def test_compact_json(value: Any, text: str) -> None:
    assert compact_json(value) == text


@given(json_values)
def test_compact_json_reads_back(value: Any) -> None:
    assert json.loads(compact_json(value)) == value


@pytest.mark.parametrize("value", [{1}, b"x", {1: 2}, math.nan, math.inf, [10**5000]])
def test_what_is_not_json(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        compact_json(value)


def test_json_nested_too_deep() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert compact_json(value).startswith("[[")
    with pytest.raises(InvalidInputError, match="nested deeper"):
        compact_json([value])


def test_lines() -> None:
    assert lines("a\r\nb\n\nc\n") == ["a", "b", "", "c"]
    assert lines("") == []
