"""Which shapes an engine is built for, which profile a request runs under, and where its tensors lie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kservekit.errors import CannotStart, InvalidInput
from kservekit.predictors.tensorrt_buffers import ALIGNMENT, layout
from kservekit.predictors.tensorrt_profiles import OpenInput, Range, choose, profile, sizes

SMALL = {"x": Range((1, 3), (1, 3), (4, 3))}
LARGE = {"x": Range((2, 3), (32, 3), (32, 3))}


@pytest.mark.parametrize(("rows", "chosen"), [(1, 0), (3, 0), (4, 0), (5, 1), (32, 1)])
def test_a_request_runs_under_the_profile_whose_best_shape_is_nearest(rows, chosen):
    assert choose([SMALL, LARGE], {"x": (rows, 3)}) == chosen


@pytest.mark.parametrize("rows", [0, 33])
def test_a_shape_outside_of_all_profiles_is_the_callers_fault_and_told_what_they_take(rows):
    with pytest.raises(InvalidInput) as found:
        choose([SMALL, LARGE], {"x": (rows, 3)})
    assert str(found.value) == (
        f"input 'x' has shape [{rows}, 3]: this engine takes [1, 3] to [4, 3], or [2, 3] to [32, 3]"
    )


def test_shapes_that_no_single_profile_takes_are_refused_together():
    first = {"a": Range((1,), (1,), (1,)), "b": Range((1,), (1,), (1,))}
    second = {"a": Range((2,), (2,), (2,)), "b": Range((2,), (2,), (2,))}
    with pytest.raises(InvalidInput, match=r"no profile for all together: 'a' \[1\], 'b' \[2\]"):
        choose([first, second], {"a": (1,), "b": (2,)})


BATCH = (1, 4, 8)


def test_a_profile_has_the_batch_first_and_other_sizes_by_the_files_names():
    image = OpenInput("image", (-1, 3, -1, -1), ("n", None, "height", "width"))
    ranges = profile([image], sizes("height=64:224:512, width=100", BATCH))
    assert ranges == {"image": Range((1, 3, 64, 100), (4, 3, 224, 100), (8, 3, 512, 100))}


def test_a_size_without_a_name_is_given_by_input_and_axis():
    tokens = OpenInput("tokens", (-1, -1), (None, None))
    assert profile([tokens], sizes("tokens[1]=1:16:32", BATCH)) == {"tokens": Range((1, 1), (4, 16), (8, 32))}
    with pytest.raises(CannotStart, match=r"'tokens' .* dimension 1 open: .* such as tokens\[1\]=1:128:512"):
        profile([tokens], sizes("", BATCH))


def test_a_first_size_that_is_no_batch_can_be_given_too():
    points = OpenInput("points", (-1, 4), ("count", None))
    assert profile([points], sizes("count=100:200:300", BATCH))["points"].max == (300, 4)


def test_a_size_that_the_model_does_not_have_is_refused():
    with pytest.raises(CannotStart, match="KSERVEKIT_TENSORRT_SIZES has 'hieght'"):
        profile([OpenInput("x", (-1, 2), ("n", None))], sizes("hieght=2", BATCH))


@pytest.mark.parametrize(
    "text",
    ["height", "height=", "=3", "height=0", "height=3:2:1", "height=1:2", "height=2:x", "height=²", f"height={10**20}"],
)
def test_sizes_that_say_nothing_clear_are_refused(text):
    with pytest.raises(CannotStart, match="expected a name and one size, such as height=224, or smallest, best"):
        sizes(text, BATCH)


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 4), (1, 8, 4)])
def test_a_batch_has_a_smallest_a_best_and_a_largest_size(batch):
    with pytest.raises(CannotStart, match="KSERVEKIT_TENSORRT_MIN_BATCH, _OPT_BATCH and _MAX_BATCH are"):
        sizes("", batch)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 5000), min_size=1, max_size=8))
def test_tensors_lie_aligned_one_after_the_other_with_room_for_each(counts):
    plan = layout(counts)
    places = sorted((plan.offsets[name], plan.offsets[name] + max(1, count)) for name, count in counts.items())
    assert all(start % ALIGNMENT == 0 for start, _ in places)
    assert all(end <= after for (_, end), (after, _) in zip(places, [*places[1:], (plan.total, 0)], strict=True))
    assert all(plan.rooms[name] >= count for name, count in counts.items())
