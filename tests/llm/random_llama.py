"""Make a tiny Llama of random weights, with a context of 4,096 and heads of 32: `python random_llama.py FOLDER`.

Runs in the language model's environment, and needs only tokenizers, safetensors and numpy of it. It knows nothing, but
it obeys a schema and has room for 15 pairs. Its vocabulary is bytes and the beginnings of some words, so that words of
its answers end. The weights are large enough that no two tokens are nearly equally likely.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, LAYERS, HEADS, HEAD, HIDDEN, CONTEXT = 64, 2, 2, 32, 128, 4096
WORDS = (
    "a the of on with and smooth clean even sharp straight shiny round flat crack scratch dent stain chip hole rim "
    "edge surface colour print label cap seal thread corner line spot bent torn worn missing broken rough uneven deep"
)
MARK = "\u2581"  # begins a word


def main(folder: Path) -> None:
    """Write configuration, tokenizer and weights."""
    folder.mkdir(parents=True)
    vocabulary, merges = words_by_letters()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary, merges)))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    (folder / "config.json").write_text(json.dumps(configuration(len(vocabulary))))
    save_file(weights(len(vocabulary)), folder / "model.safetensors", metadata={"format": "pt"})


def words_by_letters() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary of special tokens, bytes, printable characters and word beginnings, and the merges to these."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK, *map(chr, range(33, 127))]
    merges = []
    for word in WORDS.split():
        begun = MARK
        for letter in word:
            if begun + letter not in tokens:
                tokens.append(begun + letter)
                merges.append([begun, letter])
            begun += letter
    return {token: number for number, token in enumerate(tokens)}, merges


def tokenizer(vocabulary: dict[str, int], merges: list[list[str]]) -> dict:
    """A byte-fallback BPE in the form of Llama 2's."""
    special = [
        {"id": vocabulary[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in ("<unk>", "<s>", "</s>")
    ]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": MARK},
                {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def configuration(num_tokens: int) -> dict:
    """Of the smallest Llama that vLLM's CPU attention takes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": num_tokens,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def weights(num_tokens: int) -> dict[str, np.ndarray]:
    """Seeded normal numbers; the last layer's are wide, for clear preferences."""
    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    made = {
        "model.embed_tokens.weight": normal(num_tokens, WIDTH, scale=1.0),
        "model.norm.weight": np.ones(WIDTH, np.float32),
        "lm_head.weight": normal(num_tokens, WIDTH, scale=0.4),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in ("input_layernorm", "post_attention_layernorm"):
            made[f"{name}.{part}.weight"] = np.ones(WIDTH, np.float32)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            made[f"{name}.self_attn.{part}.weight"] = normal(WIDTH, WIDTH, scale=WIDTH**-0.5)
        for part in ("gate_proj", "up_proj"):
            made[f"{name}.mlp.{part}.weight"] = normal(HIDDEN, WIDTH, scale=WIDTH**-0.5)
        made[f"{name}.mlp.down_proj.weight"] = normal(WIDTH, HIDDEN, scale=HIDDEN**-0.5)
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]))
