"""A recorded run as a regression test: the model's side comes from the journal, the code runs for real, offline.

rlm "How many tickets …?" -c tickets.txt      # once, with a model; then keep logs/<id>.jsonl and .context
pytest examples/test_replay.py                # from then on, free; `rlm replay tickets --log-dir …` does the same
"""

from pathlib import Path

from rlm import RLM

RECORDED = Path(__file__).parent / "recorded"


def test_the_recorded_answer_still_comes_out() -> None:
    replayed = RLM(log_dir=str(RECORDED), config=False).replay("tickets")
    assert replayed.divergence == []
    assert replayed.result.value == {"billing": 2, "shipping": 2}
