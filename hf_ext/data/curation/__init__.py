"""Curation as DCLM does it: steps that drop, rewrite and deduplicate documents, with a reason for each drop."""
