"""Invariants 3 to 8 over schedules that nobody thought of: each machine checks all of them after each of its steps.

At the end of each schedule no fault is left, and every scenario must end, every runner's list get empty, and nothing be sent.
VIDFLOW_TEST_EXAMPLES and VIDFLOW_TEST_STEPS make a long run of it, with other schedules each time.
"""

from __future__ import annotations

from tests.invariants.machine import Interleavings, WithFaults, WithLosses, explore

TestAnyOrder = Interleavings.TestCase
TestAnyOrder.settings = explore(60)

TestAnyFault = WithFaults.TestCase
TestAnyFault.settings = explore(120)

TestAnyLoss = WithLosses.TestCase
TestAnyLoss.settings = explore(120)
