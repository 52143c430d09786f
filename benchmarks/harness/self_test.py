"""Tests of the harness itself: its arithmetic, its tables, its text, and its way with processes."""

import sys
import time
import unittest

from . import build, ratios, table, text
from .peers import Failed, Peer, cores, interleave, processor

# A participant that takes no time and says how long it was told to.
PRETENDER = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
step = 0
for line in sys.stdin:
    for _ in range(int(line.split()[1])):
        step += 1
        print(json.dumps({"step": step, "ms": float(sys.argv[1])}), flush=True)
"""


def pretender(name, milliseconds):
    """A participant whose every step is said to take so long."""
    return Peer(name, [sys.executable, "-c", PRETENDER, str(milliseconds)])


class Machine(unittest.TestCase):
    """What is said of the machine, and what is compared on it."""

    def test_the_machine_has_a_name_and_cores(self):
        self.assertTrue(processor())
        self.assertGreater(cores(), 0)

    def test_what_is_no_program_and_no_revision_cannot_be_compared_with(self):
        with self.assertRaisesRegex(Failed, "neither a program nor a revision"):
            build.previous_moec("no-such-moec", "dev")

    def test_a_program_is_compared_with_as_it_is(self):
        self.assertEqual(build.previous_moec(sys.executable, "dev"), sys.executable)


class Ratios(unittest.TestCase):
    """Ratios are formed within rounds."""

    def test_a_machine_that_slows_down_does_not_change_them(self):
        ours, theirs = [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], [[4.0, 4.0, 4.0], [40.0, 40.0, 40.0]]
        self.assertEqual(ratios.ratio_of_rounds(ours, theirs), (0.5, 0.5, 0.5))
        self.assertEqual(ratios.ratio_of_minima(ours, theirs), 0.25)

    def test_the_median_and_the_range_of_rounds(self):
        self.assertEqual(ratios.ratio_of_rounds([[1], [2], [9]], [[1], [1], [1]]), (2, 1, 9))

    def test_rounds_must_match(self):
        with self.assertRaises(ValueError):
            ratios.ratio_of_rounds([[1]], [[1], [2]])

    def test_summary(self):
        self.assertEqual(ratios.summary([[3.0], [1.0, 2.0]]), {"median_ms": 2.0, "min_ms": 1.0, "samples": 3})

    def test_the_limit_adds_computing_and_traffic(self):
        self.assertAlmostEqual(ratios.limit_ms(8e9, 240e6, 200, 40), 40 + 6)
        self.assertEqual(ratios.optimizer_traffic(10), 280)


class Tables(unittest.TestCase):
    """Tables are readable as they are."""

    def test_numbers_keep_three_digits(self):
        shown = [table.number(value) for value in (1234.5, 123.4, 12.34, 1.234, 0.1234, 0.01, 0, None)]
        self.assertEqual(shown, ["1,234", "123", "12.3", "1.23", "0.123", "0.0100", "0", "-"])

    def test_columns_are_aligned(self):
        lines = table.markdown(["name", "ms"], [["a", "1.00"], ["longer", "10.0"]]).splitlines()
        self.assertEqual(lines[0], "| name   |   ms |")
        self.assertEqual(lines[1], "| ------ | ---: |")
        self.assertEqual(lines[3], "| longer | 10.0 |")


class Text(unittest.TestCase):
    """Everyone trains on the same 65 characters."""

    def test_it_has_all_characters_and_is_always_the_same(self):
        self.assertEqual(len(text.CHARACTERS), 65)
        once = text.generate(5000)
        self.assertEqual(once, text.generate(5000))
        self.assertEqual(sorted(set(once)), text.CHARACTERS)
        self.assertEqual(len(once), 5000)


class Processes(unittest.TestCase):
    """Participants take turns."""

    def setUp(self):
        self.pair = [pretender("self-test-slow", 8), pretender("self-test-fast", 2)]
        for participant in self.pair:
            participant.start()

    def tearDown(self):
        for participant in self.pair:
            participant.stop()

    def test_interleaved_slices_give_ratios_and_drop_the_first_step(self):
        answers = interleave(self.pair, rounds=3, slice_steps=2)
        steps = [[answer["step"] for answer in part] for part in answers["self-test-slow"]]
        self.assertEqual(steps, [[2, 3], [5, 6], [8, 9]])
        samples = [[[answer["ms"] for answer in part] for part in answers[p.name]] for p in self.pair]
        self.assertEqual(ratios.ratio_of_rounds(*samples), (4, 4, 4))

    @unittest.skipUnless(sys.platform == "linux", "reads /proc")
    def test_whoever_has_no_turn_stands_still(self):
        for participant in self.pair:
            while self.state(participant) != "T":
                time.sleep(0.001)
            self.assertGreater(participant.peak_mib(), 1)

    def state(self, participant):
        """The scheduler's letter for the state of a process."""
        with open(f"/proc/{participant.process.pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]

    def test_an_early_end_is_an_error_and_not_a_hang(self):
        ended = Peer("self-test-ended", [sys.executable, "-c", "pass"])
        with self.assertRaises(Failed):
            ended.start()
