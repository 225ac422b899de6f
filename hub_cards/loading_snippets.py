"""The lines a card shows for loading a folder; `verify` runs these very lines."""

import re
from typing import Any

NAME_LINE = 'name = "{name}"'
_NAME = re.compile(r'^name = "[^"]*"', flags=re.MULTILINE)


def loading_snippets(description: dict[str, Any], name: str) -> list[str]:
    """Return Python blocks that load a folder, each complete by itself.

    Args:
        description: content of ``nestling.json``.
        name: folder or repository named in the blocks.
    """
    # The tokenizer too: it asks the configuration what it belongs to.
    trusted = "" if description["format"] == "native" else ", trust_remote_code=True"
    named = NAME_LINE.format(name=name)
    auto_class = description["auto_class"]
    blocks = [
        f"from transformers import {auto_class}\n\n{named}\n"
        f"model = {auto_class}.from_pretrained(name{trusted})"
    ]
    if not description["has_tokenizer"]:
        return blocks
    blocks[0] = (
        f"from transformers import {auto_class}, AutoTokenizer\n\n{named}\n"
        f"tokenizer = AutoTokenizer.from_pretrained(name{trusted})\n"
        f"model = {auto_class}.from_pretrained(name{trusted})\n"
        'outputs = model(**tokenizer("an example sentence", return_tensors="pt"))'
    )
    if auto_class == "AutoModelForMaskedLM":
        blocks.append(
            f"from transformers import pipeline\n\n{named}\n"
            f'fill = pipeline("fill-mask", model=name{trusted})\n'
            'print(fill(f"an {fill.tokenizer.mask_token} sentence"))'
        )
    if auto_class == "AutoModelForCausalLM":
        blocks.append(
            f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\n{named}\n"
            f"tokenizer = AutoTokenizer.from_pretrained(name{trusted})\n"
            f"model = AutoModelForCausalLM.from_pretrained(name{trusted})\n"
            'prompt = tokenizer("an example", return_tensors="pt", add_special_tokens=False)\n'
            "written = model.generate(**prompt, max_new_tokens=8)\n"
            "print(tokenizer.decode(written[0]))"
        )
    if description["is_encoder"]:
        blocks.append(
            f"from sentence_transformers import SentenceTransformer\n\n{named}\n"
            f"encoder = SentenceTransformer(name{trusted})\n"
            'embeddings = encoder.encode(["one sentence", "another one"])'
        )
    return blocks


def rename_in_snippets(text: str, name: str) -> str:
    """Replace the folder or repository that loading lines name."""
    return _NAME.sub(NAME_LINE.format(name=name), text)
