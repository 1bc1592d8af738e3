"""Devices that processes share: each has its own, and those of a killed one are free again."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.device_pool import DevicePool

ROOT = Path(__file__).parents[2]
# Two slots, forked in a process without threads. Each line of standard input is an expression that
# a slot evaluates, after its number; each line of standard output is its answer.
SLOTS = """
import os, sys
from workers.device_pool import DevicePool
pool = DevicePool()
pool.offer(4, cards=["GPU-a", "GPU-b", "GPU-c", "GPU-d"])
slots = []
for _ in range(2):
    asked, answered = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        turns = []
        with os.fdopen(asked[0]) as questions, os.fdopen(answered[1], "w") as answers:
            os.close(asked[1])
            for line in questions:
                try:
                    answer = eval(line)
                except RuntimeError as error:
                    answer = error
                answers.write(f"{answer}\\n")
                answers.flush()
        os._exit(0)
    os.close(asked[0])
    os.close(answered[1])
    slots.append((pid, os.fdopen(asked[1], "w"), os.fdopen(answered[0])))
for line in sys.stdin:
    number, question = line.split(" ", 1)
    pid, questions, answers = slots[int(number)]
    if question.strip() == "kill":
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        print("killed", flush=True)
        continue
    questions.write(question)
    questions.flush()
    print(answers.readline().strip(), flush=True)
"""


class Slots:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, slot: int, question: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{slot} {question}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@pytest.fixture
def slots() -> Iterator[Slots]:
    with subprocess.Popen(
        [sys.executable, "-c", SLOTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        yield Slots(process)
        process.kill()


class TestDevicePool:
    def test_has_one_device_until_more_are_offered(self) -> None:
        pool = DevicePool()
        assert (pool.total, pool.count_free()) == (1, 1)
        assert pool.take(1) == (0,)
        assert pool.cards_of((0,)) is None
        assert pool.count_free() == 0
        pool.offer(3, cards=["0", "1", "2"])
        assert (pool.total, pool.count_free()) == (3, 2)
        assert pool.cards_of((0, 2)) == "0,2"
        pool.release()
        assert pool.count_free() == 3

    def test_gives_each_slot_its_own(self, slots: Slots) -> None:
        assert slots.ask(0, "pool.take(3)") == "(0, 1, 2)"
        assert slots.ask(0, "pool.cards_of((1, 2))") == "GPU-b,GPU-c"
        assert slots.ask(1, "pool.count_free()") == "1"
        assert slots.ask(1, "pool.take(2)") == "2 devices were wanted of 1 that are free"
        assert slots.ask(1, "pool.take(1)") == "(3,)"
        assert slots.ask(0, "pool.release()") == "None"
        assert slots.ask(1, "pool.count_free()") == "3"
        assert slots.ask(0, "pool.take(1)") == "(0,)"

    def test_has_those_of_a_killed_slot_again(self, slots: Slots) -> None:
        assert slots.ask(0, "pool.take(4), pool.promise(10)") == "((0, 1, 2, 3), None)"
        assert slots.ask(1, "pool.count_free(), pool.promised_bytes()") == "(0, 10)"
        assert slots.ask(0, "kill") == "killed"
        assert slots.ask(1, "pool.count_free(), pool.promised_bytes()") == "(4, 0)"

    def test_tells_what_others_need_for_their_inputs(self, slots: Slots) -> None:
        slots.ask(0, "pool.take(2), pool.promise(7)")
        assert slots.ask(0, "pool.promised_bytes()") == "0"
        assert slots.ask(1, "pool.promised_bytes()") == "7"
        slots.ask(0, "pool.promise(0)")
        assert slots.ask(1, "pool.promised_bytes()") == "0"
        slots.ask(0, "pool.promise(7), pool.release(), pool.take(1)")
        assert slots.ask(1, "pool.promised_bytes()") == "0", "of the job before"

    def test_gives_one_slot_the_turn(self, slots: Slots) -> None:
        slots.ask(0, "turns.append(pool.turn()) or turns[0].__enter__()")
        hopeless = "pool.turn(hopeless=lambda: True).__enter__()"
        assert slots.ask(1, hopeless) == "False"
        slots.ask(0, "turns[0].__exit__(None, None, None)")
        assert slots.ask(1, f"turns.append({hopeless[:-12]}) or turns[0].__enter__()") == "True"
        assert slots.ask(0, hopeless) == "False"
        assert slots.ask(1, "kill") == "killed"
        assert slots.ask(0, f"turns.append({hopeless[:-12]}) or turns[1].__enter__()") == "True"
