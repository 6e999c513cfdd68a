"""An OutputGrammar as a piece of llguidance's Lark: a rule's body, and the grammars that it refers to."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import Choice, FreeText, JsonObject, JsonSchema, Lark, OutputGrammar, Regex
from ossia.engine.grammar.limits import MAX_GRAMMAR_BYTES, max_optional_properties
from ossia.engine.grammar.schema_check import ENFORCED, prepare_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llguidance import LLParserLimits

FREE_TEXT = "/(?s:.*)/"
"""All UTF-8; special tokens are no text."""

# Between the parts of JSON: nothing, a few spaces, or a line end with an indentation. A bound, because a model that
# is forced into JSON otherwise sometimes goes on writing blanks for ever.
_WHITESPACE = r"[ ]{1,4}|\t|\r?\n[ \t]{0,64}"

_KINDS: dict[type, str] = {
    Choice: "these choices cannot be compiled",
    Regex: "a regular expression takes the syntax of Rust's regex crate, without look-around and back-references",
    Lark: "a Lark grammar takes the syntax that llguidance documents, with a rule 'start'",
}
_PLACE = re.compile(r"^at \d+\(\d+\): (?:failed to compile JSON schema: )?")

_STRINGS_AND_COMMENTS = re.compile(r'"(?:\\.|[^"\\\n])*"i?|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/[a-z]*')
_OPTIONS = re.compile(r"%llguidance\s*\{\s*\}")
_UNSUPPORTED_ATTRIBUTE = re.compile(r"\b(?:stop|max_tokens|temperature)\s*=")
_SPECIAL_TOKEN = re.compile("<[^>]*>")
# Not to be taken for the repetition of `x~2..5`. What a negation matches need not be text: it would let control tokens
# through.
_NEGATION = re.compile(r"~(?!\s*\d)")
_LITERAL_ESCAPES = {ord(letter): f"\\{letter}" for letter in r"\.+*?()|[]{}^$/"} | {10: "\\n", 13: "\\r"}


class GrammarPiece(NamedTuple):
    """A right-hand side for a Lark rule.

    Attributes:
        body: it.
        side_name, side_grammar: a grammar that the body refers to as `@<side_name>`; None if it does not.
        notes: what was not enforced.
    """

    body: str
    side_name: str | None = None
    side_grammar: str | None = None
    notes: tuple[str, ...] = ()


def write_output_grammar(
    grammar: OutputGrammar, *, name: str, param: str, limits: LLParserLimits, is_strict: bool = True
) -> GrammarPiece:
    """Writes a grammar and checks that llguidance takes it.

    Args:
        grammar: what to write.
        name: names the grammar that it may need apart, unique within the whole.
        param: the request's parameter, for errors.
        limits: those of compilation.
        is_strict: see ToolGrammar.

    Raises:
        InvalidInputError: it cannot be enforced; says which part.
    """
    match grammar:
        case FreeText():
            return GrammarPiece(FREE_TEXT)
        case JsonObject():
            return _write_json({"type": "object"}, param=param, limits=limits, notes=())
        case JsonSchema():
            return _write_schema(grammar, param=param, limits=limits, is_strict=is_strict)
        case Choice():
            # One regular expression rather than so many rules, which would pass the parser's limits.
            piece = GrammarPiece(f"/{'|'.join(map(_escape_literal, grammar.options))}/")
        case Regex():
            piece = GrammarPiece(f"/{_escape_slashes(grammar.pattern)}/")
        case Lark():
            _check_lark(grammar.grammar, param=param)
            piece = GrammarPiece(f"@{name}", name, grammar.grammar)
    _check_size(piece.side_grammar or piece.body, param=param)
    message = _validate(piece.side_grammar or f"start: {piece.body}", limits=limits)
    if message is not None:
        raise InvalidInputError(f"{_KINDS[type(grammar)]}; it was refused with: {message}", param=param)
    return piece


def pack_grammar(rules: Sequence[str], side_grammars: Iterable[tuple[str, str]]) -> str:
    """Joins the rules of a main grammar and the grammars, by name, that they refer to.

    The library's forcing is off: it would have text that can only be spelled in one way be cut in one way, too, and
    its copies of ordinary tokens in headers do not survive it.
    """
    lark = "\n".join(['%llguidance {"no_forcing": true}', *rules, ""])
    sides = [{"name": name, "lark_grammar": text} for name, text in side_grammars]
    return json.dumps({"grammars": [{"lark_grammar": lark}, *sides]}) if sides else lark


def tidy_message(message: str) -> str:
    """The library's message without the place in our text and the copy of it."""
    lines = [line.strip() for line in message.strip().splitlines()]
    telling = [line for line in lines if line.startswith("error:")] or lines[:1]
    return _PLACE.sub("", telling[0]) if telling else "no reason given"


