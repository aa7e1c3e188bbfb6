"""Curation as DCLM does it: steps that drop, rewrite and deduplicate documents, with a reason for each drop."""

from hf_ext.data.curation.baseline import dclm_baseline
from hf_ext.data.curation.classifier import QualityClassifier, fit_quality_classifier
from hf_ext.data.curation.counts import CurationCounts
from hf_ext.data.curation.decontaminate import Decontaminate
from hf_ext.data.curation.deduplication import (
    BloomDeduplication,
    ExactDeduplication,
    MinHashDeduplication,
    deduplicate,
)
from hf_ext.data.curation.drop_ledger import DropLedger
from hf_ext.data.curation.dry_run import dry_run
from hf_ext.data.curation.extract import HtmlToText
from hf_ext.data.curation.fasttext_file import FastTextClassifier
from hf_ext.data.curation.language import LanguageFilter
from hf_ext.data.curation.lines import LineRules
from hf_ext.data.curation.mixing import MixManifest, mix
from hf_ext.data.curation.ngram_index import NGramIndex
from hf_ext.data.curation.packing import PackedSet, pack
from hf_ext.data.curation.pipeline import curate
from hf_ext.data.curation.quality import GopherQuality
from hf_ext.data.curation.quality_filter import QualityFilter, QualityShare, find_cut, load_classifier
from hf_ext.data.curation.remove_urls import RemoveUrls
from hf_ext.data.curation.repetition import GopherRepetition
from hf_ext.data.curation.report import CurationReport
from hf_ext.data.curation.urls import UrlRules
from hf_ext.data.curation.warc import read_warc

__all__ = [
    "BloomDeduplication",
    "CurationCounts",
    "CurationReport",
    "Decontaminate",
    "DropLedger",
    "ExactDeduplication",
    "FastTextClassifier",
    "GopherQuality",
    "GopherRepetition",
    "HtmlToText",
    "LanguageFilter",
    "LineRules",
    "MinHashDeduplication",
    "MixManifest",
    "NGramIndex",
    "PackedSet",
    "QualityClassifier",
    "QualityFilter",
    "QualityShare",
    "RemoveUrls",
    "UrlRules",
    "curate",
    "dclm_baseline",
    "deduplicate",
    "dry_run",
    "find_cut",
    "fit_quality_classifier",
    "load_classifier",
    "mix",
    "pack",
    "read_warc",
]
