from __future__ import annotations

import pytest

from vidflow.domain.errors import ParameterError
from vidflow.domain.topics import check_pool, commands_topic


def test_the_topic_of_a_pool_is_named_after_it() -> None:
    assert commands_topic("gpu") == "to_deploy.gpu"


@pytest.mark.parametrize("name", ["default", "gpu", "A.b_c-1", "0", "x" * 200])
def test_a_valid_pool_name_is_accepted(name: str) -> None:
    check_pool(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "gpu\n", "\ngpu", "größe", "a/b", "x" * 201, "x" * 10_000, "a\0", "٣", "a,b"]
)
def test_an_invalid_pool_name_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=r"^Invalid pool name .*letters") as refused:
        check_pool(name)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 400
