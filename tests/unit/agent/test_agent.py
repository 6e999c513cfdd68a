"""The agent for scripts, with a scripted model; and with nano, which is made to call a function."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from tests.unit.agent.conftest import HANG, IDENTITY, FakeTool, add, answer_with, call, final, think

from ossia.agent.agent import Agent, gather_tools
from ossia.agent.events import CallEnded, RunEnded, StopReason
from ossia.agent.loop import AgentLoop, Limits, collect, grammars_of
from ossia.agent.opening import open_conversation
from ossia.agent.turns import Sampling, ServedModel, Turns
from ossia.core.errors import InvalidInputError
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.constraint import Choice, Reasoning, ToolChoice, TurnConstraint
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.message import Conversation, Message, Role
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import LoadedModel, SamplingDefaults, load
from ossia.tools.base import Source, ToolContext, ToolFile, ToolResult, reply
from ossia.tools.registry import ToolSet

ADD = call("functions.add", '{"a": 2, "b": 3}')


class Troupe:
    """Makes agents over scripted engines."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.loaded = LoadedModel(
            name="scripted",
            model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=4096)),  # pyright: ignore
            tokenizer=tokenizer,
            identity=IDENTITY,
            sampling=SamplingDefaults(),
        )
        self.prompts: list[str] = []
        self.engine: ScriptedEngine | None = None

    def make(self, *says: str, **options: Any) -> Agent:
        lines = iter(says)

        def script(prompt: str) -> str:
            self.prompts.append(prompt)
            return next(lines)

        self.engine = ScriptedEngine(self.loaded.tokenizer, script=script)
        return Agent(self.loaded, engine=self.engine, **options)


@pytest.fixture
def troupe(tokenizer: Tokenizer) -> Troupe:
    return Troupe(tokenizer)


def test_ask_with_a_function(troupe: Troupe) -> None:
    with troupe.make(think("hm") + ADD, final("It is 5."), tools=[add], instructions="Be brief.") as agent:
        result = agent.ask("What is 2 + 3?")
    assert (result.text, result.reason, result.error) == ("It is 5.", StopReason.ANSWERED, None)
    assert [ended.result.text for ended in result.calls] == ["5"]
    assert result.usage.num_output > 0
    assert "type add = (_: {" in troupe.prompts[0]
    assert "Be brief." in troupe.prompts[0]
    assert "You are a test." in troupe.prompts[0]


def test_a_conversation_goes_on(troupe: Troupe) -> None:
    with troupe.make(think("secret") + final("It is 5."), final("You are welcome.")) as agent:
        first = agent.ask("What is 2 + 3?")
        second = agent.ask("Thanks.", after=first.conversation)
    assert second.text == "You are welcome."
    assert troupe.prompts[1].startswith(troupe.prompts[0].removesuffix("<|start|>assistant"))
    assert "secret" not in troupe.prompts[1]
    assert len(second.conversation.messages) == len(first.conversation.messages) + 2


def test_stream_tells_every_step(troupe: Troupe) -> None:
    async def work() -> None:
        async with troupe.make(ADD, final("5."), tools=[add]) as agent:
            events, end = await collect(agent.stream("What is 2 + 3?"))
        assert sum(isinstance(event, CallEnded) for event in events) == 1
        assert end.reason is StopReason.ANSWERED

    asyncio.run(work())


def test_files_and_sources_of_all_calls_are_gathered(troupe: Troupe) -> None:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        name = message.text[6:7]
        return ToolResult(
            messages=(reply(message, "ok"),),
            files=(ToolFile(name=name, mime_type="text/plain", size=1, data=b"x"),),
            sources=(Source(cursor=int(name), url="https://example.org", title="A page"),),
        )

    says = (call("fake.do", '{"n": 0}'), call("fake.do", '{"n": 1}'), final("done"))
    with troupe.make(*says, tools=[FakeTool(do)]) as agent:
        result = agent.ask("Go")
    assert [file.name for file in result.files] == ["0", "1"]
    assert [source.cursor for source in result.sources] == [0, 1]


