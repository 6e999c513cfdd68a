"""A TurnConstraint as Lark: everything that the model may write behind the prompt's `<|start|>assistant`.

    turn:    (thought "<|start|>assistant"){0,16} (calls | answer)
    thought: "<|channel|>analysis<|message|>" TEXT "<|end|>" | "<|channel|>commentary<|message|>" TEXT "<|end|>"
    calls:   call ("<|start|>assistant" call)* ["<|start|>" the beginning of a tool's message]
    call:    header of a tool, its arguments, "<|call|>"
    answer:  "<|channel|>final<|message|>" the response format "<|return|>"

Headers are written as the ids that the tokenizer gives, so that the model cannot spell a name in other tokens than it
was trained on; what stands in a body may be cut into tokens in any way. An answer ends in `<|return|>` alone:
`<|end|>` closes one only in history.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import CONSTRAINED_JSON, JsonObject, JsonSchema, Reasoning, ToolChoice, ToolGrammar
from ossia.engine.grammar.output_grammar import FREE_TEXT, pack_grammar, write_output_grammar
from ossia.harmony.header import Opening, interpret_header
from ossia.harmony.message import Channel, Role
from ossia.harmony.token_reader import token_reader
from ossia.harmony.tool_match import ToolNames
from ossia.harmony.vocab import ControlToken

if TYPE_CHECKING:
    from llguidance import LLParserLimits

    from ossia.engine.constraint import OutputGrammar, TurnConstraint
    from ossia.harmony.tokenizer import Tokenizer

MAX_THOUGHTS = 16
"""Messages of reasoning and preambles in a turn. A model that cannot do what is required of it would otherwise fill its
context with them."""


class GrammarText(NamedTuple):
    """A whole grammar.

    Attributes:
        text: Lark, or JSON that lists several grammars.
        notes: what is not enforced.
    """

    text: str
    notes: tuple[str, ...]


def write_turn_grammar(constraint: TurnConstraint, *, tokenizer: Tokenizer, limits: LLParserLimits) -> GrammarText:
    """Writes the grammar of a turn.

    Raises:
        InvalidInputError: a schema or grammar in it cannot be enforced, or a tool's name cannot be written.
    """
    return _TurnWriter(constraint, tokenizer, limits).write()


def first_ids_of_results(constraint: TurnConstraint, *, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that open a tool's message: behind `<|start|>` they say that the model waits for results."""
    return frozenset(tokenizer.encode(tool.recipient)[0] for tool in constraint.callable_tools)


