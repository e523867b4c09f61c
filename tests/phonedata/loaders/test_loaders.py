"""One law for all loaders: batch k of epoch e is the same frames, windows and labels, whoever gives it."""

import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phonedata import ARPABET, PackedCorpus, PhonedataError, Selection, SpecError, WindowSpec, open_loader, pack
from phonedata.loaders import resident
from phonedata.loaders.open import RESERVE_BYTES, choose
from phonedata.loaders.slab import Pool
from tests import reference
from tests.conftest import place_features, place_label, write_hw1p2

TRAIN = "train-clean + train-other"
KINDS_OF = {"global": ("host", "resident"), "sequential": ("host", "resident"), "slab": ("host", "resident", "slab")}
EVERY = [(order, kind) for order, kinds in KINDS_OF.items() for kind in kinds]
SLABS = {"slab_frames": 37, "pool_slabs": 3}
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request):
    """Where the laws of equality are held: on the CPU, and on a CUDA device where there is one."""
    return request.param


def open_tiny(corpus, kind, order="global", partitions=TRAIN, **options):
    options = {"window": WindowSpec(3, 2), "batch_size": 16, "seed": 7, **SLABS, **options}
    return open_loader(corpus, partitions, kind=kind, order=order, **options)


def owned(batch):
    return [None if part is None else part.clone() for part in batch]


def assert_same(first, second):
    for a, b in zip(first, second):
        if a is None or b is None:
            assert a is b
        else:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize(("order", "kind"), EVERY)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 2), (12, 12), (0, 12), (11, 0)])
@pytest.mark.parametrize(
    # Values that name their place do not fit float16.
    ("stored", "dtype"),
    [("tiny_corpus", "float16"), ("tiny_corpus", "float32"), ("tiny_exact_corpus", "float32")],
)
def test_every_window_of_an_epoch_is_the_reference_window(request, stored, order, kind, left, right, dtype, device):
    corpus = request.getfixturevalue(stored)
    options = {"window": WindowSpec(left, right), "dtype": dtype, "drop_last": False, "batch_size": 50}
    with open_tiny(corpus, kind, order, device=device, **options) as loader:
        windows, labels = reference.selection_windows(loader.selection, left, right, dtype)
        seen = []
        for batch in loader.epoch(2):
            frames = batch.frames.cpu().numpy()
            np.testing.assert_array_equal(batch.windows.cpu().numpy(), windows[frames])
            np.testing.assert_array_equal(batch.labels.cpu().numpy(), labels[frames])
            assert batch.windows.dtype == getattr(torch, dtype)
            assert batch.labels.dtype == batch.frames.dtype == torch.int64
            seen.append(frames.copy())
        assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(loader.num_frames))


