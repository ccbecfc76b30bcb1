"""Writes a model of a few hundred kilobytes in GGUF: `python tests/tiny_gguf.py model.gguf`.

A llama of one layer whose attention and feed-forward weights are random and tiny. What it says next depends on the
last token only, as a table in its output weights: after a prompt that offers tools it writes one tool call, after any
other a few words. So a real llama.cpp server can be talked to, and what it must answer is known.
"""

from __future__ import annotations

import itertools
import random
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ("The", " river", " is", " wide", ",", " said", " the", " heron", ".")
CALL = ('<tool_call>\n{"name": "', "add", '", "arguments": ', '{"a": 2, "b": 40', "}", "}\n</tool_call>")
SAY, ACT, END = "<|say|>", "<|act|>", "<|end|>"
TEMPLATE = (
    "{%- if tools %}# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    "For each call return a JSON object within <tool_call></tool_call>:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n{% endif -%}'
    "{%- for message in messages -%}{{ message.role }}: {{ message.content or '' }}"
    "{%- if message.tool_calls -%}{%- for call in message.tool_calls -%}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor -%}{%- endif -%}" + END + "\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}{%- if tools and messages[-1].role != 'tool' -%}"
    + ACT
    + "{%- else -%}"
    + SAY
    + "{%- endif -%}{%- endif -%}"
)
UNKNOWN, NORMAL, CONTROL, BYTE = 2, 1, 3, 6
WIDTH, HIDDEN, HEADS, CONTEXT = 64, 64, 2, 32_768


def vocabulary() -> list[tuple[str, int]]:
    """Each token's text, as SentencePiece writes it, and its kind."""
    said = [word.replace(" ", "▁") for word in (*WORDS, *CALL)]
    special = [("<unk>", UNKNOWN), ("<s>", CONTROL), (END, CONTROL), (SAY, CONTROL), (ACT, CONTROL)]
    return special + [(word, NORMAL) for word in said] + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]


def successors(tokens: Sequence[str]) -> dict[int, int]:
    """Which token follows which."""
    chains = [(SAY, *WORDS, END), (ACT, *CALL, END)]
    ids = [[tokens.index(word.replace(" ", "▁")) for word in chain] for chain in chains]
    return {before: after for chain in ids for before, after in itertools.pairwise(chain)}


def weights(tokens: Sequence[str]) -> dict[str, tuple[tuple[int, ...], list[float]]]:
    """Tensors by name: shape, fastest axis first, and values."""
    chance = random.Random(0)

    def noise(*shape: int) -> tuple[tuple[int, ...], list[float]]:
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return shape, [chance.uniform(-0.01, 0.01) for _ in range(size)]

    embedding, output = noise(WIDTH, len(tokens)), ((WIDTH, len(tokens)), [0.0] * (WIDTH * len(tokens)))
    for axis, (before, after) in enumerate(successors(tokens).items()):
        embedding[1][before * WIDTH + axis] = 1.0
        output[1][after * WIDTH + axis] = 10.0
    block = {f"attn_{part}": noise(WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    block |= {"ffn_gate": noise(WIDTH, HIDDEN), "ffn_up": noise(WIDTH, HIDDEN), "ffn_down": noise(HIDDEN, WIDTH)}
    norms = {name: ((WIDTH,), [1.0] * WIDTH) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    named = {"token_embd": embedding, "output": output, **norms, **{f"blk.0.{name}": t for name, t in block.items()}}
    return {f"{name}.weight": tensor for name, tensor in named.items()}


def metadata(vocab: Sequence[tuple[str, int]]) -> dict[str, Any]:
    tokens = [text for text, _ in vocab]
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [kind for _, kind in vocab],
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index(END),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A metadata value with its type: uint32 4, int32 5, float32 6, string 8, array 9."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    kind, form = {str: (8, ""), float: (6, "<f"), int: (5, "<i")}[type(item[0])]
    items = [string(one) if kind == 8 else struct.pack(form, one) for one in item]
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(items)


def make(path: str | Path) -> Path:
    """Write the model; the path it is at."""
    vocab = vocabulary()
    pairs, tensors = metadata(vocab), weights([text for text, _ in vocab])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(string(name) + value(item) for name, item in pairs.items())
    offset, data = 0, []
    for name, (shape, values) in tensors.items():
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        packed = struct.pack(f"<{len(values)}f", *values)
        data.append(packed + bytes(-len(packed) % 32))
        offset += len(data[-1])
    Path(path).write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
    return Path(path)


if __name__ == "__main__":
    print(make(sys.argv[1]))
