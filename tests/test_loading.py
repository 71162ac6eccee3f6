"""Loading: shared buffers, order, broken images, resized shards, decoding on a device."""

import dataclasses
import gc
import io
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
import toy_tables
from PIL import Image
from toy_dataset import toy_dataset

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe
from cvgl_models.batches import PairLoader, PairRows, PairViews, Views, data_loader, open_for_views, rank_share
from cvgl_models.loading.ahead import Ahead
from cvgl_models.loading.decoding import decode, view_of
from cvgl_models.loading.on_device import DeviceDecoder
from cvgl_models.loading.workers import Pool
from cvgl_models.recipe import LoaderRecipe, ViewRecipe

VIEWS = ViewRecipe(query_height_px=32, query_width_px=64, reference_px=32)
STREAMED = LoaderRecipe(workers=2, memory_mb=0)


def jpeg(image, size=None):
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    buffer = io.BytesIO()
    (opened.resize(size) if size else opened).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def toy():
    made = toy_dataset(grid=4, test_grid=1)
    return dataclasses.replace(made, images={name: jpeg(image) for name, image in made.images.items()})


def with_broken(dataset, rows):
    ids = dataset.queries["query_id"].to_pylist()
    broken = {ids[row]: b"\xff\xd8 broken" for row in rows}
    return dataclasses.replace(dataset, images={**dataset.images, **broken})


def pair_loader(dataset, recipe, **options):
    sides = (Views(dataset, side, VIEWS) for side in ("query", "reference"))
    return PairLoader(PairRows.of(dataset), list(sides), recipe, **options)


def different(pairs, size, num):
    """Return batches of pairs of different references."""
    first = {}
    for pair, reference in enumerate(pairs.reference_row.tolist()):
        first.setdefault(reference, []).append(pair)
    return [np.array([members[step % len(members)] for members in list(first.values())[:size]]) for step in range(num)]


def contents(batches):
    return [(b.query_row.tolist(), b.reference_row.tolist(), b.query.clone(), b.reference.clone()) for b in batches]


def equal(one, other):
    return all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3]) for a, b in zip(one, other, strict=True)
    )


def test_the_same_batches_from_memory_from_workers_and_from_this_process(toy):
    batches = different(PairRows.of(toy), 8, 5)
    found = []
    for recipe in (LoaderRecipe(workers=0), STREAMED, LoaderRecipe(workers=0, memory_mb=0)):
        loader = pair_loader(toy, recipe)
        assert loader.in_memory == (recipe.memory_mb > 0)
        found.append(contents(loader.batches(batches)))
        assert equal(found[-1][2:], contents(loader.batches(batches[2:])))  # the rest of an epoch
        loader.close()
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    expected = view_of(toy.images[toy.queries["query_id"][found[0][0][0][3]].as_py()], "query", VIEWS)
    assert torch.equal(found[0][0][2][3], expected)


def test_batches_that_are_kept_do_not_change(toy):
    images = PairViews(PairRows.of(toy), Views(toy, "query", VIEWS), Views(toy, "reference", VIEWS))
    wanted = [[step, step + 1, step + 2] for step in range(20)]
    kept = list(data_loader(images, wanted, STREAMED))
    for items, (query, reference) in zip(wanted, kept, strict=True):
        assert torch.equal(query[2], images[items[2]][0])
        assert torch.equal(reference[0], images[items[0]][1])
    assert query.is_contiguous(memory_format=torch.channels_last)


def test_slots_are_lent_and_come_back(toy):
    pool = Pool(Views(toy, "query", VIEWS), 0, 4, 2)
    flight = pool.submit(np.array([0, 1]))
    (images,) = pool.take(flight)
    half = images[1:]
    del images
    gc.collect()
    pool.has_room()
    assert flight.slot in pool._lent
    half.zero_()  # it is the pool's memory
    assert not pool._buffers[0][flight.slot, 1].any()
    assert pool._buffers[0][flight.slot, 0].any()
    del half
    assert pool.has_room()
    assert flight.slot not in pool._lent


def test_workers_end_with_the_generator(toy):
    loading = data_loader(Views(toy, "query", VIEWS), [[0, 1]] * 30, STREAMED)
    next(loading)
    loading.close()
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_not_a_hang(toy):
    loader = pair_loader(toy, STREAMED)
    batches = different(loader.pairs, 8, 30)
    loading = loader.batches(batches)
    next(loading)
    os.kill(loader._pool._processes[0].pid, signal.SIGKILL)
    with pytest.raises(DatasetError, match=r"lower loader\.workers"):
        list(loading)
    loader.close()


