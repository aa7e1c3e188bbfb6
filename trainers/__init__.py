"""Trainers, one folder a method. Installed as `hf_ext.trainers`."""

if __name__ != "hf_ext.trainers":
    raise ImportError(
        f"this folder is installed as `hf_ext.trainers`, not as {__name__!r}. Write "
        "`from hf_ext.trainers.flow.trainer import FlowSFTTrainer`; if hf_ext is not installed, run "
        "`pip install -e .`."
    )
