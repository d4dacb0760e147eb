"""The audit accounts for every token, finds planted faults, and shows any step's text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.errors import DataError
from lm_jax.data.audit import audit, audit_eval, audit_train, escape, show
from lm_jax.data.loader import EvalBatches, Source
from lm_jax.data.packing import PackedRows, Packing, StreamRows
from lm_jax.data.text import PreparedText, TextData
from lm_jax.data.tokenizers import Characters
from tests.data.token_stores import make_store


class Letters:
    """A tokenizer whose token n is the character n."""

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def make_prepared(sizes=(30, 7, 90, 14, 55), **settings):
    corpora = {
        name: {
            "train": make_store(sizes, seed=i, prefix=name, vocab_size=128),
            "validation": make_store([9, 21], seed=i + 9, prefix=name, vocab_size=128),
        }
        for i, name in enumerate("ab")
    }
    config = TextData(corpora=(), tokenizer=Characters(), **({"length": 8, "batch_size": 4} | settings))
    left_out = {"a": {}, "b": {"train": {"documents dropped: white space only": 3}}}
    record = {"corpora": {name: {"left_out": reasons} for name, reasons in left_out.items()}}
    return PreparedText(config, Letters(), corpora, record)


def test_every_token_of_every_split_is_accounted_for():
    lines = audit(make_prepared(packing=Packing(method="pack", long="crop")))
    assert lines[0] == (
        "a train: 5 documents, 196 tokens = 39 trained on + 157 cropped (document longer than a row); "
        "5 rows, 97.50% full, padding 1"
    )
    assert lines[2] == "a validation: 2 documents, 30 tokens = 30 evaluated; 4 rows, 93.75% full, padding 2"
    assert lines[4] == ("a: read 226 tokens = 39 trained on + 157 cropped (document longer than a row) + 30 held out (validation)")
    assert lines[6] == "b: while reading the train source, 3 documents dropped: white space only"


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=30).filter(lambda sizes: sum(sizes) >= 60),
    method=st.sampled_from(["stream", "pack"]),
    tail=st.sampled_from(["keep", "drop"]),
    long=st.sampled_from(["split", "crop"]),
    shift=st.booleans(),
    mask=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_accounts_balance_for_any_documents_and_settings(sizes, method, tail, long, shift, mask, epoch):
    packing = Packing(method=method, tail=tail, long=long, shift=shift)
    prepared = make_prepared(sizes, packing=packing, document_mask=mask, batch_size=1)
    loader = prepared.train_loader()
    account = audit_train(loader, 0, packing, epoch)
    assert account.used + sum(account.left_out.values()) == sum(sizes) == account.num_tokens
    steps = range(2 * epoch * loader.num_rows["a"], 2 * (epoch + 1) * loader.num_rows["a"])
    rows = [(row[0].corpus, loader(step)["weights"].sum()) for step in steps for row in loader.documents(step)]
    assert account.used == sum(count for corpus, count in rows if corpus == "a")
    if method == "stream" and tail == "drop":
        assert sum(account.left_out.values()) == sum(sizes) % 8


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=3),
    length=st.integers(1, 20),
    data=st.data(),
)
def test_evaluation_accounts_balance_for_any_stride(sizes, length, data):
    sources = [Source(str(i), make_store(s, seed=i)) for i, s in enumerate(sizes)]
    stride = data.draw(st.integers(1, length))
    batches = EvalBatches(sources, length=length, batch_size=3, stride=stride, document_mask=True)
    for account, source in zip(audit_eval(batches, "test"), sources, strict=True):
        assert account.used == account.num_tokens == len(source.store.tokens)


def spoil(kind, change):
    """`kind.spans` with its (start, length) changed by `change`."""
    spans = kind.spans

    def spoiled(self, index, epoch):
        good = spans(self, index, epoch)
        start, length = change(good.start.copy(), good.length.copy())
        return good._replace(start=start, length=length)

    return spoiled


def shorten_one(start, length):
    length[3] -= 1
    return start, length


def move_one(start, length):
    start[5] += 1
    return start, length


def repeat_one(start, length):
    start[2], length[2] = start[1], length[1]
    return start, length


def lengthen_one(start, length):
    length[4] += 1
    return start, length


@pytest.mark.parametrize(("kind", "method"), [(StreamRows, "stream"), (PackedRows, "pack")])
@pytest.mark.parametrize("change", [shorten_one, move_one, repeat_one, lengthen_one])
@pytest.mark.parametrize("extra", [{}, {"tail": "drop"}, {"long": "crop"}])
def test_a_planted_fault_is_found(monkeypatch, kind, method, change, extra):
    prepared = make_prepared([8, 3, 5, 8, 7, 8, 6, 4, 8] * 6, packing=Packing(method=method, **extra))
    audit(prepared)
    monkeypatch.setattr(kind, "spans", spoil(kind, change))
    with pytest.raises(DataError, match=r"corpus 'a', split 'train': tokens .*(in no row|more than one row)"):
        audit(prepared)


def test_a_window_that_leaves_a_token_out_is_found(monkeypatch):
    spans = EvalBatches.spans

    def spoiled(self, number):
        good, context = spans(self, number)
        return good, context + (number == 0)

    monkeypatch.setattr(EvalBatches, "spans", spoiled)
    with pytest.raises(DataError, match=r"split 'validation': tokens 0 to 0 .*'a0', are in no row"):
        audit(make_prepared())


def test_tokens_missing_from_the_splits_are_found(monkeypatch):
    monkeypatch.setattr(PreparedText, "num_tokens", lambda self, name: 227)
    with pytest.raises(DataError, match=r"read 227 tokens .* but these are 226"):
        audit(make_prepared())


@pytest.mark.parametrize("packing", [Packing(), Packing(method="pack")])
def test_show_prints_the_text_of_each_document(packing):
    prepared = make_prepared(packing=packing)
    lines = show(prepared, 17)
    assert lines[0] == "step 17: 4 rows of 8 tokens"
    assert sum(line.startswith("row ") for line in lines) == 4
    assert all(line.isprintable() for line in lines)
    loader = prepared.train_loader()
    batch = loader(17)
    expected = [
        escape(Letters().decode(row[weights == 1])) for row, weights in zip(batch["targets"], batch["weights"], strict=True)
    ]
    texts = "\n".join(lines).split("\nrow ")[1:]
    for text, row in zip(texts, expected, strict=True):
        assert "".join(line.split(": ", 2)[2] for line in text.split("\n")[1:]) == row


def test_control_characters_are_escaped():
    assert escape("a\n\t\x1b[31m\u202eé\u2028漢\\n") == r"a\n\t\x1b[31m\u202eé\u2028漢\\n"
    assert escape("".join(map(chr, range(0x3001)))).isprintable()
