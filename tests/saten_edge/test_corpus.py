"""Docstrings into a search task: cleaned, distinct, split the same way each time."""

from __future__ import annotations

import ast
import gc
import sysconfig
from pathlib import Path

import pytest

from saten_edge import corpus
from saten_edge.corpus import SearchTask, read_docstrings, search_task
from saten_runtime.errors import DataError

QUERY = "Return the number of rows."
ANSWER = "Rows that hold nothing are counted too, and so are rows that were added since the table was opened."


@pytest.fixture(scope="module")
def task() -> SearchTask:
    """Of this installation; read once, because it takes seconds."""
    return search_task(at_most=4200)


@pytest.fixture
def passages(tmp_path: Path):
    """passages(docstring, …) -> what is read from a module with these docstrings."""

    def read(*docstrings: str) -> list[tuple[str, str]]:
        functions = [f"def f{k}():\n    {text!r}\n" for k, text in enumerate(docstrings)]
        (tmp_path / "module.py").write_text("\n".join(functions))
        return [(passage.query, passage.answer) for passage in read_docstrings([tmp_path])]

    return read


def numbered(k: int) -> str:
    words = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grape", "hazel", "inlet", "jade"]
    name = " ".join(words[int(digit)] for digit in f"{k:03}")
    return f"Return the {name} of a table. The {name} is found {name} by looking at every row of {name} in its order."


def installation(root: Path, count: int, *, backwards: bool = False) -> Path:
    for k in sorted(range(count), reverse=backwards):
        (root / f"package{k % 7}").mkdir(parents=True, exist_ok=True)
        (root / f"package{k % 7}" / f"module{k}.py").write_text(f'"""{numbered(k)}"""\n')
    return root


class TestThisInstallation:
    def test_there_is_enough_to_train_on_and_to_search(self, task):
        assert len(task.held_out) == 1000
        assert len(task.train) + len(task.held_out) >= 5000

    def test_no_query_and_no_answer_stands_on_both_sides(self, task):
        for side in ("query", "answer"):
            train, held_out = ({getattr(p, side).lower() for p in part} for part in (task.train, task.held_out))
            assert not train & held_out
            assert len(held_out) == len(task.held_out), f"a held-out {side} occurs twice"

    def test_every_passage_is_clean(self, task):
        for passage in (*task.train, *task.held_out):
            assert 20 <= len(passage.query) <= 160
            assert 80 <= len(passage.answer) <= 1200
            for text in (passage.query, passage.answer):
                assert text.isascii()
                assert text == " ".join(text.split())


class TestSplit:
    @pytest.fixture
    def of(self, monkeypatch: pytest.MonkeyPatch):
        """of(root, …) -> the task of an installation whose packages lie below root."""

        def task(root: Path, **options: int) -> SearchTask:
            empty = root.parent / "empty"
            empty.mkdir(exist_ok=True)
            monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(empty), "purelib": str(root)}.__getitem__)
            return search_task(**{"held_out": 10, "at_least": 50, "at_most": 1000, **options})

        return task

    def test_it_depends_on_the_texts_alone(self, of, tmp_path):
        forwards = of(installation(tmp_path / "a", 60))
        assert forwards == of(installation(tmp_path / "elsewhere", 60, backwards=True))
        assert (len(forwards.train), len(forwards.held_out)) == (50, 10)

    def test_another_text_changes_it(self, of, tmp_path):
        assert of(installation(tmp_path / "a", 60)) != of(installation(tmp_path / "b", 61))

    def test_the_two_sides_are_disjoint(self, of, tmp_path):
        task = of(installation(tmp_path / "a", 60))
        assert not {passage.query for passage in task.train} & {passage.query for passage in task.held_out}

    def test_no_more_than_asked_for_is_read(self, of, tmp_path):
        assert len(of(installation(tmp_path / "a", 90), at_most=55).train) == 55

    def test_a_copy_is_kept_once(self, of, tmp_path):
        root = installation(tmp_path / "a", 60)
        (root / "copy.py").write_text(f'"""{numbered(3)}"""\n')
        assert len(of(root).train) == 50

    def test_too_few_docstrings_are_refused(self, of, tmp_path):
        with pytest.raises(DataError, match=r"found 30 usable docstrings under .*, expected at least 50"):
            of(installation(tmp_path / "a", 30))


