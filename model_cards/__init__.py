"""Card templates. Installed as `hf_ext.model_cards`."""

if __name__ != "hf_ext.model_cards":
    raise ImportError(
        f"this folder is installed as `hf_ext.model_cards`, not as {__name__!r}. Write a card with "
        "`hf_ext.write_model_card`; if hf_ext is not installed, run `pip install -e .`."
    )