def test_window_never_crosses_utterance(tiny_exact_corpus):
    window = WindowSpec(12, 12)
    with open_tiny(tiny_exact_corpus, "host", window=window, dtype="float32", batch_size=1, drop_last=False) as loader:
        starts = np.concatenate([[0], loader.selection.utterance_end])
        for batch in loader.epoch(0):
            frame = int(batch.frames[0])
            utterance = int(np.searchsorted(starts, frame, side="right")) - 1
            # Rows of the exact corpus name their utterance and frame; padding is zero.
            rows = batch.windows[0].numpy()
            place = frame - starts[utterance]
            length = starts[utterance + 1] - starts[utterance]
            inside = np.arange(-12, 13) + place
            inside = (inside >= 0) & (inside < length)
            assert (rows[~inside] == 0).all()
            names = set((rows[inside][:, 0] // 100_000).astype(int).tolist())
            assert len(names) == 1
            first = (rows[12, 0] - 1) % 100_000 // 100
            assert first == place


@pytest.mark.parametrize("order", ["global", "slab", "sequential"])
@given(
    start=st.integers(0, 30),
    threads=st.integers(1, 4),
    world=st.integers(1, 5),
    drop=st.booleans(),
    batch_size=st.sampled_from([5, 16, 64, 397]),
    epoch=st.integers(0, 3),
    slabs=st.sampled_from([(37, 3), (5, 2), (1000, 2), (1, 4)]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_same_batches_whoever_wherever(
    tiny_corpus, device, order, start, threads, world, drop, batch_size, epoch, slabs
):
    options = {"batch_size": batch_size, "drop_last": drop, "device": device}
    options |= {"slab_frames": slabs[0], "pool_slabs": slabs[1]}
    with open_tiny(tiny_corpus, "resident", order, **options) as truth:
        batches = [owned(b) for b in truth.epoch(epoch)]
    assert len(batches) == truth.batches_per_epoch
    start = min(start, len(batches))
    shares = []
    for rank in range(world):
        parts = []
        for kind in KINDS_OF[order]:
            with open_tiny(tiny_corpus, kind, order, threads=threads, rank=rank, world_size=world, **options) as loader:
                mine = [owned(b) for b in loader.epoch(epoch, start)]
                assert len(mine) == len(batches) - start
                if mine:
                    assert_same(owned(loader.batch(epoch, start)), mine[0])
                parts.append(mine)
        for other in parts[1:]:
            for a, b in zip(parts[0], other):
                assert_same(a, b)
        shares.append(parts[0])
    for index, whole in enumerate(batches[start:]):
        joined = [torch.cat([share[index][part] for share in shares]) for part in range(3)]
        assert_same(joined, whole)


@pytest.mark.parametrize(("order", "kind"), EVERY)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [1, 3])
def test_all_ranks_together_visit_each_frame_once(tiny_corpus, order, kind, drop_last, world):
    seen = []
    for rank in range(world):
        with open_tiny(tiny_corpus, kind, order, rank=rank, world_size=world, drop_last=drop_last) as loader:
            batches = [b.frames.clone() for b in loader.epoch(4)]
            assert len(batches) == loader.batches_per_epoch
            sizes = [len(b) for b in batches]
            assert len(set(sizes[: loader.num_frames // 16])) <= 1
            seen += batches
    seen = torch.cat(seen)
    assert len(seen) == len(seen.unique()) == loader.frames_per_epoch
    assert loader.frames_per_epoch == (loader.num_frames // 16 * 16 if drop_last else loader.num_frames)


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_unlabelled_partitions_give_no_labels(tiny_corpus, order, kind, device):
    with open_tiny(tiny_corpus, kind, order, device=device, partitions="test-clean", drop_last=False) as loader:
        windows, labels = reference.selection_windows(loader.selection, 3, 2, "float16")
        assert labels is None
        for batch in loader.epoch(0):
            assert batch.labels is None
            np.testing.assert_array_equal(batch.windows.cpu().numpy(), windows[batch.frames.cpu().numpy()])


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_a_subset_is_its_utterances_and_nothing_else(tiny_corpus, order, kind, device):
    with open_tiny(tiny_corpus, kind, order, device=device, subset=0.5, drop_last=False) as loader:
        windows, labels = reference.selection_windows(loader.selection, 3, 2, "float16")
        assert loader.num_frames == len(windows) < Selection.of(tiny_corpus, TRAIN).num_frames
        for batch in loader.epoch(1):
            np.testing.assert_array_equal(batch.windows.cpu().numpy(), windows[batch.frames.cpu().numpy()])
            np.testing.assert_array_equal(batch.labels.cpu().numpy(), labels[batch.frames.cpu().numpy()])


def test_rows_of_a_slot_start_on_cache_lines(tiny_corpus):
    with open_tiny(tiny_corpus, "host") as loader:
        for batch in loader.epoch(0):
            pitch, dim, inner = batch.windows.stride()
            assert pitch * 2 % 64 == 0
            assert (dim, inner) == (5, 1)
            assert batch.windows.data_ptr() % 64 == 0


def test_ram_gives_the_same_as_the_map(tiny_corpus):
    with open_tiny(tiny_corpus, "host") as mapped, open_tiny(tiny_corpus, "host", memory="ram") as copied:
        for a, b in zip(mapped.epoch(0), copied.epoch(0)):
            assert_same(a, b)


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_a_batch_stays_until_the_next_is_asked_for(tiny_corpus, order, kind, device):
    with open_tiny(tiny_corpus, kind, order, device=device, batch_size=8, threads=3) as loader:
        previous = None
        for index, batch in enumerate(loader.epoch(0)):
            kept = owned(batch)
            assert_same(kept, loader.batch(0, index))
            assert_same(kept, batch)
            assert previous is None or not torch.equal(previous[2], kept[2])
            previous = kept


def test_two_epochs_at_once_do_not_disturb_each_other(tiny_corpus, device):
    for order, kind in EVERY:
        with open_tiny(tiny_corpus, kind, order, device=device) as loader:
            alone = [owned(b) for b in loader.epoch(1)]
            for a, b, truth in zip(loader.epoch(1), loader.epoch(1), alone):
                assert_same(a, truth)
                assert_same(b, truth)


@pytest.mark.parametrize("table_frames", [50, 1 << 20])
def test_device_batch_equals_the_epoch_without_the_host(tiny_corpus, device, table_frames, monkeypatch):
    for name in ("TABLE_FRAMES", "CPU_TABLE_FRAMES"):
        monkeypatch.setattr(resident, name, table_frames)
    for order in ("global", "sequential", "slab"):
        for rank in range(3):
            with open_tiny(tiny_corpus, "resident", order, device=device, rank=rank, world_size=3) as loader:
                table, place = loader.new_table(), torch.zeros(1, dtype=torch.int64, device=device)
                # A run may be resumed anywhere, so a table may begin anywhere.
                for first in range(3):
                    for index, batch in enumerate(loader.epoch(5, first), first):
                        begun = (index - first) % loader.table_batches
                        if begun == 0:
                            loader.fill_table(table, 5, index)
                        place.fill_(begun)
                        if len(batch.frames) == loader.plan.bounds(0)[1] - loader.plan.bounds(0)[0]:
                            assert_same(owned(loader.device_batch(table, place)), batch)


def test_epochs_differ_and_repeat(tiny_corpus):
    with open_tiny(tiny_corpus, "host") as loader:
        epochs = [torch.cat([b.frames.clone() for b in loader.epoch(e)]) for e in (0, 1, 0)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_auto_says_why_in_one_line(tiny_corpus):
    with open_tiny(tiny_corpus, "auto") as loader:
        assert loader.kind == "host"
        assert loader.reason
        assert "\n" not in loader.reason
    with open_tiny(tiny_corpus, "resident") as loader:
        assert (loader.kind, loader.reason) == ("resident", "asked for")


def test_resident_is_chosen_where_the_rows_with_their_labels_fit(tmp_path, monkeypatch):
    symbols = [*ARPABET.symbols, *(f"X{n}" for n in range(300))]
    write_hw1p2(tmp_path / "raw", "train", {"a-1-0": (place_features(0, 50, 5), place_label(0, 50))})
    write_hw1p2(tmp_path / "raw", "test", {"a-2-0": (place_features(1, 50, 5), place_label(1, 50))}, labelled=False)
    (tmp_path / "raw/phonemes.txt").write_text("\n".join(symbols))
    pack(tmp_path / "raw", tmp_path / "packed", context=10)
    # More than 255 classes: 4 bytes a label, which are int32 on the device.
    for partition, row_bytes in (("train", 5 * 2 + 4), ("test", 5 * 2)):
        selection = Selection.of(PackedCorpus(tmp_path / "packed"), partition)
        for short, kind in ((0, "resident"), (1, "host")):
            free = RESERVE_BYTES + 70 * row_bytes - short
            monkeypatch.setattr("torch.cuda.mem_get_info", lambda _, free=free: (free, free))
            assert choose(selection, torch.device("cuda"), "global")[0] == kind


@pytest.mark.parametrize("order, free, said", [("global", 1, True), ("slab", 1, False), ("global", 1 << 40, False)])
def test_a_corpus_larger_than_memory_is_named_with_the_order_for_it(tiny_corpus, monkeypatch, order, free, said):
    monkeypatch.setattr("phonedata.loaders.open.available_memory", lambda: free)
    with open_loader(tiny_corpus, "train-clean", window=2, batch_size=8, order=order) as loader:
        assert loader.kind == "host" and ("order slab reads it in sequence" in loader.reason) == said


class LateTransfer:
    """Stands for CUDA's copies: each is done at the last moment, when somebody waits for it."""

    def __init__(self):
        self.copies = {}

    def send(self, slot, copies):
        self.wait(slot)
        self.copies[slot] = copies

    def wait(self, slot):
        for target, source in self.copies.pop(slot, ()):
            target.copy_(source)


def test_a_slab_is_staged_only_when_the_last_one_in_that_memory_has_gone(tiny_corpus):
    with open_tiny(tiny_corpus, "slab", "slab") as loader:
        pool = Pool(loader._joined, 40, 4, loader.plan, torch.device("cpu"))
        pool.transfer = LateTransfer()
        pool._staging.extend((pool._host_slab(False), None) for _ in range(2))
        for load in range(11):
            first = 7 * load
            pool.fill(load % 4, 40, partial(loader._joined.read, first, first + 40))
            # Two may be on the way; the slab before them has arrived, in its own slot.
            assert set(pool.transfer.copies) == {(load - n) % 4 for n in range(min(load + 1, 2))}
            if load >= 2:
                rows, labels = np.empty((40, 5), np.float16), np.empty(40, np.uint8)
                loader._joined.read(first - 14, first + 26, rows, labels)
                there, their_labels = pool._parts((load - 2) % 4, 40)
                np.testing.assert_array_equal(there.numpy(), rows)
                np.testing.assert_array_equal(their_labels.numpy(), labels)


def test_a_path_a_corpus_and_a_selection_open_alike(tiny_corpus):
    options = {"window": WindowSpec(1, 1), "batch_size": 4}
    selection = Selection.of(PackedCorpus(tiny_corpus.path), "dev-clean")
    opened = [
        open_loader(tiny_corpus.path, "dev-clean", **options),
        open_loader(str(tiny_corpus.path), ["dev-clean"], **options),
        open_loader(tiny_corpus, "dev-clean", **options),
        open_loader(selection, **options),
    ]
    for a, b in itertools.pairwise(opened):
        assert_same(a.batch(0, 0), b.batch(0, 0))
    for loader in opened:
        loader.close()
    with pytest.raises(SpecError, match="give it alone"):
        open_loader(selection, "dev-clean", **options)
    with pytest.raises(SpecError, match="no partitions named"):
        open_loader(tiny_corpus, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gpu"}, "loader kind 'gpu'; wanted one of auto, host, resident, slab"),
        ({"order": "random"}, "order 'random'; wanted one of global, slab, sequential"),
        ({"dtype": "float64"}, "window dtype 'float64'"),
        ({"window": WindowSpec(13, 0)}, "context 12; pack it again"),
        ({"batch_size": 10_000}, "make no full batch of 10000"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 2, "world_size": 3}, "batch_size 2 for 3 ranks"),
        ({"threads": 0}, "threads 0"),
        ({"memory": "disk"}, "loader memory 'disk'"),
        ({"seed": -1}, "seed -1"),
        ({"kind": "slab"}, "the slab loader gives order slab, not 'global'"),
        ({"partitions": "train"}, "no partition 'train'"),
        ({"order": "slab", "slab_frames": 0}, "slab_frames 0"),
        ({"window": "30"}, r"window '30'; wanted WindowSpec\(left, right\), \(left, right\) or one number"),
        ({"window": (1, 2, 3)}, r"window \(1, 2, 3\)"),
        ({"window": (1, 2.0)}, "window.right is 2.0"),
        ({"window": True}, "window.left is True"),
        ({"batch_size": 8.0}, "batch_size 8.0; wanted a whole number"),
        ({"batch_size": "8"}, "batch_size '8'"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"world_size": True}, "world_size True"),
        ({"threads": 2.0}, "threads 2.0"),
        ({"threads": 10**6}, "threads 1000000; wanted 1..1024"),
        ({"batch_size": 2**63}, "wanted batch_size <= 397 or drop_last=False"),
        ({"drop_last": "no"}, "drop_last 'no'; wanted True, False, or None"),
        ({"dtype": np.dtype("float16")}, "window dtype dtype"),
        ({"partitions": 5}, "partitions 5: wanted a name or a list of names"),
        ({"partitions": ["train-clean", 5]}, "wanted a name or a list of names"),
        # A set has no order of its own, and the partitions' order numbers the frames.
        ({"partitions": {"train-clean"}}, "wanted a name or a list of names"),
        ({"subset": None}, "subset None: wanted a share"),
        ({"subset": True}, "subset True"),
        ({"subset": "0.5"}, "subset '0.5'"),
        ({"device": "xpu"}, "device 'xpu', but this torch has none; take device='cpu'"),
        ({"device": "gpu"}, "device 'gpu'; wanted cpu, cuda, cuda:N or mps"),
        ({"device": None}, "device None"),
        ({"device": "cuda:99"}, "device 'cuda:99', but torch .* sees .* CUDA devices; take device='cpu'"),
    ],
)
def test_the_impossible_is_refused_with_what_was_wanted(tiny_corpus, options, message):
    with pytest.raises(SpecError, match=message):
        open_tiny(tiny_corpus, **{"kind": "host", **options})


@pytest.mark.parametrize("corpus", [5, None, b"packed", ["packed"], "a" * 5000])
def test_what_is_no_path_of_a_corpus_is_refused_in_one_short_sentence(corpus):
    with pytest.raises(PhonedataError, match="wanted the path of a packed corpus|File name too long") as refused:
        open_loader(corpus, "train", window=1, batch_size=1)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_a_batch_larger_than_the_selection_is_all_of_it(tiny_corpus, order, kind):
    with open_tiny(tiny_corpus, kind, order, batch_size=2**63, drop_last=False) as loader:
        (batch,) = (owned(batch) for batch in loader.epoch(0))
        assert sorted(batch[2].tolist()) == list(range(loader.num_frames))


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_only_what_is_read_in_order_keeps_a_short_last_batch_by_itself(tiny_corpus, order, kind):
    with open_tiny(tiny_corpus, kind, order) as loader:
        assert loader.num_frames % 16
        seen = sum(len(batch.frames) for batch in loader.epoch(0))
        assert seen == (loader.num_frames if order == "sequential" else loader.num_frames // 16 * 16)
    with open_tiny(tiny_corpus, kind, order, drop_last=True) as loader:
        assert loader.frames_per_epoch == loader.num_frames // 16 * 16


@pytest.mark.parametrize(("order", "kind"), EVERY)
def test_a_pickled_loader_opens_anew_and_gives_the_same_batches(tiny_corpus, order, kind):
    options = {"threads": 2, "memory": "ram"} if kind == "host" else {}
    with open_tiny(tiny_corpus, kind, order, subset=0.5, **options) as loader:
        wanted, stored = owned(loader.batch(1, 3)), pickle.dumps(loader)
    assert len(stored) < 20_000, "the rows do not travel"
    with pickle.loads(stored) as copy:
        assert type(copy) is type(loader) and copy.reason == loader.reason
        assert {name: getattr(copy, name) for name in copy.options} == options
        assert_same(wanted, owned(next(copy.epoch(1, 3))))


def test_a_window_is_a_spec_a_pair_or_one_number(tiny_corpus):
    for window in (3, np.int64(3), (3, 3), [3, 3]):
        with open_tiny(tiny_corpus, "host", window=window, batch_size=np.int32(16)) as loader:
            assert loader.window == WindowSpec(3, 3) and type(loader.batch_size) is int
            assert loader.batch(0, 0).windows.shape == (16, 7, 5)


def test_positions_outside_an_epoch_are_refused(tiny_corpus):
    for order, kind in EVERY:
        with open_tiny(tiny_corpus, kind, order) as loader:
            last = loader.batches_per_epoch
            assert list(loader.epoch(0, last)) == []
            for bad in (-1, last + 1):
                with pytest.raises(SpecError, match="batches, counted from 0"):
                    loader.epoch(0, bad)
            with pytest.raises(SpecError, match="counted from 0"):
                loader.batch(0, last)
            with pytest.raises(SpecError, match="epochs count from 0"):
                loader.epoch(-1)
            for bad in ((1, 2), None, 0.0, True):
                with pytest.raises(SpecError, match="wanted a whole number"):
                    loader.epoch(bad)
                with pytest.raises(SpecError, match="wanted a whole number"):
                    loader.batch(0, bad)
        with pytest.raises(SpecError, match="closed"):
            loader.epoch(0)
