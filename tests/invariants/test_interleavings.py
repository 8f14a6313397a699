"""Invariants 3 to 8 over random schedules, checked after each step.

At the end of each schedule all faults end. Then every scenario must end, every runner must become empty, and no more commands
may be sent. VIDFLOW_TEST_EXAMPLES and VIDFLOW_TEST_STEPS make it a long run with different schedules each time.
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