def test_a_docstring_is_found_wherever_a_definition_may_stand(tmp_path):
    """In every kind of statement that holds statements, in the order of `ast.walk`; the source is this test."""
    places = ("if 1:", "for x in y:", "while 1:", "with y:", "match y:\n  case 1:", "async def f():", "class C:")
    blocks = [f"{place}\n    def f(): '{QUERY[:-1]} {k}. {ANSWER}'\n" for k, place in enumerate(places)]
    handled = [f"    def f(): '{QUERY[:-1]} {k}. {ANSWER}'\n" for k in range(len(blocks), len(blocks) + 4)]
    text = "".join(blocks) + "try:\n{}except E:\n{}else:\n{}finally:\n{}".format(*handled)
    (tmp_path / "a.py").write_text(text)
    tree = ast.parse(text)
    wanted = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found = [f"{passage.query} {passage.answer}" for passage in read_docstrings([tmp_path])]
    assert found == wanted
    assert len(found) == len(places) + 4


def test_garbage_is_collected_again(monkeypatch):
    monkeypatch.setattr(corpus, "read_docstrings", lambda roots: iter(()))
    with pytest.raises(DataError):
        search_task()
    assert gc.isenabled()


class TestCleaning:
    def test_first_sentence_and_rest(self, passages):
        assert passages(f"{QUERY}\n\n    {ANSWER}\n") == [(QUERY, ANSWER)]

    def test_white_space_examples_and_rules_are_dropped(self, passages):
        example = "    >>> table.count()\n    ... more\n"
        text = f"Return  the\n    number of rows.\n\n    ======\n{example}    {ANSWER}\n    -----\n"
        assert passages(text) == [(QUERY, ANSWER)]

    @pytest.mark.parametrize(
        "text",
        [
            QUERY,
            f"Rows. {ANSWER}",
            f"{'Return rows ' * 20}. {ANSWER}",
            f"{QUERY} Short rest.",
            f"{QUERY} " + "Column 1234567890 + 1234567890 == [12, 34, 56, 78, 90]; " * 3,
            f"{QUERY} {ANSWER} Ça va.",
            "no sentence here at all, only words without an end " * 3,
        ],
        ids=["no rest", "short query", "long query", "short rest", "no prose", "not English", "no sentence"],
    )
    def test_what_makes_no_question_is_left_out(self, passages, text):
        assert passages(text, f"{QUERY} {ANSWER}") == [(QUERY, ANSWER)]

    def test_a_long_answer_is_cut(self, passages):
        ((_, answer),) = passages(f"{QUERY} {ANSWER * 20}")
        assert len(answer) == 1200

    def test_a_dot_inside_a_name_ends_no_sentence(self, passages):
        ((query, _),) = passages(f"Return os.path of e.g. a file. {ANSWER}")
        assert query == "Return os.path of e.g. a file."

    def test_modules_classes_and_functions_are_read_but_not_other_strings(self, tmp_path):
        (tmp_path / "a.py").write_text(
            f'"""{numbered(1)}"""\nclass A:\n    """{numbered(2)}"""\n'
            f'    async def f(self):\n        """{numbered(3)}"""\n        "{numbered(4)}"\n'
        )
        found = {passage.query for passage in read_docstrings([tmp_path])}
        assert found == {f"{numbered(k).partition('.')[0]}." for k in (1, 2, 3)}

    def test_broken_large_and_test_files_are_passed_over(self, tmp_path):
        text = f'"""{QUERY} {ANSWER}"""\n'
        (tmp_path / "broken.py").write_text(text + "def (:\n")
        (tmp_path / "latin.py").write_bytes(text.encode() + b"# \xff\n")
        (tmp_path / "large.py").write_text(text + "#" * 400_000)
        for folder in ("tests", "_vendor"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.py").write_text(text)
        assert list(read_docstrings([tmp_path])) == []
