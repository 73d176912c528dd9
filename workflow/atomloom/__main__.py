"""Entry point for `python -m atomloom`, the `atomloom` command."""

import sys

from atomloom.cli import main

sys.exit(main())
