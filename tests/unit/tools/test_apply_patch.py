"""V4A patches: reading, applying, all or nothing, and no way out of the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.tools.workspace import apply_patch as module
from ossia.tools.workspace.apply_patch import apply_patch
from ossia.tools.workspace.patch import BEGIN, END, Hunk, PatchError, UpdateFile, apply_hunks, parse_patch


def patch(*lines: str) -> str:
    return "\n".join((BEGIN, *lines, END)) + "\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    (root / "src" / "app.py").write_text(
        "import os\n\n\ndef greet():\n    print('Hi')\n\n\ndef leave():\n    print('Bye')\n"
    )
    (root / "old.txt").write_text("old\n")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_adds_updates_moves_and_deletes(root: Path) -> None:
    report = apply_patch(
        patch(
            "*** Add File: new/deep/hello.txt",
            "+Hello",
            "+world",
            "*** Update File: src/app.py",
            "*** Move to: src/main.py",
            "@@ def greet():",
            "-    print('Hi')",
            "+    print('Hello')",
            "*** Delete File: old.txt",
        ),
        root,
    )
    assert tree(root) == {
        "new/deep/hello.txt": b"Hello\nworld\n",
        "src/main.py": b"import os\n\n\ndef greet():\n    print('Hello')\n\n\ndef leave():\n    print('Bye')\n",
    }
    assert report.splitlines()[1:] == ["A new/deep/hello.txt", "R src/app.py -> src/main.py", "D old.txt"]


def test_permissions_stay_and_move_along(root: Path) -> None:
    (root / "old.txt").chmod(0o755)
    apply_patch(patch("*** Update File: old.txt", "*** Move to: run.sh", "@@", "-old", "+new"), root)
    assert (root / "run.sh").stat().st_mode & 0o777 == 0o755


def test_an_anchor_chooses_among_equal_lines() -> None:
    text = "class A:\n    def f(self):\n        pass\n\nclass B:\n    def f(self):\n        pass\n"
    operation = parse_patch(
        patch("*** Update File: x", "@@ class B:", "@@     def f(self):", "-        pass", "+        return 1")
    )[0]
    assert isinstance(operation, UpdateFile)
    assert apply_hunks(text, operation.hunks, path="x") == text[: text.rindex("pass")] + "return 1\n"


def test_end_of_file_takes_the_last_match() -> None:
    hunk = Hunk(old=("x",), new=("y",), is_at_end=True)
    assert apply_hunks("x\nx\n", [hunk], path="f") == "x\ny\n"


def test_white_space_slips_are_forgiven_and_context_is_kept_as_it_was() -> None:
    hunk = Hunk(old=("def f():", "return 1"), new=("def f():", "    return 2"))
    assert apply_hunks("def f():  \n    return 1\n", [hunk], path="f") == "def f():  \n    return 2\n"


def test_line_ends_of_windows_and_a_missing_last_end_stay() -> None:
    hunk = Hunk(old=("b",), new=("c",))
    assert apply_hunks("a\r\nb\r\n", [hunk], path="f") == "a\r\nc\r\n"
    assert apply_hunks("a\nb", [hunk], path="f") == "a\nc"


def test_a_fence_and_a_here_document_are_taken_off(root: Path) -> None:
    for wrap in ("```\n{}```", "apply_patch <<'EOF'\n{}EOF\n"):
        apply_patch(wrap.format(patch("*** Update File: old.txt", "@@", "-old", "+new")), root)
        assert "new" in (root / "old.txt").read_text().split()
        apply_patch(patch("*** Update File: old.txt", "@@", "-new", "+old"), root)
        assert "old" in (root / "old.txt").read_text().split()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["*** Update File: missing.txt", "@@", "-a", "+b"], "no such file"),
        (["*** Update File: src/app.py", "@@", "-not there", "+b"], "not found"),
        (["*** Update File: src/app.py", "@@ def nothing():", "-    print('Hi')"], "behind '@@'"),
        (["*** Add File: old.txt", "+x"], "there already"),
        (["*** Add File: src", "+x"], "there already"),
        (["*** Add File: old.txt/below", "+x"], "not applied"),
        (["*** Add File: x", "no plus"], r"begins with '\+'"),
        (["*** Delete File: src"], "src"),
        (["*** Delete File: nothing"], "no such file"),
        (["*** Update File: old.txt", "*** Move to: src/app.py", "@@", "-old", "+x"], "file is there already"),
        (["*** Update File: old.txt", "@@", "-old", "+x", "*** Delete File: ./old.txt"], "twice"),
        (["*** Rename File: x"], "must stand"),
        (["*** Update File: old.txt"], "no change"),
        ([], "changes no file"),
        (["*** Update File: "], "path is missing"),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(root: Path, lines: list[str], said: str) -> None:
    before = tree(root)
    fine = ["*** Update File: src/app.py", "@@", "-import os"] if "src/app.py" not in "".join(lines) else []
    with pytest.raises(PatchError, match=said):
        apply_patch(patch(*lines, *fine) if lines else patch(), root)
    assert tree(root) == before


@pytest.mark.parametrize(
    "path",
    [
        "../out.txt",
        "src/../../out.txt",
        "/etc/ossia-test",
        "link/out.txt",
        "link",
        "dangling",
        "a\\..\\b",
        "src/../old.txt",
    ],
)
@pytest.mark.parametrize("operation", ["*** Add File: {}", "*** Update File: {}", "*** Delete File: {}", "move"])
def test_nothing_leads_out_of_the_root(root: Path, tmp_path: Path, path: str, operation: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "out.txt").write_text("old\n")
    (root / "link").symlink_to(outside)
    (root / "dangling").symlink_to(outside / "made.txt")
    before = tree(tmp_path)
    if operation == "move":
        lines = ["*** Update File: old.txt", f"*** Move to: {path}", "@@", "-old", "+new"]
    else:
        body = {"A": ["+new"], "U": ["@@", "-old", "+new"], "D": []}[operation[4]]
        lines = [operation.format(path), *body]
    with pytest.raises(PatchError):
        apply_patch(patch(*lines), root)
    assert tree(tmp_path) == before


def test_an_absolute_path_below_the_root_is_taken(root: Path) -> None:
    apply_patch(patch(f"*** Delete File: {root}/old.txt"), root)
    assert not (root / "old.txt").exists()


def test_a_failure_half_way_puts_everything_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(root)
    real, done = os.rename, []

    def fail_third(*args: object, **kwargs: object) -> None:
        done.append(args)
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(module.os, "rename", fail_third)
    with pytest.raises(PatchError, match="No space left"):
        apply_patch(
            patch(
                "*** Add File: made/a.txt",
                "+a",
                "*** Update File: old.txt",
                "@@",
                "-old",
                "+new",
                "*** Update File: src/app.py",
                "@@",
                "-import os",
            ),
            root,
        )
    assert tree(root) == before
    assert not (root / "made").exists()


LINES = st.lists(st.text(alphabet="ab \t", max_size=4), max_size=12)


@settings(max_examples=200, deadline=None)
@given(LINES, LINES)
def test_a_patch_made_of_two_texts_turns_one_into_the_other(old: list[str], new: list[str]) -> None:
    text = "".join(f"{line}\n" for line in old)
    hunk = Hunk(old=tuple(old), new=tuple(new))
    if not old and not new:
        return
    assert apply_hunks(text, [hunk], path="f").split("\n")[:-1] == new or not new


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="*+-@ \nabBeginEdPtchUpdateFl:", max_size=200))
def test_reading_a_patch_fails_in_one_way_only(text: str) -> None:
    for candidate in (text, f"{BEGIN}\n{text}\n{END}"):
        try:
            operations = parse_patch(candidate)
        except PatchError:
            continue
        assert operations
        assert all(operation.path for operation in operations)
