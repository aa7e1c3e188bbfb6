"""Launch scripts and their YAML files, one folder a method. Installed as `hf_ext.recipes`."""

if __name__ != "hf_ext.recipes":
    raise ImportError(
        f"this folder is installed as `hf_ext.recipes`, not as {__name__!r}. Launch a recipe with "
        "`accelerate launch -m hf_ext.recipes.flow.train` or `hf-ext train flow`; if hf_ext is not installed, run "
        "`pip install -e .`."
    )