def test_a_run_without_an_answer_has_no_text(troupe: Troupe) -> None:
    with troupe.make(ADD, ADD, tools=[add], limits=Limits(max_turns=2)) as agent:
        result = agent.ask("What is 2 + 3?")
    assert (result.text, result.reason) == ("", StopReason.MAX_TURNS)


def test_closing_closes_the_tools_and_leaves_a_lent_engine_open(troupe: Troupe) -> None:
    tool = FakeTool(answer_with("x"))
    agent = troupe.make(final("x"), tools=[tool])
    agent.close()
    agent.close()
    assert tool.closed
    assert troupe.engine is not None
    assert troupe.engine.is_alive


def test_an_empty_question(troupe: Troupe) -> None:
    with troupe.make() as agent, pytest.raises(InvalidInputError, match="question is empty"):
        agent.ask("  \n")


def test_tools_by_name_function_and_hand() -> None:
    def multiply(a: int, b: int) -> int:
        """Multiply."""
        return a * b

    tools = gather_tools([add, FakeTool(answer_with("x")), multiply])
    assert tools.recipients() == ("fake.do", "functions.add", "functions.multiply")


@pytest.mark.parametrize(("tool", "part"), [("nonsense", "there is no tool 'nonsense'"), (42, "42 is no tool")])
def test_what_is_no_tool(tool: Any, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part):
        gather_tools([tool])


def test_the_package_gives_agent_and_llm_without_importing_torch_before() -> None:
    code = (
        "import sys, ossia; assert 'torch' not in sys.modules; assert {'Agent', 'LLM'} <= set(dir(ossia))\n"
        "try: ossia.Nothing\nexcept AttributeError: pass\nelse: raise SystemExit(2)\n"
        "from ossia import Agent, LLM; print(Agent.__module__, LLM.__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "ossia.agent.agent ossia.engine.llm\n"


# nano: it was not taught to call, so the grammar makes it


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load("nano", device="cpu")


def test_nano_is_made_to_call_a_function_and_answers(nano: LoadedModel) -> None:
    called: list[str] = []

    def colour(of: Literal["grass", "blood"]) -> str:
        """Tell the colour of a thing."""
        called.append(of)
        return "green"

    tools = gather_tools([colour])
    rules = TurnConstraint(
        tools=grammars_of(tools),
        tool_choice=ToolChoice.REQUIRED,
        response_format=Choice(("red", "green")),
        reasoning=Reasoning.NONE,
    )

    async def work() -> RunEnded:
        engine = AsyncEngine(build_engine(nano, config=EngineConfig(max_num_seqs=2, num_pages=256)))
        try:
            loop = AgentLoop(
                Turns(engine, model=ServedModel.of(nano)),
                tools=tools,
                rules=rules,
                sampling=Sampling(temperature=0.0, max_tokens=100),
            )
            first = open_conversation(nano.identity, tools=tools, date="2026-01-02")
            question = Message(Role.USER, content="What colour is grass?")
            _, end = await collect(loop.run(Conversation((*first, question))))
            return end
        finally:
            await engine.shutdown()

    end = asyncio.run(asyncio.wait_for(work(), 10 * HANG))
    told, answer = end.conversation.messages[-2:]
    assert (end.reason, end.num_turns, end.num_calls) == (StopReason.ANSWERED, 2, 1)
    assert told.role is Role.TOOL
    assert len(called) == 1
    assert told.text == "green"
    assert answer.text in ("red", "green")
    assert end.usage.num_cached > 0  # the second turn starts behind the first one's pages


def test_an_agent_with_its_own_engine(nano: LoadedModel) -> None:
    config = EngineConfig(max_num_seqs=2, num_pages=256)
    with Agent(nano, config=config, effort="low", sampling=Sampling(temperature=0.0, max_tokens=200)) as agent:
        result = agent.ask("What is 17 + 25?")
    assert "42" in result.text


def test_an_empty_set_of_tools() -> None:
    assert grammars_of(ToolSet()) == ()
