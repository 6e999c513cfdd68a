"""Single training examples: conversations made from tasks, and documents of natural text."""

from __future__ import annotations

import datetime
import json
import lzma
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Conversation, DeveloperContent, Effort, Message, Role, SystemContent
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Task
from ossia.tasks.chat import Decline
from ossia.tasks.conversation import problem_messages, solution_messages
from ossia.tasks.registry import TASKS
from ossia.training.config import DataConfig, Identity
from ossia.training.data.batches.conversations import Example, encode_conversation
from ossia.training.data.corpus.reader import Corpus, TextCorpus, folder_texts, open_folder

GPT_OSS_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEVELOPER_TEXTS = ("Be brief.", "Answer in English.", "You are a helpful assistant.", "Be friendly.", "Think first.")
EFFORT_SHARES = ((Effort.LOW, 0.25), (Effort.MEDIUM, 0.35), (Effort.HIGH, 0.4))


class ConversationMaker:
    """Makes conversations of one to a few questions, the last of which is learned."""

    def __init__(self, tasks: Mapping[str, Task], *, tokenizer: Tokenizer, identity: Identity, max_turns: int) -> None:
        self._tasks = tasks
        self._tokenizer = tokenizer
        self._identity = identity
        self._max_turns = max_turns

    def make(self, task_name: str, rng: random.Random) -> Example:
        """Make a conversation that ends in a problem of the task named."""
        effort = rng.choices([e for e, _ in EFFORT_SHARES], [share for _, share in EFFORT_SHARES])[0]
        system = self._system(effort, rng)
        earlier: list[Message] = []
        if rng.random() < 0.1:
            content = DeveloperContent(instructions=rng.choice(DEVELOPER_TEXTS))
            earlier.append(Message(role=Role.DEVELOPER, content=content))
        for _ in range(rng.choice(range(self._max_turns)) if rng.random() < 0.4 else 0):
            self._add_earlier_turn(earlier, effort, rng)
        task = self._tasks[task_name]
        problem = task.problem(rng, held_out=False)
        messages = problem_messages(problem, system=system)
        if problem.developer is None and not problem.builtin_tools and not problem.history:
            messages = (messages[0], *earlier, *messages[1:])
        solution = task.solve(problem, effort=effort, rng=rng)
        said = solution_messages(solution)
        learned = range(len(messages), len(messages) + len(said))
        (example,) = encode_conversation(Conversation((*messages, *said)), tokenizer=self._tokenizer, learned=learned)
        return example

    def _add_earlier_turn(self, messages: list[Message], effort: Effort, rng: random.Random) -> None:
        """Add a question with its answer; its reasoning is gone, as it is at inference once a turn has ended."""
        task = self._tasks[rng.choice(list(self._tasks))]
        problem = task.problem(rng, held_out=False)
        final = task.solve(problem, effort=effort, rng=rng).final_text
        if problem.developer is not None or problem.builtin_tools or problem.history or not final:
            return  # it needs a conversation of its own
        messages.append(Message(role=Role.USER, content=problem.prompt))
        messages.append(Message(role=Role.ASSISTANT, channel="final", content=final))

    def _system(self, effort: Effort, rng: random.Random) -> SystemContent:
        """Mostly the model's own system message; sometimes gpt-oss's, since clients send that one."""
        is_own = rng.random() < 0.75
        date = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(2000))
        return SystemContent(
            model_identity=self._identity.model_identity if is_own else GPT_OSS_IDENTITY,
            knowledge_cutoff=self._identity.knowledge_cutoff if is_own else "2024-06",
            date=date.isoformat() if rng.random() < 0.85 else None,
            effort=effort,
        )


def read_corpus(path: str | Path) -> list[str]:
    """Read the documents of a JSONL file (also `.jsonl.xz`): `text`, or `question` and `answer` of each row.

    A folder of `ossia data build` is read as well.

    Raises:
        InvalidInputError: the file is absent, empty, or a row is not such an object (with its line number).
        DatasetError: the text of a folder is damaged.
    """
    path = Path(path)
    if path.is_dir() and (texts := list(folder_texts(path))):
        return texts
    if not path.is_file():
        what = "is a folder without a text of `ossia data build`" if path.is_dir() else "does not exist"
        raise InvalidInputError(f"corpus {path} {what}; see [data.corpora] of the recipe", param="data.corpora")
    opener = lzma.open if path.suffix == ".xz" else open
    documents: list[str] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                text = row["text"] if "text" in row else f"{row['question']}\n{row['answer']}"
            except (ValueError, TypeError, KeyError) as error:
                raise InvalidInputError(
                    f"{path}, line {number}: expected a JSON object with text, or question and answer ({error!r})",
                    param="data.corpora",
                ) from error
            document = re.sub(r"<<.*?>>", "", str(text))
            if document.strip():
                documents.append(document)
    if not documents:
        raise InvalidInputError(f"corpus {path} is empty", param="data.corpora")
    return documents


def read_questions(documents: Iterable[str]) -> list[str]:
    """First lines of documents that end in a question mark: questions beyond what the tasks teach."""
    return [first for first in (document.split("\n", 1)[0] for document in documents) if first.endswith("?")]


class ExampleSource:
    """Draws examples from all sources of a recipe by their weights."""

    def __init__(self, config: DataConfig, *, tokenizer: Tokenizer, identity: Identity) -> None:
        self._tokenizer = tokenizer
        self._corpora: dict[str, Corpus] = {}
        longest = config.sequence_length + 1
        questions: list[str] = []
        for name, path in config.corpora.items():
            if Path(path).is_dir():
                self._corpora[name] = open_folder(Path(path), tokenizer=tokenizer, longest=longest)
            else:
                documents = read_corpus(path)
                self._corpora[name] = TextCorpus([documents], weights=[1.0], tokenizer=tokenizer, longest=longest)
            if name in config.declined:
                questions += read_questions(read_corpus(path))
        tasks = dict(TASKS)
        tasks["decline"] = Decline(questions=questions)
        unknown = set(config.mix) - set(tasks) - set(self._corpora)
        if unknown:
            raise InvalidInputError(
                f"data.mix names no task and no corpus: {', '.join(sorted(unknown))}; "
                f"known are {', '.join(sorted({*tasks, *self._corpora}))}",
                param="data.mix",
            )
        self._names = list(config.mix)
        self._weights = list(config.mix.values())
        self._maker = ConversationMaker(tasks, tokenizer=tokenizer, identity=identity, max_turns=config.max_turns)

    def draw(self, rng: random.Random) -> Example:
        """Draw one example; documents are learned whole, or as pieces that fill a row, and end in `<|endoftext|>`."""
        name = rng.choices(self._names, self._weights)[0]
        if name in self._corpora:
            ids = self._corpora[name].draw(rng)
            return Example(ids, [True] * len(ids))
        return self._maker.make(name, rng)
