"""A long stage says how far it is: rate and time left are those of the structures done so far."""

from __future__ import annotations

import pytest

from atomloom.pipeline.progress import Progress, in_words


def test_rate_and_time_left_follow_from_structures_not_from_chunks():
    now = 100.0
    lines: list[str] = []
    progress = Progress(lines.append, chunks=3, items=1000, clock=lambda: now)
    now = 102.0
    progress.add(50)
    assert lines == [], "a line every few seconds is enough"
    now = 110.0
    progress.add(150)
    assert lines == ["2/3 chunks, 200 structures, 20 per second, 40 s left"]
    now = 111.0
    progress.add(800)
    assert lines[1:] == ["3/3 chunks, 1,000 structures, 91 per second, 11 s in all"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (90, "1 min 30 s"),
        (3600, "1 h 00 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert in_words(seconds) == words