def test_workers_leave_signals_to_the_main_process(toy):
    loader = pair_loader(toy, STREAMED)
    batches = different(loader.pairs, 8, 6)
    loading = loader.batches(batches)
    first = contents([next(loading)])
    for process in loader._pool._processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert len(first + contents(loading)) == 6
    loader.close()


@pytest.mark.parametrize("recipe", [LoaderRecipe(workers=0), STREAMED], ids=["memory", "workers"])
def test_a_broken_image_ends_the_run_or_makes_room(toy, recipe, caplog):
    pairs = PairRows.of(toy)
    batches = different(pairs, 8, 3)
    gone = int(batches[0][2])
    broken = with_broken(toy, [int(pairs.query_row[gone])])
    with pytest.raises(DatasetError, match=rf"\(row {pairs.query_row[gone]}\) cannot be decoded"):
        list(pair_loader(broken, recipe).batches(batches))
    loader = pair_loader(broken, dataclasses.replace(recipe, on_error="skip"))
    found = contents(loader.batches(batches))
    rows, references = found[0][:2]
    assert pairs.query_row[gone] not in rows
    assert len(set(references)) == len(rows) == 8
    assert [row for at, row in enumerate(rows) if at != 2] == pairs.query_row[np.delete(batches[0], 2)].tolist()
    taken = set(pairs.reference_row[batches[0]].tolist())
    following = next(
        p for step in range(1, len(pairs)) if pairs.reference_row[p := (gone + step) % len(pairs)] not in taken
    )
    assert rows[2] == pairs.query_row[following]
    assert torch.equal(found[0][2][2], view_of(toy.images[toy.queries["query_id"][rows[2]].as_py()], "query", VIEWS))
    assert list(loader.left_out) == [gone]
    assert loader.num_skipped == sum(gone in batch for batch in batches)
    assert "is left out" in caplog.text
    again = pair_loader(broken, dataclasses.replace(recipe, on_error="skip"))
    assert equal(found[1:], contents(again.batches(batches[1:])))
    loader.close()
    again.close()


def test_many_broken_images_one_after_the_other(toy):
    pairs = PairRows.of(toy)
    batches = different(pairs, 8, 6)
    broken = with_broken(toy, pairs.query_row[10:20])
    skipping = dataclasses.replace(STREAMED, on_error="skip")
    found = []
    for recipe in (skipping, dataclasses.replace(skipping, memory_mb=100), dataclasses.replace(skipping, decode="gpu")):
        loader = pair_loader(broken, recipe)
        found.append([batch.query_row.tolist() for batch in loader.batches(batches)])
        assert not {row for rows in found[-1] for row in rows} & set(pairs.query_row[10:20].tolist())
        loader.close()
    assert found[0] == found[1] == found[2]
    late = pair_loader(broken, skipping)
    assert [batch.query_row.tolist() for batch in late.batches(batches[3:])] == found[0][3:]
    late.close()


def test_nothing_left_to_take_its_place(toy):
    pairs = PairRows.of(toy)
    broken = with_broken(toy, pairs.query_row)
    with pytest.raises(DatasetError, match="no other pair to take its place"):
        list(pair_loader(broken, LoaderRecipe(workers=0, on_error="skip")).batches(different(pairs, 8, 1)))


