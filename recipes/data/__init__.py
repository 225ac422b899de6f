"""Text in, packed rows out: sources, tokenizer, packing, preparation and streaming."""
