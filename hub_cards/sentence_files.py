"""The files that make an encoder folder a sentence-transformers folder (5.x and 6.x) as well."""

from pathlib import Path

from .complete_folder import write_json


def write_sentence_files(folder: Path, hidden_size: int, max_tokens: int) -> None:
    """Write the pipeline encoder -> mean pooling.

    The older names are used throughout: sentence-transformers 6 maps them, 5 knows no others.

    Args:
        folder: an existing folder with model and tokenizer.
        hidden_size: dimensions of the embedding.
        max_tokens: longer texts are truncated.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_tokens, "do_lower_case": False},
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": True,
        },
    )
