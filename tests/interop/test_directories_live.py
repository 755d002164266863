"""Directories that transformers wrote and reads, and torch's own files: make test-all."""

import json

import numpy as np
import pytest

from switch_tf.interop.formats import open_source, write_huggingface
from switch_tf.interop.huggingface_directory import read_tensors
from switch_tf.interop.vocabulary_files import sentencepiece_model
from tasks.python_docs import documents
from tasks.vocabularies import train_sentencepiece
from tests.support.live_models import KINDS, ODD, assert_same_weights, random_switch
from tests.support.parity import relative

pytestmark = pytest.mark.slow

MODELS = {
    **{name: (family, settings) for name, (family, settings) in KINDS.items()},
    "switch_16": ("switch_transformers", {"num_experts": 16}),
    "all_sparse": ("switch_transformers", {**ODD, "num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 2}),
    "decoder_alone": ("switch_transformers", {**ODD, "num_sparse_encoder_layers": 5, "num_sparse_decoder_layers": 2}),
    "untied": ("switch_transformers", {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def references():
    from tests.support import references

    return references


def random_model(torch, references, name):
    family, settings = MODELS[name]
    if name == "untied":
        model = random_switch(references, **settings)
        with torch.no_grad():
            for stack in (model.encoder, model.decoder):
                stack.embed_tokens.weight.copy_(model.shared.weight)
        return model
    sparse = references.SPARSE if family == "switch_transformers" else {}
    return references.random_model(family, **{**sparse, **settings})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("files", ["safetensors", "bin"])
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_with_the_same_bits_and_logits(torch, references, tmp_path, name, files, dtype):
    theirs = random_model(torch, references, name)
    folder, back = tmp_path / "theirs", tmp_path / "ours"
    back.mkdir()
    if files == "safetensors":
        theirs.save_pretrained(folder, max_shard_size="20KB")
    else:
        theirs.config.save_pretrained(folder)
        torch.save(theirs.to(getattr(torch, dtype)).state_dict(), folder / "pytorch_model.bin")
        theirs.float()
    source = open_source(str(folder))
    family, _ = MODELS[name]
    write_huggingface(str(back), source.config, source.weights, None, family, dtype, shard_bytes=30_000)
    loaded, info = type(theirs).from_pretrained(back, output_loading_info=True, dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    if dtype == "bfloat16":  # Random models here are of numbers that bfloat16 has.
        assert {tensor.dtype.name for tensor in read_tensors(str(back)).values()} == {"bfloat16"}
    assert_same_weights(torch, loaded, theirs)
    batch = references.random_batch("right", vocab_size=theirs.config.vocab_size)
    expected = references.reference(theirs, batch).outputs["logits"]
    actual = references.reference(loaded.eval(), batch).outputs["logits"]
    assert relative(actual, expected) < 1e-6
    generation = json.loads((back / "generation_config.json").read_text())
    assert loaded.generation_config.decoder_start_token_id == generation["decoder_start_token_id"] == 0


def test_tokenizers_agree(tmp_path):
    import transformers

    texts = documents()[:20]
    model = train_sentencepiece([line for text in texts for line in text.splitlines()], 600)
    (tmp_path / "spiece.model").write_bytes(model)
    files = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(files))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "switch_transformers"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    import sentencepiece

    ours = sentencepiece.SentencePieceProcessor(model_proto=model)
    text = "The statement returns a value. "
    assert tokenizer(text).input_ids == [*ours.encode(text), 1]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(ours) + 99
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    again = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(str(saved / "tokenizer.json")))
    assert len(again) == len(ours)
    for line in texts[3].splitlines()[:50]:
        assert again.encode(line) == ours.encode(line), line
    assert np.isclose(again.get_score(400), ours.get_score(400))
