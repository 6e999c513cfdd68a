"""Examples to learn from: what is sampled in them is what the engine samples, in the context that it has then."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.harmony.message import Conversation, DeveloperContent, FunctionTool, Message, Role
from ossia.harmony.parse import parse
from ossia.harmony.render import SampledExample, render, render_examples
from ossia.harmony.tokenizer import Tokenizer

TOKENIZER = Tokenizer.o200k_harmony()
START, END, MESSAGE, CHANNEL, RETURN, CALL = 200006, 200007, 200008, 200005, 200002, 200012
ASSISTANT, USER, ANALYSIS, FINAL = 173781, 1428, 35644, 17196


def user(text: str = "q") -> Message:
    return Message(Role.USER, content=text)


def thinks(text: str = "t") -> Message:
    return Message(Role.ASSISTANT, channel="analysis", content=text)


def answers(text: str = "a") -> Message:
    return Message(Role.ASSISTANT, channel="final", content=text)


def prefaces(text: str = "p") -> Message:
    return Message(Role.ASSISTANT, channel="commentary", content=text)


def calls(text: str = "{}", *, channel: str = "commentary", name: str = "functions.f") -> Message:
    return Message(Role.ASSISTANT, channel=channel, content=text, recipient=name, content_type="json")


def result(text: str = "1", *, channel: str = "commentary", name: str = "functions.f") -> Message:
    return Message(Role.TOOL, name=name, channel=channel, recipient="assistant", content=text)


def examples_of(*messages: Message, **options: Any) -> list[SampledExample]:
    return render_examples(Conversation(messages), tokenizer=TOKENIZER, **options)


def texts(example: SampledExample) -> list[str]:
    """Text of each run that is sampled."""
    return [TOKENIZER.decode(run) for _, run in runs(example)]


def runs(example: SampledExample) -> list[tuple[int, list[int]]]:
    """Place and ids of each run that is sampled."""
    found: list[tuple[int, list[int]]] = []
    for place, token in enumerate(example.sampled):
        if token is None:
            continue
        if found and found[-1][0] + len(found[-1][1]) == place:
            found[-1][1].append(token)
        else:
            found.append((place, [token]))
    return found


def test_golden_ids_of_two_turns_that_think() -> None:
    """The second turn sees the first without its thought, and ended by `<|end|>`, so each is an example."""
    first, second = examples_of(user(), thinks(), answers(), user(), thinks(), answers())
    question = [START, USER, MESSAGE, 80, END]
    thought = [CHANNEL, ANALYSIS, MESSAGE, 83, END, START, ASSISTANT]
    answer = [CHANNEL, FINAL, MESSAGE, 64]
    assert first.ids == [*question, START, ASSISTANT, *thought, *answer, RETURN]
    assert first.sampled == [None] * 7 + first.ids[7:]
    assert first.messages == [0] * 5 + [1] * 7 + [2] * 7
    assert second.ids == [
        *question, START, ASSISTANT, *answer, END, *question, START, ASSISTANT, *thought, *answer, RETURN
    ]  # fmt: skip
    assert second.sampled == [None] * 19 + second.ids[19:]


def test_golden_ids_of_two_turns_without_thought() -> None:
    """They share an example. Of the first answer `<|return|>` is learned where `<|end|>` is read on."""
    (example,) = examples_of(user(), answers(), user(), answers())
    question, answer = [START, USER, MESSAGE, 80, END], [CHANNEL, FINAL, MESSAGE, 64]
    assert example.ids == [*question, START, ASSISTANT, *answer, END, *question, START, ASSISTANT, *answer, RETURN]
    assert example.sampled == [None] * 7 + [*answer, RETURN] + [None] * 7 + [*answer, RETURN]


def test_thought_stays_across_calls_and_results_are_not_learned() -> None:
    (example,) = examples_of(user(), thinks("t1"), calls(), result(), thinks("t2"), answers())
    assert texts(example) == [
        "<|channel|>analysis<|message|>t1<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
        "<|message|>{}<|call|><|start|>functions",
        "<|channel|>analysis<|message|>t2<|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
    ]


def test_another_call_is_announced_by_the_model_itself() -> None:
    (example,) = examples_of(user(), calls('{"a":1}'), calls('{"a":2}'), result("1"), result("2"), answers())
    assert texts(example)[0] == (
        ' to=functions.f<|channel|>commentary json<|message|>{"a":1}<|call|>'
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a":2}<|call|><|start|>functions'
    )


def test_a_conversation_may_end_with_a_call() -> None:
    (example,) = examples_of(user(), thinks(), calls())
    assert example.ids[-1] == CALL == example.sampled[-1]


def test_thinking_and_plain_turns_mixed() -> None:
    """A plain turn shares the example of the next one; a turn that thinks ends its example."""
    conversation = [user(), answers("1"), user(), thinks(), answers("2"), user(), answers("3"), user(), answers("4")]
    first, second = examples_of(*conversation)
    assert [text[-12:] for text in texts(first)] == [">1<|return|>", ">2<|return|>"]
    assert "3" in texts(second)[0]
    assert "4" in texts(second)[1]
    assert "analysis" not in TOKENIZER.decode(second.ids)


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert examples_of(user(), answers(), user("unanswered")) == examples_of(user(), answers())
    assert examples_of(user()) == []
    assert examples_of() == []


def test_only_chosen_messages_are_learned() -> None:
    conversation = [user(), thinks(), answers("1"), user(), thinks(), answers("2")]
    (example,) = examples_of(*conversation, learned={4, 5})
    assert example == examples_of(*conversation)[1]
    (example,) = examples_of(*conversation, learned={5})
    assert texts(example) == ["<|start|>assistant<|channel|>final<|message|>2<|return|>"]
    assert examples_of(*conversation, learned=()) == []


def test_an_answer_in_two_messages_is_ended_twice() -> None:
    """Sampling stops with an answer; that another message follows is the writer's doing."""
    (example,) = examples_of(user(), answers("1"), answers("2"))
    assert texts(example) == [f"<|channel|>final<|message|>{text}<|return|>" for text in "12"]


