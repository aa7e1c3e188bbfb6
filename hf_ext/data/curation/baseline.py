"""The chain of DCLM-Baseline, as a tuple of steps for [`~hf_ext.data.curation.pipeline.curate`]."""

from __future__ import annotations

from hf_ext.data.curation.deduplication.bloom import BloomDeduplication
from hf_ext.data.curation.extract import HtmlToText
from hf_ext.data.curation.language import LanguageFilter
from hf_ext.data.curation.lines import LineRules
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.remove_urls import RemoveUrls
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.data.curation.steps import Step
from hf_ext.data.curation.urls import UrlRules


def dclm_baseline(
    *,
    extract: bool = False,
    domains: str | None = None,
    strict_words: str | None = None,
    hard_words: str | None = None,
    soft_words: str | None = None,
    language: str | None = "en",
    bloom: BloomDeduplication | None = None,
    classifier: Step | None = None,
    replicate_bugs: bool = False,
) -> tuple[Step, ...]:
    """
    The steps of DCLM-Baseline, in its order.

    Extraction, rules on the address, addresses out of the text, language, Gopher's rules of quality and repetition,
    rules on lines, duplicates, and the share that a classifier scores highest. What a set has no use for is left out:
    documents that are texts already need no extraction, and without a list there are no rules on the address.

    Args:
        extract (`bool`, *optional*, defaults to `False`):
            Whether the documents are pages of HTML, as [`read_warc`] gives them.
        domains, strict_words, hard_words, soft_words (`str`, *optional*):
            Files with a line each, for [`UrlRules`]. None is shipped.
        language (`str`, *optional*, defaults to `"en"`):
            Of the documents that stay; `None`: any. Needs `hf-ext[fasttext]`.
        bloom ([`BloomDeduplication`], *optional*):
            How text that earlier documents have is found; `BloomDeduplication()` is DCLM's. Without it none is.
        classifier ([`Step`], *optional*):
            The last step, such as `QualityShare(classifier=..., keep_share=0.1)`.
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            Whether each step does what DCLM's does to the letter.

    Returns:
        `tuple[Step, ...]`: for [`curate`].

    Reference: Li et al. 2024, *DataComp-LM: In search of the next generation of training sets for language models*
    (arXiv 2406.11794), section 4.
    """
    steps: list[Step] = [HtmlToText(replicate_bugs=replicate_bugs)] if extract else []
    if any(path is not None for path in (domains, strict_words, hard_words, soft_words)):
        rules = UrlRules(
            domains=domains,
            strict_words=strict_words,
            hard_words=hard_words,
            soft_words=soft_words,
            replicate_bugs=replicate_bugs,
        )
        steps.append(rules)
    steps.append(RemoveUrls(replicate_bugs=replicate_bugs))
    if language is not None:
        steps.append(LanguageFilter(language=language, replicate_bugs=replicate_bugs))
    steps += [GopherQuality(), GopherRepetition(), LineRules(replicate_bugs=replicate_bugs)]
    return (*steps, *(step for step in (bloom, classifier) if step is not None))
