"""The library: corpus -> tokens -> batches -> checkpoints -> Hugging Face folders."""

__version__ = "0.1.0"