class _TurnWriter:
    """Gathers the rules of one grammar."""

    def __init__(self, constraint: TurnConstraint, tokenizer: Tokenizer, limits: LLParserLimits) -> None:
        self._constraint = constraint
        self._tokenizer = tokenizer
        self._limits = limits
        self._tool_names = ToolNames(tool.recipient for tool in constraint.tools)
        self._rules: list[str] = []
        self._sides: list[tuple[str, str]] = []
        self._notes: list[str] = []

    def write(self) -> GrammarText:
        constraint = self._constraint
        self._add("start", [self._turn()])
        self._add("open", [self._ids(f"{ControlToken.START}assistant")])
        self._add_thoughts()
        self._add_calls()
        if constraint.tool_choice is not ToolChoice.REQUIRED:
            self._add_answer()
        return GrammarText(pack_grammar(self._rules, self._sides), tuple(self._notes))

    def _turn(self) -> str:
        constraint = self._constraint
        lead = f"(thought open){{0,{MAX_THOUGHTS}}}" if self._kinds_of_thought() else ""
        if constraint.reasoning is Reasoning.REQUIRED:
            lead = f"analysis open {lead}"
        ends = ["calls"] if constraint.num_calls else []
        if constraint.tool_choice is not ToolChoice.REQUIRED:
            ends.append("answer")
        return f"{lead} ({' | '.join(ends)})"

    def _kinds_of_thought(self) -> list[str]:
        constraint = self._constraint
        kinds = ["analysis"] if constraint.reasoning is not Reasoning.NONE else []
        return [*kinds, "preamble"] if constraint.has_preambles and constraint.num_calls else kinds

    def _add_thoughts(self) -> None:
        kinds = self._kinds_of_thought()
        if not kinds:
            return
        self._add("thought", kinds)
        for kind, channel in (("analysis", Channel.ANALYSIS), ("preamble", Channel.COMMENTARY)):
            if kind in kinds:
                self._add(kind, [self._message(channel)])

    def _message(self, channel: Channel) -> str:
        header = self._ids(f"{ControlToken.CHANNEL}{channel}{ControlToken.MESSAGE}")
        return f"{header} {FREE_TEXT} {self._ids(ControlToken.END)}"

    def _add_answer(self) -> None:
        grammar = self._constraint.response_format
        is_json = isinstance(grammar, JsonSchema | JsonObject)
        types = (None, CONSTRAINED_JSON) if is_json else (None,)
        headers = [self._header(_channel_text(Channel.FINAL, None, kind)) for kind in types]
        self._add_body("format", grammar, param="response_format")
        self._add("answer", [f"({' | '.join(headers)}) format {self._ids(ControlToken.RETURN)}"])

    def _add_calls(self) -> None:
        tools = [(i, tool) for i, tool in enumerate(self._constraint.tools) if tool in self._constraint.callable_tools]
        for i, tool in tools:
            self._add(f"head_{i}", [self._header(text) for text in self._forms(tool)])
            self._add_body(f"args_{i}", tool.arguments, param=f"tools[{i}].parameters", is_strict=tool.is_strict)
        if not tools:
            return
        end = self._ids(ControlToken.CALL)
        self._add("call", [f"head_{i} args_{i} {end}" for i, _ in tools])
        count = self._constraint.num_calls
        if count == 1:
            self._add("calls", ["call"])
            return
        # The last of the allowed calls ends the turn at once; behind the others the model says whether it goes on.
        first_ids = first_ids_of_results(self._constraint, tokenizer=self._tokenizer)
        results = " | ".join(f"<[{token_id}]>" for token_id in sorted(first_ids))
        self._add("results", [f"{self._ids(ControlToken.START)} ({results})"])
        middle = f"(open call){{0,{count - 2}}}" if count > 2 else ""
        self._add("calls", [f"call {middle} (results | open call)?"])

    def _add_body(self, rule: str, grammar: OutputGrammar, *, param: str, is_strict: bool = True) -> None:
        piece = write_output_grammar(
            grammar, name=f"{rule}_grammar", param=param, limits=self._limits, is_strict=is_strict
        )
        self._add(rule, [piece.body])
        self._notes += [f"{param}: {note}" for note in piece.notes]
        if piece.side_name is not None and piece.side_grammar is not None:
            self._sides.append((piece.side_name, piece.side_grammar))

    def _forms(self, tool: ToolGrammar) -> list[str]:
        """The headers of a call: the recipient behind the channel, as the models write, or in the role."""
        forms: list[str] = []
        for channel, kind in product(tool.channels, tool.content_types):
            forms.append(_channel_text(channel, tool.recipient, kind))
            forms.append(f" to={tool.recipient}{_channel_text(channel, None, kind)}")
        for form in forms:
            self._check_header(form, tool)
        return forms

    def _header(self, text: str) -> str:
        return self._ids(f"{text}{ControlToken.MESSAGE}")

    def _check_header(self, text: str, tool: ToolGrammar) -> None:
        """Makes sure that the parser reads a header as it is meant, without a repair."""
        sections = token_reader(self._tokenizer).sections(self._tokenizer.encode_with_specials(text))
        header = interpret_header(sections, opening=Opening.IMPLIED, tools=self._tool_names)
        is_read = header.role is Role.ASSISTANT and header.recipient == tool.recipient and not header.text
        if not is_read or header.repairs:
            raise InvalidInputError(
                f"a call to {tool.recipient!r} would be misread; use letters, digits, '_', '-' and '.' for the names "
                "of tools",
                param="tools",
            )

    def _ids(self, text: str) -> str:
        return " ".join(f"<[{token_id}]>" for token_id in self._tokenizer.encode_with_specials(text))

    def _add(self, rule: str, alternatives: list[str]) -> None:
        self._rules.append(f"{rule}: " + "\n  | ".join(alternatives))


def _channel_text(channel: Channel, recipient: str | None, content_type: str | None) -> str:
    to = f" to={recipient}" if recipient else ""
    kind = f" {content_type}" if content_type else ""
    return f"{ControlToken.CHANNEL}{channel}{to}{kind}"
