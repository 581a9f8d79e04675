"""Pairwise comparison by a judge: both orders, ties, failures, and replies that are kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tailor.errors import DataError, TailorError
from tailor.evaluate import chat_endpoint
from tailor.evaluate.rows import Question
from tailor.evaluate.tasks import judge
from tailor.evaluate.tasks.base import Outcome
from tailor.evaluate.tasks.judge import JudgeEvaluator, verdict
from tailor.spec.tasks.judge import Judge
from tests.helpers.judges import JudgeServer, Kept, judge_server, prefers_longer

MAIN = ["long answer", "a", "same", "abc", "x {0}"]
BASE = ["short", "abcd", "same", "xyz", "x"]
OTHER = ["longest answer", "", "same", "ab", "x"]


@pytest.fixture(scope="module")
def judges() -> Iterator[tuple[JudgeServer, JudgeServer]]:
    with judge_server() as one, judge_server() as other:
        yield one, other


@pytest.fixture
def server(judges: tuple[JudgeServer, JudgeServer]) -> JudgeServer:
    for one in judges:
        one.requests.clear()
        one.keys.clear()
    judges[0].reply = prefers_longer
    return judges[0]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "WAIT", 0.01)


def judged(
    server: JudgeServer,
    answers: dict[str, list[str]],
    kept: Kept | None = None,
    **keys: object,
) -> dict[str, Outcome]:
    values = {"name": "judge", "judge_model": "m", "base_url": server.url, **keys}
    evaluator = JudgeEvaluator(Judge.model_validate(values), "tasks[0]")
    questions = [Question({}, [], f"{at}?", f"<{at}?>", f"ref {at}") for at in range(len(MAIN))]
    outcomes = {
        model: Outcome(
            {},
            "answers.jsonl",
            [({"row": at}, {"answer": text}) for at, text in enumerate(texts)],
            data=evaluator.measure(questions, [[text] for text in texts]).data,
        )
        for model, texts in answers.items()
    }
    return dict(evaluator.compare(outcomes, kept or Kept()))


def test_the_win_rate_is_that_of_the_judge(server: JudgeServer) -> None:
    found = judged(server, {"main": MAIN, "base": BASE})
    # Longer, shorter, the same text, the same length, longer.
    assert [own["win_rate"] for _, own in found["main"].rows] == [1, 0, 0.5, 0.5, 1]
    assert found["main"].figures["win_rate"].value == pytest.approx(3 / 5)
    assert found["base"].figures["win_rate"].value == pytest.approx(2 / 5)
    assert found["main"].figures["judge_agreement"].value == 1
    assert len(server.requests) == 8, "two orders of four pairs; equal answers are not sent"
    orders = {body["messages"][1]["content"] for body in server.requests}
    assert len(orders) == 8
    assert not any("ref" in text for text in orders)
    assert server.keys == [None] * 8


def test_several_models(server: JudgeServer) -> None:
    found = judged(server, {"main": MAIN, "base": BASE, "other": OTHER})
    assert [own["win_rate"] for _, own in found["main"].rows] == [0.5, 0.5, 0.5, 0.75, 1]
    assert [own["win_rate"] for _, own in found["other"].rows] == [1, 0, 0.5, 0, 0]


def test_a_judge_that_prefers_a_position_finds_ties(server: JudgeServer) -> None:
    server.reply = lambda a, b: "I prefer the first. [[B]]? No: [[A]]"
    found = judged(server, {"main": MAIN, "base": BASE})
    assert [own["win_rate"] for _, own in found["main"].rows] == [0.5] * 5
    assert found["main"].figures["judge_agreement"].value == 0
    server.reply = lambda a, b: "[[A]]" if a in MAIN[:1] else "[[C]]"
    found = judged(server, {"main": MAIN, "base": BASE})
    assert found["main"].rows[0][1]["win_rate"] == 0.5, "a win in one order only"


def test_transient_failures_are_retried(server: JudgeServer) -> None:
    times: dict[tuple[str, str], int] = {}

    def reply(a: str, b: str) -> str | tuple[int, dict[str, str]]:
        times[a, b] = times.get((a, b), 0) + 1
        return (503, {}) if times[a, b] == 1 else (429, {"Retry-After": "0"}) if times[a, b] == 2 else "[[A]]"

    server.reply = reply
    found = judged(server, {"main": MAIN, "base": BASE})
    assert found["main"].data == {"pairs": 5, "without_verdict": 0, "failed_requests": 0}
    assert set(times.values()) == {3}


def test_a_failure_is_counted_and_ends_nothing(server: JudgeServer) -> None:
    server.reply = lambda a, b: (400, {}) if "a" in (a, b) else "no verdict" if "abc" in (a, b) else "[[C]]"
    found = judged(server, {"main": MAIN, "base": BASE})
    assert found["main"].data == {"pairs": 5, "without_verdict": 2, "failed_requests": 2}
    assert [own["win_rate"] for _, own in found["main"].rows] == [0.5, None, 0.5, None, 0.5]
    (note,) = found["main"].notes
    assert note.startswith(
        "judge: 2 of 5 pairs have no verdict and are left out; the first failure: HTTP 400"
    )


def test_replies_are_kept(server: JudgeServer) -> None:
    kept = Kept()
    server.reply = lambda a, b: (400, {}) if "a" in (a, b) else "[[A]]"
    judged(server, {"main": MAIN, "base": BASE}, kept)
    server.requests.clear()
    server.reply = lambda a, b: "[[B]]"
    found = judged(server, {"main": MAIN, "base": BASE}, kept)
    assert len(server.requests) == 2, "only those that failed"
    assert found["main"].data["without_verdict"] == 0
    judged(server, {"main": MAIN, "base": BASE}, kept, judge_model="another")
    assert len(server.requests) == 10, "the control: another judge is asked everything"


@pytest.mark.soak  # a thread may wait for its reply for a minute more, and the process with it
def test_a_judge_that_never_replies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may still be on its way when the judge is given up, so this server is for this test alone."""
    monkeypatch.setattr(judge, "FAILURES", 3)
    with judge_server() as server:
        server.reply = lambda a, b: (401, {})
        with pytest.raises(DataError, match=r"the judge m gave no verdict: HTTP 401 Unauthorized"):
            judged(server, {"main": ["0", *MAIN[1:]], "base": ["1", "2", "3", "4", "5"]}, parallel=1)
        assert len(server.requests) <= 4
        server.reply = lambda a, b: (503, {})
        with pytest.raises(DataError, match=r"HTTP 503 .*retried for 0\.05 s"):
            judged(server, {"main": MAIN, "base": BASE}, timeout=0.05)
        with pytest.raises(DataError, match="gave no verdict"):
            judged(server, {"main": MAIN, "base": BASE}, timeout=0.05, base_url="http://127.0.0.1:9/v1")


def test_the_key_goes_to_the_named_server_only(
    server: JudgeServer, judges: tuple[JudgeServer, JudgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", " abc123 ")
    judged(server, {"main": MAIN, "base": BASE}, key_variable="MY_JUDGE_KEY", reference=True)
    assert set(server.keys) == {"Bearer abc123"}
    assert "ref 0" in str(server.requests)
    other = judges[1]
    server.reply = lambda a, b: (302, {"Location": f"{other.url}/chat/completions"})
    with pytest.raises(DataError, match=r"HTTP 302 Found: no: Bearer \*\*\*") as caught:
        judged(server, {"main": MAIN, "base": BASE}, key_variable="MY_JUDGE_KEY")
    assert "abc123" not in str(caught.value)
    assert not other.requests
    monkeypatch.delenv("MY_JUDGE_KEY")
    with pytest.raises(TailorError, match="the environment variable MY_JUDGE_KEY with the key of the judge"):
        judged(server, {"main": MAIN, "base": BASE}, key_variable="MY_JUDGE_KEY")


def test_the_last_verdict_counts() -> None:
    assert [verdict(text) for text in ("[[A]] no, [[B]]", "[A]", "", None)] == ["B", None, None, None]
