"""Invariants 3 to 8 over schedules that nobody thought of: each machine checks all of them after each of its steps.

At the end of each schedule no fault is left, and every scenario must end, every runner's list get empty, and nothing be sent.
VIDFLOW_TEST_EXAMPLES and VIDFLOW_TEST_STEPS make a long run of it, with other schedules each time.
"""

from __future__ import annotations

from tests.invariants.state_machine import (
    Interleavings,
    InterleavingsWithDataLoss,
    InterleavingsWithFaults,
    machine_settings,
)

TestAnyOrder = Interleavings.TestCase
TestAnyOrder.settings = machine_settings(60)

TestAnyFault = InterleavingsWithFaults.TestCase
TestAnyFault.settings = machine_settings(120)

TestAnyLoss = InterleavingsWithDataLoss.TestCase
TestAnyLoss.settings = machine_settings(120)
