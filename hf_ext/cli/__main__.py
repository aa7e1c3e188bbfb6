"""`python -m hf_ext.cli`: the `hf-ext` command."""

import sys

from hf_ext.cli import main

sys.exit(main())
