"""Documents from every kind of file, and what a broken file gets."""

import gzip
import json

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.sources import Counts, JsonLines, Table, TextFiles, TfdsDataset, find, find_one


def read(source, counts=None):
    return [tuple(d) for d in source.documents(Counts() if counts is None else counts)]


def test_text_as_files_lines_and_paragraphs(tmp_path):
    (tmp_path / "b.txt").write_text("one\u2028still one\ntwo\n\n\nthree\n", encoding="utf8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\ufeff靜夜思\n".encode()))
    counts = Counts()
    paths = (str(tmp_path),)
    assert read(TextFiles(paths=paths)) == [
        ("a.txt.gz", "靜夜思\n"),
        ("b.txt", "one\u2028still one\ntwo\n\n\nthree\n"),
    ]
    lines = read(TextFiles(paths=(f"{tmp_path}/b*",), document="line"), counts)
    assert lines == [("b.txt:1", "one\u2028still one"), ("b.txt:2", "two"), ("b.txt:5", "three")]
    assert counts == {"documents dropped: white space only": 2}
    paragraphs = [text for _, text in read(TextFiles(paths=(f"{tmp_path}/b.txt",), document="paragraph"))]
    assert paragraphs == ["one\u2028still one\ntwo", "three"]


def test_json_lines_and_tables(tmp_path):
    rows = [{"title": "T", "text": "x\ny"}, {"title": "U", "text": "z"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    source = JsonLines(paths=(str(tmp_path / "a.jsonl"),), fields=("title", "text"), separator=": ")
    assert read(source) == [("a.jsonl:1", "T: x\ny"), ("a.jsonl:2", "U: z")]
    (tmp_path / "a.csv").write_text('kind,text\n1,"a, ""b""\nc"\n2,d\n')
    assert [d[1] for d in read(Table(paths=(str(tmp_path / "a.csv"),)))] == ['a, "b"\nc', "d"]
    (tmp_path / "a.tsv").write_text('she said "no\t1\nfine\t0\n')
    (tmp_path / "long.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert [len(d[1]) for d in read(Table(paths=(str(tmp_path / "long.csv"),)))] == [200_000]
    table = Table(paths=(str(tmp_path / "a.tsv"),), columns=("0",), header=False, delimiter="\t", quoted=False)
    assert [d[1] for d in read(table)] == ['she said "no', "fine"]


def test_a_prepared_tfds_dataset(tmp_path):
    import tensorflow_datasets as tfds

    class Letters(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"text": text, "label": i}) for i, text in enumerate(("eins", " ", "zwölf")))}

        def _generate_examples(self):
            return iter(())

    Letters(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    folder = str(tmp_path / "letters" / "1.0.0")
    assert [d[1] for d in read(TfdsDataset(folder=folder))] == ["eins", "zwölf"]
    with pytest.raises(DataError, match="no field 'txt'; it has 'label', 'text'"):
        read(TfdsDataset(folder=folder, field="txt"))
    with pytest.raises(DataError, match="split 'dev'"):
        read(TfdsDataset(folder=folder, split="dev"))


def test_relative_paths_are_found_by_the_environment(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no file at .*sub/x.txt; .*LM_JAX_DATA"):
        read(TextFiles(paths=("sub/x.txt",)))
    monkeypatch.setenv("LM_JAX_DATA", str(tmp_path))
    with pytest.raises(DataError, match="a path is empty"):
        read(TextFiles(paths=("",)))
    assert read(TextFiles(paths=("sub/x.txt",))) == [("x.txt", "hello")]


def test_invalid_utf8_is_named_by_file_and_byte_or_replaced_on_request(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"abc\xff\xfedef\xff")
    with pytest.raises(DataError, match=r"x.txt is not valid UTF-8 at byte 3 \(ff fe 64 65\)"):
        read(TextFiles(paths=(str(tmp_path),)))
    counts = Counts()
    assert read(TextFiles(paths=(str(tmp_path),), encoding_errors="replace"), counts)[0][1] == "abc\ufffd\ufffddef\ufffd"
    assert counts == {"invalid bytes replaced": 3}
    with pytest.raises(ConfigError, match="did you mean 'replace'"):
        validate_tree(TextFiles(paths=("x",), encoding_errors="replaced"))


@pytest.mark.parametrize(
    ("name", "data", "source", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text"\n', JsonLines, r"x.jsonl:2 is not valid JSON"),
        ("x.jsonl", b"[1]\n", JsonLines, r"x.jsonl:1 is a JSON list"),
        ("x.jsonl", b'{"txt": "a", "n": 1}\n', JsonLines, r"x.jsonl:1 has no field 'text'; it has 'txt', 'n'"),
        ("x.jsonl", b'{"text": 3}\n', JsonLines, r"x.jsonl:1: field 'text' is a int, not text"),
        ("x.csv", b"a,b\n1,2\n", Table, r"x.csv:2 has no field 'text'; it has 'a', 'b'"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "b\\ud800"}\n', JsonLines, r"x.jsonl:2 holds half of a character, \\ud800"),
        ("x.csv", b'text\n"a\nb\nc\n', Table, r"x.csv:4 is no row of a table: unexpected end of data \(is a quote not closed"),
        ("x.csv", b'text\n"a"b\n', Table, r"x.csv:2 is no row of a table"),
        ("x.txt.gz", b"not gzip", TextFiles, r"x.txt.gz cannot be read"),
        ("x.txt.gz", gzip.compress(b"whole" * 99, mtime=0)[:-9], TextFiles, r"x.txt.gz cannot be read"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, data, source, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(source(paths=(str(tmp_path / name),)))


def test_a_file_is_read_once_however_often_it_is_named(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.txt").write_text("x")
    (tmp_path / "a" / "y.txt").write_text("y")
    for paths in ((f"{tmp_path}/**",), (f"{tmp_path}/a", f"{tmp_path}/a/b/x.txt"), (f"{tmp_path}/a/b/../b", f"{tmp_path}/a")):
        assert sorted(read(TextFiles(paths=paths))) == [("x.txt", "x"), ("y.txt", "y")]
    assert [name for name, _ in read(TextFiles(paths=(f"{tmp_path}/a/y.txt", f"{tmp_path}/a")))] == ["y.txt", "x.txt"]
    assert len(find(f"{tmp_path}/**")) == 2
    assert find_one(f"{tmp_path}/a/*.txt").name == "y.txt"
    with pytest.raises(DataError, match=r"a names 2 files \(.*x.txt, .*y.txt, ...\), and one is read; name it"):
        find_one(f"{tmp_path}/a")


def test_lines_of_windows_end_alike(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a\r\nb\r\n")
    assert read(TextFiles(paths=(f"{tmp_path}/x.txt",), document="line")) == [("x.txt:1", "a"), ("x.txt:2", "b")]
