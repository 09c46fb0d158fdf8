from hypothesis import given
from hypothesis import strategies as st

from modules.jobs.pace import Pace


def test_steady_steps_give_the_time_that_is_left():
    pace = Pace(total=20)
    for step in range(11):
        pace.note(step, now=100 + 2.0 * step)
    assert pace.eta_s(120.0) == 20.0
    assert pace.eta_s(121.0) == 19.0
    assert pace.fraction(10) == 0.5


def test_one_step_says_nothing():
    pace = Pace(total=20)
    pace.note(1, 5.0)
    assert pace.eta_s(6.0) is None


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1000)), max_size=60), st.floats(0, 2000))
def test_no_estimate_is_negative_whatever_comes(notes, now):
    pace = Pace(total=30)
    for done, time in sorted(notes, key=lambda note: note[1]):
        pace.note(done, time)
        assert 0 <= pace.fraction(done) <= 1
    eta = pace.eta_s(now)
    assert eta is None or eta >= 0
