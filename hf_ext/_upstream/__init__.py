"""The only place that touches a private name of trl, transformers, sentence-transformers or peft: a file a host."""
