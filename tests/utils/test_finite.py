"""Numbers that are not finite are found, whatever the dtype and the device of their tensor."""

import pytest
import torch

from llm2comp.errors import BrokenModelError
from llm2comp.utils.finite import first_not_finite, require_finite_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_tensor_with_such_a_number_is_named(dtype: torch.dtype, value: float) -> None:
    tensors = {name: torch.ones(3, 2, dtype=dtype) for name in "abc"}
    assert first_not_finite(tensors) is None
    tensors["b"][1, 1] = tensors["c"][0, 0] = value
    assert first_not_finite(tensors) == "b"
    with pytest.raises(BrokenModelError, match="a model holds .* in b; train it again"):
        require_finite_tensors(tensors, "a model", "train it again")


def test_whole_numbers_and_empty_tensors_are_passed_over() -> None:
    assert first_not_finite({"ids": torch.arange(3), "none": torch.empty(0)}) is None
    assert first_not_finite({}) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_tensors_may_be_on_several_devices() -> None:
    """Adam's moments are on the GPU and its count of steps is not."""
    tensors = {"step": torch.ones(()), "moment": torch.ones(2, device="cuda")}
    assert first_not_finite(tensors) is None
    tensors["moment"][0] = float("nan")
    assert first_not_finite(tensors) == "moment"
