"""Round trips, reference encodings, and tokenizers as records."""

import gzip
import json
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lm_jax.core.config import from_json, to_json
from lm_jax.core.errors import DataError
from lm_jax.data.tokenizers import (
    BPE,
    Bytes,
    Characters,
    HuggingFaceTokenizer,
    RunTokenizer,
    SentencePiece,
    Tokenizer,
    TokenizerFile,
    Words,
    split_words,
)

SHARED = Path(os.environ.get("LM_JAX_DATA") or Path(__file__).parents[3] / "shared" / "data")
TEXT = "The cat, the dog.\n靜夜思 in 2026!\n" * 30 + "naïve café\tΩ 🎉\n"
LOSSLESS = {"bytes": Bytes(), "characters": Characters(), "bpe": BPE(vocab_size=300)}


@pytest.fixture(scope="module", params=LOSSLESS)
def tokenizer(request):
    return LOSSLESS[request.param].train([TEXT])


def test_round_trip_ids_and_record(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    assert tokenizer.eos < tokenizer.vocab_size and tokenizer.eos not in ids
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode([*ids[:3], tokenizer.eos]).endswith("<|endoftext|>")
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.hash == tokenizer.hash and again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode(TEXT), ids)
    for a, b in zip(tokenizer.encode_batch([TEXT, "cat"]), [ids, tokenizer.encode("cat")], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_any_text_survives(name):
    tokenizer = LOSSLESS[name].train([TEXT])

    @hypothesis.given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
    @hypothesis.settings(max_examples=200, deadline=None)
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()
    special = "a<|endoftext|>b"
    assert tokenizer.eos not in tokenizer.encode(special) and tokenizer.decode(tokenizer.encode(special)) == special


def test_characters_are_sorted_and_a_new_one_is_named():
    tokenizer = Characters().train(["cab", "ba"])
    assert tokenizer.vocab_size == 4 and tokenizer.encode("abc").tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="character 'é' at 3 is not in the vocabulary of 3 characters"):
        tokenizer.encode("abcé")
    lenient = Characters(unknown=True).train(["cab"])
    assert lenient.encode("aé").tolist() == [2, 1] and lenient.decode([2, 1]) == "a\ufffd"
    rare = Characters(min_count=2).train(["aab"])
    assert rare.vocab_size == 3 and rare.encode("ab").tolist() == [2, 1]


def test_words_by_frequency_with_chinese_characters_apart():
    tokenizer = Words(min_count=2).train(["the cat saw the dog; 静夜静夜", "the cat"])
    words = [tokenizer.decode([i]) for i in range(2, tokenizer.vocab_size)]
    assert words == ["the", "cat", "夜", "静"]
    assert tokenizer.encode("the bird 静夜").tolist() == [2, 1, 5, 4]
    lines = Words(min_count=1).train(["the cat 静夜\nthe"])
    assert lines.decode(lines.encode("the cat 静夜\nthe")) == "the cat 静夜\nthe"
    assert Words(min_count=1, lowercase=True).train(["The the"]).vocab_size == 3
    split = Words(min_count=1, split="whitespace").train(["<unk> @-@ a"])
    assert split.decode(split.encode("a @-@ <unk>")) == "a @-@ <unk>"
    ends = Words(min_count=1, split="lines").train(["<unk> @-@ a\n\n b"])
    assert ends.decode(ends.encode("<unk> @-@\n\n a")) == "<unk> @-@\n\na" and ends.vocab_size == 2 + 5


def test_words_of_other_scripts():
    """Marks belong to the letter before them, Korean words stand between spaces, and both come back."""
    for text in ("मैं घर जाता हूँ", "cafe\u0301 noir", "나는 학교에 간다", "か\u3099く"):
        tokenizer = Words(min_count=1).train([text])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert split_words("मैं घर, cafe\u0301s が", False, "words") == ["मैं", "घर", ",", "cafe\u0301s", "が"]


