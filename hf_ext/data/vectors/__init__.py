"""Vectors of rows: by an encoder, kept on disk, or in a column of the dataset."""
