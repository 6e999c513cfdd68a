from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossia.cli.harmony import answer_line, read_record
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import O200K_PATTERN, ControlToken, Vocabulary

HELLO = 13225


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def ask(run: Any, command: str, *lines: str | bytes | dict[str, Any]) -> list[dict[str, Any]]:
    data = b"".join(
        (line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()) + b"\n"
        for line in lines
    )
    result = run("harmony", command, stdin=data)
    assert result.exit_code == 0, result.output
    return records(result.stdout)


def test_encode_and_decode(run: Any) -> None:
    assert ask(run, "encode", {"text": "Hello"}, {"text": ""}) == [{"ids": [HELLO]}, {"ids": []}]
    assert ask(run, "decode", {"ids": [HELLO]}, {"ids": []}) == [{"text": "Hello"}, {"text": ""}]


def test_other_fields_pass_through_and_inputs_do_not(run: Any) -> None:
    (answer,) = ask(run, "encode", {"id": 7, "text": "Hello", "note": {"é": [None, 1.5]}})
    assert answer == {"id": 7, "note": {"é": [None, 1.5]}, "ids": [HELLO]}


def test_look_alikes_of_control_tokens_stay_text(run: Any) -> None:
    (answer,) = ask(run, "encode", {"text": "<|start|>system"})
    assert max(answer["ids"]) < 199_998
    assert ask(run, "decode", {"ids": answer["ids"]}) == [{"text": "<|start|>system"}]


def test_a_lone_surrogate_is_replaced(run: Any) -> None:
    (answer,) = ask(run, "encode", rb'{"text": "a\ud800b", "same": "\ud800"}')
    assert answer["same"] == "\ud800"
    assert ask(run, "decode", {"ids": answer["ids"]}) == [{"text": "a\ufffdb"}]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a list"),
        (b'"text"', "a string"),
        (b"NaN", "not a JSON number"),
        (b'{"text": NaN}', "not a JSON number"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"\x00", "not JSON"),
        (b"[" * 100_000, "deep"),
        (b"{}", "'text' is missing"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": 5}', "an integer"),
        (b'{"text": true}', "a boolean"),
    ],
)
def test_a_bad_line_gives_an_error_and_the_next_goes_on(run: Any, line: bytes, part: str) -> None:
    result = run("harmony", "encode", stdin=line + b'\n\n{"text": "Hello"}\n')
    bad, good = records(result.stdout)
    assert part in bad["error"]
    assert good == {"ids": [HELLO]}
    assert result.exit_code == 0
    assert "1 line could not be taken" in result.stderr


def test_an_error_keeps_the_fields_that_pass_through(run: Any) -> None:
    (answer,) = ask(run, "decode", {"id": "x", "ids": "no"})
    assert answer["id"] == "x"
    assert "a list of token ids" in answer["error"]
    assert "ids" not in answer


@pytest.mark.parametrize("ids", [[-1], [201_088], [2**70], [1.0], [True], ["1"], [None], [[1]]])
def test_bad_ids_are_told(run: Any, ids: list[Any]) -> None:
    (answer,) = ask(run, "decode", {"ids": ids})
    assert "id" in answer["error"]


def test_the_last_line_needs_no_line_end(run: Any) -> None:
    assert records(run("harmony", "encode", stdin=b'{"text": "Hello"}').stdout) == [{"ids": [HELLO]}]


def test_a_line_of_a_megabyte(run: Any) -> None:
    text = "Hello, wörld. " * 75_000
    (answer,) = ask(run, "encode", {"text": text})
    assert ask(run, "decode", answer) == [{"text": text}]


def test_render(run: Any) -> None:
    conversation = {"messages": [{"role": "user", "name": None, "content": [{"type": "text", "text": "Hello"}]}]}
    asked, ended, bad = ask(
        run,
        "render",
        {"conversation": conversation, "next_role": "assistant", "n": 1},
        {"conversation": conversation, "next_role": None},
        {"conversation": {"messages": [{"role": "nobody", "content": "x"}]}},
    )
    assert asked == {
        "n": 1,
        "ids": [200006, 1428, 200008, HELLO, 200007, 200006, 173781],
        "text": "<|start|>user<|message|>Hello<|end|><|start|>assistant",
    }
    assert ended["text"] == "<|start|>user<|message|>Hello<|end|>"
    assert "nobody" in bad["error"]


