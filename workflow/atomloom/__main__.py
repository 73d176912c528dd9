"""`python -m atomloom` is the `atomloom` command."""

import sys

from atomloom.cli import main

sys.exit(main())
