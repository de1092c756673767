"""Run the command line: `python -m tcurlora`."""

import sys

from tcurlora.cli import main

sys.exit(main())
