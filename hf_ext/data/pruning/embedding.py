"""The place of [`~hf_ext.data.vectors.embedding`] in earlier versions; gone in the next one."""

from hf_ext.data.vectors.embedding import EmbedBatches, EmbedRows, embed_rows

__all__ = ["EmbedBatches", "EmbedRows", "embed_rows"]