def test_a_function_declared_later_changes_the_system_message_and_so_the_example() -> None:
    from ossia.harmony.message import SystemContent

    system = Message(Role.SYSTEM, content=SystemContent())
    tools = DeveloperContent.with_functions([FunctionTool("f")])
    declared = Message(Role.DEVELOPER, content=tools)
    first, second = examples_of(system, user(), answers("1"), declared, user(), answers("2"))
    line = "Calls to these tools must go to the commentary channel"
    assert line not in TOKENIZER.decode(first.ids)
    assert line in TOKENIZER.decode(second.ids)


# ---- properties ----

text = st.sampled_from(["", "x", "two words", "<|end|>", "7", "{}"])
arguments = st.sampled_from(["{}", '{"a":"<|end|>"}', '{"b": 7}'])
steps = st.lists(
    st.one_of(
        st.builds(lambda t: [thinks(t)], text),
        st.builds(lambda t: [prefaces(t)], text),
        st.builds(lambda t, r: [calls(t), result(r)], arguments, text),
        st.builds(lambda t, r: [calls(t), calls(t), result(r), result(r)], arguments, text),
        st.builds(
            lambda t, r: [calls(t, channel="analysis", name="python"), result(r, channel="analysis", name="python")],
            arguments,
            text,
        ),
    ),
    max_size=4,
)
turn = st.builds(
    lambda question, parts, answer: [user(question), *(m for part in parts for m in part), answers(answer)],
    text,
    steps,
    text,
)
conversations = st.lists(turn, min_size=1, max_size=4).map(lambda found: [m for part in found for m in part])


@given(conversations, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_each_message_is_sampled_once_in_the_context_of_inference(messages: list[Message], num_cut: int) -> None:
    messages = messages[: len(messages) - num_cut] if num_cut < len(messages) else messages
    said: list[int] = []
    for example in examples_of(*messages):
        assert len(example.ids) == len(example.sampled) == len(example.messages)
        for start, ids in runs(example):
            first = example.messages[start]
            prompt = render(Conversation(tuple(messages[:first])), tokenizer=TOKENIZER)
            assert example.ids[:start] == prompt
            last = max(i for i, token in enumerate(ids) if token in (RETURN, CALL, END))
            result = parse(ids[: last + 1], tokenizer=TOKENIZER, tools=["functions.f", "python"])
            assert result.repairs == ()
            numbers = list(dict.fromkeys(example.messages[start : start + len(ids)]))
            theirs = [messages[i] for i in numbers]
            assert [(m.channel, m.recipient, m.text) for m in result.messages] == [
                (m.channel, m.recipient, m.text) for m in theirs
            ]
            said += numbers
    assert said == [i for i, message in enumerate(messages) if message.role is Role.ASSISTANT]


@given(conversations)
@settings(max_examples=80, deadline=None)
def test_what_is_sampled_is_read_on_but_for_the_end_of_answers(messages: list[Message]) -> None:
    for example in examples_of(*messages):
        for token, wanted in zip(example.ids, example.sampled, strict=True):
            assert wanted in (None, token) or (token, wanted) == (END, RETURN)
        assert RETURN not in example.ids[:-1]
