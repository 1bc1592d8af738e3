import pytest

from benchmarks import turns


class TestWorkInTurns:
    def test_stops_each_time_it_calls_back(self):
        done = []

        def work(after):
            for number in range(3):
                done.append(number)
                after()

        steps = turns.in_turns(work)
        assert done == []
        next(steps)
        assert done == [0]
        next(steps)
        assert done == [0, 1]

    def test_fails_where_it_is_waited_for(self):
        def work(after):
            after()
            raise RuntimeError("out of images")

        steps = turns.in_turns(work)
        next(steps)
        with pytest.raises(RuntimeError, match="out of images"):
            next(steps)


class TestServer:
    def test_that_ends_before_it_is_ready_is_told(self):
        with pytest.raises(RuntimeError, match="ended with code 1"):
            turns.Server(("tests.benchmarks.no_such_module",), threads=1)


class TestSpread:
    def test_has_median_least_and_most(self):
        assert turns.spread([3.0, 1.0, 2.0004]) == {"median": 2.0, "least": 1.0, "most": 3.0}