def test_parse(run: Any) -> None:
    tokenizer = Tokenizer.o200k_harmony()
    ids = tokenizer.encode_with_specials(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=get_weather<|channel|>commentary "
        '<|constrain|>json<|message|>{"a":1}<|call|>'
    )
    (answer,) = ask(run, "parse", {"ids": ids, "tools": ["functions.get_weather"], "x": 1})
    first, call = answer["messages"]
    assert first == {
        "role": "assistant",
        "name": None,
        "channel": "analysis",
        "recipient": None,
        "content_type": None,
        "content": "hm",
    }
    assert (call["recipient"], call["content"]) == ("functions.get_weather", '{"a":1}')
    assert answer["x"] == 1
    assert all(isinstance(kind, str) for kind in answer["repairs"])
    assert isinstance(answer["finish"], str)


def test_parse_with_a_role_of_null_reads_headers_from_the_start(run: Any) -> None:
    ids = Tokenizer.o200k_harmony().encode_with_specials("<|start|>assistant<|channel|>final<|message|>Hi<|return|>")
    (answer,) = ask(run, "parse", {"ids": ids, "role": None})
    assert [message["content"] for message in answer["messages"]] == ["Hi"]
    assert answer["repairs"] == []


@pytest.mark.parametrize("field", [{"role": 5}, {"tools": "f"}, {"tools": [1]}])
def test_parse_refuses_wrong_fields(run: Any, field: dict[str, Any]) -> None:
    (answer,) = ask(run, "parse", {"ids": [1], **field})
    assert "error" in answer


def byte_vocabulary() -> Vocabulary:
    """The smallest there is: a token a byte, and the control tokens behind them."""
    ranks = {bytes([value]): value for value in range(256)}
    specials = {str(name): 256 + place for place, name in enumerate(ControlToken)}
    return Vocabulary(ranks=ranks, specials=specials, size=256 + len(specials), pattern=O200K_PATTERN)


def test_a_tokenizer_of_a_folder(run: Any, tmp_path: Path) -> None:
    small = Tokenizer(byte_vocabulary())
    write_tokenizer_folder(small, tmp_path)
    result = run("harmony", "encode", "--tokenizer", str(tmp_path), stdin='{"text": "Hello"}\n')
    assert records(result.stdout) == [{"ids": small.encode("Hello")}]
    assert small.encode("Hello") != [HELLO]
    assert run("harmony", "encode", "--tokenizer", str(tmp_path / "no")).exit_code == 1


def test_a_failing_handler_costs_no_other_line() -> None:
    def handle(record: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    assert answer_line(b'{"a": 1}', handle, consumed=()) == {"a": 1, "error": "ZeroDivisionError: by zero"}


@given(st.binary(max_size=40))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_give_one_json_object(line: bytes) -> None:
    answer = answer_line(line, lambda record: {"seen": len(record)}, consumed=())
    assert json.loads(json.dumps(answer)) == answer
    assert ("seen" in answer) != ("error" in answer) or "error" in read_record(line)


def test_each_line_is_answered_before_the_next_is_read() -> None:
    code = "import sys; from ossia.cli.main import main; sys.argv = ['ossia', 'harmony', 'encode']; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(b'{"text": "Hello"}\n')
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"ids": [HELLO]}
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait() == 0


def test_works_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ossia.cli.main import main; sys.argv = ['ossia', 'harmony', sys.argv[1]]; main()"
    )
    for command, line in {"render": '{"conversation": {"messages": []}}', "parse": '{"ids": []}'}.items():
        result = subprocess.run([sys.executable, "-c", code, command], input=line, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "error" not in records(result.stdout)[0]
