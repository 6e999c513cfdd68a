"""The engine offline: many prompts in, all answers out."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.completion import Collector, Completion
from ossia.engine.constraint import TurnConstraint
from ossia.engine.declared import constraint_of
from ossia.engine.memory import check_memory
from ossia.engine.request import Request, SamplingParams
from ossia.engine.turn import Turn, TurnReader, finish_turn
from ossia.harmony.message import Conversation, Effort, Message, Role
from ossia.harmony.render import render
from ossia.model.checkpoint.progress import progress_bar
from ossia.model.checkpoint.stream import Progress
from ossia.model.loading import LoadedModel, load

if TYPE_CHECKING:
    from ossia.engine.engine import Engine

Prompt: TypeAlias = str | Sequence[int]
Chat: TypeAlias = str | Conversation


class LLM:
    """A model and an engine to run it, for scripts.

        llm = LLM("nano")
        for completion in llm.generate(["one, two,", "Dear"], SamplingParams(max_tokens=20)):
            print(completion.text)
        print(llm.chat(["What is 17 + 25?"])[0].text)

    Attributes:
        loaded: the model, its tokenizer and its identity.
        engine: what runs it.
    """

    def __init__(
        self, model: str | LoadedModel = "nano", *, device: str = "auto", config: EngineConfig | None = None
    ) -> None:
        """Load the model, if it is named and not given.

        Args:
            model: "nano", a hub id that was pulled, a model folder, or a model that is loaded.
            device: for a model that is to be loaded: "cpu", "cuda", "cuda:1" or "auto".
            config: sizes of the cache and of the batch.

        Raises:
            ModelNotFoundError, CheckpointError, InvalidInputError: as `ossia.model.loading.load`.
            NotEnoughMemoryError: the model does not fit into this machine's memory.
        """
        if isinstance(model, str):
            check_memory(model, device=device, engine=config)
        self.loaded = load(model, device=device) if isinstance(model, str) else model
        self.engine: Engine = build_engine(self.loaded, config=config)

    def default_params(self) -> SamplingParams:
        """What the model's makers recommend (generation_config.json)."""
        sampling = self.loaded.sampling
        return SamplingParams(temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens)

    def generate(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | Progress = True,
    ) -> list[Completion]:
        """Continue prompts as they stand: no chat format is added.

        Args:
            prompts: texts or token ids. In texts, what looks like a control token is text.
            params: for all, or one for each; None for the model's own defaults.
            progress: show a bar on a terminal, or what to call with the number of prompts done and of all.

        Returns:
            A completion for each prompt, in order. One that failed says so in its answers' finish_reason and error.

        Raises:
            InvalidInputError: a prompt or an option cannot be taken; nothing has been run.
        """
        ids = [self._encode(prompt) for prompt in prompts]
        return self._run(self._make_requests(ids, params), progress=progress)

    def chat(
        self,
        conversations: Iterable[Chat],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        effort: Effort | str = Effort.MEDIUM,
        instructions: str | None = None,
        progress: bool = True,
    ) -> list[Turn]:
        """Let the model take its next turn in conversations.

        Args:
            conversations: harmony conversations as they are, or single questions, for which the system message is made.
            params: as for `generate`; of `n` answers the first counts.
            effort: for questions, how long to think: low, medium or high.
            instructions: for questions, what a developer wants of the model.
            progress: show a bar on a terminal.

        A conversation that declares tools or a response format is held to them (`constraint_of`), unless its params
        have a constraint of their own.

        Raises:
            InvalidInputError: as `generate`.
        """
        opening = self.loaded.opening(effort=Effort.parse(effort), instructions=instructions)
        asked = [_ask(chat, opening) for chat in conversations]
        prompts = [tuple(render(chat, tokenizer=self.loaded.tokenizer, next_role="assistant")) for chat in asked]
        each = [
            replace(own, constraint=constraint_of(chat)) if own.constraint is None else own
            for own, chat in zip(self._spread(params, len(asked)), asked, strict=True)
        ]
        completions = self._run(self._make_requests(prompts, each), progress=progress)
        return [self._read(done, own) for done, own in zip(completions, each, strict=True)]

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(self.loaded.tokenizer.encode(prompt))
        return tuple(prompt)

    def _make_requests(
        self, prompts: Sequence[tuple[int, ...]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        each = self._spread(params, len(prompts))
        run = secrets.token_hex(4)
        pairs = enumerate(zip(prompts, each, strict=True))
        return [Request(id=f"{run}-{index}", prompt_ids=ids, params=own) for index, (ids, own) in pairs]

    def _spread(self, params: SamplingParams | Sequence[SamplingParams] | None, number: int) -> list[SamplingParams]:
        """Params for each prompt."""
        if params is None:
            params = self.default_params()
        each = [params] * number if isinstance(params, SamplingParams) else list(params)
        if len(each) != number:
            raise InvalidInputError(
                f"{len(each)} params were given for {number} prompts; give one for all, or one for each", param="params"
            )
        return each

    def _run(self, requests: Sequence[Request], *, progress: bool | Progress) -> list[Completion]:
        """Run requests to their end, handing in as many at a time as the queue takes."""
        for request in requests:
            self.engine.check(request)
        collectors = {request.id: Collector(request) for request in requests}
        waiting = list(reversed(requests))
        num_done = 0
        shown = progress_bar("Generating") if progress is True else nullcontext(progress or None)
        with shown as show:
            try:
                while num_done < len(requests):
                    while waiting and self.engine.has_room(waiting[-1]):
                        self.engine.add(waiting.pop())
                    for event in self.engine.step():
                        num_done += collectors[event.request_id].push(event)
                    if show is not None:
                        show(num_done, len(requests))
            finally:
                if num_done < len(requests):  # interrupted: leave the engine as it was found
                    self.engine.cancel_all()
                    self.engine.step()
        return [collectors[request.id].result() for request in requests]

    def _read(self, completion: Completion, params: SamplingParams) -> Turn:
        rules = params.constraint
        tools = [tool.recipient for tool in rules.tools] if isinstance(rules, TurnConstraint) else ()
        reader = TurnReader(self.loaded.tokenizer, num_prompt=len(completion.prompt_ids), tools=tools)
        reader.push_answer(completion.answers[0], num_cached=completion.num_cached)
        turn = finish_turn(reader)
        self.engine.metrics.parser_repairs.update(repair.kind.value for repair in turn.repairs)
        return turn


def _ask(chat: Chat, opening: tuple[Message, ...]) -> Conversation:
    """A conversation as it is, or of a question."""
    if isinstance(chat, str):
        return Conversation((*opening, Message(role=Role.USER, content=chat)))
    return chat
