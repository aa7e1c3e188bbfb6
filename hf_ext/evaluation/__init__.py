"""What a run learned and what it forgot: measurements and reports."""

from hf_ext.method import Method, Paper

METHODS = (
    Method(
        name="forgetting",
        summary="what tuned models learned and what they forgot, against the original model",
        commands=("eval forgetting",),
    ),
    Method(
        name="wise_ft",
        summary="the model between a tuned one and its original: no training, an alpha picked by KL",
        commands=("eval wise-ft",),
        paper=Paper(title="Robust fine-tuning of zero-shot models", id="2109.01903", citation=""),
    ),
    Method(
        name="preference",
        summary="how tuning changed the likelihood of chosen and rejected responses",
        commands=("eval preference",),
    ),
    Method(
        name="core",
        summary="DCLM's CORE: centred accuracy of a language model on up to 22 tasks, with errors",
        commands=("eval core",),
        paper=Paper(
            title="DataComp-LM: In search of the next generation of training sets for language models",
            id="2406.11794",
            citation="",
        ),
    ),
)