def test_words_and_line_ends_of_wikitext_2_are_as_many_as_published():
    """33,278 different ones, its <unk> and line end among them (Merity et al. 2016; PyTorch's word language model)."""
    texts = [SHARED / "wikitext2" / f"{split}.txt" for split in ("train", "valid", "test")]
    if not texts[0].exists():
        pytest.skip("wikitext2 is not on this machine")
    train, *others = (path.read_text(encoding="utf-8") for path in texts)
    tokenizer = Words(min_count=1, split="lines").train([train])
    ids = [tokenizer.encode(text) for text in (train, *others)]
    assert [len(x) for x in ids] == [2_088_628, 217_646, 245_569]
    assert tokenizer.vocab_size == 33_278 + 2 and not any((x == tokenizer.unknown).any() for x in ids)


def test_bpe_training_is_deterministic_and_compresses():
    texts = [TEXT, "another document about the cat and the dog"] * 20
    one, two = (BPE(vocab_size=320).train(iter(texts)) for _ in range(2))
    assert one.hash == two.hash
    assert len(one.encode(TEXT)) < 0.7 * len(TEXT.encode())
    with pytest.raises(DataError, match="below 257"):
        BPE(vocab_size=100).train(texts)


def test_a_tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(BPE(vocab_size=300).train([TEXT]).to_json()["model"]))
    assert TokenizerFile(path=str(path)).train([]).decode([65]) != ""
    with pytest.raises(DataError, match="has no token '</s>'"):
        TokenizerFile(path=str(path), eos="</s>").train([])
    path.write_text('{"model": 3}')
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        TokenizerFile(path=str(path)).train([])


@pytest.mark.skipif(not (SHARED / "gpt2_bpe").is_dir(), reason="needs ../shared/data/gpt2_bpe")
def test_gpt2_gives_the_published_encodings():
    import tokenizers

    folder = SHARED / "gpt2_bpe"
    vocab = json.loads((folder / "encoder.json").read_text())
    lines = (folder / "vocab.bpe").read_text(encoding="utf8").split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<|endoftext|>"])
    tokenizer = HuggingFaceTokenizer(json.loads(model.to_str()), "<|endoftext|>")
    assert tokenizer.vocab_size == 50257
    rows = [json.loads(line) for line in gzip.open(folder / "golden.jsonl.gz", "rt", encoding="utf8")]
    checked = 0
    for row in rows:
        if "<|endoftext|>" not in row["text"]:  # here text never turns into the end of a document
            assert tokenizer.encode(row["text"]).tolist() == row["ids"]
            assert tokenizer.decode(row["ids"]) == row["text"]
            checked += 1
    assert checked > 5


@pytest.mark.skipif(not (SHARED / "llama_stories260k").is_dir(), reason="needs ../shared/data/llama_stories260k")
def test_sentencepiece_gives_the_published_encodings():
    pytest.importorskip("sentencepiece")
    tokenizer = SentencePiece(path=str(SHARED / "llama_stories260k" / "tok512.model")).train([])
    golden = json.loads((SHARED / "llama_stories260k" / "golden.json").read_text())
    assert tokenizer.vocab_size == 512
    for prompt in golden["prompts"]:
        assert [1, *tokenizer.encode(prompt["text"]).tolist()] == prompt["ids"]  # they start with BOS
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.decode(again.encode("Once upon a time")) == "Once upon a time"


def test_configs_of_runs_may_name_the_package():
    """As they did when it was one file: so that these, and keys of prepared data, stay as they are."""
    assert from_json({"class": "lm_jax.data.tokenizers.BPE", "vocab_size": 300}) == BPE(vocab_size=300)
    for config in (BPE(), Bytes(), Characters(), RunTokenizer(path="a"), SentencePiece(path="a"), TokenizerFile(path="a"), Words()):
        assert to_json(config)["class"] == f"lm_jax.data.tokenizers.{type(config).__name__}"
        assert from_json(to_json(config)) == config
