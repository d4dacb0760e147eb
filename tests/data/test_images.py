"""Captioned images, from files and tables to batches."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.image_table import ImageTable
from lm_jax.data.images import ImageCaptions, ImageTextPairs
from lm_jax.data.pixels import Augment, PixelsConfig
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import Words

SIZE = PixelsConfig(height=4, width=6)


def picture(number, height=4, width=6):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)


def table(folder, captions, **more):
    """A .jsonl of images 0.png, 1.png, ... with these captions."""
    for number in range(len(captions)):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    rows = [json.dumps({"image": f"{number}.png", "captions": some}) for number, some in enumerate(captions)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    return ImageTable(path=str(folder / "train.jsonl"), caption="captions", **more)


def data(train, kind=ImageTextPairs, **more):
    fields = {"tokenizer": Words(min_count=1), "pixels": SIZE, "length": 6, "batch_size": 2, "seed": 3}
    return kind(train=train, **(fields | more))


SEVEN = [[f"a{n} {word}" for word in "bcd"[: 1 + n % 3]] for n in range(7)]


def test_a_batch_holds_images_and_texts(tmp_path):
    prepared = data(table(tmp_path, SEVEN)).prepare()
    loader, tokenizer = prepared.train_loader(), prepared.tokenizer
    for step in range(7):
        batch, documents = loader(step), loader.documents(step)
        assert batch["images"].shape == (2, 4, 6, 3) and batch["images"].dtype == np.float32
        for row, (name,) in enumerate(documents):
            number, caption = int(name.split(".")[0]), int(name.split(":")[1])
            np.testing.assert_allclose(batch["images"][row], picture(number) / 127.5 - 1, atol=1e-6)
            tokens = batch["memory_tokens"][row]
            assert tokenizer.decode(tokens[:2]) == SEVEN[number][caption]
            assert tokens[2:].tolist() == [tokenizer.eos] * 4 and batch["memory_segments"][row].tolist() == [1, 1, 1, 0, 0, 0]
    again = prepared.train_loader()
    np.testing.assert_array_equal(again(5)["memory_tokens"], loader(5)["memory_tokens"])
    np.testing.assert_array_equal(prepared.train_loader(slice(1, 2))(5)["images"], loader(5)["images"][1:])


def test_an_epoch_has_each_image_once_and_takes_its_captions_in_turn(tmp_path):
    loader = data(table(tmp_path, SEVEN), batch_size=7).prepare().train_loader()
    epochs = [dict(name[0].split(":") for name in loader.documents(step)) for step in range(6)]
    assert all(sorted(epoch) == [f"{n}.png" for n in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    for number in range(7):
        drawn = [int(epoch[f"{number}.png"]) for epoch in epochs]
        size = len(SEVEN[number])
        assert sorted(drawn) == sorted(list(range(size)) * (6 // size)) and drawn == [(drawn[0] + e) % size for e in range(6)]
    assert len({epochs[0][f"{n}.png"] for n in (2, 5)} | {epochs[0][f"{n}.png"] for n in (1, 4)}) > 1  # not all from the first on


def test_a_split_has_every_caption_once(tmp_path):
    prepared = data(table(tmp_path, SEVEN)).prepare()
    batches = list(prepared.eval_batches("train", batch_size=8))
    assert len(batches) == 2 and all(batch["images"].shape[0] == 8 for batch in batches)
    texts = [prepared.tokenizer.decode(row[:2]) for batch in batches for row in batch["memory_tokens"]]
    assert texts[:13] == [caption for captions in SEVEN for caption in captions]
    assert batches[1]["memory_segments"].sum(axis=1).tolist() == [3] * 5 + [0] * 3
    part = next(iter(prepared.eval_batches("train", batch_size=8, rows=slice(2, 4))))
    np.testing.assert_array_equal(part["images"], batches[0]["images"][2:4])
    with pytest.raises(DataError, match="takes 3 tokens, more than the 2 of a row"):
        prepared.eval_batches("train", length=2)
    assert prepared.num_bytes("train") == 0  # nothing is written


def test_captions_stand_between_ends(tmp_path):
    prepared = data(table(tmp_path, [["a b"], ["a b c d e f"]]), ImageCaptions).prepare()
    rows = next(iter(prepared.eval_batches("train", batch_size=2)))
    word = dict(zip("abcdef", prepared.tokenizer.encode("a b c d e f").tolist(), strict=True))
    assert rows["tokens"].tolist() == [[0, word["a"], word["b"], 0, 0, 0], [0, *(word[x] for x in "abcd"), 0]]
    assert rows["targets"].tolist() == [[word["a"], word["b"], 0, 0, 0, 0], [*(word[x] for x in "abcd"), 0, 0]]
    assert rows["weights"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert rows["segments"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert prepared.num_bytes("train") == len("a b") + round(4 / 6 * len("a b c d e f"))
    assert prepared.record["captions cut to a row"] == 1 and "captions cut to a row: 1" in prepared.describe()


def test_rows_of_one_image_add_up_and_images_are_held_out_by_name(tmp_path):
    (tmp_path / "png").mkdir()
    for number in range(60):
        Image.fromarray(picture(number)).save(tmp_path / "png" / f"{number}.png")
    lines = [f"{n}.png\tfirst {n}\n" for n in range(60)] + ["3.png\tsecond 3\n"]
    (tmp_path / "t.tsv").write_text("file\tcaption\n" + "".join(lines))
    source = ImageTable(path=str(tmp_path / "t.tsv"), folder="png", image="file")
    prepared = data(source, split=HashSplit(validation=0.3)).prepare()
    names = {split: [image.name for image in images] for split, images in prepared.examples.items()}
    assert sorted(names["train"] + names["validation"]) == sorted(f"{n}.png" for n in range(60)) and len(names["validation"]) > 5
    captions = {image.name: image.captions for images in prepared.examples.values() for image in images}
    assert captions["3.png"] == ("first 3", "second 3") and captions["4.png"] == ("first 4",)
    held = captions[names["validation"][0]][0].split()[1]
    assert prepared.tokenizer.encode(held)[0] == 1  # its words are not in the vocabulary


def test_modes_and_sizes(tmp_path):
    half = np.zeros((4, 6, 4), np.uint8)
    half[:, :3, 3] = 255  # black on the left, transparent on the right
    files = {
        "rgba": Image.fromarray(half),
        "grey": Image.fromarray(np.full((4, 6), 77, np.uint8)),
        "palette": Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).convert("P", palette=Image.Palette.ADAPTIVE),
        "one_bit": Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("1"),
    }
    found = {}
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
        found[name] = SIZE.read(tmp_path / f"{name}.png")
    assert (found["rgba"][:, :3] == 0).all() and (found["rgba"][:, 3:] == 255).all()
    assert (found["grey"] == 77).all() and (found["palette"] == 200).all() and (found["one_bit"] == 255).all()
    wide = np.zeros((8, 40, 3), np.uint8)
    wide[:, 14:26] = 250  # the middle, of the proportions of the result
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (SIZE.read(tmp_path / "wide.png")[:, 1:-1] == 250).all()
    tall = np.repeat(np.arange(48, dtype=np.uint8)[:, None], 12, axis=1)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    np.testing.assert_allclose(SIZE.read(tmp_path / "tall.png")[:, 3, 0], 20 + 2 * np.arange(4) + 0.5, atol=1)


def test_floats_are_in_the_range_that_is_said():
    pixels = np.array([[[[0, 255, 51]]]], np.uint8)
    np.testing.assert_allclose(PixelsConfig().floats(pixels)[0, 0, 0], [-1, 1, -0.6], atol=1e-6)
    clip = PixelsConfig(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)).floats(pixels)
    np.testing.assert_allclose(clip[0, 0, 0], [-0.48 / 0.27, 0.54 / 0.26, (0.2 - 0.41) / 0.28], rtol=1e-5)


def test_augmentation_is_drawn_from_seed_step_and_row():
    images = np.stack([picture(n, 16, 24) for n in range(40)])
    rows = np.arange(40)
    augment = Augment(min_area=0.5, flip=True)
    first = augment.apply(images, rows, 0, 7)
    assert first.shape == images.shape and first.dtype == np.uint8
    np.testing.assert_array_equal(augment.apply(images[8:12], rows[8:12], 0, 7), first[8:12])
    assert not np.array_equal(augment.apply(images, rows, 0, 8), first) and not np.array_equal(
        augment.apply(images, rows, 1, 7), first
    )
    mirrored = Augment(flip=True).apply(images, rows, 0, 7)
    sides = [np.array_equal(a, b[:, ::-1]) for a, b in zip(mirrored, images, strict=True)]
    assert 10 < sum(sides) < 30
    assert all(side or np.array_equal(a, b) for side, a, b in zip(sides, mirrored, images, strict=True))
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[None, None, :, None], (40, 16, 24, 3))
    spans = np.ptp(Augment(min_area=0.25).apply(ramp, rows, 0, 0)[:, 0, :, 0].astype(int), axis=1) / 230
    assert 0.4 < spans.min() < 0.6 and 0.9 < spans.max() <= 1


def test_bad_images_are_named_or_counted(tmp_path):
    source = table(tmp_path, SEVEN)
    whole = (tmp_path / "3.png").read_bytes()
    for broken in (whole[:60], b"no image", b""):
        (tmp_path / "3.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"3\.png is no image that can be read: .*corrupt='skip'"):
            data(source).prepare()
    (tmp_path / "5.png").unlink()
    prepared = data(source, corrupt="skip").prepare()
    assert prepared.record["images skipped: cannot be read"] == 2 and len(prepared.examples["train"]) == 5
    with pytest.raises(DataError, match="5 training images, fewer than one batch of batch_size=6"):
        data(source, corrupt="skip", batch_size=6).prepare().train_loader()


def test_an_image_without_caption_is_named_or_counted(tmp_path):
    captions = [["a"], [" ", ""], ["b", ""]]
    with pytest.raises(DataError, match=r"1\.png has no caption \(1 such images\)"):
        data(table(tmp_path, captions)).prepare()
    prepared = data(table(tmp_path, captions, uncaptioned="drop")).prepare()
    assert prepared.record["images dropped: no caption"] == 1
    assert [image.captions for image in prepared.examples["train"]] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "file\tcaption\nx.png\n", r"a.tsv:2: 'image' must be a file .* among file, caption"),
        (
            "a.jsonl",
            '{"image": "x.png", "caption": [1]}',
            r"a.jsonl:1: .* 'caption' its caption or captions; found 'x.png' and \[1\]",
        ),
        ("a.jsonl", "{", "a.jsonl:1 is not valid JSON"),
        ("a.jsonl", "[]", "a.jsonl:1 is a JSON list"),
        ("a.txt", "x", "its name must end in .tsv, .csv or .jsonl"),
    ],
)
def test_bad_tables_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        data(ImageTable(path=str(tmp_path / name))).prepare()


def test_bad_values_are_named():
    good = data(ImageTable(path="a.tsv"))
    for config, message in (
        (dataclasses.replace(good, corrupt="ignore"), "corrupt='ignore'"),
        (dataclasses.replace(good, train=ImageTable(path="a.tsv", uncaptioned="skip")), "uncaptioned='skip'"),
        (dataclasses.replace(good, augment=Augment(min_area=2.0)), "min_area=2.0"),
        (dataclasses.replace(good, pixels=PixelsConfig(std=(0.0, 1.0, 1.0))), "std="),
        (data(ImageTable(path="a.tsv"), ImageCaptions, length=2), "length=2"),
        (data(ImageTable(path="a.tsv"), ImageTextPairs, length=1), "length=1: a row is a caption and an end-of-document token"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(config)


def test_prompts_are_files(tmp_path):
    prepared = data(table(tmp_path, SEVEN), ImageCaptions).prepare()
    ids, inputs = prepared.config.prompts(prepared.tokenizer, [str(tmp_path / "2.png")])
    assert ids == [[prepared.tokenizer.eos]]
    np.testing.assert_allclose(inputs["images"][0], picture(2) / 127.5 - 1, atol=1e-6)


def test_grey_of_16_bits_keeps_its_shades_and_numbers_are_no_shades(tmp_path):
    ramp = np.repeat(np.linspace(0, 65535, 6)[None], 4, axis=0)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(SIZE.read(tmp_path / "grey.png")[..., 1], ramp.astype(np.uint16) // 256)
    for mode, dtype in (("I", np.int32), ("F", np.float32)):
        Image.fromarray(ramp.astype(dtype)).save(tmp_path / f"{mode}.tif")
        with pytest.raises(DataError, match=rf"{mode}.tif has pixels of mode {mode}, of no known range"):
            SIZE.read(tmp_path / f"{mode}.tif")


def test_a_split_of_which_no_image_can_be_read_is_not_there(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good, bad = table(tmp_path / "good", SEVEN), table(tmp_path / "bad", [["a"]])
    (tmp_path / "bad" / "0.png").write_bytes(b"no image")
    prepared = data(good, validation=bad, corrupt="skip").prepare()
    assert prepared.record["images skipped: cannot be read"] == 1
    with pytest.raises(DataError, match="there is no split 'validation'"):
        prepared.require("validation")


def test_a_table_with_more_cells_than_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\na.png,a cat, asleep\n")
    with pytest.raises(DataError, match=r"t.csv:2 has 1 cells more than the first line: \[' asleep'\]"):
        ImageTable(path=str(tmp_path / "t.csv")).read(collections.Counter())


def test_an_image_of_any_size_fits_a_square(tmp_path):
    for width, height in ((225, 300), (300, 225), (450, 600), (225, 225), (1, 999)):  # 225 / 224 * 224 is above 225
        Image.fromarray(picture(0, height, width)).save(tmp_path / "x.png")
        assert PixelsConfig(height=224, width=224).read(tmp_path / "x.png").shape == (224, 224, 3)


def test_one_table_is_read_and_its_quotes_must_close(tmp_path):
    source = table(tmp_path, SEVEN)
    (tmp_path / "more.jsonl").write_text("")
    with pytest.raises(DataError, match=r"jsonl names 2 files"):
        dataclasses.replace(source, path=f"{tmp_path}/*.jsonl").read(collections.Counter())
    (tmp_path / "t.csv").write_text('image,caption\n0.png,"a dog runs\n1.png,a cat\n')
    with pytest.raises(DataError, match=r"t.csv:3 is no row of a table"):
        ImageTable(path=f"{tmp_path}/t.csv").read(collections.Counter())


def test_a_photograph_is_turned_upright(tmp_path):
    upright = picture(0, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(PixelsConfig(height=20, width=30).read(tmp_path / "a.png"), upright)
