"""What a run learned and what it forgot: measurements and reports."""

from hf_ext.method import Method

METHODS = (
    Method(
        name="forgetting",
        summary="what tuned models learned and what they forgot, against the original model",
        commands=("eval forgetting",),
    ),
    Method(
        name="preference",
        summary="how tuning changed the likelihood of chosen and rejected responses",
        commands=("eval preference",),
    ),
)
