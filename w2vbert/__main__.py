"""`python -m w2vbert`."""

import sys

from w2vbert.cli import main

sys.exit(main())