def test_ranks_share_batches_and_never_a_reference(toy):
    pairs = PairRows.of(toy)
    batches = different(pairs, 8, 3)
    assert np.array_equal(np.concatenate([rank_share(batches, rank, 2)[1] for rank in (0, 1)]), batches[1])
    with pytest.raises(ValueError, match="shared by 3"):
        rank_share(batches, 0, 3)
    broken = with_broken(toy, pairs.query_row[[batches[0][0], batches[0][5]]])
    recipe = LoaderRecipe(workers=0, on_error="skip")
    parts = [contents(pair_loader(broken, recipe).batches(batches, rank, 2))[0][1] for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 4
    assert len(set(parts[0] + parts[1])) == 8


def test_a_missing_image_is_named(toy):
    images = dict(toy.images)
    del images[toy.queries["query_id"][3].as_py()]
    with pytest.raises(DatasetError, match=r"\(row 3\) is missing"):
        list(data_loader(Views(dataclasses.replace(toy, images=images), "query", VIEWS), [[2, 3]], STREAMED))


def test_a_broken_image_can_be_shown_as_black(toy):
    broken = with_broken(toy, [3])
    with pytest.raises(DatasetError, match=r"\(row 3\) cannot be decoded"):
        list(data_loader(Views(broken, "query", VIEWS), [[2, 3]], STREAMED))
    ((two,),) = data_loader(Views(broken, "query", VIEWS), [[2, 3]], STREAMED, black_if_broken=True)
    assert two[0].float().std() > 1
    assert not two[1].any()


def test_decode_writes_where_it_is_told(toy):
    image = jpeg(toy.images[toy.queries["query_id"][0].as_py()], (256, 128))
    out = np.zeros((32, 64, 3), np.uint8)
    assert decode(memoryview(image), 32, 64, out).ctypes.data == out.ctypes.data
    assert np.array_equal(out, decode(image, 32, 64))
    other = np.zeros((30, 60, 3), np.uint8)
    assert decode(image, 30, 60, other).shape == (32, 64, 3)
    assert not other.any()


@pytest.mark.parametrize("size", [(40, 40), (30, 30), (33, 33)])
def test_resizing_is_antialiased(toy, size):
    image = jpeg(toy.images[toy.references["reference_id"][0].as_py()], size)
    view = view_of(image, "reference", ViewRecipe(reference_px=32))
    pixels = torch.from_numpy(decode(image, 32, 32).copy()).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    assert (view.float() - expected[0]).abs().max() <= 1.01


def test_decoding_on_a_device_gives_nearly_the_same(toy):
    for side in ("query", "reference"):
        views = Views(toy, side, VIEWS)
        found = DeviceDecoder(views, torch.device("cpu")).load([4, 0])
        for index, view in zip([4, 0], found, strict=True):
            assert view.shape == views.shape
            assert view.dtype == torch.uint8
            assert (view.float() - views[index].float()).abs().mean() < 6
    bev = Views(toy, "query", ViewRecipe(query="bev", query_height_px=16, bev_m=40.0, reference_px=32))
    (view,) = DeviceDecoder(bev, torch.device("cpu")).load([1])
    assert (view.float() - bev[1].float()).abs().mean() < 3


def test_ahead_gives_all_batches_and_passes_errors(toy):
    batches = list(pair_loader(toy, LoaderRecipe(workers=0)).batches(different(PairRows.of(toy), 4, 5)))
    ahead = Ahead(iter(batches), torch.device("cpu"))
    assert [b.query_row.tolist() for b in ahead] == [b.query_row.tolist() for b in batches]
    ahead.close()

    def failing():
        yield batches[0]
        raise DatasetError("an image")

    ahead = Ahead(failing(), torch.device("cpu"))
    with pytest.raises(DatasetError, match="an image"):
        list(ahead)
    ahead.close()
    early = Ahead(iter(batches * 10), torch.device("cpu"), depth=1)
    next(iter(early))
    early.close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    def build(name, **sizes):
        out = tmp_path_factory.mktemp("packed") / name
        recipe = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(**sizes))
        toy_tables.pack(
            out, toy_tables.references(toy_tables.windows(5, 5)), toy_tables.scattered(60, 6, 6), recipe=recipe
        )
        return out

    return build


def sizes_of(dataset):
    names = (dataset.queries["query_id"][0].as_py(), dataset.references["reference_id"][0].as_py())
    return [Image.open(io.BytesIO(dataset.images[name])).size for name in names]


def test_resized_images_are_taken_where_they_fit(packed):
    folder = packed("both", panorama_size="60x30", reference_size=20)
    originals = sizes_of(open_dataset(folder))
    fitting = ViewRecipe(query_height_px=30, query_width_px=60, reference_px=20)
    assert sizes_of(open_for_views(folder, fitting)) == [(60, 30), (20, 20)]
    assert sizes_of(open_for_views(folder, fitting, use_resized=False)) == originals
    assert sizes_of(open_for_views(str(folder), dataclasses.replace(fitting, reference_px=24))) == [
        (60, 30),
        originals[1],
    ]
    top_view = ViewRecipe(query="bev", query_height_px=30, reference_px=20)
    one = open_for_views(folder, top_view)
    assert sizes_of(one) == [originals[0], (20, 20)]
    assert (
        bytes(one.images.view(one.references["reference_id"][3].as_py()))
        == one.images[one.references["reference_id"][3].as_py()]
    )
    assert len(one.images) == len(list(one.images)) == one.queries.num_rows + one.references.num_rows
    assert sizes_of(open_for_views(folder, VIEWS)) == originals
    assert open_for_views(one, fitting) is one


def test_shards_are_read_by_workers(packed):
    dataset = open_for_views(packed("one", reference_size=20), ViewRecipe(reference_px=20))
    views = Views(dataset, "reference", ViewRecipe(reference_px=20))
    (images,) = next(data_loader(views, [[3, 1]], STREAMED))
    assert torch.equal(images[0], views[3])
    assert torch.equal(images[1], views[1])
