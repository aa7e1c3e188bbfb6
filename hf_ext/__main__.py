"""`python -m hf_ext`: the `hf-ext` command, also where the console script is not on the path."""

import sys

from hf_ext.cli import main

sys.exit(main())