def _validate(grammar: str, *, limits: LLParserLimits) -> str | None:
    """What llguidance says against a grammar in Lark; None if nothing. Special tokens in it count as an error."""
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    if is_error:
        return tidy_message(messages[0])
    is_special = any("tokenizer" in message for message in messages)
    return "it names special tokens, which only the harmony headers may" if is_special else None


def _write_schema(grammar: JsonSchema, *, param: str, limits: LLParserLimits, is_strict: bool) -> GrammarPiece:
    _check_size(grammar.text, param=param)
    schema = json.loads(grammar.text)
    try:
        prepared = prepare_schema(
            schema, param=param, max_optional=max_optional_properties(limits), is_strict=is_strict
        )
        return _write_json(prepared.schema, param=param, limits=limits, notes=prepared.notes, is_strict=is_strict)
    except InvalidInputError as error:
        if is_strict:
            raise
        note = f"{error}; any JSON object is taken instead"
        return _write_json({"type": "object"}, param=param, limits=limits, notes=(note,))


def _write_json(
    schema: Mapping[str, object],
    *,
    param: str,
    limits: LLParserLimits,
    notes: tuple[str, ...],
    is_strict: bool = True,
) -> GrammarPiece:
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not is_strict}
    body = f"%json {json.dumps({'x-guidance': options, **schema})}"
    message = _validate(f"start: {body}", limits=limits)
    if message is not None:
        raise InvalidInputError(
            f"the JSON Schema cannot be enforced: {message}. Enforced are the keywords {ENFORCED}",
            param=param,
        )
    return GrammarPiece(body, notes=notes)


def _check_size(text: str, *, param: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidInputError(
            f"it has {size} bytes, but at most {MAX_GRAMMAR_BYTES} can be compiled; make it smaller", param=param
        )


def _check_lark(grammar: str, *, param: str) -> None:
    """Refuses what would reach outside the text: special tokens, other grammars, options, sampling."""
    bare = _STRINGS_AND_COMMENTS.sub(" ", grammar)
    bare = _OPTIONS.sub(" ", bare)
    for found, what in (
        (_SPECIAL_TOKEN.search(bare), "special tokens (<...>)"),
        (re.search("@", bare), "other grammars (@...)"),
        (re.search("%llguidance", bare), "options (%llguidance {...})"),
        (_NEGATION.search(bare), "negation (~); repetition is x{2,5}"),
        (_UNSUPPORTED_ATTRIBUTE.search(bare), "the attributes stop, max_tokens and temperature"),
    ):
        if found is not None:
            raise InvalidInputError(f"a Lark grammar may not use {what}; got {found.group()!r}", param=param)


def _escape_literal(text: str) -> str:
    return text.translate(_LITERAL_ESCAPES)


def _escape_slashes(pattern: str) -> str:
    """Writes a regular expression for between slashes: a bare slash and a line end would close it."""
    out: list[str] = []
    letters = iter(pattern)
    for letter in letters:
        if letter == "\\":
            out.append(letter + next(letters, ""))
        else:
            out.append({"/": "\\/", "\n": "\\n", "\r": "\\r"}.get(letter, letter))
    return "".join(out)
