"""Which threads the CPU kernels run on."""

from phonetrain.kernels.cpu_kernels import torchs_library


def test_torchs_openmp_is_found_by_its_folder_and_not_by_a_word_in_the_path(tmp_path):
    """An environment named pytorch has the word in the path of every library in it."""
    packages = tmp_path / "envs/pytorch/lib/python3/site-packages"
    torchs = [str(packages / "torch/lib/libgomp.so.1"), str(packages / "torch.libs/libgomp-a34b3233.so.1")]
    others = str(packages / "scikit_learn.libs/libgomp-d22c30c5.so.1")
    for library in torchs:
        assert torchs_library({others, library}, str(packages / "torch")) == library
    assert torchs_library({others}, str(packages / "torch")) == others  # the only one there is
    assert torchs_library({others, str(tmp_path / "libgomp.so.1")}, str(packages / "torch")) is None
