"""What a window is."""

import pytest

from phonedata.errors import SpecError
from phonedata.loaders.windows import WindowSpec


def test_width_counts_the_frame_itself():
    assert WindowSpec(0, 0).width == 1
    assert WindowSpec(30, 20).width == 51


@pytest.mark.parametrize("bad", [-1, 1.5, "3", None, True])
def test_a_side_that_is_no_whole_number_is_refused(bad):
    with pytest.raises(SpecError, match="window.left"):
        WindowSpec(bad, 3)
    with pytest.raises(SpecError, match="window.right"):
        WindowSpec(3, bad)


def test_more_context_than_packed_names_the_command_that_repacks():
    WindowSpec(50, 50).check_fits(50)
    with pytest.raises(SpecError, match=r"packed with context 50; pack it again: .*--context 51 --replace"):
        WindowSpec(10, 51).check_fits(50)
