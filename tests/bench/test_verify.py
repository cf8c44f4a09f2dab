"""The benchmark of verifying runs, in a short form, and says what README claims at the least."""

from tests.bench.verify import race


def test_a_log_is_verified_at_no_less_than_three_fifths_of_a_bare_loops_speed() -> None:
    figures = race(4_000, 5)
    assert figures["highest"] >= 0.6, figures
