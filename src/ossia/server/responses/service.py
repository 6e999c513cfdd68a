"""Runs and keeps responses: in the foreground for a client that waits, in the background for one that comes again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
from collections.abc import Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from ossia.agent.loop import AgentLoop, grammars_of
from ossia.agent.loop import Limits as AgentLimits
from ossia.agent.turns import Sampling
from ossia.engine.constraint import FreeText, ToolChoice, TurnConstraint
from ossia.server.auth import Caller
from ossia.server.errors import ApiError, not_found, unsupported
from ossia.server.makers import MCP
from ossia.server.responses.background import BackgroundRun
from ossia.server.responses.builder import Choices, OutputBuilder, StreamEvent
from ossia.server.responses.envelope import FINISHED, open_envelope
from ossia.server.responses.hosted import APPROVAL_RESPONSE, guarded_names, list_item, make_tools
from ossia.server.responses.params import PromptParams, read_params
from ossia.server.responses.prompting import Prepared, Prompter
from ossia.server.responses.run import Plan, Run
from ossia.server.responses.schema import CreateBody
from ossia.server.responses.work import AgentWork, TurnWork
from ossia.server.settings import ReasoningPolicy
from ossia.server.store.conversations import ConversationStore
from ossia.server.store.responses import ResponseStore
from ossia.server.store.rows import StoredResponse
from ossia.tools.registry import ToolSet

if TYPE_CHECKING:
    from ossia.harmony.message import Message
    from ossia.server.context import ServerContext

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
_RENEW_SECONDS = 5.0
_SWEEP_SECONDS = 60.0


class ResponseService:
    """See the module.

    Attributes:
        context: of the server.
        store, conversations: what is kept.
        prompter: makes prompts.
    """

    def __init__(self, context: ServerContext) -> None:
        ttl = context.settings.ttl_seconds
        self.context = context
        self.store = ResponseStore(context.database, clock=context.clock, ttl=ttl, server=server_name())
        self._is_dead = functools.partial(is_dead_server, own=self.store.server)
        self.conversations = ConversationStore(context.database, clock=context.clock, ttl=ttl)
        self.prompter = Prompter(context, responses=self.store, conversations=self.conversations)
        self._running: dict[str, BackgroundRun] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None

    # ---- life ----

    async def start(self) -> None:
        """Mark what an earlier process left unfinished, and begin to keep house."""
        failed = await self.context.database.call(self.store.fail_orphans, self._is_dead)
        if failed:
            logger.warning("%d responses that a stopped server left unfinished are marked failed", len(failed))
        self._keeper = asyncio.create_task(self._keep_house(), name="ossia-keeper")

    async def stop(self) -> None:
        """Wait for background responses as long as `drain_seconds`, then end the others; store all."""
        tasks = [running.task for running in self._running.values()]
        if tasks:
            logger.info("waiting for %d background responses", len(tasks))
            await asyncio.wait(tasks, timeout=self.context.settings.drain_seconds)
            late = [running for running in self._running.values() if not running.task.done()]
            for running in late:
                running.run.leave(message="the server stopped before it was done")
                running.task.cancel()
            await asyncio.gather(*(running.task for running in late), return_exceptions=True)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_house(self) -> None:
        ticks = 0
        while True:
            try:
                await self.context.database.call(self.store.renew, list(self._running), lease_seconds=LEASE_SECONDS)
                if ticks % round(_SWEEP_SECONDS / _RENEW_SECONDS) == 0:
                    await self.context.database.call(self.store.sweep)
                    await self.context.database.call(self.conversations.sweep)
                    await self.context.database.call(self.store.fail_orphans, self._is_dead)
            except Exception:
                logger.exception("keeping house failed; it is tried again")
            ticks += 1
            await asyncio.sleep(_RENEW_SECONDS)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let work go on beside; the server waits for it before it stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("work beside a request failed", exc_info=task.exception())

    # ---- running ----

    async def create(self, body: CreateBody, caller: Caller) -> Run:
        """Make the prompt and hand it to the engine.

        Raises:
            ApiError, InvalidInputError, ContextLengthError, EngineOverloadedError, EngineDeadError: it cannot be done.
        """
        _check_create(body)
        self.context.check_takes_work(body.model)
        if body.background and len(self._running) >= self.context.settings.limits.max_background:
            raise ApiError("too many background responses run already", status=429, code="rate_limit_exceeded")
        params = read_params(body, enabled=self.context.settings.tools)
        if params.hosted and (params.rules.choice is not ToolChoice.NONE or _gives_leave(body)):
            run = await self._start_agent(body, params, caller)
        else:
            run = await self._start_turn(body, params, caller)
        plan = run.plan
        if body.background:
            try:
                stored = run.stored()._replace(body={**run.envelope, "status": "in_progress"}, status="in_progress")
                await self.context.database.call(self.store.open, stored, plan.inputs, lease_seconds=LEASE_SECONDS)
            except BaseException:
                run.cancel()
                raise
        return run

    async def _start_turn(self, body: CreateBody, params: PromptParams, caller: Caller) -> Run:
        prepared = await self.prompter.prepare(body, owner=caller.key_id, params=params)
        plan = self._plan(body, prepared, caller)
        asked = self.context.turns.request(
            prepared.prompt,
            sampling=_sampling(body, params.rules.constraint()),
            owner=caller.key_id,
            request_id=str(plan.envelope["id"]),
        )
        turn = await self.context.turns.start(asked, tools=params.rules.recipients)
        return Run(self, plan, TurnWork(turn))

    async def _start_agent(self, body: CreateBody, params: PromptParams, caller: Caller) -> Run:
        """A response for which the server runs tools itself."""
        tools = await make_tools(params.hosted, self.context.tool_makers)
        try:
            prepared = await self.prompter.prepare(body, owner=caller.key_id, params=params, hosted=tools)
            kinds = {tool.name: wanted.kind for tool, wanted in zip(tools, params.hosted, strict=True)}
            guarded = guarded_names(tools)
            plan = self._plan(body, prepared, caller, hosted=kinds, guarded=guarded)
            loop = AgentLoop(
                self.context.turns,
                tools=tools,
                rules=_agent_rules(params, tools),
                sampling=_sampling(body, None),
                limits=AgentLimits(max_calls=body.max_tool_calls, max_tokens=body.max_output_tokens),
                held=guarded,
                owner=caller.key_id,
            )
            calls = [approved.call for approved in prepared.approved]
            work = AgentWork(loop, prepared.conversation, tools=tools, calls=calls)
            await work.start()
        except BaseException:
            await tools.close()
            raise
        new = [tool for tool in tools if kinds[tool.name] == MCP and tool.name not in prepared.listed]
        lists = [list_item(tool, new_id=self.context.new_id) for tool in new]
        return Run(self, plan, work, lists=lists, approved=prepared.approved)

    def _plan(
        self,
        body: CreateBody,
        prepared: Prepared,
        caller: Caller,
        *,
        hosted: Mapping[str, str] | None = None,
        guarded: Collection[str] = (),
    ) -> Plan:
        context = self.context
        params = prepared.params
        include = body.include or []
        policy = context.settings.reasoning
        wants_summary = policy is ReasoningPolicy.SUMMARY or (
            policy is ReasoningPolicy.RAW and params.summary in ("concise", "detailed")
        )
        seals = None
        if "reasoning.encrypted_content" in include:

            def seal(message: Message) -> str:
                return context.sealer.seal([message], owner=caller.key_id)

            seals = seal
        choices = Choices(
            params.rules,
            policy,
            has_logprobs=_has_logprobs(body),
            seals=seals,
            summarises=wants_summary,
            hosted=hosted or {},
            guarded=guarded,
            include=include,
        )
        defaults = context.model.sampling
        envelope = open_envelope(
            body,
            params,
            response_id=context.new_id("resp"),
            created_at=context.clock(),
            model=context.model.name,
            defaults={"temperature": defaults.temperature, "top_p": defaults.top_p},
        )
        return Plan(
            caller=caller,
            envelope=envelope,
            inputs=prepared.inputs,
            builder=OutputBuilder(choices, tokenizer=context.model.tokenizer, new_id=context.new_id),
            is_parallel=params.rules.parallel,
            is_stored=body.store is not False,
            is_open=body.background is True,
            date=prepared.date,
            summary=params.summary,
        )

    def run_beside(self, run: Run) -> BackgroundRun:
        """Let a response run without its client."""
        running = BackgroundRun(run)
        self._running[run.id] = running
        self.context.metrics.num_background += 1

        def forget(_: asyncio.Task[None]) -> None:
            self._running.pop(run.id, None)
            self.context.metrics.num_background -= 1

        running.task.add_done_callback(forget)
        return running

    def running(self, caller: Caller, response_id: str) -> BackgroundRun | None:
        """A background response of that caller that runs here."""
        running = self._running.get(response_id)
        return running if running is not None and running.run.plan.caller.key_id == caller.key_id else None

    async def keep(self, run: Run, terminal: StreamEvent) -> None:
        """Store a response that is over, unless it is not to be stored.

        Raises:
            StorageError: the database failed.
        """
        plan = run.plan
        if not plan.is_stored:
            return
        outputs = plan.builder.items
        has_conversation = run.envelope["conversation"] is not None and run.envelope["status"] != "failed"
        await self.context.database.call(
            self.store.close,
            run.stored(),
            inputs=None if plan.is_open else plan.inputs,
            outputs=outputs,
            log=() if run.log is None else [*run.log, terminal],
            conversation_items=[*plan.inputs, *outputs] if has_conversation else (),
        )

    # ---- what is kept ----

    async def load(self, caller: Caller, response_id: str) -> StoredResponse:
        """A stored response.

        Raises:
            ApiError: there is none (404).
        """
        found = await self.context.database.call(self.store.load, caller.key_id, response_id)
        if found is None:
            raise not_found(f"no response {response_id[:80]!r} is stored here", param="response_id")
        return found

    async def cancel(self, caller: Caller, response_id: str) -> dict[str, Any]:
        """End a background response; one that is over stays as it is.

        Raises:
            ApiError: there is none, or it is no background response, or another server runs it.
        """
        running = self.running(caller, response_id)
        if running is not None:
            running.run.cancel()
            await asyncio.wait({running.task})
            return running.run.envelope
        stored = await self.load(caller, response_id)
        if not stored.is_background:
            raise ApiError("only background responses can be cancelled", code="invalid_request", param="response_id")
        if stored.status not in FINISHED:
            raise ApiError("this response runs on another server; cancel it there", status=409, code="conflict")
        return stored.body

    async def delete(self, caller: Caller, response_id: str) -> None:
        """Forget a response, ending it first if it runs here.

        Raises:
            ApiError: there is none.
        """
        running = self.running(caller, response_id)
        if running is not None:
            running.run.cancel()
            await asyncio.wait({running.task})
        if not await self.context.database.call(self.store.delete, caller.key_id, response_id):
            raise not_found(f"no response {response_id[:80]!r} is stored here", param="response_id")


def _check_create(body: CreateBody) -> None:
    if body.prompt is not None:
        raise unsupported(
            "prompt templates are not available on this server; send instructions and input", param="prompt"
        )
    if body.background and body.store is False:
        raise ApiError("a background response must be stored; leave store out", code="invalid_value", param="store")
    if body.top_p == 0:
        raise ApiError("top_p is 0; give a number above 0, at most 1", code="invalid_value", param="top_p")


def _gives_leave(body: CreateBody) -> bool:
    """Whether there may be calls to make before the model's turn, whatever it may do itself."""
    return not isinstance(body.input, str) and any(i.get("type") == APPROVAL_RESPONSE for i in body.input or ())


