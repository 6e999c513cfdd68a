"""From a request's body to a prompt: history, items, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ossia.agent.chat_messages import is_name
from ossia.core.errors import ContextLengthError
from ossia.harmony.message import Conversation, Message
from ossia.server.conversation.prompt import build_conversation, drop_oldest_turn
from ossia.server.errors import ApiError, not_found
from ossia.server.replay import Said
from ossia.server.responses.hosted import Approved, make_tools
from ossia.server.responses.items import Item, ItemReader, Memory, normalise
from ossia.server.responses.params import PromptParams, read_params
from ossia.server.responses.schema import JsonObject, PromptBody

if TYPE_CHECKING:
    from ossia.server.context import ServerContext
    from ossia.server.store.conversations import ConversationStore
    from ossia.server.store.responses import ResponseStore
    from ossia.tools.registry import ToolSet

_OPEN = ("queued", "in_progress")


class Prepared(NamedTuple):
    """A prompt and what it was made of.

    Attributes:
        inputs: the request's own items.
        conversation, prompt: as the model sees it, and its token ids.
        date: the date in the system message; the conversation keeps it.
        approved: calls of MCP servers that wait for being made, with the client's leave.
        listed: MCP servers whose tools the conversation has listed already.
    """

    params: PromptParams
    inputs: list[Item]
    conversation: Conversation
    prompt: tuple[int, ...]
    date: str
    approved: Sequence[Approved] = ()
    listed: Collection[str] = ()


class History(NamedTuple):
    """What was said before the request."""

    items: Sequence[Item] = ()
    date: str | None = None


class Prompter:
    """Prepares prompts of /v1/responses."""

    def __init__(self, context: ServerContext, *, responses: ResponseStore, conversations: ConversationStore) -> None:
        self._context = context
        self._responses = responses
        self._conversations = conversations

    async def prepare(
        self, body: PromptBody, *, owner: str, params: PromptParams, hosted: ToolSet | None = None
    ) -> Prepared:
        """Make the prompt.

        Args:
            params: from `read_params`.
            hosted: the tools that the server runs itself.

        Raises:
            ApiError, InvalidInputError, ContextLengthError: naming the parameter.
        """
        history = await self._history(body, owner)
        given = normalise(body.input)
        if not given and not history.items:
            raise ApiError("input is missing or empty", code="missing_required_parameter", param="input")
        memory = await self.memory(given, owner=owner)
        reader = ItemReader(memory, new_id=self._context.new_id, history=history.items)
        inputs = [reader.read(data, at=f"input[{i}]") for i, data in enumerate(given)]
        messages = [message for item in (*history.items, *inputs) for message in item.messages]
        date = history.date or self._context.today()
        conversation, prompt = await self._encode(messages, params, date=date, body=body, hosted=hosted)
        approvals = reader.approvals
        for approved in approvals.to_make:
            if hosted is None or hosted.find(approved.call.recipient) is None:
                raise ApiError(
                    f"{approved.at} allows a call of {approved.call.recipient!r}, which is not among the tools of this "
                    "request; declare its MCP server again",
                    code="invalid_value",
                    param=approved.at,
                )
        return Prepared(params, inputs, conversation, prompt, date, approvals.to_make, approvals.listed)

    async def render(self, body: PromptBody, *, owner: str) -> tuple[int, ...]:
        """The prompt alone, of a response that is not made.

        Raises:
            EngineDeadError, ModelNotFoundError: nothing, or not by that model, is made now.
            ApiError, InvalidInputError, ContextLengthError: naming the parameter.
        """
        self._context.check_takes_work(body.model)
        params = read_params(body, enabled=self._context.settings.tools)
        async with await make_tools(params.hosted, self._context.tool_makers) as tools:
            prepared = await self.prepare(body, owner=owner, params=params, hosted=tools)
        return prepared.prompt

    async def memory(self, given: Sequence[JsonObject], *, owner: str) -> Memory:
        """What is known of items that come back: from memory, and for what is not there, from the database."""
        replay = self._context.replay
        names = {name for data in given for key in ("id", "call_id") if is_name(name := data.get(key))}
        missing = [name for name in names if replay.find(owner, name) is None]
        references = [name for data in given if data["type"] == "item_reference" and is_name(name := data.get("id"))]
        calls: Mapping[str, Said] = {}
        stored: Mapping[str, Item] = {}
        if missing or references:
            database = self._context.database
            calls = await database.call(self._responses.find_calls, owner, missing)
            stored = await database.call(self._responses.find_items, owner, [*missing, *references])

        def find(name: str | None) -> Said | None:
            said = replay.find(owner, name)
            if said is None and name is not None:
                said = calls.get(name)
                item = stored.get(name)
                if said is None and item is not None and item.messages:
                    said = Said((), item.messages[0], item.messages[1:])
            return said

        return Memory(find=find, stored=stored, sealer=self._context.sealer, owner=owner)

    async def _history(self, body: PromptBody, owner: str) -> History:
        database = self._context.database
        conversation_id = body.conversation_id
        if body.previous_response_id is not None and conversation_id is not None:
            raise ApiError(
                "previous_response_id and conversation are both given; use one of them",
                code="mutually_exclusive_parameters",
                param="previous_response_id",
            )
        if conversation_id is not None:
            if await database.call(self._conversations.load, owner, conversation_id) is None:
                raise not_found(f"no conversation {conversation_id!r} is stored here", param="conversation")
            return History(await database.call(self._conversations.items, owner, conversation_id))
        if body.previous_response_id is None:
            return History()
        previous = await database.call(self._responses.load, owner, body.previous_response_id)
        if previous is None or previous.status in _OPEN:
            state = "is still in progress" if previous is not None else "is not stored here"
            raise ApiError(
                f"the previous response {body.previous_response_id!r} {state}",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        stored = await database.call(self._responses.history, owner, previous.id)
        return History([entry.item for entry in stored], previous.state.get("date"))

    async def _encode(
        self,
        messages: Sequence[Message],
        params: PromptParams,
        *,
        date: str,
        body: PromptBody,
        hosted: ToolSet | None,
    ) -> tuple[Conversation, tuple[int, ...]]:
        def build(kept: Sequence[Message]) -> Conversation:
            return build_conversation(
                kept,
                model=self._context.model,
                date=date,
                rules=params.rules,
                instructions=body.instructions,
                effort=params.effort,
                system_tools=() if hosted is None else hosted.system_namespaces(),
                developer_tools=() if hosted is None else hosted.developer_namespaces(),
            )

        try:
            conversation = build(messages)
            return conversation, await self._context.turns.encode(conversation)
        except ContextLengthError:
            if body.truncation != "auto":
                raise
        return await self._truncate(messages, build)

    async def _truncate(
        self, messages: Sequence[Message], build: Callable[[Sequence[Message]], Conversation]
    ) -> tuple[Conversation, tuple[int, ...]]:
        """Leave out as few of the oldest turns as will do, by bisection."""
        choices: list[tuple[Message, ...]] = []
        kept: tuple[Message, ...] | None = tuple(messages)
        while (kept := drop_oldest_turn(kept)) is not None:
            choices.append(kept)
        if not choices:
            conversation = build(messages)
            return conversation, await self._context.turns.encode(conversation)  # says what is wrong
        low, high = 0, len(choices) - 1
        best = None
        while low <= high:
            middle = (low + high) // 2
            try:
                conversation = build(choices[middle])
                best = conversation, await self._context.turns.encode(conversation)
                high = middle - 1
            except ContextLengthError:
                if middle == len(choices) - 1:
                    raise
                low = middle + 1
        assert best is not None, "the last choice either fits or raises"
        return best
