"""Invariant 9: bad input fails alone, with an error that says what to do, and blocks nothing after it.

Sources that fail and messages that cannot be decoded are mixed with healthy scenarios at any moment. That PostgreSQL refuses a row, and
that a real Kafka carries noise, is tested in tests/integration (test_inbox.py, test_bad_input.py).
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.invariants.fault_schedules import FILE, run_in_small_steps, run_with_faults
from tests.invariants.simulation import Simulation
from tests.invariants.simulation_state import SimulatedSource

from vidflow.domain.errors import ModelError, ParameterError, VidflowError
from vidflow.domain.frame_rate import parse_frame_rate
from vidflow.domain.messages import Parameters
from vidflow.domain.scenario import Outcome, State
from vidflow.domain.topics import MAX_POOL_CHARACTERS, check_pool
from vidflow.infra.models.spec import parse_spec

POISONED = SimulatedSource(frames=3, poison=frozenset({1}))
BROKEN = SimulatedSource(frames=3, fatal=0)
HEALTHY = [FILE, SimulatedSource(frames=0), SimulatedSource(frames=1)]
QUEUES = st.lists(st.sampled_from([POISONED, BROKEN, *HEALTHY]), min_size=2, max_size=5)
NOISE = st.binary(max_size=40) | st.sampled_from(
    [b"", b"{}", b"null", b"\xff", b'{"type":"frame"}', b'{"type":"deploy","epoch":"x"}']
)
SPEC = b"""\
kind = "onnx"
file = "net.onnx"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
labels = ["cat"]
input = { size = [64, 64], resize = "letterbox" }
output = { decoder = "yolox", strides = [8] }
thresholds = { score = 0.3 }
"""
JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=3)
)
seldom = settings(max_examples=60, derandomize=True, database=None, deadline=None)


def assert_failed_alone(simulation: Simulation, uuid: str) -> None:
    """Assert that the scenario failed with an error for people and a code for programs."""
    scenario = simulation.tables.scenarios[uuid]
    assert (scenario.state, scenario.outcome) == (State.INACTIVE, Outcome.FAILED)
    assert scenario.error is not None
    assert scenario.error.code
    assert len(scenario.error.message) > 10


@given(sources=QUEUES, runners=st.integers(1, 2), capacity=st.integers(1, 2))
@seldom
def test_sources_that_fail_leave_the_scenarios_beside_and_after_them_alone(
    sources: list[SimulatedSource], runners: int, capacity: int
) -> None:
    simulation = Simulation(runners, capacity)
    uuids = [simulation.init(source) for source in sources]
    simulation.settle()
    for uuid, source in zip(uuids, sources, strict=True):
        if source in HEALTHY:
            assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED
            assert simulation.losses[uuid] == 0
            assert len(simulation.tables.rows[uuid]) == source.frames
        else:
            assert_failed_alone(simulation, uuid)


def test_the_error_of_a_poisonous_frame_names_it() -> None:
    simulation = Simulation()
    uuid = simulation.init(POISONED)
    simulation.settle()
    error = simulation.tables.scenarios[uuid].error
    assert error is not None
    assert error.frame_number == 1


@pytest.mark.parametrize("topic", ["results", "commands", "reports"])
@given(noise=st.lists(NOISE, min_size=1, max_size=4))
@settings(seldom, max_examples=10)
def test_messages_that_cannot_be_decoded_change_nothing_at_any_moment(topic: str, noise: list[bytes]) -> None:
    length = run_with_faults({}, FILE)[2]
    for noisy_step in range(1, length, 3):
        simulation = Simulation()
        uuid = simulation.init(FILE)
        for step in run_in_small_steps(simulation, uuid):
            if step == noisy_step:
                send_noise(simulation, topic, noise)
            simulation.check()
        simulation.settle()
        assert simulation.tables.scenarios[uuid].outcome is Outcome.COMPLETED
        assert simulation.losses[uuid] == 0
        assert simulation.unreadable == len(noise) * (len(simulation.runners) if topic == "commands" else 1)


def send_noise(simulation: Simulation, topic: str, noise: list[bytes]) -> None:
    """Put the noise after what waits in each partition, so that what comes later is after it."""
    for value in noise:
        if topic == "reports":
            simulation.receive_report(value)
        for runner in simulation.runners.values() if topic == "commands" else ():
            runner.commands.append(("noise", value))
        for log in simulation.results.values() if topic == "results" else ():
            log.append(value)


def assert_says_what_is_wrong(error: VidflowError, named: str) -> None:
    assert error.code
    assert named in error.message
    assert error.message.isprintable()
    assert len(error.message) < 1000


@given(fps=st.text(max_size=80) | st.floats() | st.integers().map(str))
@seldom
def test_a_frame_rate_is_parsed_or_refused_with_the_accepted_forms(fps: str | float) -> None:
    try:
        parse_frame_rate(fps)
    except ParameterError as error:
        assert_says_what_is_wrong(error, "Use a number")


@given(pool=st.text(max_size=MAX_POOL_CHARACTERS + 10))
@seldom
def test_a_pool_is_accepted_or_refused_by_its_name(pool: str) -> None:
    try:
        check_pool(pool)
    except ParameterError as error:
        assert_says_what_is_wrong(error, "pool")


@given(field=st.sampled_from(Parameters.__struct_fields__), value=JUNK)
@seldom
def test_a_parameter_is_accepted_or_refused_by_its_name(field: str, value: object) -> None:
    try:
        msgspec.convert({field: value}, Parameters)
    except msgspec.ValidationError as refused:
        message = str(refused)
    else:
        message = field
    assert field in message


def test_the_undamaged_spec_is_accepted() -> None:
    assert parse_spec(SPEC, "net.toml").kind == "onnx"


@given(
    start=st.integers(0, len(SPEC)),
    length=st.integers(0, 20),
    junk=st.binary(max_size=6) | st.text(max_size=6).map(str.encode),
)
@settings(seldom, max_examples=200)
def test_a_damaged_model_spec_is_parsed_or_refused_by_the_name_of_its_file(
    start: int, length: int, junk: bytes
) -> None:
    try:
        parse_spec(SPEC[:start] + junk + SPEC[start + length :], "net.toml")
    except ModelError as error:
        assert_says_what_is_wrong(error, "net.toml")


@given(text=st.binary(max_size=80))
@seldom
def test_a_model_spec_of_any_bytes_is_refused_by_the_name_of_its_file(text: bytes) -> None:
    with pytest.raises(ModelError) as refusal:
        parse_spec(text, "net.toml")
    assert_says_what_is_wrong(refusal.value, "net.toml")
