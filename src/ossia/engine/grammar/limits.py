"""What one constraint may cost, so that no request can hold up the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossia.engine.constraint import Lark, TurnConstraint

if TYPE_CHECKING:
    from llguidance import LLParserLimits

    from ossia.engine.constraint import Constraint, OutputGrammar

MAX_GRAMMAR_BYTES = 512 * 1024
"""Of one schema, regular expression or Lark grammar."""


def limits_for(constraint: Constraint) -> LLParserLimits:
    """Limits of the library: in fuel and items, so that the same grammar always meets them at the same place.

    Measured on one core with o200k's vocabulary: the widest JSON Schema within them takes about a second to compile
    and 20 ms a mask, the worst regular expression 5 ms a mask. An ambiguous Lark grammar costs far more an item (two
    seconds a mask at a JSON Schema's limits), so with one the limits are lower, which keeps it near 25 ms.
    """
    from llguidance import LLParserLimits

    is_wary = any(isinstance(grammar, Lark) for grammar in _grammars(constraint))
    return LLParserLimits(
        max_items_in_row=1_000 if is_wary else 10_000,
        step_max_items=2_000 if is_wary else 50_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def max_optional_properties(limits: LLParserLimits) -> int:
    """Of one object: each costs four of the parser's items wherever a key may stand."""
    return limits.max_items_in_row // 5


def _grammars(constraint: Constraint) -> list[OutputGrammar]:
    if not isinstance(constraint, TurnConstraint):
        return [constraint]
    return [constraint.response_format, *(tool.arguments for tool in constraint.callable_tools)]