def _has_logprobs(body: CreateBody) -> bool:
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _agent_rules(params: PromptParams, tools: ToolSet) -> TurnConstraint:
    """What the turns of an agent's run may look like, with the tools of both sides."""
    rules, chosen = params.rules, params.chosen
    allowed = None
    if chosen.names is not None:
        by_tool = {id(wanted): tool for wanted, tool in zip(params.hosted, tools, strict=True)}
        own = [grammar.recipient for wanted in chosen.hosted for grammar in grammars_of(ToolSet([by_tool[id(wanted)]]))]
        theirs = [spec.recipient if (spec := rules.find(name)) is not None else name for name in chosen.names]
        allowed = (*theirs, *own)
    return TurnConstraint(
        tools=(*grammars_of(tools), *(tool.grammar() for tool in rules.tools)),
        tool_choice=chosen.choice,
        allowed_tools=allowed,
        response_format=FreeText() if rules.format is None else rules.format.grammar(),
        parallel_calls=rules.parallel,
    )


def _sampling(body: CreateBody, constraint: TurnConstraint | None) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if _has_logprobs(body) else None,
        constraint=constraint,
    )


def server_name() -> str:
    """This process among all that share a database: host, process id, and a number that no other has."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(8)}"


def is_dead_server(name: str, *, own: str) -> bool:
    """Whether a process of this machine that worked at a response is gone; of other machines only leases tell."""
    host, _, rest = name.partition(":")
    pid, _, _ = rest.partition(":")
    if host != socket.gethostname()[:100] or name == own or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
