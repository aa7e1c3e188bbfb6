"""Launch InfoPO: on pairs (`train`), on single labelled responses (`unpaired`), in rounds (`online`)."""
