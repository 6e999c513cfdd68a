from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llguidance import LLParserLimits

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import JsonSchema, Lark, Regex, ToolGrammar, TurnConstraint
from ossia.engine.grammar import compiler as compiler_module
from ossia.engine.grammar.compiler import GrammarCompiler
from ossia.harmony.tokenizer import Tokenizer


def test_each_output_has_its_own_state(grammars: Any) -> None:
    first, second = grammars.compile(Regex("ab")), grammars.compile(Regex("ab"))
    assert grammars.takes(first, "a")
    assert second.num_tokens == 0
    assert grammars.takes(second, "ab")


def test_compiled_grammars_are_kept_while_they_are_used(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(tokenizer, cache_size=2)
    written: list[str] = []
    write = compiler_module.write_output_grammar

    def record(grammar: Regex, **options: Any) -> Any:
        written.append(grammar.pattern)
        return write(grammar, **options)

    monkeypatch.setattr(compiler_module, "write_output_grammar", record)
    for pattern in ("a", "b", "a", "c", "a", "b"):
        compiler.compile(Regex(pattern))
    assert written == ["a", "b", "c", "b"]


def test_many_threads_may_compile(grammars: Any) -> None:
    constraints = [JsonSchema({"const": i % 5}) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        matchers = list(pool.map(grammars.compile, constraints))
    for i, matcher in enumerate(matchers):
        assert grammars.takes(matcher, str(i % 5))


@pytest.mark.parametrize(
    ("constraint", "param", "said"),
    [
        (
            TurnConstraint(tools=(ToolGrammar.function("f", parameters={"not": {}}),)),
            "tools[0].parameters",
            "'not' at #",
        ),
        (
            TurnConstraint(
                tools=(ToolGrammar.function("f"), ToolGrammar.custom("custom.g", grammar=Lark("start: x"))),
            ),
            "tools[1].parameters",
            "unknown name",
        ),
        (TurnConstraint(response_format=Regex("(")), "response_format", "unclosed"),
    ],
)
def test_an_error_names_the_part_of_the_request(grammars: Any, constraint: Any, param: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        grammars.compile(constraint)
    assert caught.value.param == param
    assert said in str(caught.value)


def test_a_whole_that_is_too_large_is_told_before_any_token(grammars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tuple(ToolGrammar.function(f"f{i}") for i in range(64))
    monkeypatch.setattr(compiler_module, "limits_for", lambda _: LLParserLimits(max_grammar_size=300))
    with pytest.raises(InvalidInputError, match="too large") as caught:
        GrammarCompiler.compile(grammars.compiler, TurnConstraint(tools=tools))
    assert caught.value.param == "constraint"


def test_notes_say_what_is_not_enforced(grammars: Any) -> None:
    loose = ToolGrammar.function("f", parameters={"type": "array", "uniqueItems": True}, is_strict=False)
    assert "'uniqueItems' at #" in grammars.compiler.notes(TurnConstraint(tools=(loose,)))[0]
    assert grammars.compiler.notes(TurnConstraint(tools=(ToolGrammar.function("f"),))) == ()


def test_the_published_vocabulary() -> None:
    tokenizer = Tokenizer.o200k_harmony()
    compiler = GrammarCompiler(tokenizer)
    assert compiler.mask_width == 6284
    matcher = compiler.compile(TurnConstraint(tools=(ToolGrammar.function("get_weather"),)))
    ids = tokenizer.encode_with_specials(
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}<|call|>"
    )
    assert all(matcher.advance(token_id) for token_id in ids)
    assert matcher.is_finished
    assert matcher.num_excess == 0


def test_an_engine_without_constraints_does_not_load_the_library() -> None:
    code = "import sys, ossia.engine.engine; print('llguidance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
